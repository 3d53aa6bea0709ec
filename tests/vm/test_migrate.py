from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hvext.core.disk import Disk
from hvext.core.migration import Description, Transfer
from hvext.core.options import Cache, ErrorPolicy
from hvext.core.value import replace
from hvext.errors import HvextError, MigrationRefused, OperationFailed
from hvext.host.guest import Console, Writer
from hvext.host.machine import Machine, start_storage_daemon
from hvext.host.qmp import connect
from hvext.operations import attachments, handover
from hvext.operations.describe import describe
from hvext.operations.migrate import begin, cancel, listen, migrate, send
from hvext.operations.sending import Migrated
from hvext.operations.start import start_disks
from hvext.operations.transfer import Limits, run_state
from hvext.operations.vm import open_vm
from tests.conftest import need
from tests.vm.hosts import Host, Hosts, two_hosts
from tests.vm.state import on_debug_monitor, state_of
from tests.vm.volume import guest_disks, wait_for_bytes, wait_for_disk

if TYPE_CHECKING:
    from tests.vm.conftest import MachineFactory

pytestmark = pytest.mark.vm

BOOT_S = 120.0
#: So slow that something can happen in the middle.
SLOW = Limits(bandwidth_bytes=4 << 20)
#: As the contract has it, with the host on which each is done: ``here`` is the source.
ORDER = [
    ("there", "attach"),
    ("here", "open shared"),
    ("there", "open shared"),
    ("here", "close"),
    ("there", "open exclusive"),
    ("here", "detach"),
]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Two hosts; named before ``machine`` by tests, so that volumes are let go of once the machines have ended."""
    with two_hosts() as made:
        yield made


@dataclass
class Target:
    """How the tests start the target's QEMU."""

    machine: Callable[..., Machine]
    host: Host
    options: dict[str, Any]
    started: Machine | None = None
    spoil: Callable[[list[str]], list[str]] = list

    async def start(self, disk_arguments: list[str]) -> str:
        self.started = await asyncio.to_thread(
            self.machine,
            prefix=self.host.prefix,
            start_paused=True,
            incoming="defer",
            extra_args=tuple(self.spoil(disk_arguments)),
            **self.options,
        )
        return str(self.started.qmp_path)

    async def end(self) -> None:
        if self.started is not None:
            await asyncio.to_thread(self.started.stop, grace_s=0)


@dataclass
class Traveller:
    """A guest that writes, and the host on which it is."""

    hosts: Hosts
    machine: Callable[..., Machine]
    here: Host
    there: Host
    qemu: Machine
    disks: list[Disk]
    options: dict[str, Any]
    asleep: bool = False
    writers: list[Writer] = field(default_factory=list)

    @property
    def console(self) -> Console:
        return _console(self.qemu)

    def write(self, device: str, **values: Any) -> None:
        writer = Writer(self.console, device)
        writer.start(**{"blocks": 256, "rate": 100, **values})
        self.writers.append(writer)

    def target(self, **options: Any) -> Target:
        return Target(self.machine, self.there, {**self.options, **options})

    async def send(self, target: Target, uri: str = "", **values: Any) -> Migrated:
        async with connect(str(self.qemu.qmp_path)) as monitor:
            return await migrate(
                monitor,
                self.here.providers,
                target,
                self.there.providers,
                self.disks,
                uri or f"tcp:{self.there.address}:0",
                **values,
            )

    def go(self, access: str, **options: Any) -> Migrated:
        """Migrate to the other host, which offers this access, and check all that is always true afterwards."""
        self.there.offer(access)
        self.hosts.forget_calls()
        target = self.target(**options)
        source, version = self.qemu, _version(self.qemu)
        result = asyncio.run(self.send(target))
        self.arrived(target.started)
        assert source.wait(10) == 0, "the source's QEMU goes on"
        self.check_order()
        self.verify()
        print(
            f"\nmigration to {self.here.name} ({access}), QEMU {version} -> {_version(self.qemu)}: "
            f"{result.transfer.elapsed_ms} ms, {result.transfer.transferred_bytes >> 20} MiB, "
            f"downtime {result.transfer.downtime_ms} ms (QEMU), {result.paused_ms} ms (hvext)"
        )
        return result

    def arrived(self, qemu: Machine | None) -> None:
        """The guest is on the other host now."""
        assert qemu is not None
        self.qemu = qemu
        self.here, self.there = self.there, self.here
        for writer in self.writers:
            writer.follow(self.console)

    def check_order(self) -> None:
        """The scripts ran in the contract's order, once for each volume, and nothing else ran."""
        sides = {"here": self.there.name, "there": self.here.name}
        wanted = [(sides[side], action) for side, action in ORDER]
        for disk in self.disks:
            name = disk.volume.name
            assert [(host, action) for host, action, volume in self.hosts.calls() if volume == name] == wanted
        # No volume is ahead of another: one step is done for all of them before the next begins.
        places = [wanted.index((host, action)) for host, action, _volume in self.hosts.calls()]
        assert places == sorted(places)

    def verify(self) -> None:
        """The guest runs on exactly one side, reads back all that it wrote, and saw no error."""
        assert on_debug_monitor(self.qemu, "query-status")["running"] != self.asleep
        for writer in self.writers:
            verdict = writer.verify()
            assert (verdict.status.errors, verdict.bad, verdict.unreadable) == (0, 0, 0)
            assert verdict.verified == verdict.blocks > 0
        for disk in self.disks:
            assert self.here.opened(disk) == "exclusive"
            assert self.there.opened(disk) == ""


