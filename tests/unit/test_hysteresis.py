from __future__ import annotations

import pytest

from hvext.core.hysteresis import FailBack, FailBackRule
from hvext.errors import InputError

RULE = FailBackRule(checks=3, hold_s=30, hold_most_s=300, memory_s=10000, look_most_s=60)


def looks_until_back(memory: FailBack, now: float) -> float:
    """Return how long storage that is well all the time is looked at before the disk goes back."""
    began = now
    for _look in range(1000):
        if memory.looked(now, well=True):
            return now - began
        now = memory.next_look
    raise AssertionError("it never goes back")


def test_storage_has_to_be_well_so_often_and_for_so_long() -> None:
    memory = FailBack(RULE)
    memory.failed(0)
    assert looks_until_back(memory, memory.next_look) == pytest.approx(30)
    quick = FailBack(RULE)
    assert not any(quick.looked(now, well=True) for now in (0.0, 0.1, 0.2, 0.3))
    rare = FailBack(RULE)
    assert not rare.looked(0, well=True)
    assert not rare.looked(1000, well=True)


def test_one_bad_look_begins_it_all_anew() -> None:
    memory = FailBack(RULE)
    for now in (0.0, 20.0):
        assert not memory.looked(now, well=True)
    assert not memory.looked(25.0, well=False)
    assert not memory.looked(31.0, well=True)
    assert not memory.looked(45.0, well=True)
    assert memory.looked(61.0, well=True)


def test_storage_that_comes_and_goes_is_left_alone_for_longer_and_longer() -> None:
    memory, now, holds = FailBack(RULE), 0.0, []
    for _flap in range(6):
        memory.failed(now)
        now = memory.next_look
        holds.append(looks_until_back(memory, now))
        now += holds[-1]
    assert holds[:4] == pytest.approx([30, 60, 120, 240])
    assert holds[4] >= 300
    assert memory.hold_s(now) == 300


def test_failures_of_long_ago_are_forgotten() -> None:
    memory = FailBack(RULE)
    for now in range(5):
        memory.failed(now)
    assert memory.hold_s(10) == 300
    assert memory.hold_s(10_005) == 30


def test_looks_are_never_further_apart_than_allowed() -> None:
    memory = FailBack(RULE)
    for now in range(50):
        memory.failed(now)
        assert memory.look_every_s(now) <= 60
        assert memory.next_look > now


@pytest.mark.parametrize("values", [{"checks": 0}, {"hold_s": 0}, {"look_most_s": -1}])
def test_a_rule_that_means_nothing_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(InputError):
        FailBackRule(**values)  # type: ignore[arg-type]
