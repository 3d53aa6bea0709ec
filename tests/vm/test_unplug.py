from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from hvext.core.disk import Disk
from hvext.core.stamp import check_blocks
from hvext.host.guest import Writer
from hvext.operations.vm import open_vm
from tests.vm.state import on_debug_monitor, state_of
from tests.vm.volume import guest_disks, kill_servers, read_direct, wait_for_disk

if TYPE_CHECKING:
    from tests.vm.conftest import GuestFactory, MachineFactory, Storage

pytestmark = pytest.mark.vm
BLOCKS = 512


@pytest.mark.parametrize(
    ("machine_options", "device"),
    [
        ({}, "virtio-blk-pci"),
        pytest.param({"native_pcie_hotplug": True}, "virtio-blk-pci", marks=pytest.mark.nightly),
        ({"machine": "pc"}, "virtio-blk-pci"),
        ({}, "scsi-hd"),
        pytest.param({"machine": "pc"}, "scsi-hd", marks=pytest.mark.nightly),
    ],
    ids=["q35-acpi", "q35-native", "pc", "q35-scsi", "pc-scsi"],
)
def test_unplug_while_the_guest_writes_leaves_nothing_and_tears_no_block(
    share: GuestFactory,
    storage: Storage,
    create: Callable[..., Disk],
    machine_options: dict[str, Any],
    device: str,
) -> None:
    guest = share(**machine_options)
    disk = create(device=device, iops_total=100000)
    before = state_of(guest.machine, storage.folder)
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        name = wait_for_disk(guest.console)
        writer = Writer(guest.console, name)
        writer.start(blocks=BLOCKS, gone_after_s=1)
        while writer.status().writes < 100:
            pass
        result = vm.unplug(disk)
        assert result.state == "unplugged"
        assert result.detached
        assert vm.disks() == {}
        assert vm.unplug(disk).state == "absent"
    writer.wait_gone(60)
    assert guest_disks(guest.console) == []
    assert state_of(guest.machine, storage.folder) == before
    report = check_blocks(read_direct(storage, disk, BLOCKS * 4096), 0)
    assert report.ok
    assert report.valid


def test_a_guest_that_never_answers_keeps_its_disk_until_a_reset_and_then_nothing_is_left(
    boot: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    guest = boot()
    disk = create(iothread="auto", iops_total=1000)
    before = state_of(guest.machine, storage.folder)
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        wait_for_disk(guest.console)
        plugged = state_of(guest.machine, storage.folder)
        on_debug_monitor(guest.machine, "stop")
        for limit_s in (1.5, 0.5):
            result = vm.unplug(disk, timeout_s=limit_s)
            assert result.state == "pending"
            assert result.removed == ()
            assert not result.detached
            # Nothing of a pending disk may go: the guest still uses it.
            assert state_of(guest.machine, storage.folder) == plugged
    on_debug_monitor(guest.machine, "system_reset")
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        result = vm.unplug(disk)
        assert result.state == "unplugged"
        assert result.detached
    assert state_of(guest.machine, storage.folder) == before


def test_a_late_answer_is_finished_by_a_later_call(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    guest = share()
    disk = create()
    before = state_of(guest.machine, storage.folder)
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        wait_for_disk(guest.console)
        on_debug_monitor(guest.machine, "stop")
        assert vm.unplug(disk, timeout_s=0.5).state == "pending"
    on_debug_monitor(guest.machine, "cont")
    while guest_disks(guest.console):
        pass
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        assert vm.unplug(disk).state == "unplugged"
    assert state_of(guest.machine, storage.folder) == before


def test_a_disk_on_dead_storage_can_be_unplugged(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    guest = share()
    disk = create(access="userspace")
    before = state_of(guest.machine, storage.folder)
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        wait_for_disk(guest.console)
        kill_servers(storage)
        assert vm.unplug(disk).state == "unplugged"
    assert state_of(guest.machine, storage.folder) == before


def test_unplug_by_uuid_leaves_the_volume_attached(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    guest = share()
    disk = create()
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        wait_for_disk(guest.console)
        result = vm.unplug_only(disk.volume.uuid)
        assert result.state == "unplugged"
        assert not result.detached
        assert state_of(guest.machine, storage.folder).loops


def test_an_unplug_that_is_interrupted_again_and_again_ends_with_one_line(
    machine: MachineFactory, create: Callable[..., Disk]
) -> None:
    # A guest that is paused never lets it go.
    started = machine(start_paused=True)
    disk = create()
    words = ["--qmp", str(started.qmp_path), "--log-dir", "none"]
    words += [word for name, value in disk.volume.parameters.items() for word in ("-p", f"{name}={value}")]
    words += [disk.provider, disk.volume.name]
    subprocess.run([sys.executable, "-m", "hvext", "plug", *words], check=True, timeout=60, stdout=subprocess.DEVNULL)
    chance = random.Random(7)  # noqa: S311
    for number in range(12):
        process = subprocess.Popen(
            [sys.executable, "-m", "hvext", "unplug", "-v", *words],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        # Until it begins, an interrupt is Python's own.
        assert process.stderr.readline().startswith("  ask the guest to let")
        time.sleep(chance.uniform(0, 0.3))
        for _interrupt in range(1 + number % 4):
            process.send_signal(signal.SIGINT)
            time.sleep(chance.uniform(0, 0.02))
        _out, err = process.communicate(timeout=60)
        assert (process.returncode, err.splitlines()[0]) == (130, "hvext: interrupted")
        assert len(err.splitlines()) == 2