def _console(machine: Machine) -> Console:
    return Console(machine.command_path, machine.console_log, alive=lambda: machine.alive)


def _version(machine: Machine) -> str:
    found = on_debug_monitor(machine, "query-version")["qemu"]
    return f"{found['major']}.{found['minor']}"


@pytest.fixture
def travel(hosts: Hosts, machine: MachineFactory) -> Callable[..., Traveller]:
    """A function that boots a guest with disks, by name and options, on the first host, which writes on all of them."""

    def set_out(
        disks: dict[str, dict[str, Any]], access: str = "both", *, asleep: bool = False, **options: Any
    ) -> Traveller:
        wanted = {"scsi_controllers": 1, "memory_mib": 128, "iothreads": ("io0",), **options}
        made = [hosts.create(name, **values) for name, values in disks.items()]
        hosts.one.offer(access)
        start = start_disks(hosts.one.providers, made)
        qemu = machine(prefix=hosts.one.prefix, extra_args=tuple(start.argv()), start_paused=asleep, **wanted)
        traveller = Traveller(hosts, machine, hosts.one, hosts.two, qemu, made, wanted, asleep)
        if asleep:
            return traveller
        traveller.console.wait_ready(BOOT_S)
        names = {"virtio-blk-pci": "/dev/vda", "scsi-hd": "/dev/sda"}
        for disk in made:
            traveller.write(names[disk.options.device])
        return traveller

    return set_out


BOTH = {"blk": {"bus": "rp0"}, "scsi": {"device": "scsi-hd", "bus": "scsi0"}}


def test_a_writing_guest_moves_by_path_and_uri_and_its_disks_can_be_changed_afterwards(
    travel: Callable[..., Traveller], hosts: Hosts
) -> None:
    guest = travel(BOTH, access="path")
    hot = hosts.create("hot", iothread="auto", iops_total=100_000, discard="unmap", detect_zeroes="unmap", serial="h1")
    with open_vm(str(guest.qemu.qmp_path), host=guest.here.providers) as vm:
        vm.plug(hot)
        guest.write(wait_for_disk(guest.console, known=("vda", "sda")))
        before = {uuid: disk.node_names for uuid, disk in vm.disks().items()}
    guest.disks.append(hot)
    for access in ("uri", "uri", "path"):
        guest.go(access)
    with open_vm(str(guest.qemu.qmp_path), host=guest.here.providers) as vm:
        found = vm.disks()
        assert {uuid: disk.node_names for uuid, disk in found.items()} == before
        assert {f"hv-{hot.volume.uuid}-throttle", f"hv-{hot.volume.uuid}-iothread"} <= {*found[hot.volume.uuid].objects}
        for disk, name in zip(guest.disks, ("vda", "sda", "vdb"), strict=True):
            for access in ("uri", "path"):
                guest.here.offer(access)
                offered = attachments.offer(guest.here.providers, disk).choice.chosen.location
                assert vm.repoint(disk.volume.uuid, offered).changed
            vm.resize(disk, 96)
            wait_for_bytes(guest.console, f"/dev/{name}", 96 << 20)
    guest.go("path")
    with open_vm(str(guest.qemu.qmp_path), host=guest.here.providers) as vm:
        for disk, writer in zip(guest.disks, guest.writers, strict=True):
            verdict = writer.stop()
            assert verdict.ok
            assert verdict.status.errors == 0
            assert vm.unplug(disk).state == "unplugged"
        assert vm.disks() == {}
    left = state_of(guest.qemu, hosts.folder)
    assert left.nodes == frozenset()
    assert not any(name.startswith("hv-") for name in left.objects | left.devices)
    assert not left.loops
    assert guest_disks(guest.console) == []


