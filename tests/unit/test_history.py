from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from hvext.core.history import Ending, Past, parse_history
from hvext.core.record import Operation

PAST = st.builds(
    Past,
    vm=st.text(),
    disk=st.uuids(),
    volume=st.text(),
    operation=st.sampled_from(Operation),
    since=st.integers(0, 1 << 40).map(lambda ms: ms / 1000),
    until=st.integers(0, 1 << 40).map(lambda ms: ms / 1000),
    ending=st.sampled_from(Ending),
    step=st.text(),
)


@given(st.lists(PAST))
def test_what_was_done_is_read_as_it_was_written_and_in_order(done: list[Past]) -> None:
    lines = "".join(past.line() for past in done).split("\n")
    assert parse_history(lines) == sorted(done, key=lambda past: past.until)


def test_a_line_that_a_crash_cut_short_costs_no_other() -> None:
    values = {"vm": "a", "disk": UUID(int=1), "volume": "sample/v", "operation": Operation.PLUG, "since": 1.0}
    one, two = (Past(**values, until=until, ending=Ending.DONE) for until in (2.0, 3.0))
    unknown = one.line().replace('"plug"', '"teleport"')
    assert parse_history([one.line(), one.line()[:40], "[]", "7", "", unknown, two.line()]) == [one, two]
