"""qemu-io on this host: patterns are written to what a block node opens, and looked for in it, or it is kept open.

Source: ``qemu-io --help``, "write" and "read".
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hvext.core.uri.mask import masked
from hvext.errors import ProgramError
from hvext.host import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PROGRAM = "qemu-io"
_INSTALL = "Debian package qemu-utils"
_WRONG = r"Pattern verification failed at offset (\d+)"
#: How often one that keeps a node open reads, for how long in all, and how long one read may take.
_PAUSE_MS = 100
_HELD_S = 150
_READ_LIMIT_S = 10.0


def write_pattern(
    node: Mapping[str, Any],
    objects: Sequence[Mapping[str, Any]],
    offsets: Sequence[int],
    length: int,
    byte: int,
    *,
    limit_s: float,
) -> None:
    """Write a byte ``length`` times at each offset, and flush; may be repeated. Raises ProgramError.

    ``objects`` are ``object-add`` arguments without secrets in them: a secret is named by its file.
    """
    commands = [f"write -q -P {byte} {offset} {length}" for offset in offsets]
    said, status = _run([], node, objects, [*commands, "flush"], limit_s)
    if status or said:
        raise ProgramError(f"{_PROGRAM} cannot write: {said or f'exit status {status}'}")


def differences(
    node: Mapping[str, Any],
    objects: Sequence[Mapping[str, Any]],
    offsets: Sequence[int],
    length: int,
    byte: int,
    *,
    limit_s: float,
) -> tuple[int, ...]:
    """Return the offsets at which there is not ``length`` times that byte; nothing is locked. Raises ProgramError."""
    commands = [f"read -q -P {byte} {offset} {length}" for offset in offsets]
    said, status = _run(["-r", "-U"], node, objects, commands, limit_s)
    wrong = {int(offset) for offset in re.findall(_WRONG, said)}
    if not wrong and (status or said):
        raise ProgramError(f"{_PROGRAM} cannot read: {said or f'exit status {status}'}")
    return tuple(offset for offset in offsets if offset in wrong)


@contextlib.contextmanager
def holding(
    node: Mapping[str, Any], objects: Sequence[Mapping[str, Any]], length: int, log: Path
) -> Iterator[Callable[[], str]]:
    """Keep a node open in a program that reads its begin again and again; ends with the block, after 150 s at most.

    Yields what waits for two more reads and returns why the last of them failed, or nothing. ``log`` is a file that
    there is not yet. Raises ProgramError when the node cannot be opened, or not be read at first.
    """
    filename = "json:" + json.dumps(dict(node))
    words = [word for item in objects for word in ("--object", json.dumps(dict(item)))]
    words += ["-c", f"read 0 {length}", "-c", f"sleep {_PAUSE_MS}"] * (_HELD_S * 1000 // _PAUSE_MS)
    env = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
    # Into a file, it would print nothing before its buffer is full.
    argv = ["stdbuf", "-oL", _PROGRAM, "-r", "-U", *words, filename]
    with process.start(argv, env=env, log_path=log) as running:

        def said() -> list[str]:
            text = running.log_tail(1 << 20).replace(filename, "")
            return [each for each in text.splitlines(keepends=True) if each.endswith("\n")]

        def results() -> list[str]:
            return [each for each in said() if each.startswith("read ")]

        def failure(more: int) -> str:
            wanted = len(results()) + more
            deadline = time.monotonic() + _READ_LIMIT_S
            while running.alive and len(results()) < wanted:
                if time.monotonic() > deadline:
                    return f"a read did not end within {_READ_LIMIT_S:g} s"
                time.sleep(0.02)
            last = results()[-1:] if running.alive else said()[-1:]
            good = running.alive and last and "failed" not in last[0]
            return "" if good else masked(" ".join("".join(last).split())) or "it has ended"

        if why := failure(1):
            raise ProgramError(f"{_PROGRAM} cannot read: {why}", hint=_INSTALL if running.status == 127 else "")
        yield lambda: failure(2)


def _run(
    options: Sequence[str],
    node: Mapping[str, Any],
    objects: Sequence[Mapping[str, Any]],
    commands: Sequence[str],
    limit_s: float,
) -> tuple[str, int]:
    """Return what it printed, without the node's whole description, and its exit status."""
    filename = "json:" + json.dumps(dict(node))
    words = [word for item in objects for word in ("--object", json.dumps(dict(item)))]
    words += [word for command in commands for word in ("-c", command)]
    env = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
    try:
        done = process.run([_PROGRAM, *options, *words, filename], env=env, timeout_s=limit_s)
    except ProgramError as error:
        raise ProgramError(error.message, hint=_INSTALL) from error
    if done.timed_out:
        raise ProgramError(f"{_PROGRAM} did not end within {limit_s:g} s", hint="does the storage answer?")
    said = " ".join((done.stdout + done.stderr).decode(errors="replace").replace(filename, "").split())
    return masked(said)[-600:], done.status
