"""Storage that is alive and silent: found, fenced, cut off, left; and what becomes of it when it wakes up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hvext.core.disk import Disk
from hvext.errors import CannotCut, FailoverRefused, FenceFailed, MigrationRefused, RepointRefused
from hvext.host.guest import Writer
from hvext.host.provider import ProviderHost
from hvext.host.qmp import Monitor
from hvext.operations.failover import fail_over, resume
from hvext.operations.fence import CommandFence, Fence, FrozenDisk, ProviderFence, fail_over_frozen
from hvext.operations.frozen import cut, stuck_now
from hvext.operations.transfer import check_can_leave
from hvext.operations.vm import open_vm
from tests.vm.failing import Setting, SettingFactory, check_verdict, freeze, wait_stuck, woken_up
from tests.vm.state import on_debug_monitor, state_of
from tests.vm.volume import guest_disks, pids_of_servers, read_direct, wait_for_disk

if TYPE_CHECKING:
    from tests.vm.conftest import GuestFactory, Storage

pytestmark = pytest.mark.vm


@pytest.mark.parametrize("lies", [False, True], ids=["fenced", "fence-that-lies"])
def test_the_fence_is_what_keeps_a_woken_server_from_writing_old_data_over_new(
    setting: SettingFactory, lies: bool
) -> None:
    # The server has the guest's first writes in its socket when it is left behind.
    made = setting(tcp=True)
    made.plug()
    writer = Writer(made.guest.console, wait_for_disk(made.guest.console))
    argv = ("true",) if lies else made.ways.fence()
    fence = CommandFence(argv=argv, leaves_server=True)
    freeze(made, [made.path], fence, meanwhile=lambda: writer.start(blocks=64))
    time.sleep(0.5)
    verdict = woken_up(made, writer)
    assert verdict.status.errors == 0
    if lies:
        assert verdict.bad, "the test proves nothing: without a fence, no old write came through"
    else:
        check_verdict(made, verdict)
    made.unplug()


FENCES: dict[str, tuple[Fence | None, str]] = {
    "none": (None, "has no fence"),
    "fails": (CommandFence(argv=("sh", "-c", "echo no power >&2; exit 3")), "status 3.*no power"),
    "missing-program": (CommandFence(argv=("/no/such/fence",)), "cannot start"),
    "hangs": (CommandFence(argv=("sleep", "60"), timeout_s=0.3), r"did not end within 0\.3 s"),
    # It says that it succeeded, and the server has its socket still.
    "lies": (CommandFence(argv=("true",)), "still is there, and silent"),
    "unknown-provider": (ProviderFence(host=ProviderHost()), "no provider"),
}


@pytest.mark.parametrize("which", FENCES)
def test_without_a_fence_that_succeeds_the_disk_is_left_as_it_is(setting: SettingFactory, which: str) -> None:
    made = setting()
    made.plug()
    writer = made.started_writer()
    fence, words = FENCES[which]
    before = state_of(made.guest.machine)

    async def refused(monitor: Monitor) -> None:
        made.ways.freeze()
        await wait_stuck(monitor, made.disk)
        frozen = FrozenDisk(disk=made.disk, candidates=[made.path], fence=fence)
        with pytest.raises(FenceFailed, match=words):
            await fail_over_frozen(monitor, [frozen])
        # Nothing was cut: its requests wait still.
        assert made.disk.volume.uuid in await stuck_now(monitor, watch_s=0.2)
        assert not await resume(monitor)

    made.run(refused)
    assert state_of(made.guest.machine) == before
    made.ways.thaw()
    check_verdict(made, writer.stop())
    made.unplug()


@pytest.mark.parametrize(
    ("other", "device"),
    [
        pytest.param(False, "virtio-blk-pci", id="installed-qemu-virtio-blk-pci"),
        pytest.param(False, "scsi-hd", id="installed-qemu-scsi-hd"),
        pytest.param(True, "virtio-blk-pci", id="second-qemu-virtio-blk-pci", marks=pytest.mark.nightly),
        pytest.param(True, "scsi-hd", id="second-qemu-scsi-hd", marks=pytest.mark.nightly),
    ],
)
def test_a_disk_with_stuck_requests_does_not_hang_qemu(
    setting: SettingFactory, request: pytest.FixtureRequest, device: str, other: bool
) -> None:
    qemu = str(request.getfixturevalue("second_qemu") / "bin/qemu-system-x86_64") if other else ""
    made = setting(device=device, qemu=qemu)
    made.plug()
    writer = made.started_writer()

    async def refused(monitor: Monitor) -> None:
        made.ways.freeze()
        with pytest.raises(FailoverRefused, match="answers nothing"):
            await fail_over(monitor, made.disk.names, [made.path])
        assert (await monitor.execute("query-status", timeout_s=5))["running"]

    made.run(refused)
    made.ways.thaw()
    check_verdict(made, writer.stop())
    made.unplug()


@pytest.mark.parametrize("device", ["virtio-blk-pci", "scsi-hd"])
def test_a_disk_with_stuck_requests_is_not_moved_grown_or_migrated(setting: SettingFactory, device: str) -> None:
    made = setting(device=device)
    made.plug()
    writer = made.started_writer()
    before = state_of(made.guest.machine)
    with open_vm(str(made.guest.machine.qmp_path), host=made.host) as vm:
        made.ways.freeze()
        with pytest.raises(RepointRefused, match=f"storage of disk {made.disk.volume.uuid} answers nothing"):
            vm.repoint(made.disk.volume.uuid, made.path)
        with pytest.raises(RepointRefused, match="answers nothing"):
            vm.resize(made.disk, 128)
    with pytest.raises(MigrationRefused, match="answers nothing"):
        made.run(check_can_leave)
    assert state_of(made.guest.machine) == before
    made.ways.thaw()
    made.move(made.path)
    check_verdict(made, writer.stop())
    made.unplug()


def test_an_unplug_of_a_disk_with_stuck_requests_says_why_the_guest_keeps_it(setting: SettingFactory) -> None:
    made = setting()
    made.plug()
    made.started_writer()
    with open_vm(str(made.guest.machine.qmp_path), host=made.host) as vm:
        made.ways.freeze()
        result = vm.unplug(made.disk, timeout_s=1)
    assert result.state == "pending"
    assert "asking again does not help" in result.warnings[0]
    made.ways.thaw()
    made.unplug()


def test_a_disk_that_is_idle_is_not_taken_for_stuck(setting: SettingFactory) -> None:
    made = setting()
    made.plug()
    wait_for_disk(made.guest.console)
    made.ways.freeze()
    assert not made.run(stuck_now)
    made.ways.thaw()
    made.unplug()


def test_only_connections_can_be_cut(setting: SettingFactory) -> None:
    made = setting()

    async def refused(monitor: Monitor) -> None:
        with pytest.raises(CannotCut, match="NBD only"):
            await cut(monitor, made.disk.names)

    made.plug()
    made.move(made.path)
    made.run(refused)
    made.unplug()
    with pytest.raises(CannotCut, match="no storage"):
        made.run(lambda monitor: cut(monitor, made.disk.names))


def test_all_stuck_disks_of_a_guest_are_left_together(setting: SettingFactory) -> None:
    """One alone would stop the guest, and QEMU would wait for the other's requests: its main loop would hang."""
    first = setting(tcp=True)
    second = setting(tcp=True, name="two-b")
    writers = []
    for each in (first, second):
        known = tuple(guest_disks(first.guest.console))
        each.plug()
        writers.append(Writer(first.guest.console, wait_for_disk(first.guest.console, known=known)))
        writers[-1].start(blocks=64)
    frozen = [
        FrozenDisk(
            disk=each.disk, candidates=[each.path], fence=CommandFence(argv=each.ways.fence(), leaves_server=True)
        )
        for each in (first, second)
    ]

    async def work(monitor: Monitor) -> None:
        first.ways.freeze()
        second.ways.freeze()
        await wait_stuck(monitor, first.disk, second.disk)
        with pytest.raises(FailoverRefused, match=f"other disks.*{second.disk.names.uuid}"):
            await fail_over_frozen(monitor, frozen[:1])
        assert len(await fail_over_frozen(monitor, frozen)) == 2
        assert await resume(monitor)

    first.run(work)
    for each, writer in zip((first, second), writers, strict=True):
        check_verdict(each, woken_up(each, writer))
    for each in (first, second):
        each.unplug()


