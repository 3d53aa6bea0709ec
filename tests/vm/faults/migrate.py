"""The fault matrix of a migration: two QEMUs with a journal and a provider each, as on two hosts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hvext.errors import HvextError, MonitorError
from hvext.host.guest import Console
from hvext.host.journal import JournalFolder
from hvext.host.proc import process_id
from hvext.host.provider import ProviderHost
from hvext.host.qmp import connect
from hvext.operations import attachments, moving
from hvext.operations.audit import audit
from hvext.operations.describe import describe
from hvext.operations.recover import recover
from hvext.operations.vm import open_vm_async
from tests.vm.faults.matrix import Case, Fault, Tally, cases_at, places
from tests.vm.faults.provider import Counted
from tests.vm.faults.world import Qemu, World, check, same_steps

_SIDE = "two"
_GONE_S = 20.0


class Migration:
    """The matrix of ``moving.migrate``; the source is a QEMU that ``begin`` starts.

    A guest that runs in it writes on the disk, wherever it is. ``machine`` are the options of the target, ``image`` is
    the folder of the guest's kernel.
    """

    def __init__(self, world: World, begin: Callable[[], Qemu], machine: dict[str, Any], image: Path) -> None:
        self._world = world
        self._begin = begin
        self._machine = machine
        self._image = image
        self._there = Counted(folder=world.folder, side=_SIDE)
        self._there.write()
        self._there_host = ProviderHost(search_path=(self._there.search_path,))
        self._there_state = world.folder / "state-two"
        # One host has one folder of private files, and here are two hosts on one: no volume has a secret.
        world.forget_secret()
        self._disk = world.create("vol", device="scsi-hd", bus="scsi0", iops_total=100_000)
        self._steps: list[str] = []

    @property
    def _target(self) -> dict[str, Any]:
        """The target's process and monitor; none when it was never started."""
        path = self._world.folder / "there"
        return json.loads(path.read_text()) if path.exists() else {}

    def cases(self) -> list[Case]:
        """Return all cases; one migration is carried out."""
        qemu = self._begun()
        status, said = self._drive(qemu)
        assert (status, "ok" in said) == (0, True), said
        trace = self._world.trace()
        self._steps = [name for kind, name in trace if kind == "step"]
        self._check(qemu)
        self._end(qemu)
        return [case for place in places(trace) for case in cases_at("migrate", place, guest=True)]

    def run(self, cases: Sequence[Case], tally: Tally) -> None:
        """Run the cases, and count what came of them."""
        for case in cases:
            started = time.monotonic()
            qemu = self._begun()
            try:
                outcome = self._strike(qemu, case)
            except (AssertionError, HvextError) as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                tally.wrong.append(f"{case}: {error} ({where.filename}:{where.lineno})")
                outcome = "WRONG"
            self._end(qemu)
            tally.add(case, outcome)
            print(f"{time.monotonic() - started:5.1f} s  {case}: {outcome}", flush=True)

    def _begun(self) -> Qemu:
        qemu = self._begin()
        qemu.run(lambda vm: vm.plug(self._disk))
        qemu.write()
        return qemu

    def _drive(self, qemu: Qemu, case: Case | None = None) -> tuple[int, dict[str, Any]]:
        self._world.forget()
        self._there.forget()
        (self._world.folder / "there").unlink(missing_ok=True)
        (self._world.folder / "qemu").write_text(str(qemu.machine.pid))
        job = self._world.job(
            "migrate",
            [self._disk],
            qemu.qmp,
            qemu=qemu.machine.pid,
            machine=self._machine,
            image=str(self._image),
            target_search_path=self._there.search_path,
            target_state=str(self._there_state),
            **(case.job if case else {}),
        )
        return self._world.driver.run(job)

    def _strike(self, qemu: Qemu, case: Case) -> str:
        status, said = self._drive(qemu, case)
        assert status == (9 if case.fault in (Fault.KILLED, Fault.KILLED_INSIDE) else 0), (status, said)
        seen = same_steps([name for kind, name in self._world.trace() if kind == "step"])[: case.place.number + 1]
        assert seen == same_steps(self._steps)[: case.place.number + 1]
        self._world.make_room()
        words = self._recover()
        if any(word.startswith("left") for word in words):
            # What one side has let go of, the other one can have: as whoever recovers both hosts would, once more.
            words = [word for word in words if not word.startswith("left")] + self._recover()
        if any(word.startswith("left") for word in words) or self._findings():
            # What no program can know is said by whoever looks: which QEMU will never go on.
            self._decide(qemu)
            words += self._recover()
            words = [word for word in words if not word.startswith("left")] + ["decided"]
        self._check(qemu)
        return (
            "decided" if "decided" in words else (sorted(words) or ["done" if "ok" in said else "undone by itself"])[0]
        )

    def _recover(self) -> list[str]:
        """Recover on both sides, as each host would."""

        async def both() -> list[str]:
            here = await recover(self._world.host)
            there = await recover(self._there_host, folder=JournalFolder(self._there_state))
            return [str(item.outcome) if item.outcome != "left" else f"left: {item.words}" for item in (*here, *there)]

        return asyncio.run(both())

    def _decide(self, qemu: Qemu) -> None:
        """Do what an operator does who has looked at both QEMUs, with the commands that the hints name."""
        pid = self._target.get("pid", 0)
        here, there = self._state(qemu.qmp, qemu.machine.pid), self._state(self._target.get("qmp", ""), pid)
        if there == "inmigrate":
            # The guest is here, or was killed here.
            self._kill(pid)
            there = ""
        if not there:
            asyncio.run(recover(self._there_host, folder=JournalFolder(self._there_state), gone=["there"]))
            if here == "postmigrate":
                asyncio.run(self._cancelled(qemu))
            return
        asyncio.run(self._finished())
        if here == "postmigrate":
            self._kill(qemu.machine.pid)

    async def _cancelled(self, qemu: Qemu) -> None:
        """``hvext migrate-cancel --target-ended`` on the source."""
        async with open_vm_async(qemu.qmp, host=self._world.host) as vm:
            await moving.cancel(vm, [self._disk], target_ended=True)

    async def _finished(self) -> None:
        """``hvext migrate-finish`` on the target."""
        state = str(self._there_state)
        async with open_vm_async(self._target["qmp"], host=self._there_host, state=state) as vm:
            await moving.finish(vm, await describe(vm.monitor, [self._disk]))

    def _check(self, qemu: Qemu) -> None:
        """The guest is on one side at most, and its volume is attached there and only there."""
        here = self._state(qemu.qmp, qemu.machine.pid)
        there = self._state(self._target.get("qmp", ""), self._target.get("pid", 0))
        lives = [state in ("prelaunch", "paused", "running") for state in (here, there)]
        assert sum(lives) <= 1, (here, there)
        uuid = str(self._disk.volume.uuid)
        wrong = self._world.counted.balance(uuid, attached=lives[0], before=True)
        assert wrong == [], ("source", here, there, self._world.counted.calls())
        wrong = self._there.balance(uuid, attached=lives[1], before=False)
        assert wrong == [], ("target", here, there, self._there.calls())
        assert self._findings() == []
        if qemu.mine is not None and any(lives):
            if lives[1]:
                command, console = (Path(self._target[name]) for name in ("command", "console"))
                qemu.mine.follow(Console(command, console, alive=lambda: self._alive(self._target["pid"])))
            assert "running" in (here, there), (here, there)
            check(qemu.mine)
        if not any(lives):
            # Only a QEMU that was killed takes its guest along.
            assert not self._alive(qemu.machine.pid)

    def _findings(self) -> list[str]:
        """What `hvext audit` finds on both hosts; a target that waits for its guest is told of as well."""
        found = [*asyncio.run(audit()), *asyncio.run(audit(folder=JournalFolder(self._there_state)))]
        return [f"{finding.vm}: {finding.kind}: {finding.words}" for finding in found]

    def _state(self, qmp: str, pid: int) -> str:
        """The run state of a QEMU; empty when it has ended."""
        if not self._alive(pid):
            return ""

        async def ask() -> str:
            async with connect(qmp) as monitor:
                state = str((await monitor.execute("query-status"))["status"])
                ended = (await monitor.execute("query-migrate")).get("status")
                # QEMU leaves a guest that did not run there also when its migration was given up at the last moment.
                return "paused" if state == "postmigrate" and ended != "completed" else state

        with contextlib.suppress(MonitorError):
            return asyncio.run(ask())
        return ""

    @staticmethod
    def _alive(pid: int) -> bool:
        return bool(pid) and process_id(pid) is not None

    def _kill(self, pid: int) -> None:
        if self._alive(pid):
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + _GONE_S
            while self._alive(pid):
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def _end(self, qemu: Qemu) -> None:
        """End both QEMUs, and let everything go."""
        if target := self._target:
            self._kill(target["pid"])
            shutil.rmtree(Path(target["qmp"]).parent, ignore_errors=True)
        qemu.machine.stop()
        self._world.make_room()
        for folder, host in (
            (None, self._world.host),
            (JournalFolder(self._there_state), self._there_host),
        ):
            asyncio.run(recover(host, folder=folder))
            asyncio.run(recover(host, folder=folder, gone=["there", f"start of {self._disk.names.device}"]))
            attachments.detach(host, self._disk)
