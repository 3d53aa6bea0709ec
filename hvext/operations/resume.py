"""Letting a guest run again by hand that an I/O error has stopped: its storage has room again, or is back.

Nothing is lost meanwhile: the requests that failed wait in the guest's devices, and are sent again when it runs. A
guest that somebody has paused is theirs.
"""

from __future__ import annotations

from enum import StrEnum

from hvext.core.value import value_object
from hvext.operations.failover import IO_ERROR, resume_step
from hvext.operations.vm import AsyncVm
from hvext.operations.watch.storage import Fault, faults

#: A guest whose storage is still full stops again with its first request, which takes milliseconds.
_AGAIN_S = 1.0


class ResumeState(StrEnum):
    """What became of a guest that was to run again."""

    RESUMED = "resumed"
    RUNNING = "running already"
    PAUSED = "left paused"
    STOPPED = "stopped again"


@value_object
class Resumed:
    """What became of a guest: ``vm`` is its name, ``status`` what QEMU calls its state now.

    ``full`` and ``failed`` are the uuids of the disks that had stopped it, or have stopped it again.
    """

    state: ResumeState
    vm: str
    status: str
    full: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        """Whether the guest runs now."""
        return self.state in (ResumeState.RESUMED, ResumeState.RUNNING)

    def to_json(self) -> dict[str, object]:
        """Return the result for machines."""
        return {
            "state": str(self.state),
            "vm": self.vm,
            "status": self.status,
            "full": list(self.full),
            "failed": list(self.failed),
        }


async def resume(vm: AsyncVm) -> Resumed:
    """Let a guest run again that an I/O error has stopped, and see whether it stops again at once; may be repeated.

    Waits a second for that. Raises JournalError, QemuError.
    """
    monitor = vm.monitor
    before = await faults(monitor)
    if (await monitor.execute("query-status"))["status"] == IO_ERROR:
        vm.report(resume_step(monitor).name)
    with monitor.events("STOP") as events:
        resumed = await vm.resume()
        if resumed:
            await events.get(_AGAIN_S)
    answer = await monitor.execute("query-status")
    status = str(answer["status"])
    if status == IO_ERROR:
        state = ResumeState.STOPPED
    elif answer["running"]:
        state = ResumeState.RESUMED if resumed else ResumeState.RUNNING
    else:
        state = ResumeState.PAUSED
    found = await faults(monitor) if state is ResumeState.STOPPED else before if resumed else {}
    full, failed = (
        tuple(sorted(str(uuid) for uuid, fault in found.items() if fault is each))
        for each in (Fault.NO_SPACE, Fault.FAILED)
    )
    return Resumed(state=state, vm=vm.journal.name, status=status, full=full, failed=failed)
