from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hvext.core.disk import Disk
from hvext.core.identity import ProtocolName
from hvext.errors import OperationFailed, PlugError
from hvext.host.guest import Writer
from hvext.host.machine import start_storage_daemon
from hvext.host.provider import ProviderHost
from hvext.operations import attachments
from hvext.operations.recover import recover
from hvext.operations.vm import open_vm
from tests.providers import read_calls, write_provider
from tests.vm.state import on_debug_monitor, state_of
from tests.vm.volume import guest_disks, wait_for_disk

if TYPE_CHECKING:
    from tests.vm.conftest import GuestFactory, MachineFactory, Storage

pytestmark = pytest.mark.vm


@pytest.mark.parametrize(
    ("board", "options"),
    [
        ("q35", {}),
        ("q35", {"device": "scsi-hd"}),
        ("pc", {}),
        ("pc", {"device": "scsi-hd"}),
        (
            "q35",
            {"iothread": "auto", "iops_total": "10000", "discard": "unmap", "detect_zeroes": "unmap", "serial": "s-1"},
        ),
        ("q35", {"read_only": True}),
        ("q35", {"access": "kernelspace", "aio": "native"}),
        ("q35", {"access": "kernelspace", "aio": "io_uring", "cache": "directsync"}),
        ("q35", {"cache": "writethrough"}),
    ],
)
def test_a_plugged_disk_works_and_nothing_of_it_stays(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk], board: str, options: dict[str, Any]
) -> None:
    guest = share(machine=board)
    disk = create(**options)
    before = state_of(guest.machine, storage.folder)
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        plugged = vm.plug(disk)
        assert plugged.changed
        device = wait_for_disk(guest.console)
        assert not vm.plug(disk).changed
        status, text = guest.console.run(f"dd if=/dev/zero of={device} bs=4k count=4 conv=fsync")
        assert (status == 0) is not bool(options.get("read_only")), text
        running = vm.disks()[disk.volume.uuid]
        assert running.root is not None
        assert running.root.read_only is bool(options.get("read_only"))
        if "serial" in options:
            assert guest.console.run(f"cat /sys/block/{device.removeprefix('/dev/')}/serial")[1] == options["serial"]
        result = vm.unplug(disk)
        assert result.state == "unplugged"
        assert result.detached
    assert guest_disks(guest.console) == []
    assert state_of(guest.machine, storage.folder) == before


def _fake(folder: Path, answer: str) -> ProviderHost:
    write_provider(folder, "fake", {"attach": f"printf '{answer}'"}, record=folder / "calls")
    return ProviderHost(search_path=(str(folder),))


def _actions(folder: Path) -> list[str]:
    return [call.action for call in read_calls(folder / "calls")]


def test_a_dead_nbd_server_fails_the_plug_and_leaves_nothing(machine: MachineFactory, tmp_path: Path) -> None:
    vm_machine = machine(start_paused=True)
    host = _fake(tmp_path / "p", r"\nkvm:nbd+unix:///e?socket=/tmp/hvext-no-such.sock\n")
    disk = Disk.from_mapping({"provider": "fake", "volume": "v", "iops_total": 5, "iothread": "auto"})
    before = state_of(vm_machine)
    with (
        open_vm(str(vm_machine.qmp_path), host=host) as vm,
        pytest.raises(
            OperationFailed, match=r"open the storage: .*Failed to connect.*undone: .*attach fake/v"
        ) as failure,
    ):
        vm.plug(disk)
    assert not failure.value.left
    assert state_of(vm_machine) == before
    assert _actions(tmp_path / "p") == ["attach", "detach"]


