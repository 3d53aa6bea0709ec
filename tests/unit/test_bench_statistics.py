"""Intervals and tests that keep what they promise, with the few rounds and the noise that storage has."""

from __future__ import annotations

import math
import random

import pytest

from hvext.bench import statistics
from hvext.bench.statistics import Where, holm, paired, rounds_needed, unpaired
from hvext.errors import InputError
from tests.benching import BLOCK, NBD, WORKLOADS, benchmark, chances, storage_noise

HOST = Where(level=statistics.Level.HOST, device="")


def noise(chance: random.Random, rounds: int, shift: float = 0.0) -> list[float]:
    """Return log ratios of two runs each: heavy tails, and stalls on both sides."""
    return [shift + math.log(storage_noise(chance) / storage_noise(chance)) for _ in range(rounds)]


@pytest.mark.parametrize("rounds", [6, 8, 12])
def test_the_interval_has_the_truth_as_often_as_it_says(rounds: int) -> None:
    chance = chances(rounds)
    found = [paired(noise(chance, rounds, shift=0.1)) for _ in range(200)]
    covered = sum(item.low <= 0.1 <= item.high for item in found if item.low is not None and item.high is not None)
    assert covered >= 0.93 * 200
    assert sum(item.p < 0.05 and item.excludes(0) for item in found) > 0.2 * 200, (
        "an interval that never tells anything"
    )


def test_interval_and_p_never_disagree() -> None:
    chance = chances(3)
    for _ in range(150):
        found = paired(noise(chance, chance.randint(6, 16), shift=0.05))
        assert found.excludes(0) == (found.p < statistics.ALPHA)


def test_intervals_of_two_independent_benchmarks_agree_with_their_p() -> None:
    chance = chances(4)
    missed = 0
    for _ in range(150):
        before, after = (noise(chance, chance.randint(5, 12), shift=shift) for shift in (0, 0.08))
        found = unpaired(before, after)
        assert found.excludes(0) == (found.p < statistics.ALPHA)
        missed += found.excludes(0.08)
    assert missed <= 0.08 * 150


@pytest.mark.parametrize(("rounds", "cut"), [(5, 0), (6, 1), (7, 3), (8, 4), (9, 6), (10, 9), (12, 14), (20, 53)])
def test_signed_ranks_are_cut_as_the_tables_say(rounds: int, cut: int) -> None:
    """Oracle: the table of critical values, two-sided 5 %, which are one less (0, 2, 3, 5, 8, 13, 52)."""
    values = [1.001**number * number for number in range(1, rounds + 1)]
    pairs = sorted((a + b) / 2 for index, a in enumerate(values) for b in values[index:])
    expected = (None, None) if cut == 0 else (pairs[cut - 1], pairs[-cut])
    found = paired(values)
    assert (found.low, found.high) == expected


@pytest.mark.parametrize(("size", "cut"), [(3, 0), (4, 1), (5, 3), (8, 14), (10, 24)])
def test_rank_sums_are_cut_as_the_tables_say(size: int, cut: int) -> None:
    """Oracle: the table of critical values of U, two-sided 5 %, which are one less (0, 2, 13, 23)."""
    before, after = [1.01**number for number in range(size)], [1.5 + 1.013**number for number in range(size)]
    differences = sorted(b - a for a in before for b in after)
    expected = (None, None) if cut == 0 else (differences[cut - 1], differences[-cut])
    found = unpaired(before, after)
    assert (found.low, found.high) == expected


def test_a_stalled_round_moves_the_estimate_by_little() -> None:
    calm = [0.1, 0.11, 0.09, 0.1, 0.105, 0.095, 0.1, 0.102]
    assert paired([*calm[1:], 3.0]).value == pytest.approx(0.1, abs=0.01)


def test_few_rounds_give_no_interval_and_no_significance() -> None:
    found = paired([0.5] * 5)
    assert (found.low, found.high) == (None, None)
    assert found.p > statistics.ALPHA
    assert not found.excludes(0)


@pytest.mark.filterwarnings("error")
def test_equal_figures_are_no_difference_and_no_warning() -> None:
    assert paired([0.0] * 8).p == 1
    assert paired([0.0, 0.1, 0.1, 0.1, 0.0, 0.1, 0.1, 0.1]).p < 0.05
    assert unpaired([1.0] * 6, [1.0] * 6).p > 0.9


def test_nothing_in_common_is_an_error_of_the_input() -> None:
    with pytest.raises(InputError, match="no round"):
        paired([])


def test_the_rounds_that_are_advised_show_the_difference_four_times_of_five() -> None:
    chance = chances(8)
    advised = [rounds_needed([chance.gauss(0, 0.06) for _ in range(12)]) for _ in range(60)]
    middle = sorted(number for number in advised if number)[30]
    found = [paired([chance.gauss(math.log(1.05), 0.06) for _ in range(middle)]).p < 0.05 for _ in range(200)]
    assert 0.7 <= sum(found) / len(found) <= 0.9


def test_advice_grows_with_the_noise_and_needs_two_rounds() -> None:
    calm, wild = ([scale * value for value in (1, -1, 2, -2, 0.5, -0.5, 1.5)] for scale in (0.01, 0.1))
    few, many = rounds_needed(calm), rounds_needed(wild)
    assert few is not None
    assert many is not None
    assert statistics.MIN_ROUNDS <= few < many
    assert rounds_needed([0.1]) is None


def test_corrected_p_values_are_holms() -> None:
    """Oracle: R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_a_difference_has_all_its_figures() -> None:
    result = benchmark(
        chances(5), change=lambda access, _: (0.5 if access == "nbd" else 1, 0), cpu={"block": 20, "nbd": 40}
    )
    samples = statistics.Samples(result)
    found = statistics.difference(samples, HOST, WORKLOADS[0], BLOCK.name, NBD.name)
    assert found is not None
    assert found.speed.value == pytest.approx(2, rel=0.15)
    assert found.p50 is not None
    assert found.p50.value == pytest.approx(0.5, rel=0.15)
    assert found.cpu is not None
    assert found.cpu.value == pytest.approx(2, rel=0.15)
    assert found.difference_us is not None
    assert found.difference_us.value == pytest.approx(-found.baseline_us / 2, rel=0.3)
    assert found.to_json()["difference_us"]["value"] == found.difference_us.value
    at_depth = statistics.difference(samples, HOST, WORKLOADS[1], BLOCK.name, NBD.name)
    assert at_depth is not None
    assert at_depth.p50 is at_depth.difference_us is None


def test_what_slows_whole_rounds_makes_no_difference_uncertain() -> None:
    """Runs of a round share its noise: pairing takes that out."""
    result = benchmark(
        chances(6),
        change=lambda access, _: (0.9 if access == "nbd" else 1, 0),
        noise=lambda chance: math.exp(chance.gauss(0, 0.005)),
    )
    samples = statistics.Samples(result)
    speeds = [math.log(measure.iops) for measure in samples.series(HOST, WORKLOADS[1].name, BLOCK.name).values()]
    assert max(speeds) - min(speeds) > 0.2, "rounds differ"
    found = statistics.difference(samples, HOST, WORKLOADS[1], BLOCK.name, NBD.name)
    assert found is not None
    assert found.speed.within(1.09, 1.13)
