"""``hvext demo``: the whole life of a disk under a real guest that writes to it, with the proof at the end.

Everything is real: a QEMU guest, the shipped sample provider, its NBD server and its loop device.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from hvext.cli.output import print_json, size_text
from hvext.core.access import Access
from hvext.core.disk import Disk
from hvext.core.options import DeviceModel, DiskOptions
from hvext.core.stamp import StampReport, check_blocks
from hvext.core.volume import Volume, derived_uuid
from hvext.errors import HvextError, InputError, ProgramError
from hvext.host.guest import Console, Writer, WriterVerdict
from hvext.host.loop_device import CONTROL
from hvext.host.machine import GuestImage, MachineOptions, probe_acceleration, start_machine
from hvext.host.provider import ProviderHost
from hvext.operations import attachments, volumes
from hvext.operations.vm import Vm, open_vm

_SIZE_MIB = 128
_NEW_SIZE_MIB = 192
_BLOCK = 4096
_BLOCKS = 2048
_BOOT_S = 120.0
_SEEN_S = 30.0

_T = TypeVar("_T")


@dataclass(slots=True)
class _Table:
    """The steps with their times: printed as they happen, or kept for JSON."""

    as_json: bool
    rows: list[dict[str, object]] = field(default_factory=list)

    def head(self) -> None:
        if not self.as_json:
            print(f"{'STEP':<46} {'TIME':>10}  RESULT")

    def step(self, name: str, work: Callable[[], _T], words: Callable[[_T], str]) -> _T:
        """Do one step and print its row; on a terminal the row stands there while the step runs."""
        live = not self.as_json and sys.stdout.isatty()
        if live:
            print(f"{name:<46} {'…':>10}", end="\r", flush=True)
        started = time.perf_counter()
        try:
            result = work()
        except BaseException:
            if not self.as_json:
                print(f"{name:<46} {'FAILED':>10}", flush=True)
            raise
        milliseconds = (time.perf_counter() - started) * 1000
        text = words(result)
        self.rows.append({"step": name, "ms": round(milliseconds, 1), "result": text})
        if not self.as_json:
            print(f"{name:<46} {milliseconds:>7.0f} ms  {text}", flush=True)
        return result


def demo(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 when every byte is where it belongs."""
    if arguments.moves < 0:
        raise InputError(f"--moves must be at least 0; got {arguments.moves}")
    _check_loop_devices()
    image = GuestImage.find(Path(arguments.guest))
    table = _Table(arguments.json)
    table.head()
    with _folder(arguments.keep) as folder, _own_places(folder):
        accel = table.step("find out how guests run here", lambda: probe_acceleration(image), str)
        options = MachineOptions(name="demo", accel=accel, root_ports=4, scsi_controllers=1)
        host = ProviderHost(log_directory=f"{folder}/log")
        # The volume goes last: a guest that still has it when something failed has ended by then.
        with _volume(host, folder, arguments.device) as disk, start_machine(options, image, folder) as machine:
            console = Console(machine.command_path, machine.console_log, alive=lambda: machine.alive)
            table.step("boot a guest", lambda: console.wait_ready(_BOOT_S), lambda s: f"{s:.1f} s of guest time")
            with open_vm(str(machine.qmp_path), host=host) as vm:
                _run(table, vm, host, disk, console, arguments.moves)
    if arguments.json:
        print_json(table.rows)
    else:
        print("all well: every block is where it belongs")
    return 0


def _check_loop_devices() -> None:
    """Raise InputError where loop devices cannot be used: that would be seen when the guest has booted."""
    if os.geteuid() != 0 and not os.access(CONTROL, os.R_OK | os.W_OK):
        raise InputError(f"the demo needs loop devices, and you may not use {CONTROL}", hint="run it as root")


