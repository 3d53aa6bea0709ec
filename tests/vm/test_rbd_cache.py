"""A disk that has its Ceph image as its only place uses librbd's cache: what that may and must not cost.

librbd writes through until the first flush, so a guest flushes once before it writes on without any.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hvext.core.disk import Disk
from hvext.core.stamp import check_blocks
from hvext.core.uri import parse_uri
from hvext.errors import FailoverRefused, RepointRefused
from hvext.host.guest import Console, Writer
from hvext.host.machine import Machine
from hvext.host.private import remove_private
from hvext.host.provider import ProviderHost
from hvext.host.qmp import Monitor, connect
from hvext.operations.describe import describe
from hvext.operations.fence import CommandFence, FrozenDisk, fail_over_frozen
from hvext.operations.migrate import migrate
from hvext.operations.repoint import repoint
from hvext.operations.start import start_disks
from hvext.operations.vm import open_vm
from tests.providers import write_provider
from tests.secrecy import SECRET_FOLDER
from tests.servers.ceph import POOL, USER, CephCluster, ceph_cluster
from tests.vm.conftest import BOOT_LIMIT_S
from tests.vm.state import on_debug_monitor, state_of
from tests.vm.volume import wait_for_bytes, wait_for_disk

if TYPE_CHECKING:
    from tests.vm.conftest import GuestFactory, MachineFactory

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]
MIB = 1 << 20
SIZE = 16 * MIB
BLOCKS = 3072
MOVES = 6
SMALL: dict[str, Any] = {"memory_mib": 128}
#: The cache keeps what is written for a minute, and nothing but a flush brings it to the storage.
HOLDING = ":rbd_cache_policy=writeback:rbd_cache_max_dirty_age=60"


@pytest.fixture(scope="module")
def ceph() -> Iterator[CephCluster]:
    with ceph_cluster() as cluster:
        yield cluster


class Image:
    """An image that the provider offers at these URIs; ``run`` does something on the guest's monitor."""

    def __init__(
        self, ceph: CephCluster, machine: Machine | None, folder: Path, uris: Callable[[str], list[str]]
    ) -> None:
        self.name = f"v{uuid.uuid4().hex}"
        # No exclusive lock: with it, Ceph itself has the old client flush when the new one wants to write.
        ceph.rbd("create", "--size", f"{SIZE}B", "--image-feature", "layering", f"{POOL}/{self.name}")
        self.machine = machine
        self.uris = uris(self.name)
        grow = shlex.join(["rbd", "--conf", str(ceph.conf), "--id", USER, "--keyring", str(ceph.keyring), "resize"])
        lines = ["", *(f"kvm:{uri}" for uri in self.uris)]
        write_provider(
            folder,
            "ceph",
            {
                "attach": f"printf '%s\\n' {shlex.join(lines)}",
                "grow": f'{grow} --no-progress --size "${{VOL_NEW_SIZE}}M" {POOL}/{self.name}',
            },
        )
        self.host = ProviderHost(search_path=[str(folder)], log_directory=str(folder / "logs"))

    def disk(self, **options: Any) -> Disk:
        return Disk.from_mapping({"provider": "ceph", "volume": self.name, **options})

    def nodes(self, disk: Disk) -> dict[str, bool]:
        """The nodes of a disk with their ``cache.direct``."""
        assert self.machine is not None
        nodes = on_debug_monitor(self.machine, "query-named-block-nodes", flat=True)
        own = disk.names.root
        return {node["node-name"]: node["cache"]["direct"] for node in nodes if node["node-name"].startswith(own)}

    def run(self, work: Callable[[Monitor], Any]) -> Any:
        async def connected() -> Any:
            assert self.machine is not None
            async with connect(str(self.machine.qmp_path)) as monitor:
                return await work(monitor)

        return asyncio.run(connected())


ImageFactory = Callable[..., Image]


@pytest.fixture
def image(ceph: CephCluster, tmp_path: Path) -> ImageFactory:
    return lambda machine, uris: Image(ceph, machine, tmp_path / SECRET_FOLDER, uris)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for a socket, whose path is short: pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="hvext-") as folder:
        yield Path(folder)


def flush(console: Console, device: str) -> None:
    status, printed = console.run(f"dd if=/dev/zero of={device} bs=4096 count=1 seek={SIZE // 4096 - 1} conv=fsync")
    assert status == 0, printed


