"""What a benchmark would do: what is attached and made, and what of the volume is read, or overwritten."""

from __future__ import annotations

from collections.abc import Sequence

from hvext.bench.result import Level, Workload
from hvext.bench.run import ASK, FILL, Settings, acts
from hvext.core.disk import Disk
from hvext.host.provider import ProviderHost
from hvext.operations.dry_run.planned import Planned, PlannedStep, in_words

_LOST = "THE VOLUME'S DATA ARE LOST: what is measured is overwritten"
_READ = "the volume is only read"
_PLACES = "which accesses there are, attach is going to say; what a level cannot measure is left out"


def plan(
    host: ProviderHost, disk: Disk, settings: Settings, *, files: Sequence[str] = (), notes: Sequence[str] = ()
) -> Planned:
    """Return what measuring would do; ``files`` are those that are written, ``notes`` what there is to say besides.

    Raises what ``measure`` does at first.
    """
    workloads = settings.workloads
    attach, detach = acts(host, disk, settings)
    span_mib = settings.span_bytes >> 20
    steps = list(in_words([attach]))
    steps += [PlannedStep(name=f"make {kind} from the block path", inverse="remove it") for kind in settings.made]
    if settings.destroy_data:
        steps.append(PlannedStep(name=f"{FILL}: up to {span_mib} MiB from the beginning", one_way=True))
    else:
        steps.append(PlannedStep(name=ASK))
    for level in settings.levels:
        if level is Level.GUEST:
            steps.append(PlannedStep(name=f"boot the guest in {settings.guest}", inverse="end it"))
        steps += [_run(workload, level, settings) for workload in workloads]
    steps += in_words([detach])
    steps += [PlannedStep(name=f"write {name}", one_way=True) for name in files]
    return Planned(
        operation=f"measure {disk.provider}/{disk.volume.name}",
        steps=tuple(steps),
        notes=(_LOST if settings.destroy_data else _READ, _PLACES, *notes),
        looked_at=("the provider's folder", "the journal"),
    )


def _run(workload: Workload, level: Level, settings: Settings) -> PlannedStep:
    rounds = settings.length.rounds
    what = "overwrites" if workload.writes else "reads"
    name = f"{workload.name} over each access, {level}, {rounds} rounds: {what} what is measured"
    return PlannedStep(name=name, one_way=workload.writes)
