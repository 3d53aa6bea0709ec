from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hvext.core.disk import Disk
from hvext.host.guest import Writer
from hvext.host.private import private_folder
from hvext.operations.start import start_disks, stop_disks
from hvext.operations.vm import open_vm
from tests.vm.state import loops, on_debug_monitor, state_of
from tests.vm.volume import guest_disks, wait_for_bytes, wait_for_disk

if TYPE_CHECKING:
    from tests.vm.conftest import GuestFactory, MachineFactory, Storage

pytestmark = pytest.mark.vm

BOOT_LIMIT_S = 120.0


@pytest.mark.parametrize("form", ["blockdev", pytest.param("drive", marks=pytest.mark.nightly)])
def test_a_disk_given_at_start_can_do_all_that_a_plugged_one_can(
    boot: GuestFactory, storage: Storage, create: Callable[..., Disk], form: str
) -> None:
    options = {"/dev/vda": {"bus": "rp0"}, "/dev/sda": {"device": "scsi-hd"}}
    disks = {name: create(name[-3:], iops_total=100000, **options[name]) for name in options}
    start = start_disks(storage.host, [*disks.values()])
    guest = boot(extra_args=tuple(start.argv() if form == "blockdev" else start.drive_argv()))
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        for name, disk in disks.items():
            assert not vm.plug(disk).changed
            writer = Writer(guest.console, name)
            writer.start(blocks=512)
            path, uri = storage.paths(disk)
            for _round in range(5):
                assert vm.repoint(disk.volume.uuid, path).changed
                assert vm.repoint(disk.volume.uuid, uri).changed
            vm.resize(disk, 96)
            wait_for_bytes(guest.console, name, 96 << 20)
            verdict = writer.stop()
            assert (verdict.status.errors, verdict.bad, verdict.unreadable) == (0, 0, 0)
            assert vm.unplug(disk).state == "unplugged"
            assert disk.volume.uuid not in vm.disks()
        assert vm.disks() == {}
    left = state_of(guest.machine, storage.folder)
    assert left.nodes == frozenset()
    assert not any(name.startswith("hv-") for name in left.objects | left.devices)
    assert not left.loops
    assert guest_disks(guest.console) == []


def test_a_reset_and_a_shutdown_leave_nothing_of_the_disks_behind(
    boot: GuestFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    disks = [create("blk", bus="rp0", iothread="auto", iops_total=100000), create("scsi", device="scsi-hd")]
    start = start_disks(storage.host, disks)
    guest = boot(extra_args=tuple(start.argv()))
    machine, console = guest.machine, guest.console
    hot = create("hot", serial="hot")
    with open_vm(str(machine.qmp_path), host=storage.host) as vm:
        vm.plug(hot)
        wait_for_disk(console, known=("vda", "sda"))
        before = state_of(machine, storage.folder)
        mark = console.mark()
        on_debug_monitor(machine, "system_reset")
        console.wait_ready(BOOT_LIMIT_S, since=mark)
        assert state_of(machine, storage.folder) == before
        assert sorted(guest_disks(console)) == ["sda", "vda", "vdb"]
        for disk, name in zip([*disks, hot], ("/dev/vda", "/dev/sda", "/dev/vdb"), strict=True):
            writer = Writer(console, name)
            writer.start(blocks=256)
            for place in storage.paths(disk):
                assert vm.repoint(disk.volume.uuid, place).changed
            verdict = writer.stop()
            assert (verdict.status.errors, verdict.bad, verdict.unreadable) == (0, 0, 0)
    console.run("sh -c 'sleep 0.2; poweroff' >/dev/null 2>&1 &")
    assert machine.wait(30) == 0
    mine = tmp_path / "disks.json"
    mine.write_text(json.dumps([disk.to_mapping() for disk in (*disks, hot)]))
    done = subprocess.run(
        [sys.executable, "-m", "hvext", "stop", "--log-dir", "none", "--disks", str(mine)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not loops(storage.folder)
    assert [path for path in (storage.folder / "run").rglob("*") if not path.is_dir()] == []
    assert [path for path in Path(private_folder()).glob("*") if path.name[:28] in {d.names.root for d in disks}] == []
    # Whoever repeats it is told the same.
    assert stop_disks(storage.host, [*disks, hot]) == []


def test_disks_can_be_given_over_qmp_before_the_guest_runs(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    disks = [create("one", bus="rp0", iothread="auto"), create("two", device="scsi-hd")]
    vm_machine = machine(start_paused=True)
    start = start_disks(storage.host, disks)
    commands = start.commands()
    # The controller that the plan makes needs a root port of its own on q35.
    for command in commands:
        arguments = dict(command["arguments"])  # type: ignore[call-overload]
        if arguments.get("driver") == "virtio-scsi-pci":
            arguments["bus"] = "rp1"
        on_debug_monitor(vm_machine, str(command["execute"]), **arguments)
    with open_vm(str(vm_machine.qmp_path), host=storage.host) as vm:
        assert set(vm.disks()) == {disk.volume.uuid for disk in disks}
    vm_machine.stop()
    assert stop_disks(storage.host, disks) == []