@pytest.mark.parametrize(
    "options",
    [pytest.param({}, id="virtio"), pytest.param({"device": "scsi-hd"}, id="scsi", marks=pytest.mark.nightly)],
)
def test_no_block_is_lost_when_a_disk_with_unflushed_writes_is_moved(
    share: GuestFactory, ceph: CephCluster, image: ImageFactory, options: dict[str, Any]
) -> None:
    guest = share()
    # What the one still held when it closes would go over newer writes of the other, which are there at once.
    ways = lambda name: (ceph.uri(name) + HOLDING, ceph.uri_with_key(name))  # noqa: E731
    made = image(guest.machine, lambda name: [ways(name)[0]])
    disk = made.disk(**options)
    before = state_of(guest.machine)
    with open_vm(str(guest.machine.qmp_path), host=made.host) as vm:
        vm.plug(disk)
        assert set(made.nodes(disk).values()) == {False}
        device = wait_for_disk(guest.console)
        flush(guest.console, device)
        writer = Writer(guest.console, device)
        writer.start(blocks=BLOCKS)
        for number in range(MOVES):
            writer.status()
            assert vm.repoint(disk.volume.uuid, ways(made.name)[1 - number % 2]).changed
            assert set(made.nodes(disk).values()) == {False}
            # Right after it: what is wrong now may be written anew soon.
            now = writer.verify()
            assert (now.bad, now.unreadable) == (0, 0)
        verdict = writer.stop()
        assert (verdict.status.errors, verdict.bad, verdict.unreadable) == (0, 0, 0)
        assert verdict.verified == verdict.blocks > BLOCKS // 4
        vm.unplug(disk)
    report = check_blocks(ceph.read(made.name, 0, BLOCKS * 4096), 0)
    assert report.ok
    assert report.valid == verdict.verified
    assert state_of(guest.machine) == before


def test_what_was_not_flushed_is_in_the_image_before_the_guest_goes_on_at_another_place(
    share: GuestFactory, ceph: CephCluster, image: ImageFactory
) -> None:
    guest = share()
    made = image(guest.machine, lambda name: [ceph.uri(name) + HOLDING])
    disk = made.disk()
    with open_vm(str(guest.machine.qmp_path), host=made.host) as vm:
        vm.plug(disk)
        device = wait_for_disk(guest.console)
        flush(guest.console, device)
        status, printed = guest.console.run(
            f"yes written | dd of={device} bs=4096 count=4 iflag=fullblock oflag=direct"
        )
        assert status == 0, printed
        # So it is a cache, and holds what the guest was told to be written.
        assert ceph.read(made.name, 0, 16384) == bytes(16384)
    found = []

    def look(step: str) -> None:
        if step.startswith("close "):
            # The guest writes through the new client already, and the old one is still there.
            found.append(ceph.read(made.name, 0, 16384))

    made.run(lambda monitor: repoint(monitor, disk.names, parse_uri(ceph.uri_with_key(made.name)), report=look))
    assert found == [b"written\n" * 2048]
    with open_vm(str(guest.machine.qmp_path), host=made.host) as vm:
        vm.unplug(disk)


def test_a_failover_that_would_lose_unflushed_writes_is_refused_before_anything_is_fenced(
    share: GuestFactory, ceph: CephCluster, image: ImageFactory, tmp_path: Path
) -> None:
    guest = share()
    made = image(guest.machine, lambda name: [ceph.uri(name)])
    disk = made.disk()
    other = parse_uri(ceph.uri_with_key(made.name))
    mark = tmp_path / "fenced"
    fence = CommandFence(argv=[sys.executable, "-c", f"open({str(mark)!r}, 'x')"])
    with open_vm(str(guest.machine.qmp_path), host=made.host) as vm:
        vm.plug(disk)
        before = made.nodes(disk)
        with pytest.raises(FailoverRefused, match=r"cache of its storage's client \(rbd\)") as refused:
            vm.fail_over(disk, [other])
        assert "cache=none" in refused.value.hint
    frozen = FrozenDisk(disk=disk, candidates=[other], fence=fence)
    with pytest.raises(FailoverRefused, match="cache of its storage's client"):
        made.run(lambda monitor: fail_over_frozen(monitor, [frozen]))
    assert not mark.exists()
    assert made.nodes(disk) == before
    with open_vm(str(guest.machine.qmp_path), host=made.host) as vm:
        vm.unplug(disk)


