"""The ways to a volume that are measured: what its provider offers, and what can be made from the block path.

A *made* access shows what another transport in front of the same storage would cost; nobody has to choose it.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hvext.bench.result import MeasuredAccess
from hvext.core.access import Access, Choice
from hvext.core.options import DeviceModel, DiskOptions
from hvext.core.uri import Location, parse_uri
from hvext.core.uri.file import FileLocation, Opened
from hvext.core.value import replace
from hvext.errors import InputError, ProgramError
from hvext.host import process
from hvext.host.machine import start_storage_daemon


class Made(StrEnum):
    """What can be made from a block path."""

    LOOP = "loop"
    NBD = "nbd"
    VHOST_USER = "vhost-user-blk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One way to the volume: what is shown of it, where it is, and the options it is opened with.

    ``device`` is the device that it always is in a guest; None for the one that is measured.
    """

    access: MeasuredAccess
    location: Location
    options: DiskOptions
    device: DeviceModel | None = None

    @property
    def name(self) -> str:
        """Its name in tables."""
        return self.access.name


def offered(choice: Choice, options: DiskOptions) -> list[Place]:
    """Return the places that a provider offers, the block path first, each with the cache that a disk has there."""
    places = []
    uris = [candidate for candidate in choice.candidates if candidate.access is Access.USERSPACE]
    for candidate in sorted(choice.candidates, key=lambda candidate: candidate.access is Access.USERSPACE):
        if candidate.access is Access.KERNELSPACE:
            name = "path"
        else:
            name = (
                candidate.location.driver if len(uris) == 1 else f"{candidate.location.driver}{uris.index(candidate)}"
            )
        wished = replace(options, cache=choice.options_at(candidate.location, options).cache)
        places.append(place(name, str(candidate.access), candidate.text, candidate.location, wished))
    return places


def place(
    name: str, kind: str, words: str, location: Location, options: DiskOptions, *, device: DeviceModel | None = None
) -> Place:
    """Return a way to the volume with what is shown of it."""
    shown = {key: str(value) for key, value in options.to_mapping().items()}
    access = MeasuredAccess(name=name, kind=kind, words=words, options=shown)
    return Place(access=access, location=location, options=options, device=device)


@contextlib.contextmanager
def made(kinds: Sequence[Made], path: str | None, options: DiskOptions) -> Iterator[list[Place]]:
    """Make accesses from a block path for the time of the block; nothing of them is left.

    Raises InputError when there is no path, ProgramError when something cannot be made.
    """
    if kinds and path is None:
        raise InputError("the provider offers no block path to make others from", hint="leave --made out")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_MAKERS[kind](str(path), options)) for kind in kinds]


@contextlib.contextmanager
def _loop(path: str, options: DiskOptions) -> Iterator[Place]:
    read_only = ["--read-only"] if options.read_only else []
    device = _losetup("--find", "--show", "--direct-io=on", *read_only, path)
    try:
        yield place(
            "loop", "made", f"{device} on {path}", FileLocation(path=device, opened=Opened.HOST_DEVICE), options
        )
    finally:
        _losetup("--detach", device)


def _losetup(*words: str) -> str:
    done = process.run(["losetup", *words], env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, timeout_s=30)
    if done.status:
        raise ProgramError(f"losetup {' '.join(words)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode().strip()


@contextlib.contextmanager
def _nbd(path: str, options: DiskOptions) -> Iterator[Place]:
    with _served(path, options, "nbd") as socket:
        location = parse_uri(f"nbd+unix:///bench?socket={socket}")
        yield place("nbd (made)", "made", f"nbd in front of {path}", location, options)


@contextlib.contextmanager
def _vhost_user(path: str, options: DiskOptions) -> Iterator[Place]:
    with _served(path, options, "vhost-user-blk") as socket:
        location = parse_uri(f"vhost-user:{socket}")
        # What is behind vhost-user is opened by its server: QEMU has no node, and no option of one.
        plain = DiskOptions(device=options.device)
        yield place("vhost-user-blk (made)", "made", f"vhost-user-blk in front of {path}", location, plain)


_MAKERS = {Made.LOOP: _loop, Made.NBD: _nbd, Made.VHOST_USER: _vhost_user}


@contextlib.contextmanager
def _served(path: str, options: DiskOptions, kind: str) -> Iterator[str]:
    """Serve a block path by a storage daemon of its own; yield the socket."""
    node = {
        "driver": "host_device",
        "node-name": "served",
        "filename": path,
        "cache": {"direct": True, "no-flush": False},
        "aio": str(options.aio or "threads"),
        "read-only": bool(options.read_only),
        # The same volume is opened once more where it is measured by its path.
        "locking": "off",
    }
    with tempfile.TemporaryDirectory(prefix="hvext-bench-") as folder:
        socket = f"{folder}/s"
        writable = "off" if options.read_only else "on"
        words = ["--object", "iothread,id=io0", "--blockdev", json.dumps(node)]
        if kind == "nbd":
            words += ["--nbd-server", f"addr.type=unix,addr.path={socket},max-connections=0"]
            words += ["--export", f"type=nbd,id=e,node-name=served,name=bench,writable={writable}"]
        else:
            export = f"type=vhost-user-blk,id=e,node-name=served,addr.type=unix,addr.path={socket}"
            words += ["--export", f"{export},writable={writable},num-queues=1"]
        with start_storage_daemon(words, Path(folder), name="made"):
            yield socket
