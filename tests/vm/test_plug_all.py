"""Several disks plugged at once: those that can be are, the others leave nothing, and a crash is recovered from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hvext.core.disk import Disk
from hvext.core.record import Intent
from hvext.errors import InputError, PlugError, ScriptFailed
from hvext.host import qmp
from hvext.host.provider import ProviderHost
from hvext.operations.vm import open_vm
from tests.providers import read_calls, write_provider
from tests.vm.conftest import MachineFactory
from tests.vm.faults.world import Qemu, World, proxied, world
from tests.vm.state import on_debug_monitor, state_of

pytestmark = pytest.mark.vm

ATTACH = """\
case $VOL_NAME in bad*) echo no >&2; exit 1 ;; gone*) echo; echo kvm:file:{folder}/no-such-file; exit ;; esac
truncate -s 1M "{folder}/$VOL_NAME"; echo; echo "kvm:file:{folder}/$VOL_NAME"
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProviderHost:
    """Providers whose volumes are files; names that begin with bad cannot be attached, gone ones not opened."""
    monkeypatch.setenv("HVEXT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HVEXT_RUNTIME_DIR", str(tmp_path / "private"))
    write_provider(
        tmp_path / "providers", "files", {"attach": ATTACH.format(folder=tmp_path)}, record=tmp_path / "calls"
    )
    return ProviderHost(search_path=(str(tmp_path / "providers"),))


def disks(*names: str, **options: Any) -> list[Disk]:
    return [Disk.from_mapping({"provider": "files", "volume": name, "device": "scsi-hd", **options}) for name in names]


def test_those_that_fail_are_undone_and_the_others_stay(
    machine: MachineFactory, host: ProviderHost, tmp_path: Path
) -> None:
    one = machine(scsi_controllers=1, start_paused=True)
    wished = disks("a", "bad", "b", "gone", "c", iops_total=1000)
    with open_vm(str(one.qmp_path), host=host) as vm:
        outcomes = vm.plug_all(wished)
        assert [outcome.plugged is not None for outcome in outcomes] == [True, False, True, False, True]
        assert isinstance(outcomes[1].error.__cause__ if outcomes[1].error else None, ScriptFailed)
        assert "no-such-file" in str(outcomes[3].error)
        there = {disk.volume.uuid for disk in (wished[0], wished[2], wished[4])}
        assert vm.disks().keys() == there
        assert vm.known_disks().keys() == there
        state = state_of(one)
        assert {name for name in state.objects if "throttle" in name} == {
            disk.names.throttle_group for disk in wished if disk.volume.uuid in there
        }
        places = [
            tuple(
                on_debug_monitor(one, "qom-get", path=f"/machine/peripheral/{disk.names.device}", property=word)
                for word in ("scsi-id", "lun")
            )
            for disk in (wished[0], wished[2], wished[4])
        ]
        assert len(set(places)) == 3
        detached = [call.volume for call in read_calls(tmp_path / "calls", "detach")]
        assert detached == ["gone"]
        again = vm.plug_all(wished)
        assert [outcome.plugged.changed if outcome.plugged else None for outcome in again] == [
            False, None, False, None, False,
        ]  # fmt: skip
        for disk in (wished[0], wished[2], wished[4]):
            assert vm.unplug(disk).finished
    assert list((tmp_path / "state").glob("*.json")) == []


def test_no_place_is_given_twice_and_who_gets_none_is_told(machine: MachineFactory, host: ProviderHost) -> None:
    one = machine(root_ports=3, start_paused=True)
    wished = disks("a", "b", "c", "d", device="virtio-blk-pci")
    with open_vm(str(one.qmp_path), host=host) as vm:
        outcomes = vm.plug_all(wished)
    assert [outcome.plugged is not None for outcome in outcomes] == [True, True, True, False]
    assert isinstance(outcomes[3].error, PlugError)
    assert "no free slot" in str(outcomes[3].error)


def test_disks_that_are_one_are_refused_before_anything_is_attached(
    machine: MachineFactory, host: ProviderHost, tmp_path: Path
) -> None:
    one = machine(scsi_controllers=1, start_paused=True)
    with open_vm(str(one.qmp_path), host=host) as vm, pytest.raises(InputError, match="same uuid"):
        vm.plug_all(disks("a", "a"))
    assert read_calls(tmp_path / "calls") == []


