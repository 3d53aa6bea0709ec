from __future__ import annotations

import contextlib
import os
import shlex
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hvext.core.disk import Disk
from hvext.core.identity import disk_of_node
from hvext.host.guest import Writer
from hvext.host.machine import StorageDaemon, start_storage_daemon
from hvext.host.provider import ProviderHost
from hvext.operations.vm import open_vm
from tests.providers import write_provider
from tests.vm.state import on_debug_monitor
from tests.vm.volume import kill_servers, wait_for_disk
from tests.watching import once, wait_until, watching

if TYPE_CHECKING:
    from tests.vm.conftest import Guest, GuestFactory, Storage

pytestmark = pytest.mark.vm
BLOCKS = 256
STOP = {"werror": "stop", "rerror": "stop"}
#: Samples quickly, and goes back after moments: tests have no time for patience.
QUICK = ("--sample", "0.5", "--hold", "1", "--checks", "2", "--rescan", "0.5")


def status(guest: Guest) -> str:
    return str(on_debug_monitor(guest.machine, "query-status")["status"])


def driver(guest: Guest, disk: Disk) -> str:
    """Return what the guest's disk stands on."""
    nodes = on_debug_monitor(guest.machine, "query-named-block-nodes", flat=True)
    own = [node for node in nodes if (names := disk_of_node(node["node-name"])) and names.uuid == disk.volume.uuid]
    return next(str(node["drv"]) for node in own if node["drv"] != "raw")


def plugged(guest: Guest, storage: Storage, disk: Disk) -> Writer:
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
    writer = Writer(guest.console, wait_for_disk(guest.console))
    writer.start(blocks=BLOCKS)
    return writer


def unplugged(guest: Guest, storage: Storage, disk: Disk, writer: Writer) -> None:
    """Check that the guest saw no error and lost no write, and let go of the disk."""
    verdict = writer.stop()
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        assert vm.unplug(disk).finished
    assert (verdict.status.errors, verdict.bad, verdict.unreadable) == (0, 0, 0)
    assert verdict.verified > 0


@pytest.mark.parametrize("device", ["virtio-blk-pci", pytest.param("scsi-hd", marks=pytest.mark.nightly)])
def test_a_killed_server_costs_the_guest_a_pause_and_the_disk_goes_back_when_the_server_does(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path, device: str
) -> None:
    guest, disk = share(), create(device=device, **STOP)
    writer = plugged(guest, storage, disk)
    qmp = guest.machine.qmp_path
    with watching(tmp_path, "--qmp", qmp, *QUICK) as watch:
        watch.wait_for("watching")
        for turn in (1, 2):
            kill_servers(storage)
            moved = watch.wait_for("failed-over", times=turn)
            resumed = watch.wait_for("resumed", times=turn)
            assert moved["before"].startswith("nbd+unix:")
            assert moved["after"].startswith("/dev/loop")
            assert resumed["stopped_ms"] > 0
            writer.status()
            # The provider's attach, which is asked at each look, starts the server again.
            back = watch.wait_for("moved-back", times=turn)
            assert back["after"].startswith("nbd+unix:")
            assert driver(guest, disk) == "nbd"
        # Storage that comes and goes is left alone for longer.
        assert [notice["well_s"] for notice in watch.notices() if notice["event"] == "moved-back"] == [1, 2]
        assert status(guest) == "running"
        assert watch.end() == 0
        assert "gave-up" not in watch.events()
    unplugged(guest, storage, disk, writer)


