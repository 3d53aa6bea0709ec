"""What a running guest has is taken from it by nothing: no stop, no detach, no recover, and no failed start."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hvext.core.disk import Disk
from hvext.core.value import replace
from hvext.core.volume import derived_uuid
from hvext.errors import HvextError, MigrationRefused, VolumeInUse
from hvext.host.journal import JournalFolder
from hvext.operations import moving
from hvext.operations.audit import audit
from hvext.operations.journal import read_records
from hvext.operations.recover import Outcome, recover
from hvext.operations.start import start_disks, stop_disks
from hvext.operations.unplug import UnplugState
from hvext.operations.vm import open_vm, open_vm_async
from hvext.operations.volumes import detach_volume, remove_volume
from tests.servers.program import free_port
from tests.vm.conftest import MachineFactory
from tests.vm.faults.provider import SECRET
from tests.vm.faults.world import World, world

pytestmark = pytest.mark.vm


@pytest.fixture
def counting() -> Iterator[World]:
    with world() as made:
        yield made


def disk_of(counting: World, name: str = "vol", **options: Any) -> Disk:
    return counting.create(name, **{"device": "scsi-hd", **options})


def actions(counting: World) -> list[str]:
    """What the provider was asked for, but for looks at what it offers."""
    return [
        action
        for action, _uuid, what, _pid in counting.counted.calls()
        if action in ("close", "detach") and what == "ok"
    ]


def over_tcp(port: int) -> tuple[str, ...]:
    """Arguments of a QEMU with a monitor at a port."""
    chardev = f"socket,id=tcp,host=127.0.0.1,port={port},server=on,wait=off"
    return ("-chardev", chardev, "-mon", "chardev=tcp,mode=control")


def test_an_instance_that_runs_is_not_stopped_by_its_name(counting: World, machine: MachineFactory) -> None:
    running, disk = machine(start_paused=True, scsi_controllers=1), disk_of(counting)
    with open_vm(str(running.qmp_path), host=counting.host) as vm:
        vm.plug(disk)
    for name, close in ((None, False), (running.name, False), (running.name, True)):
        (words,) = stop_disks(counting.host, [disk], name=name, close=close)
        assert "has it" in words
    with pytest.raises(VolumeInUse, match=running.name):
        detach_volume(counting.host, disk)
    with pytest.raises(VolumeInUse, match=running.name):
        remove_volume(counting.host, disk)
    assert actions(counting) == []
    running.stop()
    assert stop_disks(counting.host, [disk], close=True) == []
    assert actions(counting) == ["close", "detach"]
    assert read_records(JournalFolder()) == {}


def test_a_guest_whose_monitor_does_not_tell_its_process_keeps_its_disks(
    counting: World, machine: MachineFactory
) -> None:
    # Over TCP, and through a proxy, whose own process the socket tells.
    port, disk = free_port(), disk_of(counting)
    running = machine(
        start_paused=True,
        scsi_controllers=1,
        extra_args=over_tcp(port),
    )
    with open_vm(f"127.0.0.1:{port}", host=counting.host) as vm:
        vm.plug(disk)
    with pytest.raises(VolumeInUse):
        detach_volume(counting.host, disk)
    (item,) = asyncio.run(recover(counting.host, gone=[running.name]))
    assert item.outcome is Outcome.LEFT
    assert actions(counting) == []
    with open_vm(f"127.0.0.1:{port}", host=counting.host) as vm:
        assert vm.unplug(disk).detached


def test_two_guests_of_one_name_are_told_apart_by_their_disks_where_nothing_else_does(
    counting: World, machine: MachineFactory
) -> None:
    ports, disks = (free_port(), free_port()), (disk_of(counting, "one"), disk_of(counting, "two"))
    for port, disk in zip(ports, disks, strict=True):
        machine(start_paused=True, scsi_controllers=1, extra_args=over_tcp(port))
        with open_vm(f"127.0.0.1:{port}", host=counting.host, name="twin") as vm:
            vm.plug(disk)
    records = read_records(JournalFolder())
    assert {name: [*record.disks] for name, record in records.items()} == {
        "twin": [disks[0].volume.uuid],
        f"twin@127.0.0.1:{ports[1]}": [disks[1].volume.uuid],
    }
    assert asyncio.run(recover(counting.host)) == []
    for port, disk in zip(ports, disks, strict=True):
        with open_vm(f"127.0.0.1:{port}", host=counting.host, name="twin") as vm:
            assert vm.unplug(disk).detached


def test_the_end_of_a_proxy_is_not_taken_for_the_end_of_the_guest(
    counting: World, machine: MachineFactory, tmp_path: Path
) -> None:
    running, disk = machine(start_paused=True, scsi_controllers=1), disk_of(counting)
    with _proxy(running.qmp_path, counting.folder / "proxied") as proxied, open_vm(proxied, host=counting.host) as vm:
        vm.plug(disk)
    assert asyncio.run(recover(counting.host)) == []
    assert [finding.kind for finding in asyncio.run(audit())] == ["cannot be looked at"] or not asyncio.run(audit())
    assert actions(counting) == []
    with open_vm(str(running.qmp_path), host=counting.host, name=running.name) as vm:
        assert vm.unplug(disk).finished


@contextlib.contextmanager
def _proxy(target: Path, path: Path) -> Iterator[str]:
    """A program that hands on what comes to ``path``; its socket tells its own process, not QEMU's."""
    code = (
        "import socket, sys, threading\n"
        "def hand(a, b):\n"
        "    while data := a.recv(65536): b.sendall(data)\n"
        "    b.shutdown(socket.SHUT_WR)\n"
        "server = socket.socket(socket.AF_UNIX); server.bind(sys.argv[2]); server.listen()\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    one, _ = server.accept(); two = socket.socket(socket.AF_UNIX); two.connect(sys.argv[1])\n"
        "    threading.Thread(target=hand, args=(one, two), daemon=True).start()\n"
        "    threading.Thread(target=hand, args=(two, one), daemon=True).start()\n"
    )
    words = [sys.executable, "-c", code, str(target), str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield str(path)
        finally:
            process.kill()


def test_a_second_start_that_fails_leaves_the_first_one_its_disks(counting: World) -> None:
    disk, bad = disk_of(counting), Disk.from_mapping({"provider": "counted", "volume": "missing"})
    start_disks(counting.host, [disk], name="vm1")
    with pytest.raises(HvextError):
        start_disks(counting.host, [disk, bad], name="vm1")
    assert "detach" not in actions(counting)
    (record,) = read_records(JournalFolder()).values()
    assert set(record.disks) == {disk.volume.uuid}
    assert [finding.harmless for finding in asyncio.run(audit())] == [True]
    assert stop_disks(counting.host, [disk], name="vm1") == []


def test_a_volume_that_is_to_stay_attached_stays_so_whoever_finishes_the_unplug(
    counting: World, machine: MachineFactory
) -> None:
    # A paused guest lets no PCI disk go: the unplug is pending.
    running, gone, late = machine(start_paused=True, scsi_controllers=1), disk_of(counting, "a"), counting.create("b")
    with open_vm(str(running.qmp_path), host=counting.host) as vm:
        vm.plug(gone)
        vm.plug(late)
        assert vm.unplug_only(gone.volume.uuid).finished
        assert vm.unplug_only(late.volume.uuid, timeout_s=0.5).state == "pending"
    running.stop()
    asyncio.run(recover(counting.host))
    assert asyncio.run(audit()) == []
    assert "detach" not in actions(counting)
    for disk in (gone, late):
        detach_volume(counting.host, disk)


def test_a_pending_unplug_is_not_forgotten_by_a_move(counting: World, machine: MachineFactory) -> None:
    running, disk = machine(start_paused=True), counting.create("vol")
    with open_vm(str(running.qmp_path), host=counting.host) as vm:
        vm.plug(disk)
        assert vm.unplug(disk, timeout_s=0.5).state == "pending"
        vm.resize(disk, 96)
        with pytest.raises(HvextError, match="pending"):
            vm.plug(disk)
    running.stop()
    asyncio.run(recover(counting.host))


def test_a_disk_named_with_other_parameters_than_it_was_plugged_with_is_said_to_be_another(
    counting: World, machine: MachineFactory
) -> None:
    running, disk = machine(start_paused=True, scsi_controllers=1), disk_of(counting)
    other = replace(disk, volume=replace(disk.volume, parameters={}, uuid=derived_uuid(disk.provider, "vol", {})))
    with open_vm(str(running.qmp_path), host=counting.host) as vm:
        vm.plug(disk)
        result = vm.unplug(other)
        assert result.state is UnplugState.ABSENT
        (words,) = result.warnings
        assert f"dir={disk.volume.parameters['dir']}" in words
        assert disk.volume.parameters[SECRET] not in words
        assert vm.unplug(disk).warnings == ()


def test_a_guest_does_not_move_to_another_qemu_of_the_same_host(counting: World, machine: MachineFactory) -> None:
    options: dict[str, Any] = {"start_paused": True, "scsi_controllers": 1}
    source, disk = machine(**options), disk_of(counting, bus="scsi0", scsi_id="0", lun="0")
    with open_vm(str(source.qmp_path), host=counting.host) as vm:
        vm.plug(disk)

    async def attempt() -> None:
        async with open_vm_async(str(source.qmp_path), host=counting.host) as vm:
            description = await moving.begin(vm, [disk])
        start = start_disks(counting.host, description.disks, exclusive=False)
        target = machine(incoming="defer", extra_args=tuple(start.argv()), **options)
        async with open_vm_async(str(target.qmp_path), host=counting.host) as there:
            with pytest.raises(MigrationRefused, match="on this same host"):
                await moving.listen(there, description, "tcp:127.0.0.1:0")
        target.stop()
        async with open_vm_async(str(source.qmp_path), host=counting.host) as vm:
            await moving.cancel(vm, [disk])

    asyncio.run(attempt())
    with open_vm(str(source.qmp_path), host=counting.host) as vm:
        assert vm.unplug(disk).finished
