from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.schedule import Pace, Scheduler
from hvext.errors import InputError

NO_CHANCE: Callable[[], float] = lambda: 0.0  # noqa: E731


def scheduler(chance: Callable[[], float] = NO_CHANCE, **pace: float) -> Scheduler:
    return Scheduler(Pace(**pace), chance)


def begin_all(scheduler: Scheduler, now: float) -> list[str]:
    begun = []
    while (key := scheduler.begin(now)) is not None:
        begun.append(key)
    return begun


def test_a_lone_failure_waits_for_nothing() -> None:
    one = scheduler(chance=lambda: 1.0)
    one.want("vm", "ceph", 100.0)
    assert one.next_at() <= 100.0
    assert one.begin(100.0) == "vm"


def test_no_more_recoveries_are_under_way_than_allowed() -> None:
    some = scheduler(concurrent=3, per_server_s=math.inf)
    for number in range(10):
        some.want(f"vm{number}", f"server{number}", 0.0)
    assert len(begin_all(some, 0.0)) == 3
    assert some.next_at() == math.inf
    some.finished("vm0", 1.0)
    assert len(begin_all(some, 1.0)) == 1


def test_connections_to_one_server_keep_their_distance() -> None:
    some = scheduler(concurrent=100, per_server_s=10)
    for number in range(3):
        some.want(f"vm{number}", "ceph", 0.0, connections=2)
    assert begin_all(some, 0.0) == ["vm0"]
    assert some.next_at() == pytest.approx(0.2)
    assert begin_all(some, 0.19) == []
    assert begin_all(some, 0.2) == ["vm1"]


def test_a_slow_server_does_not_hold_up_the_guests_of_another() -> None:
    some = scheduler(per_server_s=1)
    for number in range(5):
        some.want(f"slow{number}", "slow", 0.0)
    some.want("other", "quick", 0.0)
    assert begin_all(some, 0.0) == ["slow0", "other"]


def test_servers_take_turns_however_many_guests_each_has() -> None:
    some = scheduler(concurrent=4, per_server_s=math.inf)
    for number in range(50):
        some.want(f"many{number}", "many", 0.0)
    for number in range(2):
        some.want(f"few{number}", "few", 1.0)
    assert sorted(begin_all(some, 1.0)) == ["few0", "few1", "many0", "many1"]


def test_a_guest_that_keeps_failing_does_not_push_in_front_of_one_that_waits() -> None:
    some = scheduler(concurrent=1, per_server_s=math.inf, retry_first_s=0.001, retry_most_s=0.001, tolerated=math.inf)
    some.want("broken", "ceph", 0.0)
    some.want("patient", "ceph", 0.0)
    assert some.begin(0.0) == "broken"
    some.failed("broken", 1.0)
    assert some.begin(2.0) == "patient"


def test_what_is_not_urgent_comes_after_what_is() -> None:
    some = scheduler(concurrent=1, per_server_s=math.inf)
    some.want("move back", "ceph", 0.0, urgent=False)
    some.want("stopped guest", "ceph", 5.0)
    assert some.begin(5.0) == "stopped guest"
    some.finished("stopped guest", 5.0)
    assert some.begin(5.0) == "move back"


def test_a_guest_that_fails_waits_twice_as_long_each_time_up_to_the_limit() -> None:
    pace = Pace(retry_first_s=1, retry_most_s=30, jitter=0)
    assert [pace.retry_s(tries, 0.7) for tries in (1, 2, 3, 5, 6, 1000)] == [1, 2, 4, 16, 30, 30]


@given(tries=st.integers(1, 10_000), chance=st.floats(0, 1), jitter=st.floats(0, 1))
def test_jitter_only_lengthens_and_only_by_its_share(tries: int, chance: float, jitter: float) -> None:
    plain = Pace(jitter=0).retry_s(tries, 0)
    assert plain <= Pace(jitter=jitter).retry_s(tries, chance) <= plain * (1 + jitter) * (1 + 1e-9)


def test_a_server_that_is_down_gets_one_try_at_a_time() -> None:
    some = scheduler(concurrent=100, per_server_s=math.inf, tolerated=2)
    for number in range(20):
        some.want(f"vm{number}", "ceph", 0.0)
    begun = begin_all(some, 0.0)
    assert len(begun) == 20
    for key in begun:
        some.failed(key, 1.0)
    assert some.is_down("ceph")
    assert len(begin_all(some, 1000.0)) == 1
    assert begin_all(some, 2000.0) == [], "the one that is under way has not said yet"
    assert some.next_at() == math.inf


