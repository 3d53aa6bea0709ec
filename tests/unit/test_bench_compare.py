"""Before and after: what became slower is found, and what cannot be compared is said."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from hvext.bench.compare import compare
from hvext.bench.overall import Finding
from hvext.bench.result import Result
from hvext.bench.terminal import print_comparison
from hvext.errors import InputError
from tests.benching import BLOCK, HOST, NBD, WORKLOADS, benchmark, chances


def calm(seed: int, factor: float = 1.0) -> Result:
    """Return a benchmark of a quiet machine, on which nbd takes so many times as long."""
    return benchmark(
        chances(seed),
        change=lambda access, _: (factor if access == "nbd" else 1, 0),
        noise=lambda chance: 1 + 0.004 * chance.random(),
        rounds=10,
    )


def test_what_became_slower_is_found_and_what_did_not_is_not() -> None:
    found = compare(calm(1), calm(2, factor=1.6))
    findings = {total.access: total.finding for total in found.overall}
    assert findings == {"block": Finding.UNCLEAR, "nbd": Finding.SLOWER}
    slower = [change for change in found.changes if change.finding is Finding.SLOWER]
    assert {change.access for change in slower} == {"nbd"}
    assert len(slower) == len(WORKLOADS)
    total = next(total for total in found.overall if total.access == "nbd")
    assert total.speed.value == pytest.approx(1 / 1.6, rel=0.12)


def test_a_benchmark_is_no_different_from_itself() -> None:
    one = calm(3)
    assert {change.finding for change in compare(one, one).changes} == {Finding.UNCLEAR}


def test_other_hosts_are_said() -> None:
    other = replace(calm(5), host={**HOST, "qemu": "11.0.0", "acceleration": "kvm"})
    found = compare(calm(4), other)
    assert found.hosts == ("qemu was 10.0.2, is 11.0.0", "acceleration was tcg, is kvm")
    written = io.StringIO()
    print_comparison(found, file=written)
    assert "The hosts differ: qemu was 10.0.2, is 11.0.0." in written.getvalue()


def test_what_only_one_has_is_said_and_left_out() -> None:
    before = benchmark(chances(6), accesses=(BLOCK, NBD), workloads=WORKLOADS[:2])
    after = benchmark(chances(7), accesses=(BLOCK,), workloads=WORKLOADS[1:3])
    found = compare(before, after)
    assert [(change.workload, change.access) for change in found.changes] == [("randread-4k-32", "block")]
    assert len(found.missing) == 2
    assert found.missing[0].startswith("only before")
    assert "randread-4k-32 over nbd" in found.missing[0]


def test_the_same_name_for_another_workload_is_not_compared() -> None:
    before = benchmark(chances(8), workloads=WORKLOADS[:2])
    changed = (replace(WORKLOADS[0], depth=4), WORKLOADS[1])
    after = replace(benchmark(chances(9), workloads=WORKLOADS[:2]), workloads=changed)
    assert {change.workload for change in compare(before, after).changes} == {WORKLOADS[1].name}


def test_nothing_in_common_is_an_error_with_a_hint() -> None:
    with pytest.raises(InputError, match="nothing in common") as caught:
        compare(benchmark(chances(10), accesses=(BLOCK,)), benchmark(chances(11), accesses=(NBD,)))
    assert caught.value.hint


def test_the_table_has_a_sentence_for_each_access_and_json_the_same() -> None:
    found = compare(calm(12), calm(13, factor=2))
    written = io.StringIO()
    print_comparison(found, file=written)
    assert "nbd became slower on the host: \u2212" in written.getvalue()
    assert "block shows no difference on the host" in written.getvalue()
    as_json = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert {item["finding"] for item in as_json["overall"]} == {"slower", "no difference shown"}
    assert as_json["overall"][0]["rounds"] == [10, 10]


def test_few_rounds_are_said_to_show_little() -> None:
    found = compare(benchmark(chances(14), rounds=3), benchmark(chances(15), rounds=3))
    assert all("show little" in total.words for total in found.overall)