def test_a_failover_to_the_place_where_the_disk_was_is_said_to_have_opened_it_anew(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    guest, disk = share(), create(access="userspace", **STOP)
    writer = plugged(guest, storage, disk)
    with watching(tmp_path, "--qmp", guest.machine.qmp_path, *QUICK) as watch:
        watch.wait_for("watching")
        kill_servers(storage)
        # The provider's attach starts the server again, with the same socket.
        moved = watch.wait_for("failed-over")
        assert moved["before"] == moved["after"]
        assert moved["words"].startswith(f"{moved['after']} opened anew in ")
        watch.wait_for("resumed")
        assert watch.end() == 0
    unplugged(guest, storage, disk, writer)


def server_pids(storage: Storage) -> list[int]:
    """Return the NBD servers of this storage's volumes."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if b"qemu-storage-daemon" in command and str(storage.folder).encode() in command:
                found.append(int(entry.name))
    return found


def test_a_guest_that_somebody_paused_stays_paused(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    guest, disk = share(), create(**STOP)
    writer = plugged(guest, storage, disk)
    with watching(tmp_path, "--qmp", guest.machine.qmp_path, *QUICK, "--no-fail-back") as watch:
        watch.wait_for("watching")
        on_debug_monitor(guest.machine, "stop")
        kill_servers(storage)
        watch.signal(signal.SIGHUP)
        # Nothing fails while nothing is asked for: it is when the person goes on that the disk is found dead.
        time.sleep(1)
        assert (status(guest), watch.events()) == ("paused", ["watching", "hurried"])
        on_debug_monitor(guest.machine, "cont")
        watch.wait_for("resumed")
        wait_until(lambda: status(guest) == "running", "the guest runs")
        on_debug_monitor(guest.machine, "stop")
        watch.signal(signal.SIGHUP)
        time.sleep(1)
        assert status(guest) == "paused"
        on_debug_monitor(guest.machine, "cont")
        assert watch.end() == 0
    unplugged(guest, storage, disk, writer)


def test_a_guest_paused_while_its_storage_fails_gets_good_disks_and_stays_paused(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    guest, disk = share(), create(**STOP)
    writer = plugged(guest, storage, disk)
    kill_servers(storage)
    wait_until(lambda: status(guest) == "io-error", "the guest stops")
    # What a person does who only wants to look: the state becomes theirs.
    on_debug_monitor(guest.machine, "cont")
    wait_until(lambda: status(guest) in ("io-error", "running"), "QEMU answers")
    on_debug_monitor(guest.machine, "stop")
    before = status(guest)
    with watching(tmp_path, "--qmp", guest.machine.qmp_path, *QUICK, "--no-fail-back") as watch:
        watch.wait_for("failed-over")
        if before == "paused":
            watch.wait_for("left-paused")
            assert status(guest) == "paused"
            on_debug_monitor(guest.machine, "cont")
        else:
            watch.wait_for("resumed")
        assert watch.end() == 0
    unplugged(guest, storage, disk, writer)


@dataclass(frozen=True, slots=True)
class OnlyServer:
    """An NBD server that is the only way to a volume, and its provider."""

    folder: Path
    image: Path
    logs: Path

    def start(self) -> StorageDaemon:
        (self.folder / "s").unlink(missing_ok=True)
        words = [
            *("--blockdev", f"driver=file,node-name=f,filename={self.image},cache.direct=on"),
            *("--nbd-server", f"addr.type=unix,addr.path={self.folder}/s,max-connections=0"),
            *("--export", "type=nbd,id=e,node-name=f,name=v,writable=on"),
        ]
        return start_storage_daemon(words, self.logs)

    @property
    def provider_path(self) -> Path:
        answer = rf"\nkvm:nbd+unix:///v?socket={self.folder}/s\n"
        folder = self.folder / "providers"
        if not folder.exists():
            write_provider(folder, "fake", {"attach": f"printf '{answer}'"})
        return folder


@pytest.fixture
def only_server(tmp_path: Path) -> Iterator[OnlyServer]:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    with tempfile.TemporaryDirectory(prefix="hvext-") as short:
        yield OnlyServer(Path(short), image, tmp_path / "logs")


def test_a_guest_without_any_storage_is_given_up_and_stays_paused_until_there_is_some(
    share: GuestFactory, only_server: OnlyServer, tmp_path: Path
) -> None:
    guest = share()
    disk = Disk.from_mapping({"provider": "fake", "volume": "v", **STOP})
    host = ProviderHost(search_path=(str(only_server.provider_path),))
    own = ("--qmp", guest.machine.qmp_path, "--search-path", only_server.provider_path)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(only_server.start())
        with open_vm(str(guest.machine.qmp_path), host=host) as vm:
            vm.plug(disk)
        writer = Writer(guest.console, wait_for_disk(guest.console))
        writer.start(blocks=BLOCKS)
        with watching(tmp_path, *own, *QUICK, "--give-up-tries", "2") as watch:
            watch.wait_for("watching")
            server.stop(grace_s=0)
            failed = watch.wait_for("try-failed")
            assert str(only_server.folder) in failed["words"]
            said = watch.wait_for("gave-up")
            assert "stays paused" in said["words"]
            assert status(guest) == "io-error"
            # Somebody who looks at it once says so as well, and changes nothing.
            assert watch.end() == 0
        code, said_once = once(tmp_path, *own)
        assert code == 1
        assert [notice["event"] for notice in said_once] == ["watching", "stopped", "try-failed", "gave-up", "looked"]
        with watching(tmp_path, *own, *QUICK, "--give-up-tries", "1") as watch:
            watch.wait_for("gave-up")
            again = stack.enter_context(only_server.start())
            watch.signal(signal.SIGHUP)
            watch.wait_for("resumed")
            assert status(guest) == "running"
            # And once more, with nobody who says that the storage is back.
            again.stop(grace_s=0)
            watch.wait_for("gave-up", times=2)
            stack.enter_context(only_server.start())
            watch.wait_for("resumed", times=2)
            assert watch.end() == 0
        code, said_once = once(tmp_path, *own)
        assert (code, [notice["event"] for notice in said_once]) == (0, ["watching", "looked"])
        verdict = writer.stop()
        with open_vm(str(guest.machine.qmp_path), host=host) as vm:
            assert vm.unplug(disk).finished
    assert (verdict.status.errors, verdict.bad, verdict.unreadable) == (0, 0, 0)


def test_frozen_storage_is_reported_and_left_alone_without_a_fence(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    guest, disk = share(), create(**STOP)
    writer = plugged(guest, storage, disk)
    with watching(tmp_path, "--qmp", guest.machine.qmp_path, *QUICK, "--stuck", "2") as watch:
        watch.wait_for("watching")
        (server,) = server_pids(storage)
        os.kill(server, signal.SIGSTOP)
        try:
            said = watch.wait_for("frozen")
            assert said["stuck_s"] >= 2
            assert said["disk"] == str(disk.volume.uuid)
            time.sleep(2)
            # Its main loop is free: nothing that waits for the disk was sent.
            assert status(guest) == "running"
            assert "failed-over" not in watch.events()
        finally:
            os.kill(server, signal.SIGCONT)
        watch.wait_for("thawed")
        assert watch.end() == 0
        assert set(watch.events()) == {"watching", "frozen", "thawed", "ending"}
        assert {notice["vm"] for notice in watch.notices()} == {guest.machine.name, ""}
    unplugged(guest, storage, disk, writer)


def test_frozen_storage_is_left_behind_a_fence(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    guest, disk = share(), create(**STOP)
    writer = plugged(guest, storage, disk)
    (server,) = server_pids(storage)
    fence = f"sh -c {shlex.quote(f'kill -9 {server}')}"
    own = ("--qmp", guest.machine.qmp_path, *QUICK, "--stuck", "2", "--no-fail-back", "--fence-command", fence)
    with watching(tmp_path, *own) as watch:
        watch.wait_for("watching")
        os.kill(server, signal.SIGSTOP)
        watch.wait_for("resumed")
        assert watch.events() == ["watching", "frozen", *watch.events()[2:]]
        assert watch.events().index("fenced") < watch.events().index("failed-over")
        assert status(guest) == "running"
        assert driver(guest, disk) == "host_device"
        assert watch.end() == 0
    unplugged(guest, storage, disk, writer)


def test_a_fence_that_fails_leaves_the_frozen_disk_as_it_is(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    guest, disk = share(), create(**STOP)
    writer = plugged(guest, storage, disk)
    (server,) = server_pids(storage)
    own = ("--qmp", guest.machine.qmp_path, *QUICK, "--stuck", "2", "--fence-command", "false")
    with watching(tmp_path, *own) as watch:
        watch.wait_for("watching")
        os.kill(server, signal.SIGSTOP)
        try:
            watch.wait_for("fence-failed")
            assert status(guest) == "running"
            assert not {"fenced", "failed-over"} & set(watch.events())
        finally:
            os.kill(server, signal.SIGCONT)
        watch.wait_for("thawed")
        assert watch.end() == 0
    unplugged(guest, storage, disk, writer)


def test_two_guests_are_brought_back_by_one_watch(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    guests = [share(), share(root_ports=6)]
    disks = [create(f"vol{number}", **STOP) for number in range(2)]
    writers = [plugged(guest, storage, disk) for guest, disk in zip(guests, disks, strict=True)]
    folder = tmp_path / "monitors"
    folder.mkdir()
    with watching(tmp_path, "--qmp-glob", folder, *QUICK, "--no-fail-back") as watch:
        for number, guest in enumerate(guests):
            # Sockets that appear are new guests.
            (folder / f"vm{number}").symlink_to(guest.machine.qmp_path)
            watch.wait_for("watching", monitor=folder / f"vm{number}")
        kill_servers(storage)
        for number, guest in enumerate(guests):
            watch.wait_for("resumed", monitor=folder / f"vm{number}")
            assert status(guest) == "running"
        (folder / "vm0").unlink()
        assert watch.end() == 0
    for guest, disk, writer in zip(guests, disks, writers, strict=True):
        unplugged(guest, storage, disk, writer)


def test_a_look_brings_a_stopped_guest_back_and_says_that_all_is_well(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    guest, disk = share(), create(**STOP)
    writer = plugged(guest, storage, disk)
    qmp = guest.machine.qmp_path
    assert once(tmp_path, "--qmp", qmp)[0] == 0
    kill_servers(storage)
    wait_until(lambda: status(guest) == "io-error", "the guest stops")
    code, said = once(tmp_path, "--qmp", qmp)
    assert (code, [notice["event"] for notice in said]) == (
        0,
        ["watching", "stopped", "failed-over", "resumed", "looked"],
    )
    assert said[-1]["words"] == "1 of 1 disk stands failed over: a watch without --once moves it back"
    # So does one that finds it so.
    assert once(tmp_path, "--qmp", qmp)[1][-1]["failed_over"] == 1
    assert status(guest) == "running"
    # A watch that comes later knows that the disk is not where it prefers to be.
    with watching(tmp_path, "--qmp", qmp, *QUICK) as watch:
        watch.wait_for("moved-back")
        assert watch.end() == 0
    unplugged(guest, storage, disk, writer)


def test_a_guest_that_is_told_of_errors_is_reported_and_left_alone(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    guest, disk = share(), create(werror="report", rerror="report")
    writer = plugged(guest, storage, disk)
    with watching(tmp_path, "--qmp", guest.machine.qmp_path, *QUICK) as watch:
        watch.wait_for("watching")
        kill_servers(storage)
        said = watch.wait_for("errors")
        assert said["errors"] >= 1
        time.sleep(2)
        assert watch.events() == ["watching", "errors"], "a flood of errors is one line"
        assert status(guest) == "running"
        assert watch.end() == 0
    writer.stop()
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        assert vm.unplug(disk).finished


def test_an_unplug_that_the_guest_answers_late_is_finished(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    guest, disk = share(), create(**STOP)
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        wait_for_disk(guest.console)
        on_debug_monitor(guest.machine, "stop")
        assert not vm.unplug(disk, timeout_s=0.5).finished
    with watching(tmp_path, "--qmp", guest.machine.qmp_path, *QUICK) as watch:
        watch.wait_for("watching")
        on_debug_monitor(guest.machine, "cont")
        said = watch.wait_for("unplugged")
        assert said["disk"] == str(disk.volume.uuid)
        assert watch.end() == 0
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        assert not vm.disks()
    assert not server_pids(storage), "its volume is detached"
