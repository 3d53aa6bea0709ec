"""qemu-img on this host: how large storage is, what of it holds data, and how fast QEMU's block layer gets these.

Source: qemu-img(1), "info", "map" and "bench".
"""

from __future__ import annotations

import json
import os
import re
import resource
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hvext.core.uri.mask import masked
from hvext.core.value import value_object
from hvext.errors import ProgramError
from hvext.host import process

_PROGRAM = "qemu-img"
_INSTALL = "Debian package qemu-utils"


@value_object
class Benched:
    """What a run took: ``seconds`` for its requests alone, processor seconds for the whole program."""

    count: int
    seconds: float
    cpu_s: float


def qemu_version() -> str:
    """Return the version of the installed qemu-img; raises ProgramError."""
    return _run(["--version"], 30).split("\n", 1)[0].rpartition("version ")[2].strip()


def size_bytes(node: Mapping[str, Any], objects: Sequence[Mapping[str, Any]], *, limit_s: float = 60.0) -> int:
    """Return the size of what a node opens; raises ProgramError. ``objects`` have no secrets in them."""
    printed = _run(["info", *_objects(objects), "--output=json", "-U", _filename(node)], limit_s)
    return int(json.loads(printed)["virtual-size"])


def data_bytes(node: Mapping[str, Any], objects: Sequence[Mapping[str, Any]], *, limit_s: float) -> int:
    """Return how much of what a node opens holds data, as far as the storage says; all of it where it says nothing.

    Holes, and zeroes that are known to be some without being read, are no data. Raises ProgramError, also where it
    takes longer. ``objects`` have no secrets in them.
    """
    found, rest = 0, b""

    def take(name: str, chunk: bytes) -> None:
        nonlocal found, rest
        if name == "stdout":
            # An extent is a line: of storage in pieces there are too many to keep.
            *lines, rest = (rest + chunk).split(b"\n")
            found += sum(map(_data_of, lines))

    _run(["map", *_objects(objects), "--output=json", "-U", _filename(node)], limit_s, on_output=take)
    return found + _data_of(rest)


def _data_of(line: bytes) -> int:
    text = line.strip(b"[], \r")
    if not text:
        return 0
    extent = json.loads(text)
    return int(extent["length"]) if extent["data"] and not extent["zero"] else 0


def bench(
    node: Mapping[str, Any],
    *,
    count: int,
    depth: int,
    block_bytes: int,
    step_bytes: int,
    offset_bytes: int,
    write: bool,
    flush_every: int,
    limit_s: float,
) -> Benched:
    """Send so many requests of one size, ``depth`` at a time, each ``step_bytes`` behind the one before it.

    They go round at the node's end. With ``flush_every`` the writes under way are waited for and flushed after so
    many. qemu-img bench takes no objects, so the node must need none. Raises ProgramError.
    """
    words = ["bench", "-c", str(count), "-d", str(depth), "-s", str(block_bytes)]
    words += ["-S", str(step_bytes), "-o", str(offset_bytes), "-t", "none"]
    words += ["-w"] if write else ["-U"]
    words += [f"--flush-interval={flush_every}"] if flush_every else []
    before = _children_s()
    printed = _run([*words, _filename(node)], limit_s)
    used = _children_s() - before
    found = re.search(r"Run completed in ([0-9.]+) seconds", printed)
    if found is None:
        raise ProgramError(f"{_PROGRAM} bench did not say how long it took: {printed.strip()[-300:]}")
    return Benched(count=count, seconds=float(found[1]), cpu_s=used)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _objects(objects: Sequence[Mapping[str, Any]]) -> list[str]:
    return [word for item in objects for word in ("--object", json.dumps(dict(item)))]


def _filename(node: Mapping[str, Any]) -> str:
    return "json:" + json.dumps(dict(node))


def _run(words: Sequence[str], limit_s: float, on_output: Callable[[str, bytes], None] | None = None) -> str:
    env = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
    try:
        done = process.run([_PROGRAM, *words], env=env, timeout_s=limit_s, on_output=on_output)
    except ProgramError as error:
        raise ProgramError(error.message, hint=_INSTALL) from error
    if done.timed_out:
        raise ProgramError(f"{_PROGRAM} {words[0]} did not end within {limit_s:g} s", hint="does the storage answer?")
    if done.status:
        said = " ".join(done.stderr.decode(errors="replace").replace(words[-1], "").split())
        raise ProgramError(f"{_PROGRAM} {words[0]}: {masked(said)[-600:]}")
    return done.stdout.decode(errors="replace")
