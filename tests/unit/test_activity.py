from __future__ import annotations

from hvext.core.activity import Row, busiest
from hvext.core.statistics import Kind, Rate


def _row(vm: str, per_s: float | None) -> Row:
    rates = None
    if per_s is not None:
        rates = {Kind.READ: Rate(per_s=per_s, bytes_per_s=0.0, failed=0, latency_s=None)}
    return Row(vm=vm, disk=None, rates=rates, state="running")


def test_a_screen_that_is_too_small_shows_those_that_do_the_most_in_their_places() -> None:
    rows = [_row("a", 1), _row("b", None), _row("c", 9), _row("d", 0), _row("e", 5)]
    assert [row.vm for row in busiest(rows, 3)] == ["a", "c", "e"]
    assert busiest(rows, 0) == busiest(rows, -4) == []
    assert busiest(rows, 9) == rows