def test_a_migration_that_cannot_begin_leaves_guest_and_volumes_as_they_were(
    travel: Callable[..., Traveller], hosts: Hosts
) -> None:
    guest = travel(BOTH)

    def other_slot(arguments: list[str]) -> list[str]:
        return [word.replace('"bus": "rp0"', '"bus": "rp3"') for word in arguments]

    def no_disk(arguments: list[str]) -> list[str]:
        return [word for word in arguments if word not in ("-device", "-blockdev") and not word.startswith("{")]

    def failing(words: str, target: Target | None = None) -> str:
        with pytest.raises(OperationFailed) as failed:
            asyncio.run(guest.send(target or guest.target()))
        assert words in str(failed.value)
        assert failed.value.left == ()
        guest.verify()
        return str(failed.value)

    for action, exclusive in (("attach", ""), ("open", "False")):
        guest.there.break_action(action, exclusive)
        failing(f"{action} is broken")
        guest.there.mend()
    guest.here.break_action("open", "False")
    failing("open is broken")
    guest.here.mend()
    words = failing("disk everywhere/blk: place in the machine", _spoilt(guest, other_slot))
    assert "disk everywhere/scsi" not in words
    failing("the guest has no disk everywhere/blk", _spoilt(guest, no_disk))
    failing("memory in bytes", guest.target(memory_mib=160))
    failing("did not start", guest.target(qemu="/bin/false"))
    guest.disks, whole = guest.disks[:1], guest.disks
    with pytest.raises(MigrationRefused, match="disks of hvext that were not named"):
        asyncio.run(guest.send(guest.target()))
    guest.disks = whole
    _broken(guest, _kill, SLOW, OperationFailed, "the guest could not be sent")
    guest.go("both")


def _spoilt(guest: Traveller, spoil: Callable[[list[str]], list[str]]) -> Target:
    target = guest.target()
    target.spoil = spoil
    return target


@pytest.mark.nightly
def test_a_migration_that_is_broken_in_the_middle_leaves_the_guest_on_the_source(
    travel: Callable[..., Traveller],
) -> None:
    guest = travel(BOTH)
    _broken(guest, _kill, SLOW, OperationFailed, "the guest could not be sent")
    _broken(guest, lambda _target: os.kill(os.getpid(), signal.SIGINT), SLOW, KeyboardInterrupt, "")
    limited = replace(SLOW, timeout_s=2)
    _broken(guest, lambda _target: None, limited, OperationFailed, "not complete after 2 s")
    limited = replace(SLOW, stall_s=3)
    _broken(guest, lambda _target: guest.there.cut(), limited, OperationFailed, "nothing was sent for 3 s")
    guest.there.join()
    guest.here.join()
    guest.go("path")


def _kill(target: Target) -> None:
    assert target.started is not None
    target.started.stop(grace_s=0)


def _broken(
    guest: Traveller, then: Callable[[Target], None], limits: Limits, error: type[BaseException], words: str
) -> None:
    """Do something in the middle of a migration; it fails, and both sides are as before."""
    target = guest.target()
    questions = ("query-migrate-capabilities", "query-migrate-parameters")
    before = [on_debug_monitor(guest.qemu, question) for question in questions]
    done: list[str] = []

    def progress(transfer: Transfer) -> None:
        if transfer.transferred_bytes > 2 << 20 and not done:
            done.append(transfer.words)
            then(target)

    with pytest.raises(error) as failed:
        asyncio.run(guest.send(target, limits=limits, progress=progress))
    assert done, "it was over before anything could happen"
    assert words in str(failed.value)
    assert getattr(failed.value, "left", ()) == ()
    assert target.started is not None
    assert not target.started.alive
    assert [on_debug_monitor(guest.qemu, question) for question in questions] == before
    guest.verify()


