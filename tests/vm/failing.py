"""A disk that can be had in two ways, in a guest that writes to it: for tests in which its storage fails.

The fixture `setting` is known to all tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import pytest

from hvext.core.disk import Disk
from hvext.core.frozen import Stuck, judge
from hvext.core.stamp import check_blocks
from hvext.core.uri import Location, parse_uri
from hvext.host.files import opened_as
from hvext.host.guest import Writer, WriterVerdict
from hvext.host.provider import ProviderHost
from hvext.host.qmp import Events, Monitor, connect
from hvext.operations.capabilities import query_capabilities
from hvext.operations.failover import FailedOver, fail_over, resume
from hvext.operations.fence import Fence, FrozenDisk, fail_over_frozen
from hvext.operations.frozen import sample
from hvext.operations.repoint import repoint
from hvext.operations.steps import Report, silent
from hvext.operations.vm import open_vm
from tests.providers import write_provider
from tests.servers.two_ways import TwoWays, two_ways
from tests.vm.state import on_debug_monitor
from tests.vm.volume import wait_for_disk

if TYPE_CHECKING:
    from tests.vm.conftest import Guest, GuestFactory

MIB = 1 << 20
BLOCKS = 256
#: How long a guest may take to notice that its storage is gone; it takes milliseconds.
STOP_S = 20.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A guest with a disk on a volume that can be had in two ways; the disk stops the guest on errors."""

    guest: Guest
    ways: TwoWays
    host: ProviderHost
    disk: Disk

    def run(self, work: Callable[[Monitor], Awaitable[T]]) -> T:
        """Do something on the guest's monitor."""

        async def connected() -> T:
            async with connect(str(self.guest.machine.qmp_path)) as monitor:
                return await work(monitor)

        return asyncio.run(connected())

    def plug(self) -> None:
        with open_vm(str(self.guest.machine.qmp_path), host=self.host) as vm:
            assert vm.plug(self.disk).changed

    def unplug(self) -> None:
        with open_vm(str(self.guest.machine.qmp_path), host=self.host) as vm:
            assert vm.unplug(self.disk).finished

    def fail_over(self, *candidates: Location, report: Report = silent) -> FailedOver:
        """Swap the disk's storage; the guest is not resumed."""
        return self.run(lambda monitor: fail_over(monitor, self.disk.names, candidates, report=report))

    def move(self, location: Location) -> None:
        """Move the disk as it is moved without any failure."""
        assert self.run(lambda monitor: repoint(monitor, self.disk.names, location)).changed

    def resume(self) -> bool:
        return self.run(resume)

    def status(self) -> str:
        return str(on_debug_monitor(self.guest.machine, "query-status")["status"])

    def wait_stopped(self) -> None:
        """Wait until an error has stopped the guest."""
        deadline = time.monotonic() + STOP_S
        while self.status() != "io-error":
            assert time.monotonic() < deadline, f"the guest is {self.status()}"
            time.sleep(0.02)

    def started_writer(self, **options: Any) -> Writer:
        writer = Writer(self.guest.console, wait_for_disk(self.guest.console))
        writer.start(**{"blocks": BLOCKS, **options})
        return writer

    @property
    def uri(self) -> Location:
        return parse_uri(self.ways.address)

    @property
    def path(self) -> Location:
        return parse_uri(self.ways.block_path, look=opened_as)


SettingFactory = Callable[..., Setting]


@pytest.fixture
def ways() -> Iterator[Callable[..., TwoWays]]:
    """A function that makes a volume; all are gone after the test, and after its guest was looked at."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(two_ways(64 * MIB, **options))


@pytest.fixture
def setting(ways: Callable[..., TwoWays], share: GuestFactory, tmp_path: Path) -> SettingFactory:
    """A function that makes a `Setting` in a shared guest: not plugged yet."""

    def make(
        *,
        device: str = "virtio-blk-pci",
        iothread: bool = False,
        qemu: str = "",
        options: dict[str, Any] | None = None,
        name: str = "two",
        **volume: Any,
    ) -> Setting:
        made = ways(**volume)
        answer = rf"{made.block_path}\nkvm:{made.address.replace('%', '%%')}\n"
        write_provider(tmp_path / "providers", name, {"attach": f"printf '{answer}'"})
        wanted: dict[str, Any] = {"device": device, "werror": "stop", "rerror": "stop", **(options or {})}
        if iothread:
            wanted["iothread"] = "io0"
        disk = Disk.from_mapping({"provider": name, "volume": tmp_path.name, **wanted})
        machine = {"scsi_iothread": "io0"} if iothread and device == "scsi-hd" else {}
        if qemu:
            machine["qemu"] = qemu
        guest = share(**machine)
        return Setting(guest=guest, ways=made, host=ProviderHost(search_path=(str(tmp_path / "providers"),)), disk=disk)

    return make


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """What one failover did, and how long the guest stood still, by QEMU's clock."""

    result: FailedOver
    stopped_ms: float


