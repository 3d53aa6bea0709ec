"""Asking a QEMU what it can open and plug: one that runs, or a binary that is still to be started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

from hvext.core.capability import DEVICE_TYPES, Capabilities, lacks_module, module_drivers, trial_node
from hvext.core.schema import Schema
from hvext.core.value import replace
from hvext.errors import CommandRefused, MonitorError, ProgramError
from hvext.host import cache, interrupts
from hvext.host.files import program_path
from hvext.host.machine import Machine, MachineOptions, start_machine
from hvext.host.qmp import Monitor, connect
from hvext.operations.kept_capabilities import DEFAULT_QEMU, MODULE_DIR, kept_capabilities, kept_name
from hvext.operations.threads import in_thread

#: What the QEMUs that we are connected to can do.
_known: WeakKeyDictionary[Monitor, Capabilities] = WeakKeyDictionary()


async def query_capabilities(monitor: Monitor, *, binary: str = "") -> Capabilities:
    """Return what the QEMU behind a monitor can do; changes nothing in it, and may be repeated.

    The installed QEMU's program is asked instead, see `binary_capabilities`: it takes QEMU 0.1 s to describe itself, in
    which a guest's requests wait. What a QEMU with a guest says of itself is never kept for another.

    No module is tried (``unloadable`` is empty), because a guest may run here, and a trial has effects: it loads the
    module for good, and it can end QEMU. When a module is of another build than QEMU (its package was upgraded while
    the guest ran), the first load of it fails, and the next load of any module ends QEMU with an assertion
    (``module_load_dso``, 7.2 and 10.0). ``binary`` is kept as text for people.
    """
    if monitor not in _known:
        if is_installed_one(monitor):
            asked = await in_thread(lambda _cancel: binary_capabilities())
            # Which modules a QEMU that has run for long can load, its binary does not tell.
            _known[monitor] = replace(asked, unloadable=frozenset(), binary=binary, version=monitor.version)
        else:
            _known[monitor] = await _queried(monitor, binary)
    return _known[monitor]


def is_installed_one(monitor: Monitor) -> bool:
    """Return whether the running QEMU is the installed program, with nothing of it replaced since it started."""
    installed = program_path(DEFAULT_QEMU)
    files = cache.mapped_files(monitor.pid) if monitor.pid is not None else frozenset()
    with contextlib.suppress(OSError):
        return (
            installed is not None
            and str(Path(f"/proc/{monitor.pid}/exe").readlink()) == os.path.realpath(installed)
            and bool(files)
            and all(Path(file).exists() for file in files)
        )
    return False


async def _queried(monitor: Monitor, binary: str) -> Capabilities:
    answer, *properties = await asyncio.gather(
        monitor.execute("query-qmp-schema"), *(_properties(monitor, kind) for kind in DEVICE_TYPES)
    )
    return Capabilities(
        schema=Schema.from_qmp(answer),
        devices={kind: names for kind, names in zip(DEVICE_TYPES, properties, strict=True) if names is not None},
        binary=binary,
        version=monitor.version,
    )


def running_capabilities(qmp: str) -> Capabilities:
    """Return `query_capabilities` of the QEMU whose monitor is at ``qmp``; blocks. Raises MonitorError."""

    async def ask() -> Capabilities:
        async with connect(qmp) as monitor:
            return await query_capabilities(monitor)

    return interrupts.run(ask())


async def loads_module(monitor: Monitor, driver: str) -> bool:
    """Return whether QEMU has the code of a block driver (one of `module_drivers`), loading it if need be.

    Opens and connects to nothing. Not for a QEMU with a guest: see `query_capabilities`.
    """
    try:
        await monitor.execute("blockdev-add", trial_node(driver))
    except CommandRefused as error:
        return not lacks_module(driver, error.description)
    return True


def binary_capabilities(qemu: str = DEFAULT_QEMU) -> Capabilities:
    """Return what a QEMU binary (a name on PATH, or a path) can do, with the block drivers that it cannot load.

    It is started without a machine, asked and ended; the answer is kept until the binary, one of its libraries or the
    folder with its modules changes. Blocks, and is not for use inside an event loop: there, `asyncio.to_thread` it.

    Raises ProgramError when the binary is missing, does not start or is no QEMU.
    """
    found = program_path(qemu)
    if found is None:
        raise ProgramError(f"{qemu} not found", hint="Debian package qemu-system-x86")
    binary = os.path.realpath(found)
    name = kept_name(binary)
    if (known := kept_capabilities(name)) is not None:
        return known
    try:
        capabilities, files = _asked(str(Path(found).absolute()))
    except (ProgramError, MonitorError) as error:
        # The report names logs, which are gone by now.
        *_, last = (line for line in error.message.splitlines() if line.strip() and not line.startswith("--- "))
        # What printed nothing has its state there, which stands in parentheses behind its command line.
        raise ProgramError(
            f"{found} does not say what it can do: {_bare(last.strip())}",
            hint=error.hint or "is it a QEMU system emulator?",
        ) from error
    folders = _module_folders(files)
    # Where no folder is known, nobody would notice that the missing modules were installed.
    if folders or not capabilities.unloadable:
        cache.keep(name, capabilities.to_json(), {binary, *files, *folders})
    return capabilities


def _bare(words: str) -> str:
    """Return words without the parentheses around all of them."""
    return words[1:-1] if words.startswith("(") and words.find(")") == len(words) - 1 else words


async def _properties(monitor: Monitor, kind: str) -> frozenset[str] | None:
    try:
        answer = await monitor.execute("device-list-properties", {"typename": kind})
    except CommandRefused:
        return None
    return frozenset(entry["name"] for entry in answer)


def _asked(binary: str) -> tuple[Capabilities, frozenset[str]]:
    """What a binary can do, and the files it is made of."""
    with _started(binary) as machine:
        # Before a module can end it.
        files = cache.mapped_files(machine.pid)
        capabilities, loads = interrupts.run(_all_of(machine, binary))
        files |= cache.mapped_files(machine.pid)
    while remaining := [driver for driver in module_drivers(capabilities.schema) if driver not in loads]:
        with _started(binary) as machine:
            loads |= interrupts.run(_more_of(machine, remaining))
            files |= cache.mapped_files(machine.pid)
    return replace(capabilities, unloadable=frozenset(driver for driver, good in loads.items() if not good)), files


async def _all_of(machine: Machine, binary: str) -> tuple[Capabilities, dict[str, bool]]:
    async with connect(str(machine.qmp_path)) as monitor:
        capabilities = await _queried(monitor, binary)
        return capabilities, await _tried(monitor, module_drivers(capabilities.schema))


async def _more_of(machine: Machine, drivers: Sequence[str]) -> dict[str, bool]:
    async with connect(str(machine.qmp_path)) as monitor:
        return await _tried(monitor, drivers)


async def _tried(monitor: Monitor, drivers: Sequence[str]) -> dict[str, bool]:
    """Whether each driver loads; those behind the point where QEMU ended are left out, but never all."""
    loads: dict[str, bool] = {}
    for driver in drivers:
        try:
            loads[driver] = await loads_module(monitor, driver)
        except MonitorError:
            # It was an earlier module's fault, if there was one.
            return loads or {driver: False}
    return loads


@contextlib.contextmanager
def _started(binary: str) -> Iterator[Machine]:
    """A QEMU without a machine, in a folder of its own."""
    kept = {name: os.environ[name] for name in (MODULE_DIR,) if name in os.environ}
    options = MachineOptions(name="capabilities", machine="none", qemu=binary, env=kept)
    with tempfile.TemporaryDirectory(prefix="hvext-") as folder, start_machine(options, None, Path(folder)) as machine:
        yield machine


def _module_folders(files: Iterable[str]) -> frozenset[str]:
    """The folders from which QEMU loaded modules, as far as can be told."""
    return frozenset(
        str(path.parent) for path in map(Path, files) if path.match("block-*.so") or path.match("accel-*.so")
    )