def test_a_server_that_serves_some_is_not_taken_for_down() -> None:
    some = scheduler(concurrent=1, per_server_s=math.inf, tolerated=2)
    for number in range(12):
        some.want(f"vm{number}", "ceph", 0.0)
        key = some.begin(1000.0 * number)
        assert key is not None
        if number % 3 == 2:
            some.finished(key, 1000.0 * number, answered=True)
        else:
            some.failed(key, 1000.0 * number)
            some.drop(key)
        assert not some.is_down("ceph")


def test_the_first_success_at_a_server_that_was_down_calls_in_all_who_wait_for_it() -> None:
    some = scheduler(concurrent=100, per_server_s=math.inf, tolerated=2, retry_first_s=500, retry_most_s=1000)
    for number in range(20):
        some.want(f"vm{number}", "ceph", 0.0)
    for key in begin_all(some, 0.0):
        some.failed(key, 1.0)
    some.want("new", "ceph", 2.0)
    assert some.begin(20.0) == "new"
    some.finished("new", 21.0, answered=True)
    now, begun = 21.0, []
    # Faster step by step, and all of them long before their own next tries at 500 s.
    while len(begun) < 20 and now < 100:
        begun += (new := begin_all(some, now))
        for key in new:
            some.finished(key, now, answered=True)
        now += 0.1
    assert len(begun) == 20


def test_a_recovery_by_another_server_says_nothing_of_the_dead_one() -> None:
    some = scheduler(concurrent=100, per_server_s=math.inf, tolerated=0)
    for number in range(3):
        some.want(f"vm{number}", "dead", 0.0)
    for key in begin_all(some, 0.0):
        some.finished(key, 1.0, answered=None)
    assert not some.is_down("dead")


def test_work_that_is_there_already_stays_as_it_is() -> None:
    some = scheduler()
    some.want("vm", "ceph", 0.0)
    some.want("vm", "ceph", 0.0)
    assert begin_all(some, 10.0) == ["vm"]
    some.want("vm", "ceph", 10.0)
    assert begin_all(some, 20.0) == []
    some.failed("vm", 20.0)
    due = some.next_at()
    some.want("vm", "ceph", 20.0)
    assert some.next_at() == due


def test_what_is_dropped_does_not_begin_and_frees_its_place() -> None:
    some = scheduler(concurrent=1, per_server_s=math.inf)
    some.want("waits", "ceph", 0.0)
    some.drop("waits")
    some.drop("nobody")
    assert some.begin(1.0) is None
    some.want("runs", "ceph", 1.0)
    assert some.begin(1.0) == "runs"
    some.drop("runs")
    some.want("next", "ceph", 2.0)
    assert some.begin(2.0) == "next"


def test_hurry_makes_what_waits_for_a_next_try_due_now() -> None:
    some = scheduler(per_server_s=math.inf)
    some.want("vm", "ceph", 0.0)
    some.begin(0.0)
    some.failed("vm", 0.0)
    assert some.begin(0.5) is None
    some.hurry(0.5)
    assert some.begin(0.5) == "vm"


def test_servers_that_nobody_wants_are_forgotten() -> None:
    some = scheduler()
    for number in range(1000):
        some.want(f"vm{number}", f"socket{number}", float(number))
        some.begin(float(number))
        some.finished(f"vm{number}", float(number))
    assert len(some._servers) < 10


@pytest.mark.parametrize(
    "values", [{"concurrent": 0}, {"per_server_s": 0}, {"retry_first_s": -1}, {"jitter": 2}, {"probe_most_s": 0}]
)
def test_a_pace_that_would_never_begin_anything_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Pace(**values)


@given(seed=st.integers(0, 1 << 32), concurrent=st.integers(1, 5), rate=st.floats(0.5, 50), n_servers=st.integers(1, 4))
def test_whatever_happens_the_limits_hold_and_everything_gets_its_turn(
    seed: int, concurrent: int, rate: float, n_servers: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    some = Scheduler(Pace(concurrent=concurrent, per_server_s=rate, retry_most_s=5), chance.random)
    server_of = {f"vm{number}": f"server{number % n_servers}" for number in range(30)}
    for key, server in server_of.items():
        some.want(key, server, 0.0)
    begun: dict[str, list[float]] = {}
    left, running, now = set(server_of), set(), 0.0
    while left:
        while (key := some.begin(now)) is not None:
            begun.setdefault(server_of[key], []).append(now)
            running.add(key)
        assert len(running) <= concurrent
        if running and (some.next_at() == math.inf or chance.random() < 0.5):
            now += chance.random()
            key = chance.choice(sorted(running))
            running.remove(key)
            if chance.random() < 0.5:
                some.failed(key, now)
            else:
                some.finished(key, now, answered=True)
                left.remove(key)
        else:
            assert some.next_at() < math.inf, "something waits, and nothing says for what"
            now = max(now, some.next_at())
    for times in begun.values():
        assert all(later - earlier >= 1 / rate - 1e-9 for earlier, later in itertools.pairwise(times))