@contextlib.contextmanager
def _own_places(folder: Path) -> Iterator[None]:
    """Within this, what hvext keeps is in a folder: a demo is nothing that was done to the disks of this host."""
    own = {"HVEXT_STATE_DIR": f"{folder}/state", "HVEXT_RUNTIME_DIR": f"{folder}/private"}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _run(table: _Table, vm: Vm, host: ProviderHost, disk: Disk, console: Console, moves: int) -> None:
    plugged = table.step(
        "attach the volume and plug it by its URI", lambda: vm.plug(disk), lambda r: f"{r.access}: {r.location}"
    )
    device = table.step("guest sees the disk", lambda: _guest_device(console), str)
    path = attachments.offer(host, disk).attachment.block_path
    if path is None:
        raise HvextError("the volume has no block path to move to")
    writer = Writer(console, device)
    uuid = disk.volume.uuid
    table.step("guest writes (4 threads, O_DIRECT)", lambda: writer.start(blocks=_BLOCKS), lambda _: "started")
    table.step("1 s of writes without moves", lambda: _window(writer), lambda us: f"largest latency {us} µs")
    table.step("move to the block path", lambda: vm.repoint(uuid, path), lambda r: r.after)
    table.step("move back to the URI", lambda: vm.repoint(uuid, plugged.location), lambda r: r.after)

    def move_on() -> int:
        for _ in range(moves // 2):
            vm.repoint(uuid, path)
            vm.repoint(uuid, plugged.location)
        return writer.status().window_max_us

    table.step(f"{moves // 2 * 2} moves more", move_on, lambda us: f"largest latency {us} µs")
    table.step(
        f"grow it to {_NEW_SIZE_MIB} MiB under writes",
        lambda: vm.resize(disk, _NEW_SIZE_MIB),
        lambda r: f"{size_text(r.before_bytes)} -> {size_text(r.after_bytes)}",
    )
    table.step("guest sees the new size", lambda: _guest_size(console, device, _NEW_SIZE_MIB), lambda s: s)
    verdict = table.step("guest reads every block back", writer.stop, _verdict_words)
    table.step("unplug and detach", lambda: vm.unplug(disk), lambda r: f"{r.state}, nodes left: {len(vm.disks())}")
    report = table.step("host reads the volume", lambda: _check_volume(host, disk), _stamp_words)
    right = verdict.ok and report.ok and report.valid == verdict.verified == verdict.blocks > 0
    if not right or verdict.status.errors:
        raise HvextError("data was lost: see the table", hint="the guest's console log is with the others")


def _verdict_words(verdict: WriterVerdict) -> str:
    counts = f"{verdict.verified} of {verdict.blocks} right, {verdict.bad} bad"
    return f"{counts}, {verdict.status.errors} errors in {verdict.status.writes} writes"


def _window(writer: Writer) -> int:
    writer.status()
    time.sleep(1.0)
    return writer.status().window_max_us


def _guest_device(console: Console) -> str:
    deadline = time.monotonic() + _SEEN_S
    while time.monotonic() < deadline:
        _status, names = console.run("cd /sys/block && ls -d [vs]d* 2>/dev/null")
        if names.split():
            return f"/dev/{names.split()[0]}"
    raise ProgramError("the guest does not see the disk")


def _guest_size(console: Console, device: str, size_mib: int) -> str:
    name = device.removeprefix("/dev/")
    deadline = time.monotonic() + _SEEN_S
    while time.monotonic() < deadline:
        # Linux looks at the size of a SCSI disk again when it is told to.
        console.run(f"[ -e /sys/block/{name}/device/rescan ] && echo 1 >/sys/block/{name}/device/rescan")
        _status, text = console.run(f"cat /sys/block/{name}/size")
        if int(text) * 512 == size_mib << 20:
            return f"{int(text)} sectors"
    raise ProgramError(f"the guest sees {text.strip()} sectors, not {size_mib} MiB")


def _check_volume(host: ProviderHost, disk: Disk) -> StampReport:
    """Attach the volume on the host, and read it past the page cache."""
    attached = attachments.attach(host, disk)
    try:
        path = attached.attachment.block_path
        if path is None:
            raise HvextError("the volume has no block path to read")
        return check_blocks(_read_direct(path, _BLOCKS * _BLOCK), 0, block_size=_BLOCK)
    finally:
        attachments.detach(host, disk)


def _read_direct(path: str, size_bytes: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, size_bytes) as buffer:
            done = os.preadv(descriptor, [buffer], 0)
            if done != size_bytes:
                raise HvextError(f"{path}: read {done} of {size_bytes} bytes")
            return buffer[:]
    finally:
        os.close(descriptor)


def _stamp_words(report: StampReport) -> str:
    return f"{report.valid} blocks right, {report.empty} never written, {len(report.bad)} bad"


@contextlib.contextmanager
def _volume(host: ProviderHost, folder: Path, device: str) -> Iterator[Disk]:
    """A volume of the sample provider that is gone afterwards."""
    volume = Volume(
        name="demo",
        uuid=derived_uuid("sample", str(folder)),
        parameters={"dir": str(folder / "volumes"), "run": str(folder / "run")},
    )
    options = DiskOptions(device=DeviceModel(device), serial="hvext-demo")
    disk = Disk(provider="sample", volume=volume, access=Access.PREFER_USERSPACE, options=options)
    volumes.create_volume(host, disk, _SIZE_MIB)
    try:
        yield disk
    finally:
        attachments.detach(host, disk)
        volumes.remove_volume(host, disk)


@contextlib.contextmanager
def _folder(keep: str | None) -> Iterator[Path]:
    """The folder of all that a demo makes: gone afterwards, unless it is to be kept, or has the logs of a failure."""
    if keep is not None:
        path = Path(keep).resolve()
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    made, failed = Path(tempfile.mkdtemp(prefix="hvext-demo-")), False
    try:
        yield made
    except HvextError:
        failed = True
        print(f"the demo's logs are in {made}", file=sys.stderr)
        raise
    finally:
        if not failed:
            shutil.rmtree(made)
