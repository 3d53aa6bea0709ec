"""The level of the host: QEMU's block layer alone, as ``qemu-img bench`` drives it, without a guest.

The storage is opened with the same nodes as in a guest's QEMU. A load over NBD (fio before a storage daemon) is no way:
QEMU's server asks the storage for the state of its blocks before each read, which costs an NBD client a round trip that
no guest pays.
"""

from __future__ import annotations

import math
from types import TracebackType
from typing import Any, Self

from hvext.bench.places import Place
from hvext.bench.result import QEMU_IMG, Workload
from hvext.core.identity import DiskNames
from hvext.core.plan import DiskPlan, plan_disk
from hvext.core.uri.location import Companions, Location
from hvext.errors import ProgramError
from hvext.host.private import private_folder, remove_private, write_private
from hvext.host.qemu_img import Benched, bench, data_bytes, size_bytes
from hvext.host.qemu_io import write_pattern
from hvext.host.usage import cpu_times

#: Nobody waits longer for a run, however slow the storage is.
_LIMIT_S = 3600.0
#: Nor for what of the volume holds data: storage in many pieces takes long to say.
_MAP_LIMIT_S = 10.0
#: What the part that is measured is filled with, and how much of it at once.
_FILLED, _PIECE = 0x5A, 64 << 20
#: What a run is calibrated with, for the first time.
_FIRST = 64
#: Steps of the golden section reach all of a volume evenly, and no two neighbours soon.
_GOLDEN = (math.sqrt(5) - 1) / 2


class HostLevel:
    """Measures places on this host; as a context manager it leaves nothing behind."""

    device = "none"

    def __init__(self, names: DiskNames, span_bytes: int = 0) -> None:
        self._names = names
        self._span = span_bytes
        # Requests a second, by place and workload: what a run of some seconds needs.
        self._rates: dict[tuple[str, str], float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        remove_private(self._names.root)

    @staticmethod
    def can(place: Place, workload: Workload | None = None) -> bool:
        """Whether it can be measured here: nothing behind vhost-user or a secret, and no reads among writes.

        qemu-img bench cannot be given the objects that hold secrets.
        """
        mixed = workload is not None and workload.read_percent not in (0, 100)
        return place.location.block_node and not mixed and not needs_objects(place.location)

    def size_bytes(self, place: Place) -> int:
        """Return the size of the volume as it is seen at a place; raises ProgramError."""
        plan = self._plan(place)
        return size_bytes(_nested(plan, 0, write=False), plan.needs.objects)

    def data_bytes(self, place: Place) -> int | None:
        """Return how much of the part that is measured holds data, as far as a place says; None when it fails to."""
        plan = self._plan(place)
        try:
            return data_bytes(_nested(plan, self._span, write=False), plan.needs.objects, limit_s=_MAP_LIMIT_S)
        except ProgramError:
            return None

    def fill(self, place: Place) -> None:
        """Write the part that is measured once: what was never written to is read from nowhere."""
        plan = self._plan(place)
        node, objects = _nested(plan, self._span, write=True), plan.needs.objects
        whole = self._span // _PIECE * _PIECE
        for offsets, length in ((range(0, whole, _PIECE), _PIECE), ((whole,), self._span - whole)):
            if offsets and length:
                write_pattern(node, objects, offsets, length, _FILLED, limit_s=_LIMIT_S)

    def measure(
        self, place: Place, workload: Workload, *, run_s: float, warm_up_s: float, seed: int
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Run a workload against a place; return what was found, and processor seconds for it.

        Raises ProgramError.
        """
        key = (place.name, workload.name)
        random = workload.rw.startswith("rand")
        block = workload.block_bytes
        blocks = self._span // block
        step = max(1, round(blocks * _GOLDEN)) | 1 if random else 1
        words: dict[str, Any] = {
            # Whole blocks: going round at the end, none may reach over it.
            "span_bytes": blocks * block,
            "depth": workload.depth,
            "block_bytes": block,
            "step_bytes": step * block,
            "offset_bytes": seed * 7919 % blocks * block,
            "write": workload.writes,
            "flush_every": workload.fsync,
        }
        if key not in self._rates:
            first = self._bench(place, count=max(_FIRST, workload.depth), **words)
            self._rates[key] = first.count / max(first.seconds, 1e-6)
        warm = self._bench(place, count=self._count(key, warm_up_s, workload), **words)
        machine = cpu_times(0).machine_s
        found = self._bench(place, count=self._count(key, run_s, workload), **words)
        machine = cpu_times(0).machine_s - machine
        self._rates[key] = found.count / found.seconds
        raw = {
            "count": found.count,
            "seconds": found.seconds,
            "depth": workload.depth,
            "block_bytes": block,
            "warm_up": {"count": warm.count, "seconds": warm.seconds, "cpu_s": warm.cpu_s},
        }
        # Its start costs the same for both.
        own = max(0.0, found.cpu_s - warm.cpu_s) * found.count / max(1, found.count - warm.count)
        start_s = found.cpu_s - own
        # A short run can be below what two starts differ by: then it is not known.
        return {QEMU_IMG: raw}, {"machine": max(own, machine - start_s)} | ({"qemu": own} if own else {})

    def _count(self, key: tuple[str, str], seconds: float, workload: Workload) -> int:
        return max(_FIRST, workload.depth * 2, round(self._rates[key] * seconds))

    def _bench(self, place: Place, *, span_bytes: int, write: bool, **words: Any) -> Benched:
        plan = self._plan(place)
        values = {"offset_bytes": 0, "flush_every": 0, "limit_s": _LIMIT_S, **words}
        return bench(_nested(plan, span_bytes, write=write), write=write, **values)

    def _plan(self, place: Place) -> DiskPlan:
        plan = plan_disk(self._names, place.location, place.options, folder=private_folder()).stored()
        write_private(plan.needs.files)
        return plan


def needs_objects(location: Location) -> bool:
    """Whether QEMU needs objects to open a location: those that hold its secrets or certificates."""
    return bool(location.needs(Companions()).objects)


def _nested(plan: DiskPlan, span_bytes: int, *, write: bool) -> dict[str, Any]:
    """Return the nodes of a disk as one, with at most the first ``span_bytes`` of it (0: all)."""
    protocol, raw, *_filters = ({**node} for node in plan.nodes)
    for node in (protocol, raw):
        node.pop("node-name", None)
        node["read-only"] = not write
    limit = {"size": span_bytes} if span_bytes else {}
    return {**raw, "file": protocol, **limit}
