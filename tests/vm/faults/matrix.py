"""The fault matrix: every operation, at every step, with every fault that can strike there.

Which steps there are, and which of them send commands or start scripts, an operation tells itself: it is carried out
once, and what it reported and did is the list.
"""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hvext.core.disk import Disk
from hvext.errors import HvextError
from hvext.operations import attachments
from hvext.operations.vm import AsyncVm
from tests.vm.faults.world import Qemu, World, check, same_steps
from tests.vm.state import on_debug_monitor
from tests.vm.volume import kill_servers_of

IO_ERROR_S = 20.0


class Fault(StrEnum):
    """What can strike. Those that say ``inside`` strike after the step's first command or script has begun."""

    KILLED = "killed"
    KILLED_INSIDE = "killed inside"
    QEMU_KILLED = "QEMU killed"
    QEMU_KILLED_INSIDE = "QEMU killed inside"
    CUT = "connection cut"
    DELAYED = "answer delayed"
    SCRIPT_FAILS = "script fails"
    SCRIPT_HANGS = "script hangs"
    SCRIPT_NONSENSE = "script prints nonsense"
    JOURNAL_FULL = "journal full"


ENDS_QEMU = (Fault.QEMU_KILLED, Fault.QEMU_KILLED_INSIDE)
_AT_ONCE = {Fault.KILLED: "killed", Fault.QEMU_KILLED: "qemu-killed", Fault.JOURNAL_FULL: "journal-full"}
_IN_SCRIPT = {
    Fault.SCRIPT_FAILS: "fail",
    Fault.SCRIPT_HANGS: "hang",
    Fault.SCRIPT_NONSENSE: "nonsense",
    Fault.KILLED_INSIDE: "kill-driver",
    Fault.QEMU_KILLED_INSIDE: "kill-qemu",
}
_IN_QMP = {
    Fault.CUT: "cut",
    Fault.DELAYED: "delay",
    Fault.KILLED_INSIDE: "kill-driver",
    Fault.QEMU_KILLED_INSIDE: "kill-qemu",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One step of an operation, and what it does.

    ``qmp`` is the proxy's word for its first command of interest, ``scripts`` are the scripts it starts.
    """

    number: int
    name: str
    qmp: str
    scripts: tuple[str, ...]

    def faults(self, *, guest: bool) -> Iterator[tuple[Fault, str]]:
        """Yield what can strike here, and in which script (empty: in none); ``guest`` says whether there is a QEMU."""
        yield Fault.JOURNAL_FULL, ""
        if self.number < 0:
            return
        yield Fault.KILLED, ""
        if guest:
            yield Fault.QEMU_KILLED, ""
        for where in self.scripts or (("",) if self.qmp else ()):
            yield Fault.KILLED_INSIDE, where
            if guest:
                yield Fault.QEMU_KILLED_INSIDE, where
        if self.qmp:
            yield Fault.CUT, ""
            yield Fault.DELAYED, ""
        for script in self.scripts:
            yield Fault.SCRIPT_FAILS, script
            yield Fault.SCRIPT_HANGS, script
            yield Fault.SCRIPT_NONSENSE, script

    def job(self, fault: Fault, script: str) -> dict[str, Any]:
        """Return what the driver is told."""
        told: dict[str, Any] = {"at": self.number, "fault": _AT_ONCE.get(fault, "")}
        if script:
            told["arm_script"] = f"{_IN_SCRIPT[fault]} {script}\n"
        elif fault in _IN_QMP:
            told["arm_qmp"] = f"{_IN_QMP[fault]} {self.qmp}".strip()
        return told


def places(trace: Sequence[tuple[str, str]]) -> list[Place]:
    """Return the places of an operation from what it did; the first one is before its first step."""
    found = [Place(number=-1, name="before the first step", qmp="", scripts=())]
    names = [name for kind, name in trace if kind == "step"]
    starts = [at for at, (kind, _name) in enumerate(trace) if kind == "step"]
    looks = ("query-", "qom-list", "qom-get", "device-list")
    for number, (name, start, end) in enumerate(zip(names, starts, [*starts[1:], len(trace)], strict=True)):
        done = trace[start + 1 : end]
        commands = [what for kind, what in done if kind == "qmp"]
        changing = any(not what.startswith(looks) for what in commands)
        found.append(
            Place(
                number=number,
                name=name,
                qmp="change" if changing else ("any" if commands else ""),
                scripts=tuple(dict.fromkeys(what for kind, what in done if kind == "script")),
            )
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One fault at one place of one operation; ``script`` is the script that it strikes."""

    operation: str
    place: Place
    fault: Fault
    script: str = ""

    @property
    def job(self) -> dict[str, Any]:
        """What the driver is told."""
        return self.place.job(self.fault, self.script)

    def __str__(self) -> str:
        script = f" ({self.script})" if self.script else ""
        return f"{self.operation}, step {self.place.number} ({self.place.name}): {self.fault}{script}"


def cases_at(operation: str, place: Place, *, guest: bool) -> list[Case]:
    """Return the cases of one place."""
    return [
        Case(operation=operation, place=place, fault=fault, script=script)
        for fault, script in place.faults(guest=guest)
    ]


@dataclass(slots=True)
class Tally:
    """What came of the cases: counts of outcomes, and what went wrong."""

    cases: list[Case] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, case: Case, outcome: str) -> None:
        """Count a case."""
        self.cases.append(case)
        self.ended[outcome] = self.ended.get(outcome, 0) + 1

    def __str__(self) -> str:
        operations = {case.operation for case in self.cases}
        steps = {(case.operation, case.place.number) for case in self.cases}
        faults = {case.fault for case in self.cases}
        ended = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.ended.items()))
        return (
            f"{len(operations)} operations, {len(steps)} steps, {len(faults)} faults, {len(self.cases)} cases: {ended}"
        )


