from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hvext.core.disk import Disk
from hvext.core.stamp import check_blocks
from hvext.core.uri import parse_uri
from hvext.errors import DiskNotFound, OperationFailed, RepointRefused
from hvext.host.guest import Writer
from hvext.host.machine import Machine, start_storage_daemon
from hvext.host.provider import ProviderHost
from hvext.operations import attachments
from hvext.operations.vm import Vm, open_vm
from tests.providers import write_provider
from tests.vm.state import on_debug_monitor, state_of
from tests.vm.volume import kill_servers, read_direct, wait_for_disk

if TYPE_CHECKING:
    from tests.vm.conftest import GuestFactory, MachineFactory, Storage

pytestmark = pytest.mark.vm
BLOCKS = 1024
#: How long to watch the write latency without moves, at most.
REST_S = 2.0


@pytest.mark.parametrize(
    ("device", "iothread"),
    [
        pytest.param("virtio-blk-pci", False, id="virtio-blk-pci-main-loop"),
        pytest.param("virtio-blk-pci", True, id="virtio-blk-pci-iothread", marks=pytest.mark.nightly),
        pytest.param("scsi-hd", False, id="scsi-hd-main-loop", marks=pytest.mark.nightly),
        pytest.param("scsi-hd", True, id="scsi-hd-iothread"),
    ],
)
@pytest.mark.parametrize("moves", [40, pytest.param(5000, marks=[pytest.mark.nightly, pytest.mark.timeout(1800)])])
def test_moves_under_writes_lose_no_block_and_show_no_error(
    share: GuestFactory,
    storage: Storage,
    create: Callable[..., Disk],
    capsys: pytest.CaptureFixture[str],
    moves: int,
    device: str,
    iothread: bool,
) -> None:
    options = {"iothread": "io0"} if iothread else {}
    guest = share(**({"scsi_iothread": "io0"} if iothread and device == "scsi-hd" else {}))
    disk = create(device=device, **options)
    before = state_of(guest.machine, storage.folder)
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        targets = storage.paths(disk)
        writer = Writer(guest.console, wait_for_disk(guest.console))
        writer.start(blocks=BLOCKS)
        # Half the moves, a while without any, the other half: what else the machine does meets both.
        moving, moving_s = _window(writer, lambda: _move(vm, disk, targets, moves // 2))
        resting, resting_s = _window(writer, lambda: time.sleep(min(moving_s, REST_S)))
        moving_again, again_s = _window(writer, lambda: _move(vm, disk, targets, moves // 2))
        verdict = writer.stop()
        vm.unplug(disk)
    with capsys.disabled():
        print(
            f"\n{device}{' iothread' if iothread else ''}: {moves} moves in {moving_s + again_s:.1f} s, "
            f"{verdict.status.writes} writes, {verdict.status.errors} errors, {verdict.verified}/{verdict.blocks} "
            f"blocks verified; largest write latency {moving} and {moving_again} us with moves, {resting} us in "
            f"{resting_s:.1f} s without"
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
    share: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    guest = share()
    disk = create(iops_total="50")
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        path, _uri = storage.paths(disk)
        writer = Writer(guest.console, wait_for_disk(guest.console))
        # Reading them back takes its time as well, at 50 a second.
        writer.start(blocks=64, threads=8)
        vm.repoint(disk.volume.uuid, path)
        first = writer.status()
        time.sleep(2)
        second = writer.status()
        assert not writer.stop().bad
        vm.unplug(disk)
    per_second = (second.writes - first.writes) / ((second.elapsed_us - first.elapsed_us) / 1e6)
    assert per_second < 100


@pytest.mark.parametrize(
    "options",
    [
        {"discard": "unmap", "detect_zeroes": "unmap", "aio": "native"},
        {"read_only": True},
        {"cache": "directsync", "aio": "io_uring"},
    ],
)
def test_a_moved_disk_is_opened_as_it_was_before(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk], options: dict[str, Any]
) -> None:
    vm_machine = machine(start_paused=True)
    disk = create(access="kernelspace", **options)
    with open_vm(str(vm_machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        path, uri = storage.paths(disk)
        before = _nodes(vm_machine)
        vm.repoint(disk.volume.uuid, uri)
        away = _nodes(vm_machine)
        vm.repoint(disk.volume.uuid, path)
        back = _nodes(vm_machine)
    root = disk.names.root
    for nodes in (before, away, back):
        protocol = next(name for name in nodes if name != root)
        # The character before the generation tells aio and discard, which QEMU does not report.
        assert protocol[:-1] == next(name for name in before if name != root)[:-1]
        assert all(node["ro"] is bool(options.get("read_only")) for node in nodes.values())
        assert all(node["cache"] == next(iter(before.values()))["cache"] for node in nodes.values())
        assert nodes[root]["detect_zeroes"] == options.get("detect_zeroes", "off")


def _nodes(machine: Machine) -> dict[str, Any]:
    return {node["node-name"]: node for node in on_debug_monitor(machine, "query-named-block-nodes", flat=True)}


def test_a_name_that_looks_encoded_is_not_decoded_twice(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    # Two exports of one size: "v%41" and "vA". What hvext prints of the first must not lead to the second.
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with tempfile.TemporaryDirectory(prefix="hvext-") as short:
        server = [
            *("--blockdev", f"driver=file,node-name=f,filename={image}"),
            *("--nbd-server", f"addr.type=unix,addr.path={short}/s,max-connections=0"),
            *("--export", "type=nbd,id=one,node-name=f,name=v%41,writable=on"),
            *("--export", "type=nbd,id=two,node-name=f,name=vA,writable=on"),
        ]
        with start_storage_daemon(server, tmp_path / "logs"):
            answer = rf"\nkvm:nbd+unix:///v%%2541?socket={short}/s\n"
            write_provider(tmp_path / "p", "fake", {"attach": f"printf '{answer}'"})
            vm_machine = machine(start_paused=True)
            disk = Disk.from_mapping({"provider": "fake", "volume": "v"})
            host = ProviderHost(search_path=(str(tmp_path / "p"),))
            with open_vm(str(vm_machine.qmp_path), host=host) as vm:
                first = vm.plug(disk).location
                again = vm.plug(disk).location
                assert first == again == f"nbd+unix:///v%2541?socket={short}/s"
                assert not vm.repoint(disk.volume.uuid, again).changed
                moved = vm.repoint(disk.volume.uuid, f"nbd+unix:///vA?socket={short}/s")
                assert moved.before == first
            vm_machine.stop()


def test_a_move_to_where_the_disk_is_changes_nothing_and_says_so(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    guest = share()
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
    share: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    guest = share()
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
    share: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    guest = share()
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
