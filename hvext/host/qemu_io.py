"""qemu-io on this host: patterns are written to what a block node opens, and looked for in it.

Source: ``qemu-io --help``, "write" and "read".
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence

from hvext.core.uri.mask import masked
from hvext.errors import ProgramError
from hvext.host import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PROGRAM = "qemu-io"
_INSTALL = "Debian package qemu-utils"
_WRONG = r"Pattern verification failed at offset (\d+)"


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