def test_the_command_plugs_a_list_and_tells_what_failed(machine: MachineFactory, host: ProviderHost) -> None:
    one = machine(scsi_controllers=1, start_paused=True)
    given = json.dumps([disk.to_mapping() for disk in disks("a", "bad")])
    words = ["--qmp", str(one.qmp_path), "--search-path", host.search_path[0], "--log-dir", "none", "--disks", "-"]
    argv = [sys.executable, "-m", "hvext", "plug", *words, "--disk", "provider=files,volume=b,device=scsi-hd", "--json"]
    done = subprocess.run(argv, input=given, text=True, capture_output=True, check=False, env=os.environ)
    assert done.returncode == 1, done.stderr
    found = {item["volume"]: item["state"] for item in json.loads(done.stdout)}
    assert found == {"a": "plugged", "bad": "failed", "b": "plugged"}
    assert "b: plugged" not in done.stdout


@pytest.fixture
def faulty() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture
def qemu(faulty: World, machine: MachineFactory) -> Callable[[], Qemu]:
    """A function that starts a QEMU in which nothing runs."""
    return lambda: Qemu(
        world=faulty, machine=machine(scsi_controllers=1, start_paused=True, prefix=proxied(faulty.folder))
    )


def test_a_batch_that_was_killed_is_undone_disk_by_disk(faulty: World, qemu: Callable[[], Qemu]) -> None:
    one = qemu()
    wished = [faulty.create(f"v{number}", device="scsi-hd", iops_total=1000) for number in range(3)]
    before = one.state()
    # Before the volumes are attached, before storage is opened, and before the devices are plugged.
    for at in (0, 2, 4):
        faulty.forget()
        status, _said = faulty.driver.run(faulty.job("plug_all", wished, one.qmp, at=at, fault="killed"))
        assert status == 9
        assert [words for words in faulty.audit() if words.startswith("unfinished")] != []
        assert faulty.recover() == ["undone"] * 3
        assert faulty.audit() == []
        assert one.state() == before
        assert not any(faulty.attached(disk) for disk in wished)


def test_of_a_batch_that_was_killed_between_its_devices_the_plugged_ones_stay(
    faulty: World, qemu: Callable[[], Qemu]
) -> None:
    one = qemu()
    wished = [faulty.create(f"v{number}", device="scsi-hd") for number in range(3)]
    faulty.forget()
    job = faulty.job("plug_all", wished, one.qmp, at=3, fault="", arm_qmp="kill-driver change")
    status, _said = faulty.driver.run(job)
    assert status == 9
    names = [name for kind, name in faulty.trace() if kind == "step"]
    assert names[3].startswith("plug the devices")
    faulty.recover()
    assert faulty.audit() == []
    there = set(one.state().devices) & {disk.names.device for disk in wished}
    known = one.run(lambda vm: vm.known_disks())
    assert {disk.names.device for disk in known.values()} == there
    assert [faulty.attached(disk) for disk in wished] == [disk.names.device in there for disk in wished]
    # The command was repeated: all of them are there.
    outcomes = one.run(lambda vm: vm.plug_all(wished))
    assert all(outcome.plugged for outcome in outcomes)
    record = one.run(_records)
    assert all(item.intent is Intent.PRESENT and item.unfinished is None for item in record)
    for disk in wished:
        one.run(lambda vm, disk=disk: vm.unplug(disk))


async def _records(vm: Any) -> list[Any]:
    return list(vm.journal.read().disks.values())


def test_a_disk_more_asks_no_more_of_qemu_when_there_are_many(
    machine: MachineFactory, host: ProviderHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine(scsi_controllers=1, start_paused=True)
    plain, sent = qmp._Client.begin, []

    def begin(self: Any, command: str, *words: Any, **values: Any) -> Any:
        sent.append(command)
        return plain(self, command, *words, **values)

    monkeypatch.setattr(qmp._Client, "begin", begin)
    first, *others, last = disks(*(f"d{number}" for number in range(40)))
    with open_vm(str(one.qmp_path), host=host) as vm:
        vm.plug(first)
        found = []
        for disk, before in ((others[0], []), (last, others[1:])):
            vm.plug_all(before)
            # What it hears of the others' places, it keeps.
            vm.plug(disks(f"keeper{len(found)}")[0])
            sent.clear()
            vm.plug(disk)
            found.append(sorted(sent))
    assert found[0] == found[1]
    assert "query-named-block-nodes" not in found[0]
    assert len(found[0]) <= 12
