"""One storage under two names: it gets into one guest, and letting the other name go would take it from that one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hvext.core.disk import Disk
from hvext.errors import OperationFailed, PlugError, VolumeInUse
from hvext.host.files import private_folder
from hvext.host.provider import ProviderHost
from hvext.operations import attachments, volumes
from hvext.operations.start import start_disks
from hvext.operations.vm import open_vm
from tests.providers import write_provider
from tests.vm.state import loops

if TYPE_CHECKING:
    from tests.vm.conftest import MachineFactory, Storage

pytestmark = pytest.mark.vm


@pytest.mark.parametrize("spelt", ["{folder}/volumes/", "{folder}/./volumes", "{folder}//volumes", "{folder}/link"])
def test_a_folder_spelt_in_another_way_gets_its_volume_into_no_second_guest_and_takes_it_from_none(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk], spelt: str
) -> None:
    one, other = machine(start_paused=True, scsi_controllers=1), machine(start_paused=True, scsi_controllers=1)
    disk = create("vol", device="scsi-hd")
    # The same folder, spelt in another way: for hvext these are other parameters.
    link = storage.folder / "link"
    link.symlink_to("volumes")
    alias = storage.disk("vol", device="scsi-hd", parameters={"dir": spelt.format(folder=storage.folder)})
    assert alias.volume.uuid != disk.volume.uuid
    with open_vm(str(one.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        attached = loops(storage.folder)
        with pytest.raises(PlugError, match=f"VM {one.name} has sample/vol already, under other parameters") as told:
            vm.plug(alias)
        assert f"dir={storage.folder}/volumes," in told.value.hint
        assert list(vm.disks()) == [disk.volume.uuid]
        with open_vm(str(other.qmp_path), host=storage.host) as second:
            with pytest.raises(PlugError, match=f"is a disk of VM {one.name}"):
                second.plug(alias)
            (outcome,) = second.plug_all([alias])
            assert f"is a disk of VM {one.name}" in str(outcome.error)
            assert second.disks() == {}
        for act in (volumes.remove_volume, volumes.detach_volume):
            with pytest.raises(VolumeInUse, match=f"VM {one.name}"):
                act(storage.host, alias)
        assert loops(storage.folder) == attached
        assert vm.unplug(disk).detached
    # Nobody has it any more: the other name is as good as the first.
    with open_vm(str(other.qmp_path), host=storage.host) as second:
        second.plug(alias)
        assert second.unplug(alias).detached
    assert loops(storage.folder) == frozenset()
    with open_vm(str(one.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        assert vm.unplug(disk).detached


def test_one_storage_under_other_parameters_is_known_by_the_places_that_its_provider_prints(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    one, other = machine(start_paused=True, scsi_controllers=1), machine(start_paused=True, scsi_controllers=1)
    disk = create("vol", device="scsi-hd")
    # The name under which a host opens volumes is no part of where they are.
    alias = storage.disk("vol", device="scsi-hd", parameters={"host": "another"})
    assert alias.volume.uuid != disk.volume.uuid
    with open_vm(str(one.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        attached = loops(storage.folder)
        with pytest.raises(
            OperationFailed, match=f"where disk sample/vol of VM {one.name} is: the same storage"
        ) as told:
            vm.plug(alias)
        assert f"dir={storage.folder}/volumes," in told.value.hint
        assert list(vm.disks()) == [disk.volume.uuid]
        with open_vm(str(other.qmp_path), host=storage.host) as second:
            with pytest.raises(OperationFailed, match="the same storage"):
                second.plug(alias)
            (outcome,) = second.plug_all([alias])
            assert "the same storage" in str(outcome.error)
            assert second.disks() == {}
        with pytest.raises(VolumeInUse, match="is not detached"):
            attachments.detach(storage.host, alias)
        assert loops(storage.folder) == attached
        assert vm.unplug(disk).detached


def test_what_is_detached_is_written_down_nowhere(storage: Storage, create: Callable[..., Disk]) -> None:
    disk = create("vol")
    folder = Path(f"{private_folder()}.places")
    attachments.attach(storage.host, disk)
    assert [path for path in folder.rglob("*") if str(disk.volume.uuid) in path.name]
    attachments.detach(storage.host, disk)
    assert not [path for path in folder.rglob("*") if str(disk.volume.uuid) in path.name]


def test_two_disks_of_one_command_on_one_storage_are_one_too_many(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    disk = create("vol", device="scsi-hd")
    alias = storage.disk("vol", device="scsi-hd", parameters={"dir": f"{storage.folder}/./volumes"})
    with pytest.raises(PlugError, match="has sample/vol already, under other parameters"):
        start_disks(storage.host, [disk, alias], name="new")
    with open_vm(str(machine(start_paused=True, scsi_controllers=1).qmp_path), host=storage.host) as vm:
        first, second = vm.plug_all([disk, alias])
        assert (first.error, "under other parameters" in str(second.error)) == (None, True)
        assert vm.unplug(disk).detached
    assert loops(storage.folder) == frozenset()


def test_two_loop_devices_on_one_file_are_one_storage(machine: MachineFactory, storage: Storage) -> None:
    # Every attach makes a device of its own: only the file behind it tells.
    (storage.folder / "image").write_bytes(bytes(1 << 20))
    scripts = {
        "attach": f"losetup --find --show {storage.folder}/image",
        "detach": f"losetup --noheadings --output NAME --associated {storage.folder}/image | xargs -r losetup --detach",
    }
    write_provider(storage.folder / "more", "loops", scripts, "label any text\n")
    host = ProviderHost(search_path=(str(storage.folder / "more"),))
    one, two = (
        Disk.from_mapping({"provider": "loops", "volume": "v", "device": "scsi-hd", "parameters": {"label": label}})
        for label in ("a", "b")
    )
    with open_vm(str(machine(start_paused=True, scsi_controllers=1).qmp_path), host=host) as vm:
        vm.plug(one)
        with pytest.raises(OperationFailed, match="the same storage"):
            vm.plug(two)
        assert vm.unplug(one).detached
