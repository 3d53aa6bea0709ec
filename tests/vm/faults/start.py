"""The fault matrix of a start: there is no QEMU yet, and nobody has its arguments before all is done."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.vm.faults.matrix import Case, Fault, Tally, cases_at, places
from tests.vm.faults.world import World, same_steps

_NAME = "starting"


class AtStart:
    """The matrix of ``start_disks`` with two disks."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._disks = [world.create("one"), world.create("two", device="scsi-hd")]
        self._steps: list[str] = []

    def cases(self) -> list[Case]:
        """Return all cases; one start is carried out, and taken back as one whose QEMU was never started."""
        self._world.forget()
        status, said = self._world.driver.run(self._world.job("start", self._disks, name=_NAME))
        assert (status, "ok" in said) == (0, True), said
        trace = self._world.trace()
        self._steps = [name for kind, name in trace if kind == "step"]
        self._never_started()
        return [case for place in places(trace) for case in cases_at("start", place, guest=False)]

    def run(self, cases: Sequence[Case], tally: Tally) -> None:
        """Run the cases, and count what came of them."""
        for case in cases:
            started = time.monotonic()
            try:
                outcome = self._strike(case)
            except AssertionError as error:
                tally.wrong.append(f"{case}: {error}")
                outcome = "WRONG"
                self._world.make_room()
                self._world.recover("--gone", _NAME)
            tally.add(case, outcome)
            print(f"{time.monotonic() - started:5.1f} s  {case}: {outcome}", flush=True)

    def _strike(self, case: Case) -> str:
        world = self._world
        world.forget()
        status, said = world.driver.run(world.job("start", self._disks, name=_NAME, **case.job))
        assert status == (9 if case.fault in (Fault.KILLED, Fault.KILLED_INSIDE) else 0)
        assert not (world.folder / "armed-script").exists(), "the fault never struck"
        seen = same_steps([name for kind, name in world.trace() if kind == "step"])[: case.place.number + 1]
        assert seen == same_steps(self._steps)[: case.place.number + 1]
        world.make_room()
        outcomes = world.recover()
        assert not any(words.startswith("left") for words in outcomes), outcomes
        if "ok" in said:
            self._never_started()
            return "done all the same"
        self._check()
        return sorted(outcomes)[0] if outcomes else "undone by itself"

    def _never_started(self) -> None:
        """Somebody has the arguments, and starts nothing: only he can say so."""
        assert [words.partition(":")[0] for words in self._world.audit()] == ["not started yet"] * 2
        assert self._world.recover() == []
        assert self._world.recover("--gone", _NAME) == ["undone"] * 2
        self._check()

    def _check(self) -> None:
        world = self._world
        assert world.audit() == []
        for disk in self._disks:
            wrong = world.counted.balance(str(disk.volume.uuid), attached=False, before=False)
            assert wrong == [], world.counted.calls()
        assert world.on_host() == {"loops": [], "servers": [], "scripts": [], "private": [], "journal": []}