def chosen(cases: Sequence[Case], seed: int) -> list[Case]:
    """Return some of the cases in which every fault and every third step of each operation comes at least once.

    Which of the three, the seed says.
    """
    shuffled = list(cases)
    random.Random(seed).shuffle(shuffled)  # noqa: S311
    left = set[tuple[object, ...]]().union(*(_covered(case) for case in cases if case.place.number % 3 == seed % 3))
    left |= {(case.fault,) for case in cases}
    found = []
    while left:
        best = max(shuffled, key=lambda case: len(left & _covered(case)))
        left -= _covered(best)
        found.append(best)
    return found


def _covered(case: Case) -> set[tuple[object, ...]]:
    return {(case.operation, case.place.number), (case.fault,)}


class Operation:
    """One operation on the disk under test, in a guest: how it begins, and what it is told."""

    def __init__(
        self, name: str, *, present: bool, values: Callable[[Qemu, Disk], dict[str, Any]] | None = None
    ) -> None:
        self.name = name
        self.present = present
        self._values = values or (lambda _qemu, _disk: {})

    def ready(self, qemu: Qemu, disk: Disk) -> dict[str, Any]:
        """Bring everything to where the operation begins, and return what the driver is told."""
        there = _is_there(qemu, disk)
        if there and not self.present:
            qemu.run(lambda vm: vm.unplug(disk))
            qemu.gone()
        if self.present and not there:
            qemu.run(lambda vm: vm.plug(disk))
        if self.present:
            qemu.write()
            qemu.run(lambda vm: _at_uri(vm, qemu.world, disk))
        return self._values(qemu, disk)


def _is_there(qemu: Qemu, disk: Disk) -> bool:
    return disk.names.device in qemu.state().devices


async def _at_uri(vm: AsyncVm, world: World, disk: Disk) -> None:
    offered = attachments.offer(world.host, disk).choice.candidates
    await vm.repoint(disk.volume.uuid, offered[0].location)


def _targets(qemu: Qemu, disk: Disk) -> dict[str, Any]:
    """The volume's block path: where a move, or a failover, goes."""
    return {"targets": [attachments.offer(qemu.world.host, disk).attachment.block_path]}


def _larger(qemu: Qemu, disk: Disk) -> dict[str, Any]:
    size_mib = qemu.run(lambda vm: _size_mib(vm, disk))
    return {"size_mib": size_mib + 1}