@pytest.mark.parametrize("how", [pytest.param("asked for", marks=pytest.mark.nightly), "two places"])
def test_a_disk_that_can_be_failed_over_has_no_cache_that_could_lose_anything(
    share: GuestFactory, ceph: CephCluster, image: ImageFactory, how: str
) -> None:
    guest = share()
    places = lambda name: [ceph.uri(name), ceph.uri_with_key(name)]  # noqa: E731
    made = image(guest.machine, places if how == "two places" else lambda name: places(name)[:1])
    disk = made.disk(**({} if how == "two places" else {"cache": "none"}))
    other = parse_uri(ceph.uri_with_key(made.name))
    with open_vm(str(guest.machine.qmp_path), host=made.host) as vm:
        vm.plug(disk)
        assert set(made.nodes(disk).values()) == {True}
        assert vm.fail_over(disk, [other]).after == other.words
        assert set(made.nodes(disk).values()) == {True}
        vm.unplug(disk)


def test_a_disk_whose_flushes_are_ignored_is_not_moved(
    share: GuestFactory, ceph: CephCluster, image: ImageFactory
) -> None:
    guest = share()
    made = image(guest.machine, lambda name: [ceph.uri(name)])
    disk = made.disk(cache="unsafe")
    with open_vm(str(guest.machine.qmp_path), host=made.host) as vm:
        vm.plug(disk)
        with pytest.raises(RepointRefused, match="cache=unsafe"):
            vm.repoint(disk.volume.uuid, ceph.uri_with_key(made.name))
        vm.unplug(disk)


def test_a_cached_disk_grows_and_leaves_its_cache_behind_with_the_image(
    share: GuestFactory, ceph: CephCluster, image: ImageFactory, tmp_path: Path
) -> None:
    guest = share()
    made = image(guest.machine, lambda name: [ceph.uri(name)])
    disk = made.disk()
    path = tmp_path / "elsewhere"
    with open_vm(str(guest.machine.qmp_path), host=made.host) as vm:
        vm.plug(disk)
    # The target of a migration chooses for itself: it may have the volume at other places.
    described = made.run(lambda monitor: describe(monitor, [disk]))
    assert described.disks[0].options.cache is None
    with open_vm(str(guest.machine.qmp_path), host=made.host) as vm:
        device = wait_for_disk(guest.console)
        assert vm.resize(disk, 2 * SIZE // MIB).changed
        wait_for_bytes(guest.console, device, 2 * SIZE)
        # Stands for another access to the volume: what is looked at is how it is opened.
        with path.open("xb") as file:
            file.truncate(2 * SIZE)
        vm.repoint(disk.volume.uuid, str(path))
        assert set(made.nodes(disk).values()) == {True}
        vm.repoint(disk.volume.uuid, ceph.uri(made.name))
        assert set(made.nodes(disk).values()) == {True}
        vm.unplug(disk)


@dataclass
class Target:
    """How the target's QEMU is started."""

    machine: MachineFactory
    started: Machine | None = None

    async def start(self, disk_arguments: list[str]) -> str:
        options = {"start_paused": True, "incoming": "defer", "extra_args": tuple(disk_arguments), **SMALL}
        self.started = await asyncio.to_thread(self.machine, **options)
        return str(self.started.qmp_path)

    async def end(self) -> None:
        if self.started is not None:
            await asyncio.to_thread(self.started.stop, grace_s=0)


@pytest.mark.nightly
def test_unflushed_writes_are_there_when_the_guest_has_migrated(
    ceph: CephCluster, image: ImageFactory, machine: MachineFactory, short: Path
) -> None:
    made = image(None, lambda name: [ceph.uri(name) + HOLDING])
    disk = made.disk(bus="rp0")
    arguments = start_disks(made.host, [disk]).argv()
    made.machine = source = machine(extra_args=tuple(arguments), **SMALL)
    assert set(made.nodes(disk).values()) == {False}
    console = Console(source.command_path, source.console_log, alive=lambda: source.alive)
    console.wait_ready(BOOT_LIMIT_S)
    flush(console, "/dev/vda")
    writer = Writer(console, "/dev/vda")
    writer.start(blocks=BLOCKS, rate=100)
    target = Target(machine)
    made.run(lambda monitor: migrate(monitor, made.host, target, made.host, [disk], f"unix:{short}/line"))
    assert target.started is not None
    made.machine = new = target.started
    assert set(made.nodes(disk).values()) == {False}
    writer.follow(Console(new.command_path, new.console_log, alive=lambda: new.alive))
    verdict = writer.stop()
    assert (verdict.status.errors, verdict.bad, verdict.unreadable) == (0, 0, 0)
    assert verdict.verified == verdict.blocks > 0
    new.stop()
    remove_private(disk.names.root)
