"""What QEMU has counted for each disk, and what that comes to between two looks.

QEMU counts a request when it has ended: those that went well with their bytes, those that failed without. Counting
begins anew when a disk is plugged, and on the target of a migration; a move and a failover go on with the same counts.

libvirt passes on less: nothing about discards, and not which requests failed.

Source: QEMU, qapi/block-core.json, BlockDeviceStats; block/accounting.c, ``block_account_one_io``. libvirt,
virDomainBlockStatsFlags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from hvext.core.running import device_in_statistics
from hvext.core.value import field, value_object

_NS = 1_000_000_000


class Kind(StrEnum):
    """What a request asks for."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"
    DISCARD = "discard"


#: What QEMU calls them in the names of its counts.
_WORDS = {Kind.READ: "rd", Kind.WRITE: "wr", Kind.FLUSH: "flush", Kind.DISCARD: "unmap"}


@value_object
class Requests:
    """Requests of one kind since the disk was plugged.

    ``completed`` went well, ``failed`` ended with an error, ``invalid`` were refused before they reached the storage
    (outside of the disk, for example); both are None where that is not told. ``bytes`` are those of the completed ones;
    flushes have none. ``timed`` of them took ``time_ns`` in all.
    """

    completed: int = 0
    failed: int | None = 0
    invalid: int | None = 0
    bytes: int = 0
    timed: int = 0
    time_ns: int = 0

    @property
    def time_s(self) -> float:
        """How long they took in all, in seconds; those at the same time are added up."""
        return self.time_ns / _NS

    @property
    def latency_s(self) -> float | None:
        """How long one took on average, in seconds; None when there was none."""
        return self.time_s / self.timed if self.timed else None

    def to_json(self) -> dict[str, object]:
        """Return it for machines."""
        return {
            "completed": self.completed,
            "failed": self.failed,
            "invalid": self.invalid,
            "bytes": self.bytes,
            "time_s": self.time_s,
            "latency_s": self.latency_s,
        }


@value_object
class DiskCounts:
    """All requests of one disk, by kind, of those kinds that are told.

    ``idle_s`` is how long ago the last one ended, None when there was none, or where that is not told.
    """

    kinds: Mapping[Kind, Requests] = field(default_factory=lambda: dict.fromkeys(Kind, Requests()))
    idle_s: float | None = None

    @property
    def failed(self) -> int:
        """How many requests of any kind have failed, as far as that is told."""
        return sum(each.failed or 0 for each in self.kinds.values())

    def to_json(self) -> dict[str, object]:
        """Return it for machines; times in seconds."""
        return {**{str(kind): each.to_json() for kind, each in self.kinds.items()}, "idle_s": self.idle_s}


@value_object
class Rate:
    """Requests of one kind between two looks: how many and how many bytes a second, and their mean latency.

    ``latency_s`` is None when none has ended, ``failed`` where that is not told.
    """

    per_s: float
    bytes_per_s: float
    failed: int | None
    latency_s: float | None

    def to_json(self) -> dict[str, object]:
        """Return it for machines."""
        return {
            "per_s": round(self.per_s, 3),
            "bytes_per_s": round(self.bytes_per_s, 1),
            "failed": self.failed,
            "latency_s": self.latency_s,
        }


def parse_counts(statistics: Sequence[Mapping[str, Any]]) -> dict[str, DiskCounts]:
    """Return what ``query-blockstats`` (without ``query-nodes``) counts, by the device's id."""
    return {device: _counts(entry["stats"]) for entry in statistics if (device := device_in_statistics(entry))}


def parse_libvirt_counts(stats: Mapping[str, int]) -> DiskCounts:
    """Return what libvirt's block statistics of one disk count."""

    def requests(word: str) -> Requests:
        completed = stats[f"{word}_operations"]
        return Requests(
            completed=completed,
            failed=None,
            invalid=None,
            bytes=stats.get(f"{word}_bytes", 0),
            # The time of those that failed is in the sum as well.
            timed=completed,
            time_ns=stats[f"{word}_total_times"],
        )

    told = (kind for kind, word in _WORDS.items() if f"{word}_operations" in stats)
    return DiskCounts(kinds={kind: requests(_WORDS[kind]) for kind in told})


def rates(before: DiskCounts, now: DiskCounts, seconds: float) -> dict[Kind, Rate] | None:
    """Return what a disk did between two looks; None when its counting began anew in between, or no time has passed."""
    if seconds <= 0:
        return None
    found = {}
    for kind in now.kinds:
        old, new = before.kinds.get(kind, Requests()), now.kinds[kind]
        completed, timed = new.completed - old.completed, new.timed - old.timed
        moved, took_ns = new.bytes - old.bytes, new.time_ns - old.time_ns
        failed = None if new.failed is None else new.failed - (old.failed or 0)
        if min(completed, timed, moved, took_ns, failed or 0) < 0:
            return None
        found[kind] = Rate(
            per_s=completed / seconds,
            bytes_per_s=moved / seconds,
            failed=failed,
            latency_s=took_ns / _NS / timed if timed else None,
        )
    return found


def _counts(stats: Mapping[str, Any]) -> DiskCounts:
    idle_ns = stats.get("idle_time_ns")
    # Where it does not, the time of requests that failed is not in the sum.
    accounts_failed = bool(stats.get("account_failed", True))
    kinds = {kind: _requests(stats, word, accounts_failed=accounts_failed) for kind, word in _WORDS.items()}
    return DiskCounts(kinds=kinds, idle_s=None if idle_ns is None else idle_ns / _NS)


def _requests(stats: Mapping[str, Any], word: str, *, accounts_failed: bool) -> Requests:
    completed, failed = int(stats[f"{word}_operations"]), int(stats[f"failed_{word}_operations"])
    return Requests(
        completed=completed,
        failed=failed,
        invalid=int(stats[f"invalid_{word}_operations"]),
        bytes=int(stats.get(f"{word}_bytes", 0)),
        timed=completed + (failed if accounts_failed else 0),
        time_ns=int(stats[f"{word}_total_time_ns"]),
    )
