from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from hvext.core.disk import Disk
from hvext.errors import InputError, OperationFailed, RepointRefused
from hvext.host.guest import Writer
from hvext.operations.vm import open_vm
from tests.vm.state import state_of
from tests.vm.volume import wait_for_bytes, wait_for_disk

if TYPE_CHECKING:
    from tests.vm.conftest import GuestFactory, MachineFactory, Storage

pytestmark = pytest.mark.vm
MIB = 1 << 20


@pytest.mark.parametrize(
    ("device", "access", "throttled"),
    [
        # Every two of the three together.
        ("virtio-blk-pci", "userspace", True),
        ("virtio-blk-pci", "kernelspace", False),
        ("scsi-hd", "userspace", False),
        ("scsi-hd", "kernelspace", True),
    ],
)
def test_a_disk_grows_under_writes_and_the_guest_can_use_the_new_end(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk], device: str, access: str, throttled: bool
) -> None:
    guest = share()
    disk = create(device=device, access=access, **({"iops_total": 100000} if throttled else {}))
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        name = wait_for_disk(guest.console)
        writer = Writer(guest.console, name)
        writer.start(blocks=512)
        for size_mib in (65, 200):
            result = vm.resize(disk, size_mib)
            assert result.changed
            assert result.volume_grown
            wait_for_bytes(guest.console, name, size_mib * MIB)
        again = vm.resize(disk, 200)
        assert not again.changed
        assert not again.volume_grown
        end = 200 * MIB // 4096 - 1
        status, text = guest.console.run(f"dd if=/dev/zero of={name} bs=4k count=1 seek={end} conv=fsync")
        assert status == 0, text
        # Whatever it is on now, the other access has the same size.
        path, uri = storage.paths(disk)
        vm.repoint(disk.volume.uuid, path if access == "userspace" else uri)
        verdict = writer.stop()
        assert (verdict.status.errors, verdict.bad, verdict.unreadable) == (0, 0, 0)
        assert len(vm.disks()[disk.volume.uuid].protocols) == 1
        vm.unplug(disk)


def test_a_resize_that_cannot_be_is_refused_and_the_disk_stays(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    guest = share()
    disk = create()
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        before = state_of(guest.machine, storage.folder)
        with pytest.raises(InputError, match="would shrink it"):
            vm.resize(disk, 63)
        with pytest.raises(OperationFailed, match=r"grow sample/vol to 128 MiB: .*VOL_SIZE says"):
            vm.resize(disk, 128, old_size_mib=100)
        assert state_of(guest.machine, storage.folder) == before
        assert vm.resize(disk, 128).changed
        vm.unplug(disk)


def test_a_resize_that_was_interrupted_after_the_volume_grew_is_finished_by_repeating_it(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    from hvext.operations import volumes

    guest = share()
    disk = create(access="userspace")
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        name = wait_for_disk(guest.console)
        volumes.grow_volume(storage.host, disk, old_size_mib=64, new_size_mib=96)
        assert vm.resize(disk, 96).changed
        wait_for_bytes(guest.console, name, 96 * MIB)
        vm.unplug(disk)


def test_a_disk_that_cannot_show_a_new_size_is_refused_before_its_volume_grows(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    vm_machine = machine(start_paused=True)
    buffered, read_only = create("one", access="userspace", cache="writeback"), create("two", read_only=True)
    by_path = create("three", access="kernelspace", cache="writeback")
    with open_vm(str(vm_machine.qmp_path), host=storage.host) as vm:
        for disk in (buffered, read_only, by_path):
            vm.plug(disk)
        with pytest.raises(RepointRefused, match=r"cache\.direct=on"):
            vm.resize(buffered, 96)
        with pytest.raises(InputError, match="read-only"):
            vm.resize(read_only, 96)
        sizes = {path.parent.name: path.stat().st_size for path in (storage.folder / "volumes").glob("*/data.raw")}
        assert sizes == dict.fromkeys(("one", "two", "three"), 64 * MIB)
        # By its path, the open node sees that the storage grew: no move is needed.
        assert vm.resize(by_path, 96).after_bytes == 96 * MIB
