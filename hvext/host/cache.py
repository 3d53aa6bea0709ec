"""Answers that are kept between runs, each for as long as the files it was made from stay as they are."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping

#: Kept answers are worth as much as the files they are about: only their owner may write them.
_FOLDER_MODE = 0o700
#: Size in bytes and time of the last change.
_Stamp = tuple[int, int]
#: What this process has read: an answer is large, and hundreds of guests of one QEMU ask for the same.
_read: dict[str, tuple[_Stamp, dict[str, _Stamp], object]] = {}


def folder() -> str:
    """Return where answers are kept: ``$XDG_CACHE_HOME/hvext``, else root's or the user's own folder.

    Source: XDG Base Directory Specification, which has relative paths ignored.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    if given.startswith("/"):
        return os.path.join(given, "hvext")
    return "/var/cache/hvext" if os.geteuid() == 0 else os.path.expanduser("~/.cache/hvext")


def kept(name: str) -> object | None:
    """Return the answer kept under a name; None when there is none, it cannot be read, or its files have changed.

    As long as it has not, it is the same object each time.
    """
    try:
        path = _path(name)
        if not (_trusted(path) and _trusted(folder())):
            return None
        written = _stamp(path)
        known = _read.get(path)
        if known is None or known[0] != written:
            with open(path, encoding="utf-8") as file:
                entry = json.loads(file.read())
            stamps = {str(each): (int(size), int(changed)) for each, (size, changed) in entry["files"].items()}
            known = (written or (0, 0), stamps, entry["answer"])
            _read[path] = known
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return known[2] if all(_stamp(file) == stamp for file, stamp in known[1].items()) else None


def keep(name: str, answer: object, files: Iterable[str]) -> None:
    """Keep an answer (JSON) until one of ``files`` changes, goes or comes; a folder that cannot be written is no error.

    ``files`` may name folders too: they change when something in them is added, replaced or removed.
    """
    stamps = {path: _stamp(path) for path in sorted(files)}
    if None not in stamps.values():
        _write(name, answer, stamps)


def keep_beside(other: str, name: str, answer: object) -> None:
    """Keep an answer for as long as the one under the name ``other`` is; not at all where there is none."""
    if kept(other) is not None:
        _write(name, answer, _read[_path(other)][1])


def _write(name: str, answer: object, stamps: Mapping[str, _Stamp | None]) -> None:
    # Most often everything is kept already, and this loads half of the library.
    import tempfile

    text = json.dumps({"files": stamps, "answer": answer}, separators=(",", ":"))
    with contextlib.suppress(OSError, RuntimeError):
        place = folder()
        os.makedirs(place, mode=_FOLDER_MODE, exist_ok=True)
        # Whoever reads at the same time sees the old answer or the new one.
        number, new = tempfile.mkstemp(prefix=f"{name}.", dir=place)
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(new, _path(name))
        except OSError:
            os.unlink(new)
            raise


def mapped_files(pid: int) -> frozenset[str]:
    """Return the paths of the program, libraries and modules that a process of ours runs; none when it is gone.

    One that was replaced since then has a path that does not exist. Source: proc(5), /proc/pid/maps.
    """
    try:
        with open(f"/proc/{pid}/maps", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return frozenset()
    # Address, permissions, offset, device, inode and, for a file, its path.
    mappings = [line.split(maxsplit=5) for line in lines]
    return frozenset(each[5] for each in mappings if len(each) == 6 and "x" in each[1] and each[5].startswith("/"))


def _path(name: str) -> str:
    return f"{folder()}/{name}.json"


def _trusted(path: str) -> bool:
    """Whether nobody but root and this user can have written it."""
    found = os.stat(path)
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022


def _stamp(path: str) -> _Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
