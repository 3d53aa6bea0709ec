"""What the disks of several VMs did between two looks: one row for each disk, and one for a VM that cannot be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hvext.core.observation import ObservedDisk, ObservedVm, Oddity
from hvext.core.statistics import Kind, Rate, rates
from hvext.core.value import value_object

COLUMNS = (
    "VM", "DISK", "ACCESS", "R/s", "W/s", "R MiB/s", "W MiB/s", "R ms", "W ms", "IN FLIGHT", "STATE",
)  # fmt: skip
#: Those of numbers.
NUMBERS = COLUMNS[3:10]
_NOTHING = "-"
#: Storage that has stopped the guest, in the state of its disk.
_STOPPED = {Oddity.FULL: "storage full", Oddity.FAILED: "storage failed"}


@value_object
class Row:
    """A disk between two looks; ``rates`` are None where the two cannot be compared, ``state`` is in words."""

    vm: str
    disk: ObservedDisk | None
    rates: Mapping[Kind, Rate] | None
    state: str

    def cells(self) -> tuple[str, ...]:
        """Return the row as text, one cell for each of COLUMNS."""
        disk, found = self.disk, self.rates
        read, write = (found[kind] if found else None for kind in (Kind.READ, Kind.WRITE))
        flying = disk.in_flight if disk else None
        return (
            self.vm,
            disk.volume if disk else _NOTHING,
            (disk.access or _NOTHING) if disk else _NOTHING,
            *(_NOTHING if each is None else f"{each.per_s:.0f}" for each in (read, write)),
            *(_NOTHING if each is None else f"{each.bytes_per_s / (1 << 20):.1f}" for each in (read, write)),
            *(_latency(each) for each in (read, write)),
            _NOTHING if flying is None else str(flying),
            self.state,
        )

    def to_json(self) -> dict[str, object]:
        """Return it for machines."""
        disk = self.disk
        return {
            "vm": self.vm,
            "disk": str(disk.uuid) if disk else None,
            "volume": disk.volume if disk else None,
            "access": disk.access if disk else None,
            "in_flight": disk.in_flight if disk else None,
            "state": self.state,
            "rates": {str(kind): rate.to_json() for kind, rate in self.rates.items()} if self.rates else None,
            "warnings": [str(each.oddity) for each in disk.warnings] if disk else [],
        }


def activity(before: Sequence[ObservedVm], now: Sequence[ObservedVm]) -> list[Row]:
    """Return what was done between two looks, in the order of the second one."""
    earlier = {vm.name: vm for vm in before}
    return [row for vm in now for row in _rows(earlier.get(vm.name), vm)]


def busiest(rows: Sequence[Row], room: int) -> list[Row]:
    """Return the rows with the most requests, as many as there is ``room`` for, in the order of ``rows``."""
    chosen = sorted(range(len(rows)), key=lambda place: _requests(rows[place]), reverse=True)[: max(0, room)]
    return [rows[place] for place in sorted(chosen)]


def _requests(row: Row) -> float:
    return sum(rate.per_s for rate in row.rates.values()) if row.rates else 0.0


def _rows(before: ObservedVm | None, now: ObservedVm) -> list[Row]:
    if not now.disks:
        return [Row(vm=now.name, disk=None, rates=None, state=now.state)]
    earlier = {disk.uuid: disk for disk in before.disks} if before and before.asked else {}
    seconds = now.taken_s - before.taken_s if before else 0.0
    return [_row(now, disk, earlier.get(disk.uuid), seconds) for disk in now.disks]


def _row(vm: ObservedVm, disk: ObservedDisk, before: ObservedDisk | None, seconds: float) -> Row:
    found = None
    if before is not None and before.counts is not None and disk.counts is not None:
        found = rates(before.counts, disk.counts, seconds)
    words = [vm.state, *(_STOPPED[each.oddity] for each in disk.warnings if each.oddity in _STOPPED)]
    if found is not None and any(rate.failed for rate in found.values()):
        words.append(f"{sum(rate.failed or 0 for rate in found.values())} failed")
    idle = found is not None and not any(rate.per_s or rate.failed for rate in found.values())
    if idle and disk.in_flight and before is not None and before.in_flight:
        words.append("stuck")
    if disk.record and disk.record.failed_over:
        words.append("failed over")
    if disk.pending:
        words.append(f"{disk.pending.operation} pending")
    return Row(vm=vm.name, disk=disk, rates=found, state=", ".join(words))


def _latency(rate: Rate | None) -> str:
    return _NOTHING if rate is None or rate.latency_s is None else f"{rate.latency_s * 1000:.2f}"
