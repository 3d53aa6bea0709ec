from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from hvext.core.outage import Outage, Outcome, simulate
from hvext.core.schedule import Pace
from hvext.errors import InputError

SMALL = Outage(nodes=20, guests=10, outage_s=30, capacity_s=50, queue=2000)


def run(outage: Outage, pace: Pace, seed: int = 1) -> Outcome:
    def chance_of(source: int) -> Callable[[], float]:
        return random.Random(f"{seed}/{source}").random  # noqa: S311

    return simulate(outage, pace, chance_of)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("rate", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("tolerated", [2.0, math.inf])
def test_the_fleet_stays_below_its_nodes_limits_and_all_guests_recover(
    silent: bool, rate: float, tolerated: float
) -> None:
    outage = Outage(nodes=20, guests=10, outage_s=30, capacity_s=50, queue=2000, silent=silent)
    outcome = run(outage, Pace(per_server_s=rate, tolerated=tolerated))
    assert outcome.lost == 0
    assert len(outcome.recovered_s) == 200
    assert min(outcome.recovered_s) > 0, "nobody recovers before the storage is back"
    # A span of a second may begin with both connections of a recovery that was begun before it.
    limit = outage.nodes * (rate + 2)
    for after in (False, True):
        assert outcome.p99(after_return=after) <= outcome.peak(after_return=after) <= limit


def test_the_same_seed_gives_the_same_figures_and_another_one_others() -> None:
    assert run(SMALL, Pace(), 7) == run(SMALL, Pace(), 7)
    assert run(SMALL, Pace(), 7) != run(SMALL, Pace(), 8)


def test_retries_without_a_limit_keep_down_a_storage_that_is_back() -> None:
    no_limit = Pace(
        concurrent=math.inf, per_server_s=math.inf, retry_first_s=1, retry_most_s=1, jitter=0, tolerated=math.inf
    )
    outage = Outage(nodes=20, guests=50, outage_s=30, capacity_s=50, queue=2000, patience_s=60)
    assert run(outage, no_limit).lost > 500
    assert run(outage, Pace()).lost == 0


def test_probes_spare_a_storage_that_is_away() -> None:
    plain, probes = (run(SMALL, Pace(tolerated=tolerated)) for tolerated in (math.inf, 2))
    assert probes.connections < plain.connections


def test_guests_that_cannot_be_served_in_time_are_counted_as_lost() -> None:
    outcome = run(Outage(nodes=2, guests=10, outage_s=5, capacity_s=1, patience_s=4), Pace())
    assert outcome.lost + len(outcome.recovered_s) == 20
    assert outcome.lost > 0


@pytest.mark.parametrize("values", [{"nodes": 0}, {"capacity_s": 0}, {"outage_s": -1}, {"queue": 0}])
def test_an_outage_of_nothing_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(InputError):
        Outage(**values)  # type: ignore[arg-type]