def runs(pid: int) -> bool:
    """Whether a process runs or is stopped, and is not only waiting to be reaped."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_providers_close_is_a_fence(share: GuestFactory, storage: Storage, create: Callable[..., Disk]) -> None:
    guest = share()
    disk = create(werror="stop", rerror="stop")
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        path, uri = storage.paths(disk)
    ways = Setting(guest=guest, ways=None, host=storage.host, disk=disk)  # type: ignore[arg-type]
    writer = ways.started_writer(blocks=64)
    servers = pids_of_servers(storage)

    async def work(monitor: Monitor) -> str:
        for pid in servers:
            os.kill(pid, signal.SIGSTOP)
        await wait_stuck(monitor, disk)
        frozen = FrozenDisk(disk=disk, candidates=[], fence=ProviderFence(host=storage.host))
        (result,) = await fail_over_frozen(monitor, [frozen])
        assert await resume(monitor)
        return result.after

    # The server is gone, and a new one is where it was.
    assert ways.run(work) == uri
    assert not [pid for pid in servers if runs(pid)]
    verdict = writer.stop()
    assert (verdict.status.errors, verdict.bad, verdict.unreadable) == (0, 0, 0)
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        assert vm.repoint(disk.volume.uuid, path).changed
        vm.unplug(disk)
    assert any(read_direct(storage, disk, 1 << 20))


def test_a_provider_without_close_is_no_fence(setting: SettingFactory) -> None:
    made = setting()
    made.plug()
    frozen = FrozenDisk(disk=made.disk, candidates=[made.path], fence=ProviderFence(host=made.host))
    with pytest.raises(FenceFailed, match="no close script"):
        made.run(lambda monitor: fail_over_frozen(monitor, [frozen]))
    assert on_debug_monitor(made.guest.machine, "query-status")["running"]
    made.unplug()
