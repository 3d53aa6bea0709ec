"""Thousands of operations in a random order while the guest writes: nothing is lost, left, or ever larger.

The order comes from a seed, which is printed and can be given: HVEXT_SOAK_SEED.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import re
import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hvext.core.disk import Disk
from hvext.host.guest import Writer
from hvext.operations import attachments
from hvext.operations.vm import AsyncVm
from tests.servers.program import wait_until
from tests.vm.conftest import GuestFactory, MachineFactory
from tests.vm.faults.world import GONE_S, WRITER, Qemu, World, check, proxied, world
from tests.vm.state import on_debug_monitor
from tests.vm.volume import kill_servers_of, wait_for_bytes, wait_for_disk

pytestmark = pytest.mark.vm
#: How often each operation comes, of all.
WEIGHTS = {"plug": 5, "unplug": 4, "repoint": 10, "resize": 3, "fail over": 4, "reset": 0.15}
_NIGHTLY = [pytest.mark.nightly, pytest.mark.timeout(3 * 3600)]
STOP_S = 20.0
BOOT_S = 90.0
#: A disk does not grow for ever: at this size its volume is made anew.
LARGEST_MIB = 160


@dataclass(slots=True)
class Trial:
    """One disk of the soak; with a writer while the guest has it."""

    disk: Disk
    writer: Writer | None = None
    name: str = ""
    size_mib: int = 64

    @property
    def plugged(self) -> bool:
        return bool(self.name)


@dataclass(slots=True)
class Soak:
    """A guest, its disks, and what was done so far."""

    qemu: Qemu
    trials: list[Trial]
    chance: random.Random
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    memory_kib: list[int] = field(default_factory=list)

    @property
    def world(self) -> World:
        return self.qemu.world

    def step(self) -> None:
        """Do one operation on one disk, whichever can be done to it."""
        trial = self.chance.choice(self.trials)
        possible = ["repoint", "resize", "fail over", "unplug", "reset"] if trial.plugged else ["plug"]
        operation = self.chance.choices(possible, [WEIGHTS[name] for name in possible])[0]
        if trial.size_mib >= LARGEST_MIB and operation == "resize":
            operation = "repoint"
        work: dict[str, Callable[[Trial], None]] = {
            "plug": self.plug,
            "unplug": self.unplug,
            "repoint": self.repoint,
            "resize": self.resize,
            "fail over": self.fail_over,
            "reset": lambda _trial: self.reset(),
        }
        work[operation](trial)
        self.counts[operation] += 1

    def plug(self, trial: Trial) -> None:
        known = tuple(other.name for other in self.trials if other.plugged)
        assert self.qemu.run(lambda vm: vm.plug(trial.disk)).changed
        self.write(trial, known)

    def write(self, trial: Trial, known: tuple[str, ...]) -> None:
        assert self.qemu.console is not None
        device = wait_for_disk(self.qemu.console, known=known)
        trial.name = device.rpartition("/")[2]
        trial.writer = Writer(self.qemu.console, device)
        trial.writer.start(**WRITER)

    def unplug(self, trial: Trial) -> None:
        assert trial.writer is not None
        check(trial.writer)
        assert self.qemu.run(lambda vm: vm.unplug(trial.disk)).detached
        trial.writer.wait_gone(GONE_S)
        trial.writer, trial.name = None, ""
        self.world.check_blocks(trial.disk)

    def repoint(self, trial: Trial) -> None:
        candidates = attachments.offer(self.world.host, trial.disk).choice.candidates
        target = self.chance.choice(candidates).location
        self.qemu.run(lambda vm: vm.repoint(trial.disk.volume.uuid, target))

    def resize(self, trial: Trial) -> None:
        trial.size_mib += self.chance.randint(1, 8)
        assert self.qemu.console is not None
        assert self.qemu.run(lambda vm: vm.resize(trial.disk, trial.size_mib)).volume_grown
        wait_for_bytes(self.qemu.console, f"/dev/{trial.name}", trial.size_mib << 20)

    def fail_over(self, trial: Trial) -> None:
        """Kill the server of a disk that stands on it, and put the block path in its place."""
        first, *others = attachments.offer(self.world.host, trial.disk).choice.candidates

        async def survive(vm: AsyncVm) -> None:
            await vm.repoint(trial.disk.volume.uuid, first.location)
            with vm.monitor.events("STOP") as events:
                kill_servers_of(self.world.folder / "volumes" / trial.disk.volume.name)
                assert await events.get(STOP_S) is not None, "the guest does not notice"
            await vm.fail_over(trial.disk, [each.location for each in others])
            assert await vm.resume()

        self.qemu.run(survive)

    def reset(self) -> None:
        """Reset the guest; what it was told is written stays so, and it writes anew."""
        console = self.qemu.console
        assert console is not None
        for trial in self.trials:
            if trial.writer is not None:
                verdict = trial.writer.stop()
                assert (verdict.status.errors, verdict.bad, verdict.unreadable) == (0, 0, 0)
        since = console.mark()
        on_debug_monitor(self.qemu.machine, "system_reset")
        console.wait_ready(BOOT_S, since=since)
        # Their names may have changed.
        self.rename()

    def rename(self) -> None:
        """Find each disk in the guest again, by its serial number, and let it be written."""
        assert self.qemu.console is not None
        for trial in self.trials:
            if trial.plugged:
                trial.name = by_serial(self.qemu, str(trial.disk.options.serial))
                trial.writer = Writer(self.qemu.console, f"/dev/{trial.name}")
                trial.writer.start(**WRITER)

    def look(self) -> None:
        """See that nothing is wrong so far."""
        assert self.world.audit() == []
        for trial in self.trials:
            if trial.writer is not None:
                check(trial.writer)

    def measure(self) -> None:
        """Note how much memory QEMU takes of the host."""
        process = Path(f"/proc/{self.qemu.machine.pid}")
        self.memory_kib.append(own_kib((process / "smaps").read_text()))

    def opened(self) -> list[str]:
        """Return what QEMU has open of the host."""
        return sorted(opened_by(self.qemu.machine.pid))


def own_kib(smaps: str) -> int:
    """Return how much a QEMU has written to memory that is its own: not its guest's (shared), not translated code."""
    total, counts = 0, False
    for line in smaps.splitlines():
        first, *words = line.split()
        if "-" in first and len(words) >= 4:
            counts = "x" not in words[0] and "p" in words[0]
        elif first == "Private_Dirty:" and counts:
            total += int(words[0])
    return total