def test_a_dead_first_candidate_gives_way_to_the_next_and_the_reason_says_so(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    vm_machine = machine(start_paused=True)
    real = create()
    offer = attachments.attach(storage.host, real).attachment
    host = _fake(
        tmp_path / "p",
        rf"{offer.block_path}\nkvm:nbd+unix:///e?socket=/tmp/hvext-no-such.sock\nkvm:{offer.uris_for('kvm')[0]}\n",
    )
    disk = Disk.from_mapping({"provider": "fake", "volume": "v"})
    with open_vm(str(vm_machine.qmp_path), host=host) as vm:
        plugged = vm.plug(disk)
    assert plugged.access == "userspace"
    assert plugged.location == offer.uris_for("kvm")[0]
    assert "hvext-no-such.sock" in plugged.reason


def test_a_refused_device_leaves_nothing(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    vm_machine = machine(start_paused=True)
    first, second = create("one", bootindex=1), create("two", bootindex=1, iothread="auto", iops_total=7)
    with open_vm(str(vm_machine.qmp_path), host=storage.host) as vm:
        vm.plug(first)
        before = state_of(vm_machine, storage.folder)
        with pytest.raises(OperationFailed, match=r"plug device .*bootindex.*undone: ") as failure:
            vm.plug(second)
        assert not failure.value.left
        assert state_of(vm_machine, storage.folder) == before


def test_somebody_elses_node_of_the_same_name_is_left_alone(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hvext.operations.nodes.SETTLE_S", 0.5)
    vm_machine = machine(start_paused=True, scsi_controllers=1)
    disk = create()
    on_debug_monitor(vm_machine, "blockdev-add", driver="null-co", node_name=disk.names.root, read_zeroes=True)
    on_debug_monitor(vm_machine, "device_add", driver="scsi-hd", id="foreign", drive=disk.names.root, bus="scsi0.0")
    before = state_of(vm_machine, storage.folder)
    with (
        open_vm(str(vm_machine.qmp_path), host=storage.host) as vm,
        pytest.raises(OperationFailed, match="in use"),
    ):
        vm.plug(disk)
    assert state_of(vm_machine, storage.folder) == before


def test_a_node_that_somebody_else_made_meanwhile_is_left_alone(machine: MachineFactory, tmp_path: Path) -> None:
    vm_machine = machine(start_paused=True)
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    values: dict[str, object] = {"provider": "racing", "volume": "vol"}
    disk = Disk.from_mapping(values)
    node = disk.names.protocol(ProtocolName())
    add = {"execute": "blockdev-add", "arguments": {"driver": "null-co", "node-name": node}}
    attach = f"""#!{sys.executable}
import socket
with socket.socket(socket.AF_UNIX) as monitor:
    monitor.connect({str(vm_machine.debug_qmp_path)!r})
    lines = monitor.makefile("rw")
    for line in ('{{"execute": "qmp_capabilities"}}', {json.dumps(add)!r}):
        lines.readline()
        print(line, file=lines, flush=True)
    lines.readline()
print({f"{chr(10)}kvm:file:{tmp_path}/image"!r})
"""
    write_provider(tmp_path / "providers", "racing", {"attach": attach})
    host = ProviderHost(search_path=[str(tmp_path / "providers")])
    with open_vm(str(vm_machine.qmp_path), host=host) as vm, pytest.raises(OperationFailed, match="Duplicate node"):
        vm.plug(disk)
    assert state_of(vm_machine).nodes == {node}


def test_a_foreign_device_with_the_disks_id_is_not_taken_for_it(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    vm_machine = machine(start_paused=True, scsi_controllers=1)
    disk = create()
    on_debug_monitor(vm_machine, "blockdev-add", driver="null-co", node_name="foreign", read_zeroes=True)
    on_debug_monitor(vm_machine, "device_add", driver="scsi-hd", id=disk.names.device, drive="foreign", bus="scsi0.0")
    before = state_of(vm_machine, storage.folder)
    with (
        open_vm(str(vm_machine.qmp_path), host=storage.host) as vm,
        pytest.raises(PlugError, match="is not this disk"),
    ):
        vm.plug(disk)
    assert state_of(vm_machine, storage.folder) == before


def test_a_disk_that_has_no_place_in_the_guest_leaves_nothing_and_says_why(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    vm_machine = machine(start_paused=True, root_ports=1)
    with open_vm(str(vm_machine.qmp_path), host=storage.host) as vm:
        vm.plug(create("one"))
        before = state_of(vm_machine, storage.folder)
        with pytest.raises(PlugError, match="no free slot: all 1 hot-plug ports"):
            vm.plug(create("two"))
        with pytest.raises(PlugError, match="no virtio-scsi controller"):
            vm.plug(create("three", device="scsi-hd"))
        with pytest.raises(PlugError, match="root port 'rp0' is taken"):
            vm.plug(create("four", bus="rp0"))
        with pytest.raises(PlugError, match="no root port 'rp9'"):
            vm.plug(create("five", bus="rp9"))
        with pytest.raises(PlugError, match="no iothread 'io9'"):
            vm.plug(create("six", iothread="io9"))
        assert state_of(vm_machine, storage.folder) == before
        assert len(vm.known_disks()) == 1
    ran = [path.name.partition("-")[0] for path in (tmp_path / "provider-logs").glob("*tach-*")]
    # QEMU answers while the volume is attached.
    assert (ran.count("attach"), ran.count("detach")) == (6, 5)


def test_a_disk_that_has_no_place_and_whose_volume_is_not_let_go_stays_written_down(
    machine: MachineFactory, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    scripts = {"attach": f"printf '\\nkvm:file:{image}\\n'", "detach": f"test -e {tmp_path}/lets-go"}
    write_provider(tmp_path / "providers", "holding", scripts)
    host = ProviderHost(search_path=[str(tmp_path / "providers")])
    disk = Disk.from_mapping({"provider": "holding", "volume": "vol", "device": "scsi-hd"})
    monitor = str(machine(start_paused=True).qmp_path)
    with open_vm(monitor, host=host) as vm:
        with pytest.raises(OperationFailed, match=r"no virtio-scsi controller.*NOT undone: attach holding/vol"):
            vm.plug(disk)
        assert disk.volume.uuid in vm.known_disks()
        (tmp_path / "lets-go").touch()
    recovered = asyncio.run(recover(host, monitors=[monitor]))
    assert [str(item.outcome) for item in recovered] == ["undone"]


def test_a_port_that_a_device_has_not_left_yet_is_not_free(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    # QEMU 7.2 takes a second device on an occupied root port without a word.
    vm_machine = machine(start_paused=True, root_ports=2)
    first, second = create("one"), create("two")
    with open_vm(str(vm_machine.qmp_path), host=storage.host) as vm:
        vm.plug(first)
        assert vm.unplug(first, timeout_s=1).state == "pending"
        vm.plug(second)
    path = f"/machine/peripheral/{second.names.device}"
    bus = on_debug_monitor(vm_machine, "qom-get", path=path, property="parent_bus")
    assert bus.endswith("/rp1")


def test_a_full_pc_bus_is_an_error_and_every_slot_before_works(machine: MachineFactory, tmp_path: Path) -> None:
    vm_machine = machine(machine="pc", start_paused=True)
    with tempfile.TemporaryDirectory(prefix="hvext-") as short:
        server = [
            *("--blockdev", "driver=null-co,node-name=n,size=1048576,read-zeroes=on"),
            *("--nbd-server", f"addr.type=unix,addr.path={short}/s,max-connections=0"),
        ]
        for number in range(40):
            server += ["--export", f"type=nbd,id=e{number},node-name=n,name=v{number},writable=on"]
        host = _fake(tmp_path / "p", rf"\nkvm:nbd+unix:///'$VOL_NAME'?socket={short}/s\n")
        with start_storage_daemon(server, tmp_path / "logs"), open_vm(str(vm_machine.qmp_path), host=host) as vm:
            for number in range(40):
                disk = Disk.from_mapping({"provider": "fake", "volume": f"v{number}"})
                try:
                    vm.plug(disk)
                except PlugError as error:
                    assert "no free slot: all slots of pci.0 are taken" in error.message  # noqa: PT017
                    break
            assert number >= 28
            assert len(vm.disks()) == number
            vm_machine.stop()


def test_two_processes_that_plug_at_once_get_different_places(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    guest = share()
    disks = [create(f"v{number}") for number in range(4)]
    commands = [
        [sys.executable, "-m", "hvext", "plug", "--qmp", str(guest.machine.qmp_path), "--log-dir", "none"]
        + [word for name, value in disk.volume.parameters.items() for word in ("-p", f"{name}={value}")]
        + ["sample", disk.volume.name]
        for disk in disks
    ]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for command in commands]
    results = [(process.communicate(timeout=60), process.returncode) for process in running]
    assert [status for _output, status in results] == [0] * len(disks), results
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        assert set(vm.disks()) == {disk.volume.uuid for disk in disks}
        for disk in disks:
            assert vm.unplug(disk).state == "unplugged"


def test_scsi_disks_get_addresses_of_their_own_and_writers_do_not_mix(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    guest = share()
    disks = [create(f"v{number}", device="scsi-hd") for number in range(3)]
    writers = []
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        for disk in disks:
            known = tuple(guest_disks(guest.console))
            vm.plug(disk)
            writers.append(Writer(guest.console, wait_for_disk(guest.console, known=known)))
            writers[-1].start(threads=1, blocks=128)
        verdicts = [writer.stop() for writer in writers]
        assert all(verdict.ok and verdict.verified for verdict in verdicts)
        for disk in disks:
            vm.unplug(disk)
