"""The command that says all that is known of a guest's disks."""

from __future__ import annotations

import argparse
import contextlib
import uuid as uuid_module
from collections.abc import Mapping

from hvext.cli.arguments import provider_host
from hvext.cli.output import place_text, print_json, print_table, print_warnings, reporter, size_text
from hvext.core.moment import local_text
from hvext.core.observation import ObservedDisk, ObservedVm, Oddity
from hvext.core.statistics import Kind, Requests
from hvext.host import interrupts
from hvext.host.qmp import CONNECT_TIMEOUT_S
from hvext.operations.observe import observe
from hvext.operations.vm import open_vm_async
from hvext.operations.whose import end_told

#: Why a guest stands still.
_STILL = (Oddity.FULL, Oddity.FAILED, Oddity.STUCK)


def disks_listed(arguments: argparse.Namespace) -> int:
    """Print the disks of a guest, or all that is known of each of them."""
    seen = interrupts.run(_seen(arguments))
    none = "the guest has no disks of hvext"
    if arguments.json:
        print_json([disk.to_json() for disk in seen.disks])
    elif arguments.stats or arguments.places:
        print_in_depth(seen, none=none)
    else:
        _print_list(seen, none=none)
    return 0


def _print_list(seen: ObservedVm, *, none: str) -> None:
    """Print the disks that QEMU has, and what has stopped the guest."""
    rows = []
    for disk in seen.disks:
        if disk.running is not None:
            row = disk.running.to_json()
            size = size_text(disk.running.root.size_bytes if disk.running.root else None)
            volume = disk.record.words if disk.record else "-"
            place = place_text(row["uri"] or row["filename"])
            model, driver = str(row["model"] or "(no device)"), str(row["driver"] or "-")
            rows.append((volume, str(disk.uuid), model, size, driver, place))
    if rows:
        print_table(("VOLUME", "DISK", "DEVICE", "SIZE", "DRIVER", "LOCATION"), rows)
    else:
        print(none)
    still = [f"{disk.volume}: {each.words}" for disk in seen.disks for each in disk.warnings if each.oddity in _STILL]
    print_warnings([*still, *([seen.words] if seen.words else [])])


def print_in_depth(
    seen: ObservedVm, *, none: str, views: Mapping[uuid_module.UUID, Mapping[str, object]] | None = None
) -> None:
    """Print what is known of each disk of a guest for people; ``none`` is said of one without disks.

    ``views`` tell of disks of a domain as libvirt has them.
    """
    print(f"VM {seen.name}: {seen.state}")
    if seen.asked and seen.words:
        print(seen.words)
    if not seen.disks:
        print(none)
    for disk in seen.disks:
        print()
        for line in disk_lines(disk, (views or {}).get(disk.uuid)):
            print(line)


async def _seen(arguments: argparse.Namespace) -> ObservedVm:
    limit_s = arguments.qmp_timeout
    opening = open_vm_async(
        arguments.qmp,
        host=provider_host(arguments),
        timeout_s=limit_s,
        connect_timeout_s=min(limit_s, CONNECT_TIMEOUT_S),
        report=reporter(verbose=arguments.verbose),
        name=arguments.vm,
    )
    async with contextlib.AsyncExitStack() as stack:
        with end_told(arguments.qmp):
            vm = await stack.enter_async_context(opening)
        return await observe(vm, places=arguments.places)


def disk_lines(disk: ObservedDisk, view: Mapping[str, object] | None = None) -> list[str]:
    """Return what is known of a disk, for people; ``view`` is how libvirt has it, also while it does not run."""
    running = disk.running.to_json() if disk.running else view or {}
    size = size_text(disk.running.root.size_bytes if disk.running and disk.running.root else None)
    lines = [f"{disk.volume}  {running.get('model') or '(no device)'}  {size}", _row("disk", str(disk.uuid))]
    where = place_text(running.get("uri") or running.get("filename"))
    if view:
        lines.append(_row("target", f"{view['target']}, in {view['views']}"))
        if not disk.access:
            lines.append(_row("location", where))
    if disk.access:
        began = f", since {local_text(disk.since)}" if disk.since is not None else ""
        away = ", after a failover" if disk.record and disk.record.failed_over else ""
        lines.append(_row("access", f"{disk.access} {where}{began}{away}"))
    lines += [_row(str(kind), _requests(each)) for kind, each in _counted(disk)]
    if disk.in_flight is not None:
        lines.append(_row("in flight", str(disk.in_flight)))
    if disk.throttle:
        limits = disk.to_json()["throttle"] or {}
        assert isinstance(limits, dict)  # noqa: S101
        lines.append(_row("throttle", ", ".join(f"{name}={value}" for name, value in limits.items()) or "no limits"))
    if disk.pending:
        step = f", at step {disk.pending.step!r}" if disk.pending.step else ""
        since_words = f", since {local_text(disk.pending.since)}" if disk.pending.since else ""
        lines.append(_row("pending", f"{disk.pending.operation}: {disk.pending.state}{step}{since_words}"))
    if disk.offered:
        lines += [_row("place", words) for words in _places(disk)]
    return lines + [_row("note" if each.note else "warning", each.words) for each in disk.warnings]


def _counted(disk: ObservedDisk) -> list[tuple[Kind, Requests]]:
    """Return the kinds of requests that there have been; reads and writes in any case."""
    if disk.counts is None:
        return []
    always = (Kind.READ, Kind.WRITE)
    told = disk.counts.kinds.items()
    return [(kind, each) for kind, each in told if kind in always or each.completed or each.failed or each.invalid]


def _requests(each: Requests) -> str:
    parts = [str(each.completed)]
    if each.bytes:
        parts.append(f"{each.bytes / (1 << 20):.1f} MiB")
    if each.latency_s is not None:
        parts.append(f"{each.latency_s * 1000:.2f} ms each")
    if each.failed or each.invalid:
        parts.append(f"{each.failed} failed, {each.invalid} invalid")
    return ", ".join(parts)


def _places(disk: ObservedDisk) -> list[str]:
    assert disk.offered is not None  # noqa: S101
    if disk.offered.error:
        return [f"not known: {disk.offered.error}"]
    found = []
    for place in disk.offered.places:
        health = place.health
        state = "not looked at" if health is None else str(health.state)
        why = f": {health.words}" if health and health.words else ""
        found.append(f"{place.access} {place.where}: {state}{why}")
    return found


def _row(name: str, words: str) -> str:
    return f"  {name:<10}{words}"
