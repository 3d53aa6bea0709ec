from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from hvext.core.disk import Disk
from hvext.host.guest import Writer
from hvext.operations.start import start_disks, stop_disks
from hvext.operations.vm import open_vm
from tests.vm.state import on_debug_monitor, state_of
from tests.vm.volume import guest_disks, wait_for_bytes

if TYPE_CHECKING:
    from tests.vm.conftest import GuestFactory, MachineFactory, Storage

pytestmark = pytest.mark.vm


@pytest.mark.parametrize("form", ["blockdev", "drive"])
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
