"""Two programs at one VM, or two VMs at one volume: they take turns, whatever happens to either of them."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hvext.core.disk import Disk
from tests.vm.conftest import MachineFactory
from tests.vm.faults.world import Qemu, World, world

pytestmark = pytest.mark.vm
ROOT = Path(__file__).parents[2]
#: Everything that a plug or unplug may say when somebody else does the same.
DOCUMENTED = re.compile(r"(plug \w+ (plugged|was there)|unplug \w+ (unplugged|absent))$")
#: For all rounds together: nobody may wait for ever.
LIMIT_S = 1200.0
_NIGHTLY = [pytest.mark.nightly, pytest.mark.timeout(1800)]


@pytest.fixture
def shared() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture
def qemu(shared: World, machine: MachineFactory) -> Callable[..., Qemu]:
    """A function that starts a QEMU in which nothing runs."""
    return lambda **options: Qemu(world=shared, machine=machine(scsi_controllers=1, start_paused=True, **options))


@contextlib.contextmanager
def rivals(shared: World, jobs: list[dict[str, Any]]) -> Iterator[list[subprocess.Popen[str]]]:
    """Programs that do these jobs at the same time; all are ended with the block."""
    with contextlib.ExitStack() as stack:
        started = []
        for job in jobs:
            program = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.vm.faults.rival"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                )
            )
            stack.callback(program.kill)
            assert program.stdin is not None
            program.stdin.write(json.dumps(shared.job("", **job)) + "\n")
            program.stdin.flush()
            started.append(program)
        yield started


def said(programs: list[subprocess.Popen[str]], limit_s: float) -> list[str]:
    """Return what programs printed, once they have ended."""
    deadline = time.monotonic() + limit_s
    return [
        line
        for program in programs
        for line in program.communicate(timeout=max(1.0, deadline - time.monotonic()))[0].splitlines()
    ]


def tidy(shared: World, machines: list[Qemu], disks: list[Disk], before: dict[str, object]) -> None:
    """Take every disk out and see that nothing is left, nothing is there twice, and every attach has its detach."""
    assert shared.audit() == []
    attached = {disk.volume.uuid: shared.attached(disk) for disk in disks}
    states = [one.state() for one in machines]
    for disk in disks:
        there = [disk.names.device in state.devices for state in states]
        assert sum(there) == attached[disk.volume.uuid]
        wrong = shared.counted.balance(str(disk.volume.uuid), attached=any(there), before=False)
        assert wrong == [], shared.counted.calls()
        for one, is_there in zip(machines, there, strict=True):
            if is_there:
                one.run(lambda vm, disk=disk: vm.unplug(disk))
    assert shared.audit() == []
    assert shared.on_host() == before
    for one in machines:
        assert not [name for name in one.state().nodes | one.state().objects if name.startswith("hv")]


@pytest.mark.parametrize("rounds", [15, pytest.param(500, marks=_NIGHTLY)])
def test_two_programs_that_plug_and_unplug_the_same_disks_take_turns(
    shared: World, qemu: Callable[..., Qemu], capsys: pytest.CaptureFixture[str], rounds: int
) -> None:
    one = qemu()
    disks = [shared.create(name, device="scsi-hd", iops_total=1000) for name in ("a", "b")]
    before = shared.on_host()
    shared.forget()
    jobs = [
        {"disks": disks, "qmp": str(path), "rounds": rounds, "seed": seed, "operations": ["plug", "unplug"]}
        for seed, path in enumerate((one.machine.qmp_path, one.machine.debug_qmp_path))
    ]
    started = time.monotonic()
    with rivals(shared, jobs) as programs:
        lines = said(programs, LIMIT_S)
    assert [program.returncode for program in programs] == [0, 0]
    assert len(lines) == 2 * rounds
    assert [line for line in lines if not DOCUMENTED.match(line)] == []
    # Each change of one is seen by the other: a disk goes in as often as out, or once more.
    for disk in disks:
        words = [line.split(maxsplit=2)[2] for line in lines if line.split()[1] == disk.volume.name]
        there = disk.names.device in one.state().devices
        assert words.count("plugged") - words.count("unplugged") == there
    counts = collections.Counter(line.split(maxsplit=2)[2] for line in lines)
    tidy(shared, [one], disks, before)
    with capsys.disabled():
        print(f"\ntwo programs, {rounds} rounds each: {dict(counts)}, {time.monotonic() - started:.1f} s")


@pytest.mark.parametrize("rounds", [1, pytest.param(60, marks=_NIGHTLY)])
def test_programs_that_are_killed_at_any_moment_leave_what_recover_puts_right(
    shared: World, qemu: Callable[..., Qemu], capsys: pytest.CaptureFixture[str], rounds: int
) -> None:
    one = qemu()
    disks = [shared.create(name, device="scsi-hd", iops_total=1000) for name in ("a", "b")]
    before = shared.on_host()
    chance = random.Random(rounds)  # noqa: S311
    outcomes: collections.Counter[str] = collections.Counter()
    shared.forget()
    for number in range(rounds):
        jobs = [
            {
                "disks": disks,
                "qmp": str(path),
                "rounds": 10_000,
                "seed": 2 * number + seed,
                "operations": ["plug", "unplug"],
            }
            for seed, path in enumerate((one.machine.qmp_path, one.machine.debug_qmp_path))
        ]
        with rivals(shared, jobs) as programs:
            assert programs[0].stdout is not None
            programs[0].stdout.readline()
            for program in programs:
                time.sleep(chance.uniform(0, 0.6))
                os.kill(program.pid, signal.SIGKILL)
        done = shared.recover()
        assert not any(words.startswith("left") for words in done), done
        outcomes.update(done or ["nothing to do"])
        assert shared.audit() == []
    tidy(shared, [one], disks, before)
    with capsys.disabled():
        print(f"\ntwo programs killed {rounds} times: {dict(outcomes)}")


def test_one_volume_gets_into_one_of_two_guests(shared: World, qemu: Callable[..., Qemu]) -> None:
    machines = [qemu(name="one"), qemu(name="two")]
    disks = [shared.create("a", device="scsi-hd")]
    before = shared.on_host()
    for _round in range(6):
        shared.forget()
        jobs = [
            {"disks": disks, "qmp": str(one.machine.qmp_path), "rounds": 1, "seed": 0, "operations": ["plug"]}
            for one in machines
        ]
        with rivals(shared, jobs) as programs:
            lines = sorted(said(programs, 60))
        assert lines[1] == "plug a plugged"
        assert re.match(r"plug a PlugError: the volume counted/a is a disk of VM (one|two) on this host", lines[0])
        tidy(shared, machines, disks, before)