async def _size_mib(vm: AsyncVm, disk: Disk) -> int:
    top = (await vm.disks())[disk.volume.uuid].top
    assert top is not None
    return top.size_bytes >> 20


def _dead(qemu: Qemu, disk: Disk) -> dict[str, Any]:
    """The server of the volume killed, and the guest stopped by the error."""
    told = _targets(qemu, disk)
    kill_servers_of(qemu.world.folder / "volumes" / disk.volume.name)
    deadline = time.monotonic() + IO_ERROR_S
    while qemu.console is not None and on_debug_monitor(qemu.machine, "query-status")["status"] != "io-error":
        assert time.monotonic() < deadline, "the guest does not notice that its storage is gone"
        time.sleep(0.1)
    return told


OPERATIONS = (
    Operation("plug", present=False),
    Operation("plug_all", present=False),
    Operation("unplug", present=True),
    Operation("repoint", present=True, values=_targets),
    Operation("resize", present=True, values=_larger),
    Operation("fail_over", present=True, values=_dead),
)


class InGuest:
    """The matrix of the operations on a running guest.

    ``booted`` returns a QEMU with a guest, ``paused`` one without; both have the steady disk. ``device`` and what else
    is in ``options`` are those of the disk under test.
    """

    def __init__(
        self, world: World, booted: Callable[[Disk], Qemu], paused: Callable[[Disk], Qemu], options: dict[str, Any]
    ) -> None:
        self._world = world
        self._booted = booted
        self._paused = paused
        self._guest: Qemu | None = None
        self._steady = world.create("steady", device="scsi-hd")
        self._other = world.create("other", device="scsi-hd")
        self._disk = world.create("vol", werror="stop", rerror="stop", iops_total=100_000, **options)
        # A guest that does not run lets a PCI disk go never.
        self._scsi = world.create("scsi", device="scsi-hd", werror="stop", rerror="stop", iops_total=100_000)
        self._steps: dict[str, list[str]] = {}
        self._base: dict[str, Any] = {}

    @property
    def guest(self) -> Qemu:
        """The guest, with the steady disk in it."""
        if self._guest is None:
            self._guest = self._booted(self._steady)
            self._base = {"qemu": self._guest.state(), **self._world.on_host()}
        return self._guest

    def cases(self) -> list[Case]:
        """Return all cases: each operation is carried out once, to see what it does."""
        found = []
        for operation in OPERATIONS:
            told = operation.ready(self.guest, self._disk)
            self._world.forget()
            job = self._world.job(operation.name, [self._disk], self.guest.qmp, **told)
            status, said = self._world.driver.run(job)
            assert (status, "ok" in said) == (0, True), said
            trace = self._world.trace()
            self._steps[operation.name] = [name for kind, name in trace if kind == "step"]
            self._after(attached_before=operation.present)
            for place in places(trace):
                found += cases_at(operation.name, place, guest=True)
        return found

    def run(self, cases: Sequence[Case], tally: Tally) -> None:
        """Run the cases, operation by operation, and count what came of them."""
        for operation in OPERATIONS:
            for case in cases:
                if case.operation == operation.name:
                    self._run(operation, case, tally)

    def _run(self, operation: Operation, case: Case, tally: Tally) -> None:
        started = time.monotonic()
        try:
            outcome = self._struck(operation, case) if case.fault in ENDS_QEMU else self._strike(operation, case)
        except (AssertionError, HvextError) as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            tally.wrong.append(f"{case}: {error} ({where.filename}:{where.lineno})")
            outcome = "WRONG"
            self._give_up()
        tally.add(case, outcome)
        print(f"{time.monotonic() - started:5.1f} s  {case}: {outcome}", flush=True)

    def _give_up(self) -> None:
        """End the guest: the next case gets another, with nothing left over of this one."""
        if self._guest is not None:
            self._guest.machine.stop()
            self._guest = None
        self._world.make_room()
        self._world.recover()
        for disk in (self._steady, self._disk, self._scsi, self._other):
            attachments.detach(self._world.host, disk)

    def _strike(self, operation: Operation, case: Case) -> str:
        """Strike an operation whose guest lives on."""
        qemu, world = self.guest, self._world
        said = self._driven(qemu, operation, case, self._disk)
        outcomes = world.recover()
        assert not any(words.startswith("left") for words in outcomes), outcomes
        assert world.audit() == []
        if on_debug_monitor(qemu.machine, "query-status")["status"] == "io-error":
            # The failover was undone: it may be repeated, and the guest has waited for it.
            assert "error" in said
            targets = [attachments.offer(world.host, self._disk).choice.chosen.location]

            async def again(vm: AsyncVm) -> None:
                await vm.fail_over(self._disk, targets)
                assert await vm.resume()

            qemu.run(again)
            outcomes.append("repeated")
        self._after(attached_before=operation.present)
        return self._words(said, outcomes)

    def _driven(self, qemu: Qemu, operation: Operation, case: Case, disk: Disk) -> dict[str, Any]:
        told = operation.ready(qemu, disk)
        self._world.forget()
        (self._world.folder / "qemu").write_text(str(qemu.machine.pid))
        told |= {"qemu": qemu.machine.pid}
        job = self._world.job(operation.name, [disk], qemu.qmp, **told, **case.job)
        status, said = self._world.driver.run(job)
        killed = case.fault in (Fault.KILLED, Fault.KILLED_INSIDE)
        assert status == (9 if killed else 0), (status, said)
        for channel in ("qmp", "script"):
            assert not (self._world.folder / f"armed-{channel}").exists(), "the fault never struck"
        names = [name for kind, name in self._world.trace() if kind == "step"]
        seen = same_steps(names)[: case.place.number + 1]
        assert seen == same_steps(self._steps[operation.name])[: case.place.number + 1]
        self._world.make_room()
        return said

    def _after(self, *, attached_before: bool) -> None:
        """See that guest, QEMU, host and storage are right, whatever became of the operation."""
        qemu, world, disk = self.guest, self._world, self._disk
        assert qemu.steady is not None
        there = _is_there(qemu, disk)
        wrong = world.counted.balance(str(disk.volume.uuid), attached=there, before=attached_before)
        assert wrong == [], world.counted.calls()
        assert world.attached(disk) == there
        host = world.on_host()
        assert host["scripts"] == []
        if there:
            state = qemu.state()
            mine = sorted(name for name in state.nodes if name.startswith(disk.names.root))
            assert [len(name) for name in mine].count(31) == 1, mine
            assert len(mine) == 3, mine
            assert state.objects - self._base["qemu"].objects == {disk.names.throttle_group}
            secret = f"{disk.names.device}-parameters"
            assert host["private"] == sorted([*self._base["private"], secret])
            qemu.write()
            assert qemu.mine is not None
            check(qemu.mine)
        else:
            qemu.gone()
            assert qemu.state() == self._base["qemu"]
            assert host == {name: self._base[name] for name in host}
            world.check_blocks(disk)
        check(qemu.steady)

    def _struck(self, operation: Operation, case: Case) -> str:
        """Strike an operation whose QEMU ends with it: nothing may be left of any disk."""
        world = self._world
        before = world.on_host()
        qemu = self._paused(self._other)
        try:
            said = self._driven(qemu, operation, case, self._scsi)
            assert qemu.machine.wait(20.0) is not None, "QEMU was to end"
            outcomes = world.recover()
            assert not any(words.startswith("left") for words in outcomes), outcomes
            assert world.audit() == []
            for disk, attached in ((self._other, True), (self._scsi, operation.present)):
                wrong = world.counted.balance(str(disk.volume.uuid), attached=False, before=attached)
                assert wrong == [], world.counted.calls()
            assert world.on_host() == before
            return self._words(said, outcomes)
        finally:
            qemu.machine.stop()

    def _words(self, said: dict[str, Any], outcomes: Sequence[str]) -> str:
        """What became of an operation: what `recover` did, or that there was nothing for it to do."""
        if outcomes:
            return sorted(outcomes)[0]
        return "done all the same" if "ok" in said else "undone by itself"

    def close(self) -> None:
        """Take everything out of the guest."""
        if self._guest is not None:
            if _is_there(self._guest, self._disk):
                self._guest.run(lambda vm: vm.unplug(self._disk))
                self._guest.gone()
            self._guest.leave(self._steady)
