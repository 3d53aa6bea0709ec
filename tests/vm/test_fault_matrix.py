"""Every operation at every step, with every fault that can strike there; then `recover`, and nothing is lost or left.

The nightly run has all cases. The default run has a sample in which every fault comes at least once, and every third
step; which ones, HVEXT_FAULT_SEED says; HVEXT_FAULT_ONLY names the cases to run instead.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import pytest

from hvext.core.disk import Disk
from hvext.host.machine import GuestImage
from tests.vm.conftest import GuestFactory, MachineFactory
from tests.vm.faults.matrix import Case, InGuest, Tally, chosen
from tests.vm.faults.migrate import Migration
from tests.vm.faults.start import AtStart
from tests.vm.faults.world import Qemu, World, proxied, world

pytestmark = pytest.mark.vm
SEED = int(os.environ.get("HVEXT_FAULT_SEED", "4"))


@pytest.fixture
def faulty() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture
def in_guest(faulty: World, boot: GuestFactory, machine: MachineFactory) -> Iterator[Callable[..., InGuest]]:
    """A function that makes the matrix of the operations on a guest, for a disk with these options."""
    made: list[InGuest] = []

    def booted(steady: Disk) -> Qemu:
        guest = boot(prefix=proxied(faulty.folder), scsi_controllers=1)
        qemu = Qemu(world=faulty, machine=guest.machine, console=guest.console)
        qemu.settle(steady)
        return qemu

    def paused(steady: Disk) -> Qemu:
        started = machine(prefix=proxied(faulty.folder), scsi_controllers=1, start_paused=True)
        qemu = Qemu(world=faulty, machine=started)
        qemu.settle(steady)
        return qemu

    def make(**options: str) -> InGuest:
        made.append(InGuest(faulty, booted, paused, options))
        return made[0]

    yield make
    for each in made:
        each.close()


def wanted(cases: list[Case], *, whole: bool) -> list[Case]:
    """Return the cases to run: all, the sample, or those that HVEXT_FAULT_ONLY (a regular expression) names."""
    if only := os.environ.get("HVEXT_FAULT_ONLY"):
        return [case for case in cases if re.search(only, str(case))]
    return cases if whole else chosen(cases, SEED)


def finish(tally: Tally, capsys: pytest.CaptureFixture[str]) -> None:
    """Print what came of all cases, and fail when anything was wrong."""
    with capsys.disabled():
        print(f"\nfault matrix, seed {SEED}: {tally}")
    assert not tally.wrong, "\n".join(tally.wrong)


@pytest.mark.parametrize(
    "whole",
    [False, pytest.param(True, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])],
    ids=["sample", "whole"],
)
@pytest.mark.parametrize("device", ["virtio-blk-pci", pytest.param("scsi-hd", marks=pytest.mark.nightly)])
def test_no_write_is_lost_and_nothing_is_left_wherever_a_fault_strikes(
    in_guest: Callable[..., InGuest], capsys: pytest.CaptureFixture[str], device: str, whole: bool
) -> None:
    matrix, tally = in_guest(device=device), Tally()
    cases = matrix.cases()
    matrix.run(wanted(cases, whole=whole), tally)
    finish(tally, capsys)


def test_a_start_that_anything_strikes_leaves_no_volume_attached(
    faulty: World, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix, tally = AtStart(faulty), Tally()
    matrix.run(matrix.cases(), tally)
    finish(tally, capsys)


@pytest.mark.parametrize(
    ("whole", "writing"),
    [
        (False, False),
        pytest.param(True, False, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)]),
        pytest.param(True, True, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)]),
    ],
    ids=["sample", "whole", "whole under writes"],
)
def test_a_migration_that_anything_strikes_leaves_the_guest_on_one_side(
    faulty: World,
    machine: MachineFactory,
    boot: GuestFactory,
    guest_image: GuestImage,
    capsys: pytest.CaptureFixture[str],
    whole: bool,
    writing: bool,
) -> None:
    options = {"scsi_controllers": 1, "prefix": proxied(faulty.folder), "memory_mib": 256 if writing else 128}

    def begin() -> Qemu:
        if not writing:
            return Qemu(world=faulty, machine=machine(name="here", start_paused=True, **options))
        guest = boot(name="here", **options)
        return Qemu(world=faulty, machine=guest.machine, console=guest.console)

    matrix = Migration(faulty, begin, options | {"start_paused": True}, guest_image.kernel.parent)
    tally = Tally()
    cases = matrix.cases()
    matrix.run(wanted(cases, whole=whole), tally)
    finish(tally, capsys)
