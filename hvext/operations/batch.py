"""Plugging several disks at once: one look at the guest for all, and each phase for all of them side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from hvext.core.disk import Disk
from hvext.core.provider import Provider
from hvext.core.running import RunningDisk
from hvext.core.value import value_object
from hvext.errors import HvextError
from hvext.host.provider import ProviderHost
from hvext.host.qmp import Monitor
from hvext.operations.inspect import checked, running_disks
from hvext.operations.plug import PHASES, Plugged, PlugWork, already
from hvext.operations.questions import Guest, Places
from hvext.operations.steps import Job, ReportPhase, carry_out_all

#: What the phases do, for people.
_WORDS = {
    "clean": "remove what earlier plugs left",
    "attach": "attach the volumes",
    "objects": "make throttle groups and iothreads",
    "open": "open the storage",
    "nodes": "make the nodes",
    "device": "plug the devices",
}


@value_object
class PlugOutcome:
    """What became of one disk of several: it is ``plugged``, or there is an ``error`` and nothing of it is left.

    What an error leaves all the same is in the ``left`` of an OperationFailed.
    """

    disk: Disk
    plugged: Plugged | None = None
    error: HvextError | None = None

    @property
    def left(self) -> tuple[str, ...]:
        """What could not be undone."""
        return tuple(getattr(self.error, "left", ()))

    def to_json(self) -> dict[str, object]:
        """Return the outcome for machines."""
        named: dict[str, object] = {
            "provider": self.disk.provider,
            "volume": self.disk.volume.name,
            "uuid": str(self.disk.volume.uuid),
        }
        if self.plugged is not None:
            return named | self.plugged.to_json()
        error = self.error
        words = {"type": type(error).__name__, "message": error.message, "hint": error.hint} if error else {}
        return named | {"state": "failed", "error": words, "left": list(self.left)}


async def plug_all(
    monitor: Monitor,
    host: ProviderHost,
    disks: Sequence[Disk],
    *,
    exclusive: bool = True,
    shared: Callable[[Disk], bool] = lambda _disk: False,
    refused: Callable[[Disk, RunningDisk | None], HvextError | None] = lambda _disk, _running: None,
    report: ReportPhase,
) -> tuple[PlugOutcome, ...]:
    """Attach the volumes of several disks and plug them into the guest; return what became of each, in their order.

    Each is what ``plug`` of it alone would be, and one that fails is undone without the others. ``refused`` says what
    else speaks against a disk, of which the guest may have something already; ``report`` gets the places of the disks
    in ``disks``.
    """
    places = Places(monitor)
    asked = await asyncio.gather(running_disks(monitor), Guest.ask(monitor), places.look(disks), return_exceptions=True)
    (running,) = checked(asked[:1])
    providers: dict[str, Provider] = {}
    outcomes: dict[int, PlugOutcome] = {}
    works: dict[int, PlugWork] = {}
    for number, disk in enumerate(disks):
        remains = running.get(disk.volume.uuid)
        try:
            if (error := refused(disk, remains)) is not None:
                raise error
            if remains is not None and remains.device is not None:
                outcomes[number] = PlugOutcome(disk=disk, plugged=already(remains))
                continue
            _, guest, _ = checked(asked)
            if disk.provider not in providers:
                providers[disk.provider] = host.find(disk.provider)
            placed = await places.take(disk)
        except HvextError as error:
            outcomes[number] = PlugOutcome(disk=disk, error=error)
            continue
        works[number] = PlugWork(
            monitor,
            host,
            providers[disk.provider],
            disk,
            remains or RunningDisk.nothing(disk.names),
            exclusive=exclusive,
            shared=shared(disk),
        )
        works[number].place(guest, placed)
    outcomes |= await _carried_out(works, disks, report)
    return tuple(outcomes[number] for number in range(len(disks)))


async def _carried_out(
    works: Mapping[int, PlugWork], disks: Sequence[Disk], report: ReportPhase
) -> dict[int, PlugOutcome]:
    numbers = list(works)

    def phase(name: str, steps: Mapping[int, str]) -> None:
        report(_WORDS[name], {numbers[place]: words for place, words in steps.items()})

    jobs = [Job(operation=work.operation, steps=work.steps(), disk=disks[number]) for number, work in works.items()]
    failures = await carry_out_all(jobs, PHASES, report=phase)
    return {
        number: PlugOutcome(disk=disks[number], error=failure)
        if failure is not None
        else PlugOutcome(disk=disks[number], plugged=works[number].result())
        for number, failure in zip(numbers, failures, strict=True)
    }
