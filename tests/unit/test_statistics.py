from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hvext.core.statistics import DiskCounts, Kind, Requests, parse_counts, parse_libvirt_counts, rates
from hvext.core.value import replace

#: Real answers: a guest wrote 100 blocks of 4 KiB and read 50 of 8 KiB, and its kernel had looked for partitions.
VIRTIO = "hv-0d1b4b5e-6d8a-4d3b-9a57-0c5f2f6f7a10"
SCSI = "hv-0d1b4b5e-6d8a-4d3b-9a57-0c5f2f6f7a11"
NO_REQUESTS = Requests()


def answer(version: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((Path(__file__).parent / f"data/blockstats-{version}.json").read_text())
    return found


@pytest.mark.parametrize("version", ["7.2", "10.0"])
@pytest.mark.parametrize("device", [VIRTIO, SCSI])
def test_the_counts_are_what_the_guest_did_on_each_qemu_and_device(version: str, device: str) -> None:
    counts = parse_counts(answer(version))[device]
    written, read = counts.kinds[Kind.WRITE], counts.kinds[Kind.READ]
    assert (written.completed, written.bytes, written.failed, written.invalid) == (100, 409600, 0, 0)
    assert (read.completed, read.bytes) == (52, 50 * 8192 + 2 * 2304)
    assert counts.kinds[Kind.DISCARD] == NO_REQUESTS
    assert counts.failed == 0
    assert written.latency_s == pytest.approx(written.time_ns / 1e9 / 100)
    assert counts.idle_s is not None
    assert 0 < counts.idle_s < 1


def test_a_drive_without_a_disk_in_it_is_nobodys() -> None:
    assert set(parse_counts(answer("7.2"))) <= {VIRTIO, SCSI, "scsi0", "sd0"}
    assert parse_counts([{"device": "sd0", "stats": answer("7.2")[0]["stats"]}]) == {}


def test_the_time_of_failed_requests_counts_only_where_qemu_adds_it_up() -> None:
    entry = next(each for each in answer("10.0") if each.get("qdev") == SCSI)
    failing = entry["stats"] | {"failed_wr_operations": 100}
    both = parse_counts([entry | {"stats": failing}])[SCSI].kinds[Kind.WRITE]
    good = parse_counts([entry | {"stats": failing | {"account_failed": False}}])[SCSI].kinds[Kind.WRITE]
    assert (both.timed, good.timed) == (200, 100)
    assert both.latency_s == pytest.approx((good.latency_s or 0) / 2)
    assert (both.completed, both.failed) == (100, 100)


def counts(**writes: int) -> DiskCounts:
    return DiskCounts(kinds={**dict.fromkeys(Kind, NO_REQUESTS), Kind.WRITE: Requests(**writes)})


def test_rates_are_what_was_done_between_two_looks_alone() -> None:
    before = counts(completed=1000, timed=1000, bytes=4096000, time_ns=10**12)
    now = counts(completed=1010, timed=1011, failed=1, bytes=4136960, time_ns=10**12 + 22_000_000)
    found = rates(before, now, 2.0)
    assert found is not None
    rate = found[Kind.WRITE]
    assert (rate.per_s, rate.bytes_per_s, rate.failed) == (5.0, 20480.0, 1)
    assert rate.latency_s == pytest.approx(0.002)
    assert found[Kind.READ].latency_s is None


def test_a_disk_that_was_plugged_anew_has_no_rates_rather_than_negative_ones() -> None:
    many, few = counts(completed=100, timed=100), counts(completed=5, timed=5)
    assert rates(many, few, 1.0) is None
    assert rates(few, many, 0.0) is None


def test_json_has_no_latency_where_nothing_was_done() -> None:
    value = replace(counts(completed=2, timed=2, time_ns=3_000_000), idle_s=0.5).to_json()
    assert value["idle_s"] == 0.5
    assert value["read"] == NO_REQUESTS.to_json()
    assert NO_REQUESTS.to_json()["latency_s"] is None
    assert json.loads(json.dumps(value))["write"]["latency_s"] == 0.0015


def test_what_libvirt_does_not_tell_is_not_told_as_zero() -> None:
    # As virDomainBlockStatsFlags answers.
    said = {
        "rd_bytes": 4096, "rd_operations": 2, "rd_total_times": 6_000_000,
        "wr_bytes": 8192, "wr_operations": 1, "wr_total_times": 1_000_000,
        "flush_operations": 3, "flush_total_times": 9_000_000,
    }  # fmt: skip
    before = parse_libvirt_counts(dict.fromkeys(said, 0))
    counted = parse_libvirt_counts(said)
    assert set(counted.kinds) == {Kind.READ, Kind.WRITE, Kind.FLUSH}
    read, flush = counted.kinds[Kind.READ], counted.kinds[Kind.FLUSH]
    assert (read.completed, read.bytes, read.failed, read.invalid) == (2, 4096, None, None)
    assert (read.latency_s, flush.latency_s) == pytest.approx((0.003, 0.003))
    assert flush.bytes == 0
    assert counted.failed == 0
    found = rates(before, counted, 2.0)
    assert found is not None
    assert (found[Kind.READ].per_s, found[Kind.READ].bytes_per_s, found[Kind.READ].failed) == (1.0, 2048.0, None)
    assert rates(counted, before, 1.0) is None
