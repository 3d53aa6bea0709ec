"""The bytes of an attached volume: read and written by its block path, and by its URIs through QEMU's block layer.

Nothing is kept in a cache of this host on the way, so that each way sees what the storage has.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets as random_secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from hvext.core.answer import Attachment
from hvext.core.secret import Secret
from hvext.core.uri import Location, parse_uri
from hvext.core.uri.file import FileLocation, Opened
from hvext.core.uri.location import Companions, PrivateFile, props
from hvext.core.value import value_object
from hvext.errors import InputError, ProgramError
from hvext.host import qemu_img, qemu_io
from hvext.host.files import opened_as, private_folder
from hvext.host.private import remove_private, write_private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MIB = 1 << 20
#: What is written at each place: more than any sector, less than a stripe.
PIECE = 64 * 1024
_BLKFLSBUF = 0x1261
_LIMIT_S = 60.0
_NO_SECRETS: Mapping[str, Secret] = {}
#: What QEMU says when its packages lack the driver: nothing about the provider.
_NO_DRIVER = ("Unknown driver", "Unknown protocol")


@value_object
class Way:
    """One way to the bytes: ``name`` for people (``path``, ``URI``, ``URI 2``), ``words`` without secrets."""

    name: str
    words: str
    location: Location

    @property
    def is_path(self) -> bool:
        """Whether it is the block path."""
        return self.name == "path"


def ways(
    attachment: Attachment, secrets: Mapping[str, Secret] = _NO_SECRETS
) -> tuple[tuple[Way, ...], tuple[str, ...]]:
    """Return the ways that an answer offers, the path first, and why URIs of it are none.

    ``secrets``, by role, are given to URIs that can have one and bring none, as hvext does.

    A URI that cannot be read is left out without a word: a check of its own is about that.
    """
    found = []
    skipped = []
    if attachment.block_path is not None:
        place = FileLocation(path=attachment.block_path, opened=Opened.HOST_DEVICE)
        found.append(Way(name="path", words=attachment.block_path, location=place))
    uris = attachment.uris_for("kvm")
    for number, uri in enumerate(uris, start=1):
        try:
            location = parse_uri(uri, look=opened_as).with_secrets(secrets)
        except InputError:
            continue
        if not location.block_node:
            skipped.append(f"{location.words}: not read or written, only a guest can ({location.driver})")
            continue
        name = "URI" if len(uris) == 1 else f"URI {number}"
        found.append(Way(name=name, words=location.words, location=location))
    return tuple(found), tuple(skipped)


def has_uri(attachment: Attachment) -> bool:
    """Return whether there is a kvm: URI to look at: one that QEMU opens as a block node, or one that is wrong."""
    for uri in attachment.uris_for("kvm"):
        try:
            if parse_uri(uri, look=opened_as).block_node:
                return True
        except InputError:
            return True
    return False


def size_mib(way: Way) -> float:
    """Return how large a volume is when it is opened this way now; raises ProgramError."""
    if not way.is_path:
        with _opened(way, write=False) as (node, objects):
            return qemu_img.size_bytes(node, objects, limit_s=_LIMIT_S) / MIB
    try:
        with _descriptor(way, os.O_RDONLY) as (descriptor, _direct):
            return os.lseek(descriptor, 0, os.SEEK_END) / MIB
    except OSError as error:
        raise ProgramError(f"cannot open {way.words}: {error.strerror}") from error


def identity(way: Way) -> str:
    """Return what tells a block path's device from a later one of the same name; empty for a URI.

    Source: Linux, Documentation/ABI/stable/sysfs-block, "diskseq" (since 5.15).
    """
    if not way.is_path:
        return ""
    try:
        number = Path(way.words).stat().st_rdev
    except OSError:
        return "gone"
    with contextlib.suppress(OSError):
        return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/diskseq").read_text()
    return str(number)


def write(way: Way, byte: int, of_mib: int) -> None:
    """Write a byte all over three places of a volume: its begin, its middle, its end; raises ProgramError."""
    if not way.is_path:
        with _opened(way, write=True) as (node, objects):
            qemu_io.write_pattern(node, objects, places(of_mib), PIECE, byte, limit_s=_LIMIT_S)
        return
    try:
        with _descriptor(way, os.O_RDWR) as (descriptor, _direct), mmap.mmap(-1, PIECE) as buffer:
            buffer[:] = bytes([byte]) * PIECE
            for place in places(of_mib):
                if os.pwritev(descriptor, [buffer], place) != PIECE:
                    raise ProgramError(f"{way.words} took less than was written, at byte {place}")
            os.fsync(descriptor)
    except OSError as error:
        raise ProgramError(f"cannot write to {way.words}: {error.strerror}") from error


def differences(way: Way, byte: int, of_mib: int) -> tuple[int, ...]:
    """Return which of the places do not hold what was written, as bytes from the begin; raises ProgramError."""
    if not way.is_path:
        with _opened(way, write=False) as (node, objects):
            return qemu_io.differences(node, objects, places(of_mib), PIECE, byte, limit_s=_LIMIT_S)
    wrong = []
    try:
        with _descriptor(way, os.O_RDONLY) as (descriptor, direct), mmap.mmap(-1, PIECE) as buffer:
            if not direct:
                fcntl.ioctl(descriptor, _BLKFLSBUF, 0)
            for place in places(of_mib):
                got = os.preadv(descriptor, [buffer], place)
                if got != PIECE or buffer[:] != bytes([byte]) * PIECE:
                    wrong.append(place)
    except OSError as error:
        raise ProgramError(f"cannot read {way.words}: {error.strerror}") from error
    return tuple(wrong)


@contextlib.contextmanager
def held(way: Way, folder: Path) -> Iterator[Callable[[], str]]:
    """Keep a volume open this way while the block runs, as a guest does; raises ProgramError when it cannot be opened.

    Yields what reads once more and returns why that failed, or nothing. ``folder`` is for what a program prints.
    """
    if not way.is_path:
        log = folder / f"held-{random_secrets.token_hex(6)}"
        with _opened(way, write=False) as (node, objects), qemu_io.holding(node, objects, PIECE, log) as failure:
            yield failure
        return
    try:
        with _descriptor(way, os.O_RDONLY) as (descriptor, direct), mmap.mmap(-1, PIECE) as buffer:
            yield lambda: _unreadable(descriptor, buffer, direct=direct)
    except OSError as error:
        raise ProgramError(f"cannot open {way.words}: {error.strerror}") from error


def _unreadable(descriptor: int, buffer: mmap.mmap, *, direct: bool) -> str:
    try:
        if not direct:
            fcntl.ioctl(descriptor, _BLKFLSBUF, 0)
        got = os.preadv(descriptor, [buffer], 0)
    except OSError as error:
        return error.strerror or str(error)
    return "" if got == PIECE else f"there are {got} bytes at its begin, not {PIECE}"


def places(of_mib: int) -> tuple[int, int, int]:
    """Return where is written: the begin, the middle and the end of so many MiB."""
    end = of_mib * MIB
    return 0, end // 2 // PIECE * PIECE, end - PIECE


def lacks_driver(error: ProgramError) -> bool:
    """Return whether QEMU could not open something only because its packages lack the driver, or are not there."""
    return any(words in error.message for words in _NO_DRIVER) or bool(error.hint and "package" in error.hint)


@contextlib.contextmanager
def _descriptor(way: Way, flags: int) -> Iterator[tuple[int, bool]]:
    """Open a block path past the page cache, where that is possible."""
    direct = True
    try:
        descriptor = os.open(way.words, flags | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        direct = False
        descriptor = os.open(way.words, flags | os.O_CLOEXEC)
    try:
        yield descriptor, direct
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _opened(way: Way, *, write: bool) -> Iterator[tuple[Mapping[str, Any], list[dict[str, object]]]]:
    """Yield the node and the objects with which QEMU opens a URI; secrets are in private files, for as long."""
    name = f"sanity-{random_secrets.token_hex(6)}"
    beside = Companions(node="sanity", folder=f"{private_folder()}/{name}")
    needs = way.location.needs(beside)
    files = list(needs.files)
    objects = []
    for item in needs.objects:
        shown = dict(item)
        data = shown.pop("data", None)
        if isinstance(data, Secret):
            path = f"{beside.folder}/{item['id']}"
            files.append(PrivateFile(path=path, text=data))
            shown["file"] = path
        elif data is not None:
            shown["data"] = data
        objects.append(shown)
    node = {
        **props(way.location, beside),
        "read-only": not write,
        "cache": {"direct": not way.location.buffered_only, "no-flush": False},
    }
    try:
        write_private(files)
        yield node, objects
    finally:
        remove_private(name)
