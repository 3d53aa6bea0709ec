"""``hvext audit`` and ``hvext recover``: what a crash left is seen, brought in order, and nothing else is touched."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from hvext.core.disk import Disk
from hvext.core.record import Intent, Operation, VmRecord
from hvext.errors import JournalError, OperationFailed, PlugError
from hvext.host.machine import Machine
from hvext.host.provider import ProviderHost
from hvext.operations import attachments
from hvext.operations import audit as auditing
from hvext.operations.recover import Outcome, recover
from hvext.operations.start import start_disks
from hvext.operations.unplug import UnplugState, unplug_and_detach
from hvext.operations.vm import open_vm, open_vm_async
from tests.vm.conftest import GuestFactory, MachineFactory
from tests.vm.faults.world import Qemu, World, proxied, world
from tests.vm.state import on_debug_monitor
from tests.vm.volume import guest_disks, wait_for_disk

pytestmark = pytest.mark.vm


@pytest.fixture
def faulty() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture
def qemu(faulty: World, machine: MachineFactory) -> Callable[..., Qemu]:
    """A function that starts a QEMU in which nothing runs."""

    def start(**options: Any) -> Qemu:
        wanted = {"scsi_controllers": 1, "start_paused": True, "prefix": proxied(faulty.folder), **options}
        return Qemu(world=faulty, machine=machine(**wanted))

    return start


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run of the program ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def hvext(faulty: World, *words: str) -> Ended:
    """Run the real program."""
    argv = [sys.executable, "-m", "hvext", *words]
    if words[0] != "audit":
        argv += ["--search-path", faulty.counted.search_path]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, env=os.environ)
    return Ended(done.returncode, done.stdout, done.stderr)


def scsi(faulty: World, name: str = "vol", **options: Any) -> Disk:
    """A new volume, as a disk that a paused guest lets go."""
    return faulty.create(name, **{"device": "scsi-hd", **options})


def killed(faulty: World, operation: str, disk: Disk, qmp: str, at: int, **values: Any) -> None:
    """Kill hvext at a step of an operation."""
    job = faulty.job(operation, [disk], qmp, at=at, fault="killed", **values)
    assert faulty.driver.run(job)[0] == 9


def nothing_left(faulty: World) -> bool:
    host = faulty.on_host()
    return host == {"loops": [], "servers": [], "scripts": [], "private": [], "journal": []}


def test_a_plug_that_was_killed_is_listed_undone_and_then_forgotten(faulty: World, qemu: Callable[..., Qemu]) -> None:
    one, disk = qemu(), scsi(faulty)
    before = one.state()
    clean = hvext(faulty, "audit")
    assert (clean.status, clean.out) == (0, "nothing is left over, and nothing is unfinished\n")
    assert str(faulty.state) in clean.err
    killed(faulty, "plug", disk, one.qmp, 2)
    found = hvext(faulty, "audit", "--json")
    assert found.status == 1
    kinds = {finding["kind"] for finding in found.json}
    assert "unfinished" in kinds
    assert all(finding["disk"] == str(disk.volume.uuid) for finding in found.json)
    shown = hvext(faulty, "audit", "--vm", one.machine.name)
    assert (shown.status, "plug of counted/vol by process" in shown.out) == (1, True)
    assert "hvext recover" in shown.err
    unknown = hvext(faulty, "audit", "--vm", "another")
    assert (unknown.status, "has no VM 'another'" in unknown.err, one.machine.name in unknown.err) == (2, True, True)
    done = hvext(faulty, "recover", "--json")
    assert (done.status, [item["outcome"] for item in done.json]) == (0, ["undone"])
    assert hvext(faulty, "recover") == Ended(0, "nothing to recover\n", "")
    assert hvext(faulty, "audit").status == 0
    assert one.state() == before
    assert nothing_left(faulty)


def test_a_plug_that_was_killed_is_completed_by_repeating_it(faulty: World, qemu: Callable[..., Qemu]) -> None:
    one, disk = qemu(), scsi(faulty)
    for at in range(4):
        killed(faulty, "plug", disk, one.qmp, at)
        assert one.run(lambda vm: vm.plug(disk)).changed
        assert faulty.audit() == []
        assert not one.run(lambda vm: vm.plug(disk)).changed
        assert one.run(lambda vm: vm.unplug(disk)).detached
        assert nothing_left(faulty)


def test_one_broken_record_keeps_nobody_from_working_and_nothing_of_it_is_touched(
    faulty: World, qemu: Callable[..., Qemu]
) -> None:
    one, two, disk, other = qemu(), qemu(), scsi(faulty), scsi(faulty, "other")
    two.run(lambda vm: vm.plug(other))
    kept = faulty.on_host()["private"]
    record = faulty.state / f"{two.machine.name}.json"
    whole = record.read_text()
    for broken in (b'{"format": 1', b'{"format": 7}', b"\xff"):
        record.write_bytes(broken)
        killed(faulty, "plug", disk, one.qmp, 2)
        done = hvext(faulty, "recover", "--json")
        assert (done.status, sorted(item["outcome"] for item in done.json)) == (1, ["left", "undone"])
        assert str(record) in done.out
        found = hvext(faulty, "audit", "--json")
        assert (found.status, [finding["kind"] for finding in found.json]) == (1, ["record that cannot be read"])
        one.run(lambda vm: vm.plug(disk))
        one.run(lambda vm: vm.unplug(disk))
        with pytest.raises(JournalError, match=r"somebody else changed it|a newer hvext|UTF-8"):
            two.run(lambda vm: vm.unplug(other))
    assert faulty.on_host()["private"] == kept
    record.write_text(whole)
    assert two.run(lambda vm: vm.unplug(other)).detached


def test_a_qemu_that_ended_lets_its_volumes_go_and_one_that_was_started_again_keeps_them(
    faulty: World, qemu: Callable[..., Qemu]
) -> None:
    one, disk, other = qemu(name="web1"), scsi(faulty), scsi(faulty, "other")
    for each in (disk, other):
        one.run(lambda vm, each=each: vm.plug(each))
    one.machine.stop()
    assert [words.partition(":")[0] for words in faulty.audit()] == ["QEMU has ended"] * 2
    # One that another guest has by now is not to go, and that is said.
    two = qemu(name="web2", scsi_controllers=1)
    two.run(lambda vm: vm.plug(other))
    for words in faulty.audit():
        assert ("it stays attached: VM web2 has it" in words) is (f"/{other.volume.name} is" in words)
    two.run(lambda vm: vm.unplug(other))
    # It is started again under its name, with one of its disks.
    start = start_disks(faulty.host, [disk], name="web1")
    assert [words.partition(":")[0] for words in faulty.audit()] == ["not started yet"] * 2
    assert faulty.recover() == []
    again = qemu(name="web1", extra_args=tuple(start.argv()), scsi_controllers=0)
    assert again.run(lambda vm: vm.known_disks()).keys() == {disk.volume.uuid, other.volume.uuid}
    assert hvext(faulty, "recover", "--qmp", again.qmp).status == 0
    assert faulty.attached(disk)
    assert not faulty.attached(other)
    assert faulty.audit() == []
    again.machine.stop()
    assert hvext(faulty, "recover").out.count("undone") == 1
    assert nothing_left(faulty)


def test_a_disk_whose_provider_is_gone_for_good_is_struck_out_when_no_guest_has_it(
    faulty: World, qemu: Callable[..., Qemu], tmp_path: Path
) -> None:
    one, disk, other = qemu(name="web1"), scsi(faulty), scsi(faulty, "other")
    for each in (disk, other):
        one.run(lambda vm, each=each: vm.plug(each))
    uuid, elsewhere = str(disk.volume.uuid), ["--search-path", str(tmp_path)]
    # While the guest has it, it stays.
    assert "nothing to recover" in hvext(faulty, "recover", "--qmp", one.qmp, "--forget", uuid).out
    lost = ProviderHost(search_path=(str(tmp_path),), log_directory=None)
    with open_vm(one.qmp, host=lost) as vm, pytest.raises(OperationFailed) as failed:
        vm.unplug(disk)
    assert failed.value.hint.startswith("the guest does not have")
    assert f"hvext recover --forget {uuid}" in failed.value.hint
    assert recovered(one.qmp, *elsewhere).status == 1
    assert "struck out" in recovered(one.qmp, *elsewhere, "--forget", uuid, "--dry-run").out
    done = recovered(one.qmp, *elsewhere, "--forget", uuid)
    assert (done.status, "forgotten: its volume is as" in done.out) == (0, True)
    assert faulty.audit() == []
    one.machine.stop()
    done = recovered("", *elsewhere, "--vm", "web1")
    assert (done.status, f"if it is gone for good: hvext recover --forget {other.volume.uuid}" in done.err) == (1, True)
    done = recovered("", *elsewhere, "--vm", "web1", "--forget", str(other.volume.uuid))
    assert (done.status, faulty.audit()) == (0, [])
    # Its provider was there all the time, but for those commands.
    for each in (disk, other):
        assert faulty.attached(each)
        attachments.detach(faulty.host, each)


def recovered(qmp: str, *words: str) -> Ended:
    """Run ``hvext recover`` where no provider is found."""
    argv = [sys.executable, "-m", "hvext", "recover", *(["--qmp", qmp] if qmp else []), *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, env=os.environ)
    return Ended(done.returncode, done.stdout, done.stderr)


def test_nothing_is_taken_from_a_qemu_that_runs_whatever_the_caller_says(
    faulty: World, qemu: Callable[..., Qemu]
) -> None:
    one, disk = qemu(name="web1"), scsi(faulty)
    one.run(lambda vm: vm.plug(disk))
    done = hvext(faulty, "recover", "--gone", "web1")
    assert done.status == 1
    assert f"QEMU runs (process {one.machine.pid})" in done.out
    assert faulty.attached(disk)
    # Nor by a start under the name of one that runs.
    second = scsi(faulty, "second")
    start_disks(faulty.host, [second], name="web1")
    assert faulty.recover() == []
    assert faulty.attached(second)
    assert hvext(faulty, "recover", "--gone", f"start of {second.names.device}").out.count("undone") == 1
    one.run(lambda vm: vm.unplug(disk))
    assert nothing_left(faulty)


def test_a_disk_that_nobody_wrote_down_is_shown_and_left_alone(
    faulty: World, qemu: Callable[..., Qemu], tmp_path: Path
) -> None:
    one, disk = qemu(), scsi(faulty)
    one.run(lambda vm: vm.plug(disk))
    name = f"{one.machine.name}.json"
    record = (faulty.state / name).read_text()
    (faulty.state / name).unlink()
    found = hvext(faulty, "audit", "--qmp", one.qmp, "--json")
    assert (found.status, [finding["kind"] for finding in found.json]) == (1, ["not written down"])
    plugged = one.state()
    assert hvext(faulty, "recover", "--qmp", one.qmp) == Ended(0, "nothing to recover\n", "")
    assert one.state() == plugged
    # Plugging it once more writes it down.
    assert not one.run(lambda vm: vm.plug(disk)).changed
    assert hvext(faulty, "audit", "--qmp", one.qmp).status == 0
    assert VmRecord.from_json(record).disks.keys() == VmRecord.from_json((faulty.state / name).read_text()).disks.keys()
    assert one.run(lambda vm: vm.unplug(disk)).detached


def test_everything_that_an_interruption_can_leave_in_qemu_is_found_and_removed(
    faulty: World, qemu: Callable[..., Qemu]
) -> None:
    one, disk, gone = qemu(), scsi(faulty), faulty.disk("gone")
    one.run(lambda vm: vm.plug(disk))
    clean = one.state()
    names, other = disk.names, gone.names

    def make(command: str, **arguments: Any) -> None:
        on_debug_monitor(one.machine, command, **arguments)

    make("blockdev-add", driver="null-co", node_name=f"{names.root}-0z")
    make("object-add", qom_type="secret", id=f"{names.root}-0z-key", data="x")
    make("object-add", qom_type="throttle-group", id=names.throttle_group)
    make("blockdev-add", driver="null-co", node_name=f"{other.root}-00")
    make("blockdev-add", driver="raw", node_name=other.root, file=f"{other.root}-00")
    make("object-add", qom_type="iothread", id=other.iothread)
    make("chardev-add", id=other.chardev, backend={"type": "null", "data": {}})
    for file in (f"{names.root}-0z-key", f"{names.root}-0y-key", f"{other.device}-parameters", f"{other.root}-00-conf"):
        (faulty.private / file).write_text("x")
    add_fd(one.machine, f"{names.device}-x")
    found = hvext(faulty, "audit", "--json")
    assert found.status == 1
    kinds = sorted((finding["kind"], finding["words"]) for finding in found.json)
    assert kinds == sorted(
        [
            ("left node", f"{names.root}-0z"),
            ("left node", f"{other.root}-00"),
            ("left node", other.root),
            ("left object", f"{names.root}-0z-key"),
            ("left object", names.throttle_group),
            ("left object", other.iothread),
            ("left character device", other.chardev),
            ("left private file", f"{names.root}-0y-key"),
            ("left private file", f"{other.device}-parameters"),
            ("left private file", f"{other.root}-00-conf"),
            ("left fdset", f"file descriptors named {names.device}-x"),
        ]
    )
    assert hvext(faulty, "recover").status == 0
    assert [words.partition(":")[0] for words in faulty.audit()] == ["left fdset"]
    # What is not hvext's stays; QEMU itself drops it once the guest runs.
    assert replace(one.state(), fdsets="") == replace(clean, fdsets="")
    assert faulty.on_host()["private"] == [f"{names.device}-parameters"]
    one.run(lambda vm: vm.unplug(disk))


def add_fd(machine: Machine, opaque: str) -> None:
    """Hand a file descriptor to QEMU under a name."""
    with socket.socket(socket.AF_UNIX) as line, Path("/dev/null").open() as file:
        line.settimeout(10)
        line.connect(str(machine.debug_qmp_path))
        lines = line.makefile("rb")
        lines.readline()
        line.sendall(b'{"execute": "qmp_capabilities"}\n')
        lines.readline()
        command = {"execute": "add-fd", "arguments": {"fdset-id": 7, "opaque": opaque}}
        socket.send_fds(line, [json.dumps(command).encode() + b"\n"], [file.fileno()])
        assert b"return" in lines.readline()


def test_a_monitor_that_cannot_be_reached_is_a_finding_and_changes_nothing(
    faulty: World, qemu: Callable[..., Qemu]
) -> None:
    one, two, disk, other = qemu(), qemu(), scsi(faulty), scsi(faulty, "other")
    one.run(lambda vm: vm.plug(disk))
    killed(faulty, "plug", other, two.qmp, 2)
    with socket.socket(socket.AF_UNIX) as busy:
        busy.connect(one.qmp)
        busy.recv(1)
        found = hvext(faulty, "audit", "--json")
        kinds = {finding["vm"]: finding["kind"] for finding in found.json}
        assert (found.status, kinds[one.machine.name]) == (1, "cannot be looked at")
        done = hvext(faulty, "recover", "--json")
        outcomes = {item["vm"]: item["outcome"] for item in done.json}
        assert (done.status, outcomes) == (1, {one.machine.name: "left", two.machine.name: "undone"})
    assert hvext(faulty, "recover").status == 0
    assert hvext(faulty, "audit").status == 0
    assert one.run(lambda vm: vm.unplug(disk)).detached


def test_a_secret_is_there_for_the_detach_and_nowhere_in_the_journal(faulty: World, qemu: Callable[..., Qemu]) -> None:
    one, disk = qemu(), scsi(faulty)
    for at in (1, 3):
        faulty.forget()
        killed(faulty, "plug", disk, one.qmp, at)
        assert not any(faulty.token in path.read_text(errors="replace") for path in faulty.state.iterdir())
        (kept,) = (faulty.private / f"{disk.names.device}-parameters",)
        assert (kept.stat().st_mode & 0o777, faulty.token in kept.read_text()) == (0o600, True)
        assert faulty.recover() == ["undone"]
        # The scripts look at what they are given.
        assert ("detach", "ok") in [(call[0], call[2]) for call in faulty.counted.calls()]
        assert "wrong-secret" not in {call[2] for call in faulty.counted.calls()}
    one.run(lambda vm: vm.plug(disk))
    bare = faulty.disk("vol", device="scsi-hd", uuid=str(disk.volume.uuid))
    bare = Disk.from_mapping({**bare.to_mapping(), "parameters": {"dir": disk.volume.parameters["dir"]}})
    # An unplug that does not name it fails in the script, and the secret is still there afterwards.
    with pytest.raises(Exception, match="a wrong secret"):
        one.run(lambda vm: vm.unplug(bare))
    assert faulty.recover() == ["finished"]
    assert nothing_left(faulty)


def test_a_secret_that_is_gone_is_asked_for_and_a_detach_by_hand_ends_it(
    faulty: World, qemu: Callable[..., Qemu]
) -> None:
    one, disk = qemu(), scsi(faulty)
    one.run(lambda vm: vm.plug(disk))
    one.machine.stop()
    (faulty.private / f"{disk.names.device}-parameters").unlink()
    done = hvext(faulty, "recover")
    assert (done.status, "api_token" in done.out) == (1, True)
    assert faulty.attached(disk)
    words = [word for pair in disk.volume.parameters.items() for word in ("-p", f"{pair[0]}={pair[1]}")]
    assert hvext(faulty, "detach", "counted", "vol", *words).status == 0
    assert hvext(faulty, "audit").status == 0
    assert nothing_left(faulty)


def test_an_unplug_from_a_guest_that_never_had_the_disk_is_recovered_without_detaching_it(
    faulty: World, qemu: Callable[..., Qemu]
) -> None:
    one, disk = qemu(), scsi(faulty)
    # Somebody else on this host uses it, who keeps no journal.
    attachments.attach(faulty.host, disk)

    async def interrupted() -> None:
        # As vm.unplug does, up to its first step: such an unplug has none in which it could be killed.
        async with open_vm_async(one.qmp, host=faulty.host) as vm, vm.alone():
            vm.journal.begin(Operation.UNPLUG, disk, intent=Intent.ABSENT, details={"attached": False})

    asyncio.run(interrupted())
    assert faulty.recover() == ["finished"]
    assert faulty.attached(disk)
    assert one.run(lambda vm: vm.unplug(disk)).state == "absent"
    assert faulty.attached(disk)
    attachments.detach(faulty.host, disk)


def test_what_a_living_process_has_given_up_is_not_under_way(faulty: World, qemu: Callable[..., Qemu]) -> None:
    one, disk = qemu(), scsi(faulty)

    async def left_behind() -> list[str]:
        async with open_vm_async(one.qmp, host=faulty.host) as vm:
            async with vm.alone():
                vm.journal.begin(Operation.PLUG, disk, intent=Intent.PRESENT)
                busy = [finding.kind for finding in await auditing.audit_running_vm(vm)]
            return [*busy, *(finding.kind for finding in await auditing.audit_running_vm(vm))]

    assert asyncio.run(left_behind()) == ["under way", "unfinished"]
    assert faulty.recover() == ["undone"]


def test_two_qemus_of_one_name_do_not_get_into_each_others_records(faulty: World, qemu: Callable[..., Qemu]) -> None:
    one, two = qemu(name="same"), qemu(name="same")
    disks = [scsi(faulty), scsi(faulty, "other")]

    async def at_once() -> list[str]:
        # Both are known before either has written anything.
        async with (
            open_vm_async(one.qmp, host=faulty.host) as first,
            open_vm_async(two.qmp, host=faulty.host) as second,
        ):
            await first.plug(disks[0])
            await second.plug(disks[1])
            return [first.journal.name, second.journal.name]

    names = asyncio.run(at_once())
    assert names == ["same", f"same@{two.machine.pid}"]
    two.machine.stop()
    assert faulty.recover() == ["undone"]
    assert faulty.attached(disks[0])
    assert not faulty.attached(disks[1])
    assert one.run(lambda vm: vm.unplug(disks[0])).detached


def test_a_start_that_was_never_used_is_let_go_when_the_caller_says_so(faulty: World) -> None:
    disk = scsi(faulty)
    words = ["--disk", json.dumps(disk.to_mapping()), "--search-path", faulty.counted.search_path]
    argv = [sys.executable, "-m", "hvext", "args", "--vm", "web1", *words]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    found = hvext(faulty, "audit", "--json")
    assert (found.status, [finding["kind"] for finding in found.json]) == (0, ["not started yet"])
    assert hvext(faulty, "recover") == Ended(0, "nothing to recover\n", "")
    assert faulty.attached(disk)
    assert hvext(faulty, "recover", "--gone", "web1").status == 0
    assert nothing_left(faulty)


def test_recovering_waits_for_an_operation_that_is_under_way_and_finds_nothing_to_do(
    faulty: World, qemu: Callable[..., Qemu]
) -> None:
    one, disk = qemu(), scsi(faulty)
    (faulty.folder / "armed-script").write_text("slow")

    async def both() -> list[Any]:
        async with open_vm_async(one.qmp, host=faulty.host) as vm:
            plugging = asyncio.create_task(vm.plug(disk))
            # Until it holds the VM's lock.
            while not vm.journal.record.disks:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            second = str(one.machine.debug_qmp_path)
            done = await recover(faulty.host, monitors=[second])
            assert (await plugging).changed
            return done

    assert asyncio.run(both()) == []
    assert faulty.audit() == []
    assert one.run(lambda vm: vm.unplug(disk)).detached


def test_an_unplug_is_finished_late_or_by_a_reset_and_until_then_nothing_is_removed(
    faulty: World, boot: GuestFactory
) -> None:
    guest = boot(prefix=proxied(faulty.folder), scsi_controllers=1)
    one, disk = Qemu(world=faulty, machine=guest.machine, console=guest.console), faulty.create("vol")
    before = one.state()
    for reset in (False, True):
        one.run(lambda vm: vm.plug(disk))
        wait_for_disk(guest.console)
        on_debug_monitor(guest.machine, "stop")
        plugged = one.state()
        assert one.run(lambda vm: vm.unplug(disk, timeout_s=0.5)).state == "pending"
        assert one.state() == plugged
        assert one.run(lambda vm: vm.finish_unplug(disk.volume.uuid)) is None
        assert [words.partition(":")[0] for words in faulty.audit()] == ["pending unplug"]
        with pytest.raises(PlugError, match="pending"):
            one.run(lambda vm: vm.plug(disk))
        since = guest.console.mark()
        on_debug_monitor(guest.machine, "cont")
        if reset:
            on_debug_monitor(guest.machine, "system_reset")
            guest.console.wait_ready(60, since=since)
        while guest_disks(guest.console):
            pass
        # Who saw the late event, or looks now, finishes it: here another process than the one that asked.
        result = one.run(lambda vm: vm.finish_unplug(disk.volume.uuid))
        assert (result.state, result.detached) == ("unplugged", True)
        assert one.state() == before
        assert nothing_left(faulty)
    one.run(lambda vm: vm.plug(disk))
    on_debug_monitor(guest.machine, "system_reset")
    # One call while the guest boots: what it does not hear is asked again.
    assert one.run(lambda vm: vm.unplug(disk, timeout_s=90)).detached
    assert nothing_left(faulty)


async def test_a_guest_that_refuses_keeps_its_disk_and_is_not_asked_for_ever(
    faulty: World, qemu: Callable[..., Qemu]
) -> None:
    one = await asyncio.to_thread(qemu)
    disk = await asyncio.to_thread(faulty.create, "vol")
    async with open_vm_async(one.qmp, host=faulty.host) as vm:
        await vm.plug(disk)
        result = await unplug_and_detach(_Refusing(vm.monitor), faulty.host, disk)  # type: ignore[arg-type]
        assert (result.state, result.removed, result.detached) == (UnplugState.REJECTED, (), False)
    assert await asyncio.to_thread(faulty.attached, disk)
    await asyncio.to_thread(one.machine.stop)
    assert [item.outcome for item in await recover(faulty.host)] == [Outcome.UNDONE]


class _Refusing:
    """A monitor of a guest that says no to every unplug: QEMU itself passes that on for other machines than these."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    @contextlib.contextmanager
    def events(self, *_names: str, **_options: Any) -> Iterator[Any]:
        yield self

    async def get(self, _timeout_s: float) -> dict[str, Any]:
        return {"event": "DEVICE_UNPLUG_GUEST_ERROR", "data": {}}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._monitor, name)