@pytest.mark.parametrize("asleep", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_a_guest_that_has_moved_stays_there_when_its_volumes_cannot_be_handed_over(
    travel: Callable[..., Traveller], asleep: bool
) -> None:
    guest = travel(BOTH, asleep=asleep)
    blk, scsi = guest.disks

    def moved_but(words: str) -> OperationFailed:
        target = guest.target()
        source = guest.qemu
        with pytest.raises(OperationFailed, match="the guest has moved and lives on the target") as failed:
            asyncio.run(guest.send(target))
        assert words in str(failed.value)
        assert len(failed.value.left) == 2
        assert source.wait(10) == 0, "the source's QEMU goes on"
        guest.arrived(target.started)
        return failed.value

    guest.there.break_action("open", "True")
    moved_but("open exclusively on the target: everywhere/blk")
    assert {guest.here.opened(disk) for disk in (blk, scsi)} == {"shared"}
    guest.here.mend()
    asyncio.run(handover.open_exclusive(guest.here.providers, guest.disks))
    asyncio.run(handover.detach(guest.there.providers, guest.disks))
    guest.verify()

    guest.here.break_action("close")
    moved_but("close on the source: everywhere/scsi")
    guest.there.mend()
    for host, work in (
        (guest.there, handover.close),
        (guest.here, handover.open_exclusive),
        (guest.there, handover.detach),
    ):
        asyncio.run(work(host.providers, guest.disks))
    guest.verify()


@pytest.mark.nightly
def test_a_guest_whose_target_cannot_take_over_its_disks_comes_back(
    travel: Callable[..., Traveller], tmp_path: Path
) -> None:
    need("qemu-storage-daemon", "qemu-system-common")
    guest = travel(BOTH)
    guest.there.offer("path")
    with contextlib.ExitStack() as stack:

        def lock_disk(arguments: list[str]) -> list[str]:
            """Somebody else writes to the target's block device by the time that its QEMU wants to."""
            device = next(json.loads(word)["filename"] for word in arguments if '"host_device"' in word)
            node = {"driver": "host_device", "filename": device, "node-name": "thief"}
            server = f"addr.type=unix,addr.path={guest.hosts.folder}/thief"
            words = ["--blockdev", json.dumps(node), "--nbd-server", server]
            words += ["--export", "type=nbd,id=thief,node-name=thief,writable=on"]
            stack.enter_context(start_storage_daemon(words, tmp_path))
            return arguments

        with pytest.raises(OperationFailed, match=r"let the guest run on the target: .* lock") as failed:
            asyncio.run(guest.send(_spoilt(guest, lock_disk)))
    assert len(failed.value.left) == 1
    assert failed.value.left[0].startswith("attach the volumes on the target (cannot detach everywhere/blk")
    guest.verify()
    asyncio.run(handover.detach(guest.there.providers, guest.disks))
    guest.go("path")


def test_a_paused_guest_stays_paused_and_every_option_of_its_disks_goes_too(travel: Callable[..., Traveller]) -> None:
    options = {
        "blk": {
            "bus": "rp5", "cache": "directsync", "aio": "threads", "discard": "unmap", "detect_zeroes": "unmap",
            "werror": "enospc", "rerror": "stop", "serial": "s1", "bootindex": 3, "iothread": "auto", "queues": 3,
            "bps_read": 1 << 20, "bps_read_max": 2 << 20, "bps_read_max_length": 5,
        },
        "scsi": {"device": "scsi-hd", "scsi_id": 7, "lun": 3, "bus": "scsi0", "read_only": True},
    }  # fmt: skip
    guest = travel(options, access="path", asleep=True)
    guest.there.offer("uri")
    before = {name: on_debug_monitor(guest.qemu, name) for name in ("query-iothreads", "query-pci")}
    target = guest.target()
    result = asyncio.run(guest.send(target, f"unix:{guest.hosts.folder}/line"))
    assert (result.was_running, result.paused_ms) == (False, None)
    assert target.started is not None
    assert not on_debug_monitor(target.started, "query-status")["running"]

    async def found() -> Description:
        async with connect(str(target.started and target.started.qmp_path)) as monitor:
            return await describe(monitor, guest.disks)

    for moved, disk in zip(asyncio.run(found()).moved, guest.disks, strict=True):
        wished = disk.options if disk.options.werror else replace(
            disk.options, cache=Cache.NONE, werror=ErrorPolicy.ENOSPC, rerror=ErrorPolicy.REPORT
        )  # fmt: skip
        assert moved.disk.options == wished
    after = {name: on_debug_monitor(target.started, name) for name in before}
    assert [item["id"] for item in after["query-iothreads"]] == [item["id"] for item in before["query-iothreads"]]
    assert [item["slot"] for item in after["query-pci"][0]["devices"]] == [
        item["slot"] for item in before["query-pci"][0]["devices"]
    ]


@pytest.mark.nightly
@pytest.mark.parametrize("iothread", [None, "io0"])
@pytest.mark.parametrize("versions", ["10 10", "7.2 10", "10 7.2"])
def test_a_guest_moves_between_versions_of_qemu(
    travel: Callable[..., Traveller], second_qemu: Path, versions: str, iothread: str | None
) -> None:
    programs = {"7.2": "qemu-system-x86_64", "10": str(second_qemu / "bin" / "qemu-system-x86_64")}
    own, other = (programs[version] for version in versions.split())
    blk = {"bus": "rp0"} if iothread is None else {"bus": "rp0", "iothread": iothread}
    options = {"scsi_iothread": iothread or "", "version": "7.2"}
    guest = travel({"blk": blk, "scsi": BOTH["scsi"]}, access="path", qemu=own, **options)
    for qemu, access in ((other, "uri"), (own, "uri"), (other, "path"), (own, "path")):
        guest.go(access, qemu=qemu)


@pytest.mark.parametrize("asleep", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_a_guest_that_was_sent_away_is_not_started_again_by_mistake(
    travel: Callable[..., Traveller], asleep: bool
) -> None:
    guest = travel({"blk": {"bus": "rp0"}}, asleep=asleep)
    source, here = guest.qemu, guest.here
    target = guest.target()
    asyncio.run(guest.send(target, keep_source=True))

    async def again(**values: Any) -> str:
        async with connect(str(source.qmp_path)) as monitor:
            return await cancel(monitor, here.providers, guest.disks, **values)

    for work in (again(), guest.send(guest.target())):
        with pytest.raises(HvextError, match="was sent"):
            asyncio.run(work)
    assert on_debug_monitor(source, "query-status")["status"] == "postmigrate"
    guest.arrived(target.started)
    guest.verify()


@pytest.mark.nightly
def test_a_guest_whose_target_is_lost_before_it_ran_there_goes_on_at_home(travel: Callable[..., Traveller]) -> None:
    guest = travel(BOTH)
    target = guest.target()

    async def sent_in_vain() -> str:
        async with connect(str(guest.qemu.qmp_path)) as source:
            described = await begin(source, guest.here.providers, guest.disks)
            start = await asyncio.to_thread(start_disks, guest.there.providers, described.disks, exclusive=False)
            async with connect(await target.start(start.argv())) as there:
                address = await listen(there, described, f"tcp:{guest.there.address}:0")
                sent = await send(source, guest.here.providers, guest.disks, address, keep_source=True)
                # It is paused there; sending it on would end that QEMU.
                with pytest.raises(MigrationRefused, match="was never let go on"):
                    await send(there, guest.there.providers, guest.disks, address)
            assert sent.paused_ms is None
            assert await run_state(source) == "postmigrate"
            await target.end()
            await handover.close(guest.there.providers, guest.disks)
            await handover.detach(guest.there.providers, guest.disks)
            return await cancel(source, guest.here.providers, guest.disks, target_ended=True)

    assert asyncio.run(sent_in_vain()) == "running"
    guest.verify()
    guest.go("path")
