"""The node graph of a disk: the guest's device, the nodes below it, the storage in use, and where else it could be.

Drawn as boxes in HTML, which a narrow screen puts one below the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from hvext.core.observation import ObservedDisk, Place
from hvext.core.running import RunningDisk


def drawn(disk: ObservedDisk) -> str:
    """Return the graph of a disk, or a sentence where QEMU has none of it."""
    running = disk.running
    if running is None or running.device is None:
        return '<p class="muted">QEMU has no device of this disk, or could not be asked.</p>'
    boxes = "".join(_chain(disk, running))
    elsewhere = "".join(_place(place) for place in _elsewhere(disk))
    others = f'<div class="others">{elsewhere}</div>' if elsewhere else ""
    loose = ""
    if running.leftovers:
        names = ", ".join(f"<code>{escape(name)}</code>" for name in running.leftovers)
        loose = f'<p class="muted">Beside these, of an interrupted operation: {names}. hvext recover removes them.</p>'
    return f'<div class="graph">{boxes}{others}</div>{loose}'


def _chain(disk: ObservedDisk, running: RunningDisk) -> Iterator[str]:
    yield _box("guest device", str(running.model), str(running.device))
    if running.behind_vhost_user:
        yield _box("storage in use", "vhost-user", running.socket or str(running.chardev), access="userspace")
        return
    if running.throttle is not None:
        yield _box("limits", "throttle", running.throttle.name)
    if running.root is not None:
        yield _box("stays on a move", running.root.driver, running.root.name)
    node = running.protocol
    if node is not None:
        cache = "past the page cache" if node.direct else "through a cache"
        words = f"{node.driver}, {cache}"
        yield _box("storage in use", words, node.where, access=disk.access or "", name=node.name)


def _box(title: str, words: str, text: str, *, access: str = "", name: str = "") -> str:
    badge = f' <span class="badge {access}">{access}</span>' if access else ""
    below = f"<small>{escape(name)}</small>" if name else ""
    return (
        f'<div class="box{" in-use" if access else ""}"><b>{escape(title)}{badge}</b><span>{escape(words)}</span>'
        f"<code>{escape(text)}</code>{below}</div>"
    )


def _elsewhere(disk: ObservedDisk) -> list[Place]:
    """Return the places where the disk is not now."""
    if disk.offered is None or disk.running is None:
        return []
    node = disk.running.protocol
    return [place for place in disk.offered.places if node is None or place.where != node.where]


def _place(place: Place) -> str:
    state = "" if place.health is None else str(place.health.state)
    words = "" if place.health is None else place.health.words
    badge = f' <span class="badge {"good" if state == "healthy" else "bad"}">{state}</span>' if state else ""
    below = f"<small>{escape(words)}</small>" if words else ""
    return (
        f'<div class="box other"><b>could be at{badge}</b><span>{escape(place.access)}</span>'
        f"<code>{escape(place.where)}</code>{below}</div>"
    )
