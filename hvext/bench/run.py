"""A whole benchmark: the volume attached once, every access measured in turn, round after round.

::

    attach the volume
      make what is to be made from the block path
        fill the part that is measured            only when its data may be destroyed,
        or ask the storage what of it holds data  else
        for each level and device
          round 1:  workload 1: path, nbd    workload 2: path, nbd    …
          round 2:  workload 1: nbd, path    …
    detach it
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from hvext.bench.empty import CURE, NEARLY_EMPTY, emptiness
from hvext.bench.guest_level import GuestLevel, bench_guest, find_parts
from hvext.bench.host_level import HostLevel, needs_objects
from hvext.bench.places import Made, Place, made, offered
from hvext.bench.result import Level, Result, Run, Workload
from hvext.bench.workload import OVERHEAD_S, Length, order
from hvext.core.disk import Disk
from hvext.core.identity import DiskNames
from hvext.core.options import DeviceModel
from hvext.core.value import replace
from hvext.errors import InputError, VolumeInUse
from hvext.host.journal import JournalFolder
from hvext.host.provider import ProviderHost
from hvext.host.qemu_img import qemu_version
from hvext.host.usage import host_facts
from hvext.operations.acts import Act, perform
from hvext.operations.journal import read_records, users_of
from hvext.operations.volumes import attach_acts, detach_volume

_MIB = 1 << 20
#: What is done before writing is measured.
FILL = "filling the part that is measured"
#: What is done before reading alone is.
ASK = "ask the storage whether the part that is measured holds data"
_LEAST_SPAN = 16 * _MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is to be measured. ``span_bytes`` is the part of the volume, from its beginning.

    ``devices`` are those of the guest's level, ``guest`` is the folder of its image, ``cpus``
    the number of its processors. ``seed`` makes fio's random places
    the same again.
    """

    length: Length
    levels: tuple[Level, ...] = (Level.HOST,)
    devices: tuple[DeviceModel, ...] = (DeviceModel.VIRTIO_BLK,)
    made: tuple[Made, ...] = ()
    jobs: tuple[Workload, ...] = ()
    span_bytes: int = 1 << 30
    destroy_data: bool = False
    guest: Path = Path("vm-images/out")
    cpus: int = 1
    seed: int = 1

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """What is asked of each access; raises InputError for jobs that write without being allowed to."""
        writing = [job.name for job in self.jobs if job.writes]
        if writing and not self.destroy_data:
            raise InputError(
                f"job {writing[0]!r} writes to the volume", hint="--destroy-data allows it; its data are lost then"
            )
        return self.jobs or self.length.workloads(destroy_data=self.destroy_data)


