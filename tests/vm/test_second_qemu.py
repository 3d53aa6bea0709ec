"""The whole life of a disk on the other supported QEMU (Debian 13's), in one guest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hvext.core.disk import Disk
from hvext.host.guest import Writer
from hvext.operations.start import start_disks
from hvext.operations.vm import open_vm
from tests.vm.state import state_of
from tests.vm.volume import guest_disks, read_direct, wait_for_bytes, wait_for_disk

if TYPE_CHECKING:
    from tests.vm.conftest import GuestFactory, Storage

pytestmark = pytest.mark.vm

MOVES = 30


def test_a_disk_starts_moves_grows_and_goes_on_the_second_qemu(
    boot: GuestFactory, storage: Storage, create: Callable[..., Disk], second_qemu: Path
) -> None:
    cold = create("cold", bus="rp0", iothread="auto")
    start = start_disks(storage.host, [cold])
    guest = boot(
        qemu=str(second_qemu / "bin" / "qemu-system-x86_64"), scsi_controllers=1, extra_args=tuple(start.argv())
    )
    assert guest_disks(guest.console) == ["vda"]
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        assert vm.unplug(cold).detached
        before = state_of(guest.machine, storage.folder)
        for device in ("virtio-blk-pci", "scsi-hd"):
            disk = create(device, device=device, iops_total=100_000)
            assert vm.plug(disk).changed
            name = wait_for_disk(guest.console)
            writer = Writer(guest.console, name)
            writer.start(blocks=512)
            path, uri = storage.paths(disk)
            for move in range(MOVES):
                assert vm.repoint(disk.volume.uuid, uri if move % 2 else path).changed
            vm.resize(disk, 96)
            wait_for_bytes(guest.console, name, 96 << 20)
            verdict = writer.stop()
            assert (verdict.status.errors, verdict.bad, verdict.unreadable) == (0, 0, 0)
            assert verdict.verified == verdict.blocks > 0
            assert vm.unplug(disk).detached
            assert any(read_direct(storage, disk, 1 << 20))
            assert state_of(guest.machine, storage.folder) == before
