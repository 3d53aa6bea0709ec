"""A QEMU without a guest that is asked to do something, and ended."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from hvext.errors import CommandRefused, ProgramError
from hvext.host import interrupts, process
from hvext.host.files import program_path
from hvext.host.machine import MachineOptions, start_machine
from hvext.host.process import Cancel
from hvext.host.qmp import connect
from hvext.operations.doctor.ask import Ask
from hvext.operations.kept_capabilities import MODULE_DIR

_LIMIT_S = 5.0


def check_program(qemu: str, cancel: Cancel) -> None:
    """Return when a QEMU tells its version; raises ProgramError when it does not, in time.

    To start one that never answers takes half a minute: this comes first.
    """
    found = program_path(qemu)
    if found is None:
        raise ProgramError(f"{qemu} not found")
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    ended = process.run([found, "--version"], env={**kept, "LC_ALL": "C"}, timeout_s=_LIMIT_S, cancel=cancel)
    if ended.timed_out:
        raise ProgramError(f"{found} does not tell its version within {_LIMIT_S:g} s")
    if ended.status != 0:
        *_, last = ended.stderr.decode(errors="replace").strip().splitlines() or [
            f"it ended with status {ended.status}"
        ]
        raise ProgramError(f"{found}: {last}")


def answers(ask: Ask, commands: Sequence[tuple[str, Mapping[str, object]]]) -> list[str]:
    """Return what a QEMU says to each command: nothing when it does it, else its words; blocks.

    Raises ProgramError when it does not start, MonitorError and CommandTimeout when it does not answer.
    """
    check_program(ask.qemu, ask.cancel)
    kept = {name: os.environ[name] for name in (MODULE_DIR,) if name in os.environ}
    options = MachineOptions(name="doctor", machine="none", qemu=ask.qemu, env=kept)
    with tempfile.TemporaryDirectory(prefix="hvext-") as folder, start_machine(options, None, Path(folder)) as machine:
        return interrupts.run(_all(str(machine.qmp_path), commands))


async def _all(socket: str, commands: Sequence[tuple[str, Mapping[str, object]]]) -> list[str]:
    said = []
    async with connect(socket, timeout_s=_LIMIT_S) as monitor:
        for command, arguments in commands:
            try:
                await monitor.execute(command, dict(arguments))
                said.append("")
            except CommandRefused as error:
                said.append(error.description)
    return said