async def _stop_event(events: Events) -> Any:
    event = await events.get(STOP_S)
    assert event is not None, "the guest was not stopped by the error"
    assert event["event"] == "STOP"
    return event


def _time_ms(event: Any) -> float:
    return float(event["timestamp"]["seconds"] * 1e3 + event["timestamp"]["microseconds"] / 1e3)


async def _ended(monitor: Monitor, events: Events, results: Sequence[FailedOver], stopped: Any) -> Outage:
    assert await resume(monitor)
    event = await events.get(STOP_S)
    assert event is not None
    assert event["event"] == "RESUME"
    return Outage(result=results[0], stopped_ms=_time_ms(event) - _time_ms(stopped))


def die(setting: Setting, candidates: Sequence[Location], kill: Callable[[], None]) -> Outage:
    """Let the storage in use die, fail over, resume."""

    async def work(monitor: Monitor) -> Outage:
        # Whoever watches over a guest has asked this before anything happens.
        await query_capabilities(monitor)
        with monitor.events("STOP", "RESUME") as events:
            kill()
            return await fail_over_and_resume(setting, monitor, events, candidates)

    return setting.run(work)


async def fail_over_and_resume(
    setting: Setting, monitor: Monitor, events: Events, candidates: Sequence[Location]
) -> Outage:
    """Wait until the guest is stopped, fail over, resume."""
    stopped = await _stop_event(events)
    result = await fail_over(monitor, setting.disk.names, candidates)
    return await _ended(monitor, events, [result], stopped)


async def wait_stuck(monitor: Monitor, *disks: Disk) -> None:
    """Wait until QEMU's counts tell that the requests of these disks are stuck, and of no other."""
    before = await sample(monitor)
    deadline = time.monotonic() + STOP_S
    stuck: dict[UUID, Stuck] = {}
    while stuck.keys() != {disk.volume.uuid for disk in disks}:
        assert time.monotonic() < deadline, f"nothing tells that the requests are stuck: {before}"
        await asyncio.sleep(0.05)
        now = await sample(monitor, before)
        stuck = judge(before, now, stuck)
        before = now


def freeze(
    setting: Setting,
    candidates: Sequence[Location],
    fence: Fence | None,
    *,
    meanwhile: Callable[[], object] = lambda: None,
) -> Outage:
    """Let the server fall silent, find that out, fence it, fail over, resume; ``meanwhile`` is done in the silence."""

    async def work(monitor: Monitor) -> Outage:
        await query_capabilities(monitor)
        with monitor.events("STOP", "RESUME") as events:
            setting.ways.freeze()
            meanwhile()
            await wait_stuck(monitor, setting.disk)
            frozen = FrozenDisk(disk=setting.disk, candidates=candidates, fence=fence)
            results = await fail_over_frozen(monitor, [frozen])
            return await _ended(monitor, events, results, await _stop_event(events))

    return setting.run(work)


def check_verdict(setting: Setting, verdict: WriterVerdict) -> None:
    """No error in the guest, and every acknowledged write is there, in the guest's eyes and in the volume itself."""
    assert (verdict.status.errors, verdict.bad, verdict.unreadable, verdict.first) == (0, 0, 0, ())
    assert verdict.verified == verdict.blocks > 0
    report = check_blocks(setting.ways.read("vol", 0, BLOCKS * 4096), 0)
    assert report.ok
    assert report.valid == verdict.verified


def woken_up(setting: Setting, writer: Writer) -> WriterVerdict:
    """Wake a frozen server up while the guest writes nothing, stop the writer, and return what it read back.

    What the server carries out then stays to be seen: no later write covers it.
    """
    console = setting.guest.console
    assert console.run("kill -STOP $(pidof writer)")[0] == 0
    setting.ways.thaw()
    time.sleep(0.3)
    console.run("(sleep 0.2; kill -CONT $(pidof writer)) >/dev/null 2>&1 &")
    return writer.stop()
