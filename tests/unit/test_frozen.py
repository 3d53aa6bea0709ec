from __future__ import annotations

import uuid

from hvext.core.frozen import Activity, Sample, Stuck, completed_requests, judge

ONE, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)


def sample(taken_s: float, *, running: bool = True, **disks: Activity) -> Sample:
    known = {"one": ONE, "other": OTHER}
    return Sample(taken_s=taken_s, running=running, disks={known[name]: activity for name, activity in disks.items()})


def activity(completed: int, in_flight: int | None = 1, *, exact: bool = True) -> Activity:
    return Activity(completed=completed, in_flight=in_flight, exact=exact)


def test_a_disk_that_finishes_nothing_of_what_it_has_in_flight_is_stuck_since_the_first_look() -> None:
    looks = [sample(second, one=activity(7, 4), other=activity(round(second))) for second in (10.0, 11.0, 12.0)]
    first = judge(looks[0], looks[1])
    assert first == {ONE: Stuck(since_s=10.0, certain=True)}
    assert judge(looks[1], looks[2], first) == first


def test_a_disk_that_does_nothing_is_not_stuck() -> None:
    for before, now in ((0, 0), (1, 0), (0, 1), (None, 1), (1, None)):
        assert not judge(sample(1, one=activity(7, before)), sample(2, one=activity(7, now)))


def test_a_slow_disk_is_not_stuck() -> None:
    assert not judge(sample(1, one=activity(7, 64)), sample(2, one=activity(8, 64)))


def test_a_guest_that_stands_still_has_no_stuck_disks() -> None:
    # An I/O error stopped it: what failed is counted as handed out still.
    still = {"one": activity(7, 4)}
    assert not judge(sample(1, **still), sample(2, running=False, **still))
    assert not judge(sample(1, running=False, **still), sample(2, **still))


def test_a_disk_that_has_just_come_is_not_stuck() -> None:
    assert not judge(sample(1), sample(2, one=activity(0, 1)))


def test_a_request_of_a_shared_controller_is_not_certainly_this_disks() -> None:
    still = {"one": activity(7, 1, exact=False)}
    assert judge(sample(1, **still), sample(2, **still)) == {ONE: Stuck(since_s=1, certain=False)}


def test_all_kinds_of_requests_count() -> None:
    counts = {"rd_operations": 1, "wr_operations": 2, "flush_operations": 4, "unmap_operations": 8}
    failed = {"failed_rd_operations": 16, "invalid_wr_operations": 32}
    others = {"rd_bytes": 64, "idle_time_ns": 128, "account_failed": True, "timed_stats": []}
    assert completed_requests({**counts, **failed, **others}) == 63
