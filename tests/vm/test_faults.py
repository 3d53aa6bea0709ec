"""An answer that gets lost, at every single command of every operation.

QEMU carries the command out, and hvext does not hear of it. For plug and move, which commands there are is found by
running until no answer is left to lose, so that a new one cannot be forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from hvext.core.disk import Disk
from hvext.core.uri import parse_uri
from hvext.errors import CommandTimeout, HvextError, MonitorError, OperationFailed, QemuError
from hvext.host.files import opened_as
from hvext.host.provider import ProviderHost
from hvext.host.qmp import Monitor, connect
from hvext.operations import attachments
from hvext.operations.inspect import running_disk
from hvext.operations.plug import Plugged, plug
from hvext.operations.questions import asking
from hvext.operations.repoint import repoint
from hvext.operations.resize import resize
from hvext.operations.unplug import remove_device, unplug_and_detach
from hvext.operations.vm import open_vm_async
from tests.vm.state import on_debug_monitor, state_of

if TYPE_CHECKING:
    from tests.vm.conftest import MachineFactory, Storage

pytestmark = pytest.mark.vm
#: Commands that only look: losing their answer is a plain error.
LOOKS = ("query-", "qom-list", "qom-get")


@dataclass(eq=False)
class Lossy:
    """A monitor that loses the answer of the command number ``lose`` that changes something, counted from 0."""

    monitor: Monitor
    lose: int
    error: type[QemuError] = CommandTimeout
    changes: list[str] = field(default_factory=list)

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None, **options: Any) -> Any:
        result = await self.monitor.execute(command, arguments, **options)
        if not command.startswith(LOOKS):
            self.changes.append(command)
            if len(self.changes) == self.lose + 1:
                raise self.error(f"the answer of {command} got lost")
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.monitor, name)


async def whole_plug(monitor: Any, host: ProviderHost, disk: Disk) -> Plugged:
    """Plug with the questions that come before it."""
    async with asking(monitor, host, disk, known=True) as questions:
        return await plug(monitor, host, disk, questions=questions)


@asynccontextmanager
async def lossy(path: object, lose: int, error: type[QemuError] = CommandTimeout) -> AsyncIterator[Any]:
    async with connect(str(path)) as monitor:
        yield Lossy(monitor, lose, error)


async def lose_each(path: object, work: Callable[[Any], Awaitable[object]], after: Callable[[str], None]) -> list[str]:
    """Do the work again and again, each time with the next answer lost, until there is none left to lose."""
    lost: list[str] = []
    while True:
        async with lossy(path, len(lost)) as monitor:
            try:
                await work(monitor)
            except HvextError:
                lost.append(monitor.changes[len(lost)])
            else:
                if len(monitor.changes) <= len(lost):
                    return lost
                lost.append(monitor.changes[len(lost)])
        await asyncio.to_thread(after, lost[-1])


async def test_a_plug_whose_answer_gets_lost_is_whole_or_nothing_whichever_it_is(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    # A SCSI disk goes at once, so that nothing of it may stay.
    vm_machine = machine(start_paused=True, scsi_controllers=1)
    disk = create(device="scsi-hd", iops_total=100)
    before = state_of_in_thread = await asyncio.to_thread(state_of, vm_machine, storage.folder)

    plugged: list[str] = []

    async def work(monitor: Any) -> None:
        if (await whole_plug(monitor, storage.host, disk)).changed:
            plugged.append(monitor.changes[monitor.lose] if len(monitor.changes) > monitor.lose else "")

    async def unplugged() -> None:
        async with open_vm_async(str(vm_machine.qmp_path), host=storage.host) as vm:
            if (found := (await vm.disks()).get(disk.volume.uuid)) is not None:
                assert found.device
                assert found.root
                assert (await vm.unplug(disk)).removed

    def same(command: str) -> None:
        asyncio.run(unplugged())
        attachments.detach(storage.host, disk)
        assert state_of(vm_machine, storage.folder) == before, command

    lost = await lose_each(vm_machine.qmp_path, work, same)
    assert lost == ["object-add", "blockdev-add", "blockdev-add", "blockdev-add", "device_add"]
    # Asked afterwards, QEMU says what it has. Opening the storage is several commands: that is undone.
    assert plugged == ["object-add", "blockdev-add", "blockdev-add", "device_add", ""]
    assert state_of_in_thread is before


async def test_a_plug_that_cannot_be_undone_keeps_the_volume_attached(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A paused guest does not let a PCI disk go: detaching its volume would pull it from under QEMU.
    monkeypatch.setattr("hvext.operations.plug.remove_device", partial(remove_device, timeout_s=1.5))
    vm_machine = machine(start_paused=True)
    disk = create()
    async with lossy(vm_machine.qmp_path, 2, MonitorError) as monitor:
        with pytest.raises(OperationFailed) as failure:
            await whole_plug(monitor, storage.host, disk)
        assert monitor.changes[2] == "device_add"
        assert any("attach sample/vol (kept" in left for left in failure.value.left)
        assert (await running_disk(monitor, disk.names)).device is not None
    state = await asyncio.to_thread(state_of, vm_machine, storage.folder)
    assert state.loops
    # The volume still serves: a fresh connection opens it.
    uri = (await asyncio.to_thread(attachments.offer, storage.host, disk)).attachment.uris_for("kvm")[0]
    location = parse_uri(uri)
    await asyncio.to_thread(
        lambda: on_debug_monitor(vm_machine, "blockdev-add", driver="nbd", node_name="probe", **location.blockdev())
    )


async def test_a_move_whose_answer_gets_lost_leaves_the_disk_whole(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    vm_machine = machine(start_paused=True, scsi_controllers=1)
    disk = create(device="scsi-hd")
    async with open_vm_async(str(vm_machine.qmp_path), host=storage.host) as vm:
        await vm.plug(disk)
    path, uri = await asyncio.to_thread(storage.paths, disk)
    places = {path, parse_uri(uri).uri()}

    async def move(monitor: Any) -> None:
        now = (await running_disk(monitor.monitor, disk.names)).protocol
        assert now is not None
        target = uri if now.filename == path else path
        await repoint(monitor, disk.names, parse_uri(target, look=opened_as))

    def whole(command: str) -> None:
        nodes = on_debug_monitor(vm_machine, "query-named-block-nodes", flat=True)
        root = next(node for node in nodes if node["node-name"] == disk.names.root)
        assert root["file"] in places, command
        assert len(nodes) == 2, command
        moved.append(root["file"])

    moved: list[str] = []
    lost = await lose_each(vm_machine.qmp_path, move, whole)
    assert lost == ["blockdev-add", "blockdev-reopen", "blockdev-del"]
    # Asked afterwards, QEMU says what it has: the move goes on. Once the switch is done there is no way back.
    assert moved[0] != moved[1] != moved[2]
    async with open_vm_async(str(vm_machine.qmp_path), host=storage.host) as vm:
        assert len((await vm.disks())[disk.volume.uuid].protocols) == 1


async def test_a_resize_whose_answer_gets_lost_is_finished_by_repeating_it(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    vm_machine = machine(start_paused=True, scsi_controllers=1)
    disk = create(device="scsi-hd", access="userspace")
    async with open_vm_async(str(vm_machine.qmp_path), host=storage.host) as vm:
        await vm.plug(disk)
        for lose in range(4):
            size_mib = 65 + lose
            async with lossy_over(vm.monitor, lose) as monitor:
                # What QEMU says was done goes on; the last step has no way to be asked for.
                with suppress(OperationFailed):
                    await resize(monitor, storage.host, disk, size_mib)
            assert (await vm.resize(disk, size_mib)).after_bytes == size_mib << 20
            assert len((await vm.disks())[disk.volume.uuid].protocols) == 1


@asynccontextmanager
async def lossy_over(monitor: Monitor, lose: int) -> AsyncIterator[Any]:
    yield Lossy(monitor, lose)


async def test_an_unplug_whose_answer_gets_lost_is_finished_by_repeating_it(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    vm_machine = machine(start_paused=True, scsi_controllers=1)
    disk = create(device="scsi-hd", iops_total=100)
    before = await asyncio.to_thread(state_of, vm_machine, storage.folder)
    async with open_vm_async(str(vm_machine.qmp_path), host=storage.host) as vm:
        for lose in range(5):
            await vm.plug(disk)
            monitor: Any = Lossy(vm.monitor, lose)
            if lose == 0:
                # Whether the device goes, QEMU tells by itself.
                assert (await unplug_and_detach(monitor, storage.host, disk)).detached
            else:
                with pytest.raises(HvextError, match="got lost"):
                    await unplug_and_detach(monitor, storage.host, disk)
            # The journal knows that this guest had it, whatever is left of it in QEMU.
            assert (await vm.unplug(disk)).detached
            assert await asyncio.to_thread(state_of, vm_machine, storage.folder) == before, monitor.changes


async def test_another_devices_end_is_not_taken_for_the_disks(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    vm_machine = machine(start_paused=True, scsi_controllers=1)
    disk = create()

    def other(command: str, **arguments: Any) -> None:
        on_debug_monitor(vm_machine, command, **arguments)

    async with open_vm_async(str(vm_machine.qmp_path), host=storage.host) as vm:
        await vm.plug(disk)
        await asyncio.to_thread(lambda: other("blockdev-add", driver="null-co", node_name="n"))
        await asyncio.to_thread(lambda: other("device_add", driver="scsi-hd", id="other", drive="n", bus="scsi0.0"))
        unplugging = asyncio.create_task(vm.unplug(disk, timeout_s=2))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(lambda: other("device_del", id="other"))
        result = await unplugging
        assert (result.state, result.removed, result.detached) == ("pending", (), False)


async def test_an_unplug_whose_event_never_comes_is_seen_by_looking(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    vm_machine = machine(start_paused=True, scsi_controllers=1)
    disk = create(device="scsi-hd")
    async with open_vm_async(str(vm_machine.qmp_path), host=storage.host) as vm:
        await vm.plug(disk)
        deaf: Any = Deaf(vm.monitor, -1)
        assert (await unplug_and_detach(deaf, storage.host, disk)).state == "unplugged"


class Deaf(Lossy):
    """A monitor from which no event comes."""

    @contextmanager
    def events(self, *_names: str, **_options: Any) -> Iterator[Any]:
        with self.monitor.events("NO_SUCH_EVENT") as events:
            yield events


async def test_operations_from_several_tasks_take_turns(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    vm_machine = machine(start_paused=True)
    one, two = create("one"), create("two")
    async with open_vm_async(str(vm_machine.qmp_path), host=storage.host) as vm:
        results = await asyncio.gather(vm.plug(one), vm.plug(two), vm.plug(one))
        assert [result.changed for result in results] == [True, True, False]
        buses = {
            await vm.monitor.execute(
                "qom-get", {"path": f"/machine/peripheral/{disk.names.device}", "property": "parent_bus"}
            )
            for disk in (one, two)
        }
        assert len(buses) == 2


async def test_a_place_that_is_taken_while_the_volume_is_attached_is_not_used_twice(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    vm_machine = machine(start_paused=True)
    disk = create(parameters={"attach_delay": "1"})
    async with open_vm_async(str(vm_machine.qmp_path), host=storage.host) as vm:
        plugging = asyncio.create_task(vm.plug(disk))
        await asyncio.sleep(0.4)
        await asyncio.to_thread(
            lambda: (
                on_debug_monitor(vm_machine, "device_add", driver="virtio-blk-pci", id="other", bus="rp0", drive="x")
                if on_debug_monitor(vm_machine, "blockdev-add", driver="null-co", node_name="x") == {}
                else None
            )
        )
        await plugging
        path = f"/machine/peripheral/{disk.names.device}"
        bus = await vm.monitor.execute("qom-get", {"path": path, "property": "parent_bus"})
        assert bus.endswith("/rp1")


async def test_a_disk_that_this_guest_never_had_keeps_its_volume(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    first, second = machine(start_paused=True), machine(start_paused=True)
    disk = create()
    async with open_vm_async(str(first.qmp_path), host=storage.host) as vm:
        await vm.plug(disk)
    async with open_vm_async(str(second.qmp_path), host=storage.host) as vm:
        result = await vm.unplug(disk)
        assert (result.state, result.detached) == ("absent", False)
    assert (await asyncio.to_thread(state_of, first, storage.folder)).loops


async def test_a_device_that_libvirt_made_is_not_unplugged_behind_its_back(machine: MachineFactory) -> None:
    vm_machine = machine(start_paused=True, scsi_controllers=1)
    disk = Disk.from_mapping({"provider": "sample", "volume": "v"})

    def foreign() -> None:
        on_debug_monitor(vm_machine, "blockdev-add", driver="null-co", node_name="libvirt-1-format")
        on_debug_monitor(
            vm_machine,
            "device_add",
            driver="scsi-hd",
            id=f"ua-{disk.names.device}",
            drive="libvirt-1-format",
            bus="scsi0.0",
        )

    await asyncio.to_thread(foreign)
    before = await asyncio.to_thread(state_of, vm_machine)
    async with open_vm_async(str(vm_machine.qmp_path)) as vm:
        with pytest.raises(HvextError, match="libvirt made it"):
            await vm.unplug(disk)
    assert await asyncio.to_thread(state_of, vm_machine) == before
