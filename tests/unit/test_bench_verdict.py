"""A recommendation that the figures carry; and none where they do not."""

from __future__ import annotations

import io
import json
import math
import random
import sys
from collections.abc import Mapping
from dataclasses import replace

import pytest

from hvext.bench.compare import compare
from hvext.bench.report import html_report
from hvext.bench.result import Level, MeasuredAccess, Result
from hvext.bench.terminal import print_comparison, print_result
from hvext.bench.tune import AS_GIVEN, choose
from hvext.bench.verdict import Recommendation, judge, recommended
from hvext.errors import ProgramError
from tests.benching import BLOCK, NBD, VHOST, WORKLOADS, Change, benchmark, chances

GUEST = ((Level.HOST, ""), (Level.GUEST, "virtio-blk-pci"))
RBD = MeasuredAccess(name="rbd", kind="userspace", words="rbd:pool/image")


def calm(chance: random.Random) -> float:
    """Return the noise of a machine that does nothing else."""
    return math.exp(chance.gauss(0, 0.004))


def times(factors: Mapping[str, float]) -> Change:
    """Return what makes each access's requests take so many times as long."""
    return lambda access, _: (factors.get(access, 1), 0)


def test_two_identical_backends_are_told_apart_in_at_most_one_run_of_twenty() -> None:
    chance = chances(1)
    runs = 60
    verdicts = [
        judge(benchmark(chance, cpu={"block": 20, "nbd": 20}, rounds=rounds, workloads=WORKLOADS[:2]))
        for rounds in (7, 8, 10)
        for _ in range(runs // 3)
    ]
    wrong = [verdict.reason for verdict in verdicts if verdict.recommendation is not Recommendation.NONE]
    assert len(wrong) <= runs // 20, wrong


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_millisecond_is_found_and_measured(seed: int) -> None:
    result = benchmark(
        chances(seed), change=lambda access, _: (1, 1000 if access == "nbd" else 0), workloads=WORKLOADS[:2]
    )
    verdict = judge(result)
    assert verdict.recommendation is Recommendation.KERNELSPACE
    assert verdict.access == "block"
    assert verdict.certain
    found = next(item for item in verdict.differences if item.workload == WORKLOADS[0].name)
    assert found.difference_us is not None
    assert found.difference_us.value == pytest.approx(1000, rel=0.15)
    assert found.difference_us.excludes(0)


def test_a_faster_userspace_is_recommended_with_its_figures() -> None:
    verdict = judge(benchmark(chances(2), change=times({"nbd": 1 / 1.2}), noise=calm))
    assert (verdict.recommendation, verdict.access, verdict.certain) == (Recommendation.USERSPACE, "nbd", True)
    assert verdict.reason.startswith("nbd is 20 % faster than block on the host (95 % interval +")
    assert "5 workloads, 8 rounds" in verdict.reason
    assert recommended(verdict.levels[0]) == "Recommendation: access=userspace (nbd)"


def test_less_than_three_per_cent_counts_for_nothing() -> None:
    verdict = judge(benchmark(chances(3), change=times({"nbd": 1 / 1.015}), noise=calm))
    assert verdict.recommendation is Recommendation.NONE
    assert verdict.certain, "a difference of 5 % would have shown"
    assert "less than counts (3 %)" in verdict.reason


def test_noise_that_carries_nothing_is_said_and_how_long_it_would_take() -> None:
    verdict = judge(benchmark(chances(4)))
    assert verdict.recommendation is Recommendation.NONE
    assert not verdict.certain
    assert "show no difference" in verdict.reason
    rounds, minutes = (int(word) for word in verdict.advice.split() if word.isdigit() and word != "5")
    assert rounds > 8
    # 10 runs of 2 s, with 1 s of warm-up and what comes on top, in each round
    assert minutes == pytest.approx(rounds * 10 * 3.35 / 60, abs=1)


def test_five_rounds_conclude_nothing_however_clear_they_look() -> None:
    verdict = judge(benchmark(chances(5), change=times({"nbd": 0.5}), rounds=5, noise=calm))
    assert verdict.recommendation is Recommendation.NONE
    assert not verdict.certain
    assert verdict.reason.startswith("5 rounds are too few")
    assert judge(benchmark(chances(5), rounds=1)).reason.startswith("1 round is too few")
    assert verdict.advice.startswith("7 rounds"), "the fewest that can show anything"


def test_where_speed_is_the_same_less_cpu_decides() -> None:
    verdict = judge(benchmark(chances(6), cpu={"block": 30, "nbd": 20}, noise=calm))
    assert (verdict.recommendation, verdict.access) == (Recommendation.USERSPACE, "nbd")
    assert verdict.levels[0].by_cpu
    assert "nbd takes 33 % less processor time for a request than block" in verdict.reason
    other = judge(benchmark(chances(6), cpu={"block": 20, "nbd": 30}, noise=calm))
    assert (other.recommendation, other.access) == (Recommendation.KERNELSPACE, "block")
    assert "block takes 33 % less processor time for a request than nbd" in other.reason


def test_ten_per_cent_of_cpu_do_not_decide() -> None:
    verdict = judge(benchmark(chances(6), cpu={"block": 22, "nbd": 20}, noise=calm))
    assert verdict.recommendation is Recommendation.NONE


def test_speed_decides_against_cpu() -> None:
    verdict = judge(benchmark(chances(7), change=times({"nbd": 0.8}), cpu={"block": 20, "nbd": 60}, noise=calm))
    assert verdict.recommendation is Recommendation.USERSPACE
    assert not verdict.levels[0].by_cpu


def test_mixed_results_are_said() -> None:
    def change(access: str, workload: str) -> tuple[float, float]:
        return (1, 0) if access == "block" else (1.3, 0) if workload == "read-1m-8" else (0.7, 0)

    verdict = judge(benchmark(chances(8), change=change, rounds=10, noise=calm))
    assert verdict.recommendation is Recommendation.USERSPACE
    assert "results are mixed: nbd is faster in randread-4k-1, randread-4k-32, mixed-4k-32 and 1 more" in verdict.reason
    assert "slower in read-1m-8" in verdict.reason


def test_workloads_that_contradict_each_other_are_no_missing_difference() -> None:
    def change(access: str, workload: str) -> tuple[float, float]:
        return (1, 0) if access == "block" else (1.3, 0) if workload == WORKLOADS[0].name else (1 / 1.3, 0)

    verdict = judge(benchmark(chances(8), change=change, rounds=10, workloads=WORKLOADS[:2], noise=calm))
    assert (verdict.recommendation, verdict.access) == (Recommendation.DEPENDS, "")
    assert recommended(verdict.levels[0]) == "Recommendation: it depends on the workload"
    faster, slower = WORKLOADS[1].name, WORKLOADS[0].name
    assert (
        f"No access is the faster one on the host: nbd is faster in {faster} and slower in {slower} (" in verdict.reason
    )
    assert "--job" in verdict.advice


def test_a_workload_that_stands_alone_with_its_difference_is_named() -> None:
    def change(access: str, workload: str) -> tuple[float, float]:
        return (1.04 if access == "nbd" and workload == WORKLOADS[0].name else 1, 0)

    verdict = judge(benchmark(chances(8), change=change, rounds=10, noise=calm))
    assert verdict.recommendation is Recommendation.NONE
    assert f"; by itself, nbd is slower in {WORKLOADS[0].name}." in verdict.reason


def test_what_was_made_for_comparison_is_never_recommended() -> None:
    result = benchmark(chances(9), change=times({"vhost-user": 0.5}), accesses=(VHOST, NBD, BLOCK), noise=calm)
    verdict = judge(result)
    assert verdict.baseline == "block", "the block path, wherever it stands"
    assert verdict.recommendation is Recommendation.NONE
    assert {item.access for item in verdict.differences} == {"nbd", "vhost-user"}


def test_the_fastest_of_several_uris_is_named() -> None:
    accesses = (BLOCK, NBD, RBD)
    faster = judge(benchmark(chances(10), change=times({"nbd": 0.9, "rbd": 0.8}), accesses=accesses, noise=calm))
    assert (faster.recommendation, faster.access) == (Recommendation.USERSPACE, "rbd")
    slower = judge(benchmark(chances(10), change=times({"nbd": 1.2, "rbd": 1.1}), accesses=accesses, noise=calm))
    assert (slower.recommendation, slower.access) == (Recommendation.KERNELSPACE, "block")
    assert "block is 10 % faster than rbd, the fastest of the others," in slower.reason
    one = judge(benchmark(chances(10), change=times({"nbd": 1.2}), accesses=accesses, noise=calm))
    assert one.recommendation is Recommendation.NONE, "rbd is as fast as the block path"


def test_without_a_block_path_the_first_uri_is_the_measure() -> None:
    verdict = judge(benchmark(chances(11), change=times({"rbd": 1.3}), accesses=(NBD, RBD), noise=calm))
    assert (verdict.baseline, verdict.recommendation, verdict.access) == ("nbd", Recommendation.USERSPACE, "nbd")


def test_a_single_access_leaves_nothing_to_choose() -> None:
    result = benchmark(chances(12), accesses=(BLOCK,))
    verdict = judge(result)
    assert verdict.recommendation is Recommendation.ONLY
    assert not verdict.certain
    assert verdict.reason == (
        "There was only one access to measure on the host (block), so there is nothing to compare."
    )
    assert recommended(verdict.levels[0]) == "Recommendation: none, as there was only one access to measure"
    found = json.loads(json.dumps(verdict.to_json()))
    assert (found["recommendation"], found["access"], found["levels"][0]["recommendation"]) == (None, "", None)
    page, written = html_report(result, verdict), io.StringIO()
    print_result(result, verdict, file=written)
    for text in (page, written.getvalue()):
        assert "one, as there was only one access to measure" in text
        assert "no measurable difference" not in text
    assert "not certain" not in page
    made = judge(benchmark(chances(12), accesses=(BLOCK, VHOST)))
    assert made.recommendation is Recommendation.ONLY
    assert "cannot be chosen" in made.reason


def emptied(result: Result, share: float) -> Result:
    return replace(result, volume={**result.volume, "data_bytes": int(result.volume["span_bytes"] * share)})


@pytest.mark.parametrize("share", [0, 0.04])
def test_figures_of_reads_that_fetch_nothing_recommend_nothing_and_say_so(share: float) -> None:
    result = emptied(benchmark(chances(2), change=times({"nbd": 1 / 1.2}), noise=calm), share)
    verdict = judge(result)
    assert (verdict.recommendation, verdict.access, verdict.certain) == (Recommendation.EMPTY, "", False)
    assert "fetch nothing from the storage" in verdict.reason
    assert "nbd is 20 % faster than block" in verdict.reason, "what was measured is said all the same"
    assert "--destroy-data" in verdict.advice
    assert verdict.to_json()["recommendation"] is None
    written = io.StringIO()
    print_result(result, verdict, file=written)
    for text in (html_report(result, verdict), written.getvalue()):
        assert "one, as the part that was measured holds no data" in text
        assert "fetch nothing from the storage" in text
        assert "Write to it first" in text


def test_figures_of_a_volume_with_data_or_that_does_not_say_are_left_alone() -> None:
    result = benchmark(chances(2), change=times({"nbd": 1 / 1.2}), noise=calm)
    for each in (result, emptied(result, 0.5), emptied(result, 1)):
        assert judge(each).to_json() == judge(result).to_json()


def test_tuning_and_comparing_say_that_reads_fetched_nothing() -> None:
    given, other = replace(BLOCK, name=AS_GIVEN, kind="option"), replace(NBD, name="aio=native", kind="option")
    result = benchmark(chances(2), change=times({other.name: 0.5}), accesses=(given, other), noise=calm)
    assert choose(result).best == other.name
    tuned = choose(emptied(result, 0))
    assert tuned.best == AS_GIVEN
    assert "fetch nothing" in tuned.reason
    comparison = compare(emptied(result, 0), result)
    assert [words.partition(":")[0] for words in comparison.empty] == ["before"]
    written = io.StringIO()
    print_comparison(comparison, file=written)
    assert "note: before: The part that is measured has no data (it was never written to" in written.getvalue()


def test_a_guest_decides_before_the_host() -> None:
    result = benchmark(chances(13), places=GUEST, noise=calm)
    slower = benchmark(chances(13), change=times({"nbd": 2}), places=GUEST[:1], noise=calm)
    runs = [run for run in result.runs if run.level is Level.GUEST] + list(slower.runs)
    verdict = judge(Result(**{name: getattr(result, name) for name in Result.__slots__} | {"runs": tuple(runs)}))
    assert verdict.recommendation is Recommendation.NONE
    assert verdict.certain
    assert [level.recommendation for level in verdict.levels] == [Recommendation.NONE, Recommendation.KERNELSPACE]


def test_a_round_that_was_cut_short_is_left_out_of_the_whole() -> None:
    result = benchmark(chances(14), change=times({"nbd": 0.8}), noise=calm)
    cut = Result(**{name: getattr(result, name) for name in Result.__slots__} | {"runs": result.runs[:-3]})
    assert judge(cut).levels[0].overall[0].rounds == 7
    assert judge(cut).recommendation is Recommendation.USERSPACE


def test_a_verdict_is_json_and_says_the_same() -> None:
    verdict = judge(benchmark(chances(15), change=times({"nbd": 0.8}), cpu={"block": 20, "nbd": 20}, noise=calm))
    found = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert found["recommendation"] == "userspace"
    assert found["levels"][0]["overall"][0]["speed"]["value"] == pytest.approx(1.25, rel=0.02)
    assert {item["finding"] for item in found["differences"]} == {"faster"}


def test_a_missing_library_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("scipy", "scipy.special", "scipy.stats"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ProgramError, match=r"scipy\S* .*not installed") as caught:
        judge(benchmark(chances(16), workloads=WORKLOADS[:1]))
    assert " -m pip install 'hvext[bench]'" in caught.value.hint
    assert "python3-scipy python3-matplotlib python3-rich" in caught.value.hint


def test_what_one_run_in_twenty_shows_by_chance_is_a_hint_and_no_recommendation() -> None:
    """With 8 rounds and the third smallest ratio on the other side, p is 10/256: between 0.02 and 0.05."""
    ratios = iter([1, 1 / 1.01, 1, 1 / 1.02, 1, 1.03, 1, 1 / 1.1, 1, 1 / 1.11, 1, 1 / 1.12, 1, 1 / 1.13, 1, 1 / 1.14])
    verdict = judge(benchmark(chances(17), workloads=WORKLOADS[:1], noise=lambda _: next(ratios)))
    assert verdict.levels[0].overall[0].speed.p == pytest.approx(10 / 256)
    assert verdict.recommendation is Recommendation.NONE
    assert not verdict.certain
    assert verdict.reason.startswith("There may be a difference on the host, but these figures do not prove it: nbd")
    assert "rounds, about" in verdict.advice
