from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from hvext.core.disk import Disk
from hvext.core.stamp import check_blocks
from hvext.core.uri import parse_uri
from hvext.errors import DiskNotFound, OperationFailed, RepointRefused
from hvext.host.guest import Writer
from hvext.operations import attachments
from hvext.operations.vm import Vm, open_vm
from tests.vm.state import on_debug_monitor, state_of
from tests.vm.volume import kill_servers, read_direct, wait_for_disk

if TYPE_CHECKING:
    from tests.vm.conftest import GuestFactory, Storage

pytestmark = pytest.mark.vm
BLOCKS = 1024


@pytest.mark.parametrize("iothread", [False, True], ids=["main-loop", "iothread"])
@pytest.mark.parametrize("device", ["virtio-blk-pci", "scsi-hd"])
@pytest.mark.parametrize("moves", [200, pytest.param(5000, marks=[pytest.mark.nightly, pytest.mark.timeout(1800)])])
def test_moves_under_writes_lose_no_block_and_show_no_error(
    boot: GuestFactory,
    storage: Storage,
    create: Callable[..., Disk],
    capsys: pytest.CaptureFixture[str],
    moves: int,
    device: str,
    iothread: bool,
) -> None:
    options = {"iothread": "io0"} if iothread else {}
    guest = boot(iothreads=("io0",), scsi_controllers=1, scsi_iothread="io0" if iothread else "")
    disk = create(device=device, **options)
    before = state_of(guest.machine, storage.folder)
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        targets = storage.paths(disk)
        writer = Writer(guest.console, wait_for_disk(guest.console))
        writer.start(blocks=BLOCKS)
        # Half the moves, as long without any, the other half: what else the machine does meets both.
        moving, moving_s = _window(writer, lambda: _move(vm, disk, targets, moves // 2))
        resting, _resting_s = _window(writer, lambda: time.sleep(moving_s))
        moving_again, again_s = _window(writer, lambda: _move(vm, disk, targets, moves // 2))
        verdict = writer.stop()
        vm.unplug(disk)
    with capsys.disabled():
        print(
            f"\n{device}{' iothread' if iothread else ''}: {moves} moves in {moving_s + again_s:.1f} s, "
            f"{verdict.status.writes} writes, {verdict.status.errors} errors, {verdict.verified}/{verdict.blocks} "
            f"blocks verified; largest write latency {moving} and {moving_again} us with moves, {resting} us without"
        )
    assert (verdict.status.errors, verdict.bad, verdict.unreadable) == (0, 0, 0)
    assert verdict.verified == verdict.blocks > BLOCKS // 2
    assert state_of(guest.machine, storage.folder) == before
    report = check_blocks(read_direct(storage, disk, BLOCKS * 4096), 0)
    assert report.ok
    assert report.valid == verdict.verified


def _window(writer: Writer, work: Callable[[], None]) -> tuple[int, float]:
    """Do the work and return the largest write latency during it, in microseconds, and how long it took."""
    writer.status()
    started = time.monotonic()
    work()
    elapsed_s = time.monotonic() - started
    return writer.status().window_max_us, elapsed_s


def _move(vm: Vm, disk: Disk, targets: tuple[str, str], times: int) -> None:
    for number in range(times):
        assert vm.repoint(disk.volume.uuid, targets[number % 2]).changed


def test_a_disk_with_limits_moves_and_keeps_them(
    boot: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    guest = boot()
    disk = create(iops_total="50")
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        path, _uri = storage.paths(disk)
        writer = Writer(guest.console, wait_for_disk(guest.console))
        writer.start(blocks=256, threads=8)
        vm.repoint(disk.volume.uuid, path)
        first = writer.status()
        time.sleep(4)
        second = writer.status()
        assert not writer.stop().bad
        vm.unplug(disk)
    per_second = (second.writes - first.writes) / ((second.elapsed_us - first.elapsed_us) / 1e6)
    assert per_second < 100


def test_a_move_to_where_the_disk_is_changes_nothing_and_says_so(
    boot: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    guest = boot()
    disk = create()
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        before = state_of(guest.machine, storage.folder)
        path, uri = storage.paths(disk)
        assert not vm.repoint(disk.volume.uuid, uri).changed
        assert state_of(guest.machine, storage.folder) == before
        assert vm.repoint(disk.volume.uuid, path).changed
        assert not vm.repoint(disk.volume.uuid, path).changed
        vm.unplug(disk)


def test_a_move_that_cannot_be_right_is_refused_and_nothing_changes(
    boot: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    guest = boot()
    disk = create("one")
    larger = create("larger", size_mib=65)
    buffered = create("buffered", cache="writeback")
    other = storage.disk("never-plugged")
    attachments.attach(storage.host, larger)
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        vm.plug(buffered)
        before = state_of(guest.machine, storage.folder)
        path, uri = storage.paths(disk)
        with pytest.raises(OperationFailed, match=r"has 68157440 bytes, the disk has 67108864"):
            vm.repoint(disk.volume.uuid, storage.paths(larger)[0])
        with pytest.raises(RepointRefused, match=r"cache\.direct=on.*stale data"):
            vm.repoint(buffered.volume.uuid, storage.paths(buffered)[0])
        with pytest.raises(DiskNotFound, match=str(other.volume.uuid)):
            vm.repoint(other.volume.uuid, path)
        with pytest.raises(OperationFailed, match="/dev/hvext-none"):
            vm.repoint(disk.volume.uuid, "host_device:/dev/hvext-none")
        with pytest.raises(OperationFailed, match="Failed to connect"):
            vm.repoint(disk.volume.uuid, uri.replace("nbd.sock", "no.sock"))
        assert state_of(guest.machine, storage.folder) == before
        assert vm.disks()[disk.volume.uuid].protocol is not None
        vm.unplug(disk)
        vm.unplug(buffered)


def test_a_move_away_from_dead_storage_fails_and_is_rolled_back(
    boot: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    guest = boot()
    disk = create(access="userspace", werror="stop", rerror="stop")
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        path, _uri = storage.paths(disk)
        writer = Writer(guest.console, wait_for_disk(guest.console))
        writer.start(blocks=64)
        before = state_of(guest.machine, storage.folder)
        kill_servers(storage)
        with pytest.raises(OperationFailed) as failure:
            vm.repoint(disk.volume.uuid, path)
        assert failure.value.step == "switch over"
        assert failure.value.undone
        assert not failure.value.left
        assert state_of(guest.machine, storage.folder) == before


def test_leftovers_of_an_interrupted_move_are_cleared_by_the_next_one(
    boot: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    guest = boot()
    disk = create()
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        path, uri = storage.paths(disk)
        current = vm.disks()[disk.volume.uuid].protocol
        assert current is not None
        location = parse_uri(uri)
        leftover = current.name[:-1] + "7"
        on_debug_monitor(
            guest.machine, "blockdev-add", driver=location.driver, node_name=leftover, **location.blockdev()
        )
        assert vm.repoint(disk.volume.uuid, path).changed
        running = vm.disks()[disk.volume.uuid]
        assert len(running.protocols) == 1
        assert running.protocols[0].filename == path
        vm.unplug(disk)
