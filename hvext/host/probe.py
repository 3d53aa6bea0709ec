"""Reading a block from storage in a process of its own, with a time limit that holds whatever the storage does.

A process that waits for a block device in the kernel cannot be killed. It is left behind then, and ends when the device
answers; as long as it is there, the same storage is not tried again: it would leave one more.

Source: qemu-io(1).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import which

from hvext.core.uri.mask import masked
from hvext.core.value import value_object
from hvext.errors import ProgramError
from hvext.host import process
from hvext.host.process import Cancel

_PROGRAM = "qemu-io"
#: A block of the largest logical size that storage has.
_BLOCK = 4096
#: How long a killed program may take to go, where it can.
_REAP_S = 1.0
#: How often a cancelled caller is looked for.
_POLL_S = 0.1
#: What qemu-io says when its packages lack the driver: nothing about the storage.
_NO_DRIVER = ("Unknown driver", "Unknown protocol")

#: Programs that did not end when they were killed, by what they were to read.
_left_behind: dict[str, process.Running] = {}


@value_object
class Probed:
    """What came of reading: ``words`` are empty when it went well, ``answered`` is False when the time was over."""

    answered: bool
    words: str = ""


def read_block(
    node: Mapping[str, object],
    objects: Sequence[Mapping[str, object]] = (),
    *,
    limit_s: float,
    size_bytes: int = 0,
    prefix: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cancel: Cancel | None = None,
) -> Probed:
    """Open a protocol node for reading and read its first block, and the last before ``size_bytes``.

    ``objects`` are ``object-add`` arguments without secrets in them: a secret is named by its file. ``prefix`` is an
    argv that ends by executing its arguments. Returns within ``limit_s`` and a second. Raises ProgramError when the
    program is missing, or has not the driver.
    """
    program = which(_PROGRAM)
    if program is None:
        raise ProgramError(f"{_PROGRAM} not found", hint="Debian package qemu-utils")
    filename = "json:" + json.dumps(dict(node))
    before = _left_behind.get(filename)
    if before is not None and before.alive:
        return Probed(answered=False, words="an earlier look at it has not come back yet")
    _left_behind.pop(filename, None)
    argv = [*prefix, program, "-r", "-U"]
    for item in objects:
        argv += ["--object", json.dumps(dict(item))]
    offsets = [0, *([size_bytes - _BLOCK] if size_bytes > _BLOCK else [])]
    for offset in offsets:
        argv += ["-c", f"read {offset} {_BLOCK}"]
    argv.append(filename)
    with tempfile.TemporaryDirectory(prefix="hvext-") as folder:
        log = Path(folder) / "log"
        running = process.start(argv, env={"PATH": os.environ.get("PATH", os.defpath), **(env or {})}, log_path=log)
        status = _wait(running, limit_s, cancel)
        printed = running.log_tail()
        if status is None:
            _end(running, filename)
            return Probed(answered=False, words=f"it did not answer within {limit_s:g} s")
        running.stop(grace_s=0)
    blocks = printed.count(f"read {_BLOCK}/{_BLOCK} bytes")
    if status == 0 and blocks == len(offsets):
        return Probed(answered=True)
    words = _words(printed, filename)
    if blocks == 1:
        words = f"it has less than {size_bytes} bytes, or cannot be read at their end"
    if any(each in words for each in _NO_DRIVER):
        raise ProgramError(f"{_PROGRAM} cannot open it: {words}", hint="Debian package qemu-block-extra")
    return Probed(answered=True, words=words or f"{_PROGRAM} ended with status {status}")


def _wait(running: process.Running, limit_s: float, cancel: Cancel | None) -> int | None:
    left_s = limit_s
    while left_s > 0 and not (cancel is not None and cancel.is_set):
        status = running.wait(min(_POLL_S, left_s))
        if status is not None:
            return status
        left_s -= _POLL_S
    return None


def _end(running: process.Running, filename: str) -> None:
    """End a program, or leave it behind when it waits in the kernel."""
    process.end_group(running.pid, grace_s=0)
    if running.wait(_REAP_S) is None:
        _left_behind[filename] = running
    else:
        with contextlib.suppress(ProgramError):
            running.stop(grace_s=0)


def _words(printed: str, filename: str) -> str:
    """Return what the program printed, without its own name and the whole description of the node."""
    text = " ".join(printed.replace(filename, "").split())
    text = re.sub(r"^qemu-io: can't open(?: device)? ?:? ?", "", text)
    return masked(text)