class Measuring(Protocol):
    """A level that is ready to measure."""

    device: str

    def can(self, place: Place, workload: Workload | None = None) -> bool:
        """Whether a place can be measured here, with any workload or with one."""

    def measure(
        self, place: Place, workload: Workload, *, run_s: float, warm_up_s: float, seed: int
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Run a workload; return the program's output, and processor seconds for what it measured."""


class Watcher(Protocol):
    """Who is told of the progress."""

    def begin(self, n_runs: int, seconds: float) -> None:
        """Be told how many runs come, and about how long they take."""

    def step(self, words: str) -> None:
        """Be told what is done now; a run that begins counts."""

    def warn(self, words: str) -> None:
        """Be told what makes the figures worth less, before they are measured."""


def measure(
    host: ProviderHost,
    disk: Disk,
    settings: Settings,
    watcher: Watcher,
    *,
    vary: Callable[[Sequence[Place]], Sequence[Place]] = tuple,
) -> Result:
    """Measure all accesses to a volume and return what was found; the volume is attached meanwhile.

    ``vary`` makes what is measured of the places that the provider offers, for others than these.
    It is only read, unless the settings allow to destroy its data. Raises VolumeInUse for one that a VM of this host
    has, InputError, ProviderError, ProgramError.
    """
    workloads = settings.workloads
    attach, detach = acts(host, disk, settings)
    (attached,) = perform([attach])
    try:
        options = replace(disk.options, read_only=not settings.destroy_data)
        path = attached.attachment.block_path
        with made(settings.made, path, options) as more:
            places = [*vary(offered(attached.choice, options)), *more]
            return _measure_places(disk, places, workloads, settings, watcher)
    finally:
        perform([detach])


def acts(host: ProviderHost, disk: Disk, settings: Settings) -> tuple[Act, Act]:
    """Return what attaches the volume, and what detaches it.

    Raises VolumeInUse for one that a VM of this host has, and ProgramError where a guest is wanted that was not built.
    """
    if Level.GUEST in settings.levels:
        find_parts(settings.guest)
    if users := users_of(disk, read_records(JournalFolder()), but=""):
        raise VolumeInUse(
            f"{disk.provider}/{disk.volume.name} is a disk of VM {users[0]}: what it does would be measured as well",
            hint="unplug it first, or measure another volume of the same provider",
        )
    detach = Act(name=f"detach {disk.provider}/{disk.volume.name}", do=lambda: detach_volume(host, disk))
    return attach_acts(host, disk)[0], detach


def _measure_places(
    disk: Disk, places: Sequence[Place], workloads: Sequence[Workload], settings: Settings, watcher: Watcher
) -> Result:
    # Names of its own: this is no disk of any guest.
    names = DiskNames(uuid.uuid4())
    openable = [place for place in places if place.location.block_node]
    if not openable:
        raise InputError("the volume is only offered over vhost-user: there is nothing to compare it with")
    with HostLevel(names) as host:
        size_bytes = host.size_bytes(openable[0])
    span_bytes = min(settings.span_bytes, size_bytes) // _MIB * _MIB
    if span_bytes < _LEAST_SPAN:
        small = f"a volume of {size_bytes} bytes"
        if settings.span_bytes < size_bytes:
            small = f"a part of {settings.span_bytes} bytes (--span)"
        raise InputError(f"{small} is too small to be measured", hint="it takes at least 16 MiB")
    runs: list[Run] = []
    facts = {**host_facts(), "qemu": qemu_version()}
    n_runs = _count(places, workloads, settings)
    if not n_runs:
        raise InputError(
            "nothing can be measured on the host: qemu-img bench takes no secrets, and cannot mix reads and writes",
            hint="--level guest can",
        )
    data = None if settings.destroy_data else _data_bytes(names, openable, span_bytes)
    share = None if data is None else data / span_bytes
    if words := emptiness(share):
        watcher.warn(f"{words} {CURE}")
    watcher.begin(n_runs, settings.length.run_s + settings.length.warm_up_s + OVERHEAD_S)
    if settings.destroy_data:
        watcher.step(FILL)
        with HostLevel(names, span_bytes) as filling:
            filling.fill(openable[0])
    for level, measuring, more in _levels(names, places, settings, span_bytes):
        facts |= more
        runs += _rounds(level, measuring, places, workloads, settings, watcher)
    measured = {run.access for run in runs}
    return Result(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        hvext=_version(),
        host=facts,
        volume={
            "provider": disk.provider,
            "name": disk.volume.name,
            "size_bytes": size_bytes,
            "span_bytes": span_bytes,
            **({} if data is None else {"data_bytes": data}),
        },
        settings={
            "length": settings.length.name,
            "rounds": settings.length.rounds,
            "run_s": settings.length.run_s,
            "warm_up_s": settings.length.warm_up_s,
            "destroy_data": settings.destroy_data,
            "guest_cpus": settings.cpus,
        },
        accesses=tuple(place.access for place in places if place.name in measured),
        workloads=tuple(workloads),
        runs=tuple(runs),
        notes=_notes(settings, places, share),
    )


def _data_bytes(names: DiskNames, places: Sequence[Place], span_bytes: int) -> int | None:
    """Return how much of the measured part holds data; None when no place says it.

    All places are one volume, and a block device says "data" of everything: who knows of the least knows most. What is
    made from the block path knows no more than that.
    """
    there = {place.location: place for place in places if place.access.kind != "made"}
    with HostLevel(names, span_bytes) as asking:
        told = [asking.data_bytes(place) for place in there.values()]
    return min((number for number in told if number is not None), default=None)


def _count(places: Sequence[Place], workloads: Sequence[Workload], settings: Settings) -> int:
    """Return how many runs there will be."""
    devices = settings.devices if Level.GUEST in settings.levels else ()
    able = [GuestLevel.able(device) for device in devices]
    if Level.HOST in settings.levels:
        able.append(HostLevel.can)
    found = 0
    for can in able:
        here = [place for place in places if can(place, None)]
        found += sum(len(here) for workload in workloads if all(can(place, workload) for place in here))
    return settings.length.rounds * found


def _levels(
    names: DiskNames, places: Sequence[Place], settings: Settings, span_bytes: int
) -> Iterator[tuple[Level, Measuring, Mapping[str, str]]]:
    if Level.HOST in settings.levels:
        with HostLevel(names, span_bytes) as measuring:
            yield Level.HOST, measuring, {}
    if Level.GUEST in settings.levels:
        shared = any(place.location.needs_shared_memory for place in places)
        with bench_guest(settings.guest, shared_memory=shared, cpus=settings.cpus) as guest:
            for device in settings.devices:
                yield Level.GUEST, GuestLevel(guest, names, device, span_bytes), {"acceleration": guest.acceleration}


def _rounds(
    level: Level,
    measuring: Measuring,
    places: Sequence[Place],
    workloads: Sequence[Workload],
    settings: Settings,
    watcher: Watcher,
) -> Iterator[Run]:
    length = settings.length
    here = {place.name: place for place in places if measuring.can(place)}
    for turn in range(length.rounds):
        for number, workload in enumerate(workloads):
            if not all(measuring.can(place, workload) for place in here.values()):
                continue
            # What is asked for is the same for all accesses of a round, and another for the next.
            seed = settings.seed + turn * len(workloads) + number
            for position, name in enumerate(order(list(here), turn)):
                watcher.step(f"round {turn + 1}/{length.rounds}: {workload.name} over {name}, {level}")
                raw, cpu_s = measuring.measure(
                    here[name], workload, run_s=length.run_s, warm_up_s=length.warm_up_s, seed=seed
                )
                yield Run(
                    round=turn,
                    order=position,
                    level=level,
                    device=measuring.device,
                    access=name,
                    workload=workload.name,
                    raw=raw,
                    cpu_s=cpu_s,
                )


def _notes(settings: Settings, places: Sequence[Place], share: float | None) -> tuple[str, ...]:
    notes = []
    if share is not None and share >= NEARLY_EMPTY and (words := emptiness(share)):
        # With less, that is what the verdict is about.
        notes.append(f"{words} {CURE}")
    if not settings.destroy_data:
        notes.append("The volume was only read: what writing costs was not measured (--destroy-data allows it).")
    if Level.HOST in settings.levels:
        notes.append(
            "On the host, requests come from qemu-img bench: it tells no percentiles, and cannot mix reads and writes."
        )
        if secret := [place.name for place in places if needs_objects(place.location)]:
            notes.append(
                f"qemu-img bench takes no secrets: {', '.join(secret)} can be measured in a guest only (--level guest)."
            )
    return tuple(notes)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    with contextlib.suppress(PackageNotFoundError):
        return version("hvext")
    return "unknown"