def opened_by(pid: int) -> Iterator[str]:
    """Yield what a process has open, without the numbers that tell one socket from another."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        # It may be closed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            yield re.sub("[0-9]+", "", str(link.readlink()))


def by_serial(qemu: Qemu, serial: str) -> str:
    """Return the guest's name of the disk with a serial number."""
    script = (
        "for d in /sys/block/[vs]d*; do s=$(cat $d/serial 2>/dev/null || tail -c +5 $d/device/vpd_pg80); "
        f'[ "$s" = "{serial}" ] && echo ${{d##*/}}; done'
    )
    assert qemu.console is not None
    deadline = time.monotonic() + GONE_S
    while not (name := qemu.console.run(script)[1].strip()):
        assert time.monotonic() < deadline, f"no disk {serial} in the guest"
        time.sleep(0.2)
    return name


@pytest.fixture
def soaked() -> Iterator[World]:
    # With room for the history of thousands of operations.
    with world(journal="8m") as made:
        yield made


@pytest.mark.parametrize("times", [pytest.param(1, marks=_NIGHTLY), pytest.param(10, marks=_NIGHTLY)])
def test_qemu_does_not_grow_with_the_operations_that_are_done_to_it(
    soaked: World, machine: MachineFactory, capsys: pytest.CaptureFixture[str], times: int
) -> None:
    # Without a guest: one that runs has its code translated, and QEMU keeps that.
    started = machine(prefix=proxied(soaked.folder), scsi_controllers=1, shared_memory=True, start_paused=True)
    qemu = Qemu(world=soaked, machine=started)
    disk = soaked.create("vol", device="scsi-hd", iops_total=1000)

    async def work(vm: AsyncVm) -> None:
        for _round in range(10 * times):
            await vm.plug(disk)
            await vm.unplug(disk)
        await vm.plug(disk)
        for _round in range(8 * times):
            first, second = attachments.offer(soaked.host, disk).choice.candidates
            for _move in range(4):
                await vm.repoint(disk.volume.uuid, second.location)
                await vm.repoint(disk.volume.uuid, first.location)
            kill_servers_of(soaked.folder / "volumes" / "vol")
            await vm.fail_over(disk, [second.location])
        await vm.unplug(disk)

    memory_kib = []
    for _round in range(4):
        qemu.run(work)
        memory_kib.append(own_kib(Path(f"/proc/{started.pid}/smaps").read_text()))
    with capsys.disabled():
        print(f"\nsoak: QEMU's own memory after each of four rounds {memory_kib} KiB")
    assert max(memory_kib[1:]) < memory_kib[0] * 1.1


@pytest.mark.parametrize("operations", [20, pytest.param(2000, marks=_NIGHTLY)])
def test_many_operations_under_writes_lose_nothing_and_leave_nothing(
    soaked: World, boot: GuestFactory, capsys: pytest.CaptureFixture[str], operations: int
) -> None:
    seed = int(os.environ.get("HVEXT_SOAK_SEED") or secrets.randbelow(1 << 32))
    with capsys.disabled():
        print(f"\nsoak: HVEXT_SOAK_SEED={seed}", flush=True)
    guest = boot(prefix=proxied(soaked.folder), scsi_controllers=1, shared_memory=True)
    qemu = Qemu(world=soaked, machine=guest.machine, console=guest.console)
    stops: dict[str, Any] = {"werror": "stop", "rerror": "stop"}
    trials = [
        Trial(soaked.create("one", serial="s1", iops_total=100_000, **stops)),
        Trial(soaked.create("two", serial="s2", device="scsi-hd", **stops)),
        Trial(soaked.create("three", serial="s3", iothread="auto", **stops)),
    ]
    before = (qemu.state(), soaked.on_host())
    soaked.forget()
    soak = Soak(qemu=qemu, trials=trials, chance=random.Random(seed))  # noqa: S311
    opened = soak.opened()
    started = time.monotonic()
    try:
        for number in range(operations):
            soak.step()
            if number % 20 == 19:
                soak.look()
            soak.measure()
    except BaseException:
        with capsys.disabled():
            print(f"soak: failed after {soak.counts.total()} operations: {dict(soak.counts)}", flush=True)
        raise
    soak.look()
    for trial in trials:
        attached = trial.plugged
        assert soaked.counted.balance(str(trial.disk.volume.uuid), attached=attached, before=False) == []
        if attached:
            soak.unplug(trial)
    assert soaked.audit() == []
    assert (qemu.state(), soaked.on_host()) == before
    tenth = max(1, operations // 10)
    memory = [statistics.median(part) for part in (soak.memory_kib[:tenth], soak.memory_kib[-tenth:])]
    with capsys.disabled():
        print(
            f"soak: {dict(soak.counts)} in {time.monotonic() - started:.0f} s; first and last tenth: QEMU's own memory "
            f"{memory[0] / 1024:.1f} and {memory[1] / 1024:.1f} MiB"
        )
    wait_until(f"end with {opened} open, not {soak.opened()}", lambda: soak.opened() == opened)
