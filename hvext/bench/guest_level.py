"""The level of a guest: fio in the test guest, on a disk that is plugged for each run.

All accesses are measured in one guest that stays: what differs between two runs is where the disk's storage is.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import shlex
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvext.bench.fio import parse_fio
from hvext.bench.places import Place
from hvext.bench.result import Workload
from hvext.bench.workload import job_lines
from hvext.core.commands import plug_commands
from hvext.core.identity import DiskNames
from hvext.core.options import DeviceModel, DiskOptions, Placement
from hvext.core.plan import plan_disk
from hvext.core.value import replace
from hvext.errors import ProgramError
from hvext.host import interrupts
from hvext.host.guest import Console
from hvext.host.machine import (
    GuestImage,
    Machine,
    MachineOptions,
    checkout_hint,
    probe_acceleration,
    start_machine,
)
from hvext.host.private import private_folder, remove_private, write_private
from hvext.host.qmp import Monitor, connect
from hvext.host.usage import cpu_times
from hvext.operations.unplug import unplug

_BOOT_S = 120.0
_SEEN_S = 60.0
_LATE_S = 120.0
_MEMORY_MIB = 512
_PORT = Placement(bus="rp0")
#: The controllers for disks without and with an iothread: a scsi-hd runs in that of its controller.
_CONTROLLERS = {None: "scsi0", "auto": "scsi-io"}
_MORE_ARGS = ("-object", "iothread,id=bench-io", "-device", "virtio-scsi-pci,id=scsi-io,iothread=bench-io")


def find_parts(directory: Path) -> tuple[GuestImage, Path]:
    """Return the test guest, and what adds fio to it; raises ProgramError when one of them was not built."""
    plain = GuestImage.find(directory)
    fio = directory.parent / "out-fio" / "fio.gz"
    if not fio.is_file():
        raise ProgramError(f"no fio for the guest: {fio} does not exist", hint=checkout_hint(directory, "build-fio"))
    return plain, fio


def bench_image(directory: Path, folder: Path) -> GuestImage:
    """Return the test guest with fio in it, made in ``folder``; raises ProgramError when a part was not built."""
    plain, fio = find_parts(directory)
    initrd = folder / "initrd-fio.gz"
    initrd.write_bytes(plain.initrd.read_bytes() + fio.read_bytes())
    return GuestImage(kernel=plain.kernel, initrd=initrd)


@contextlib.contextmanager
def bench_guest(directory: Path, *, shared_memory: bool, cpus: int = 1) -> Iterator[BenchGuest]:
    """Boot a guest to measure in, and end it with the block; raises ProgramError."""
    with tempfile.TemporaryDirectory(prefix="hvext-bench-") as name:
        folder = Path(name)
        plain = GuestImage.find(directory)
        options = MachineOptions(
            name="bench",
            accel=probe_acceleration(plain),
            root_ports=2,
            scsi_controllers=1,
            memory_mib=_MEMORY_MIB,
            cpus=cpus,
            shared_memory=shared_memory,
            extra_args=_MORE_ARGS,
        )
        with start_machine(options, bench_image(directory, folder), folder) as machine:
            console = Console(machine.command_path, machine.console_log, alive=lambda: machine.alive)
            console.wait_ready(_BOOT_S)
            yield BenchGuest(machine=machine, console=console, acceleration=options.accel)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchGuest:
    """A guest that runs, with fio in it."""

    machine: Machine
    console: Console
    acceleration: str


def _placed(options: DiskOptions, device: DeviceModel) -> DiskOptions:
    """Return the options of a disk as this device, at the place that the guest has for it."""
    if device is DeviceModel.VIRTIO_BLK:
        return replace(options, device=device, placement=_PORT)
    controller = _CONTROLLERS[options.iothread]
    return replace(options, device=device, iothread=None, placement=Placement(bus=controller, scsi_id=0, lun=0))


class GuestLevel:
    """Measures places in a guest, as one kind of device."""

    def __init__(self, guest: BenchGuest, names: DiskNames, device: DeviceModel, span_bytes: int) -> None:
        self._guest = guest
        self._span = span_bytes
        self._names = names
        self._model = device
        self.device = str(device)

    @staticmethod
    def able(device: DeviceModel) -> Callable[[Place, Workload | None], bool]:
        """Return what tells whether a place can be measured as this device: vhost-user makes devices of its own."""
        return lambda place, _workload: place.location.block_node or device is DeviceModel.VIRTIO_BLK

    def can(self, place: Place, workload: Workload | None = None) -> bool:
        """Whether a place can be measured here."""
        return self.able(self._model)(place, workload)

    def measure(
        self, place: Place, workload: Workload, *, run_s: float, warm_up_s: float, seed: int
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Run a workload on a disk at a place; return fio's output and processor seconds for what it measured.

        What counts as the load's are the guest's virtual processors. Raises ProgramError, QemuError.
        """
        lines = job_lines(workload, run_s=run_s, warm_up_s=warm_up_s, span_bytes=self._span, seed=seed)
        total_s = run_s + warm_up_s
        return interrupts.run(self._measure(place, lines, total_s, run_s / total_s))

    async def _measure(
        self, place: Place, lines: Sequence[str], total_s: float, part: float
    ) -> tuple[dict[str, Any], dict[str, float]]:
        pid = self._guest.machine.pid
        async with connect(str(self._guest.machine.qmp_path)) as monitor:
            cpus = await monitor.execute("query-cpus-fast")
            threads = tuple(int(cpu["thread-id"]) for cpu in cpus)
            async with self._plugged(monitor, place) as device:
                before = cpu_times(pid, threads)
                found = await asyncio.to_thread(self._fio, [f"filename={device}", *lines], total_s + _LATE_S)
                used = cpu_times(pid, threads).since(before)
        cpu_s = {
            "machine": used.machine_s,
            "load": used.threads_s,
            "qemu": max(0.0, used.process_s - used.threads_s),
        }
        return found, {name: value * part for name, value in cpu_s.items()}

    @contextlib.asynccontextmanager
    async def _plugged(self, monitor: Monitor, place: Place) -> AsyncIterator[str]:
        """Plug a disk for the block, and yield its device in the guest."""
        options = _placed(place.options, place.device or self._model)
        plan = plan_disk(self._names, place.location, options, folder=private_folder())
        write_private(plan.stored().needs.files)
        before = await asyncio.to_thread(self._disks)
        try:
            for command in plug_commands(plan):
                await monitor.execute(command.execute, command.arguments)
            yield await asyncio.to_thread(self._new_disk, before)
        finally:
            try:
                result = await unplug(monitor, self._names)
                if not result.finished:
                    raise ProgramError(f"the guest does not let the disk go: {result.state}")
            finally:
                remove_private(plan.companions.node)

    def _disks(self) -> set[str]:
        return set(self._guest.console.run("cd /sys/block && ls -d [vs]d* 2>/dev/null")[1].split())

    def _new_disk(self, before: set[str]) -> str:
        deadline = time.monotonic() + _SEEN_S
        while time.monotonic() < deadline:
            if new := self._disks() - before:
                return f"/dev/{new.pop()}"
            time.sleep(0.05)
        raise ProgramError("the guest does not see the disk that was plugged")

    def _fio(self, lines: Sequence[str], limit_s: float) -> dict[str, Any]:
        job = "".join(f"{line}\n" for line in ["[job]", "ioengine=io_uring", *lines])
        script = (
            f"printf %s {shlex.quote(job)} >/tmp/job.fio; rm -f /tmp/fio.json\n"
            "fio --output-format=json+ --output=/tmp/fio.json /tmp/job.fio >/tmp/fio.log 2>&1; status=$?\n"
            # Thousands of lines over a serial port: packed, they take a tenth.
            "gzip -c /tmp/fio.json 2>/dev/null | base64 -w 0; echo; tail -c 300 /tmp/fio.log; exit $status\n"
        )
        status, printed = self._guest.console.run(script, timeout_s=limit_s)
        packed, _, words = printed.partition("\n")
        try:
            text = gzip.decompress(base64.b64decode(packed)).decode(errors="replace") if packed else ""
        except (OSError, EOFError, ValueError):
            text = ""
        return dict(parse_fio(text, status=status, words=words))
