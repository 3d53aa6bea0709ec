from __future__ import annotations

from uuid import UUID

import pytest

from hvext.core.history import Ending, Past
from hvext.core.observation import DiskWarning, ObservedDisk, ObservedVm, Oddity, Offered, Place
from hvext.core.record import Operation
from hvext.report.content import Benchmark, Content
from hvext.report.page import html_page
from hvext.report.timeline import LANES, ROWS
from tests.browser import Page

ODD = '<script>alert(1)</script> & "x"'


def test_names_and_errors_are_text_and_no_markup() -> None:
    disk = ObservedDisk(
        uuid=UUID(int=1),
        warnings=(DiskWarning(oddity=Oddity.STUCK, words=ODD),),
        offered=Offered(error=ODD, places=(Place(access=ODD, where=ODD, health=None),)),
    )
    past = _past(0, vm=ODD, volume=ODD, step=ODD, ending=Ending.LEFT)
    content = Content(
        host=ODD,
        version=ODD,
        taken=0.0,
        vms=(ObservedVm(name=ODD, state=ODD, taken_s=0.0, words=ODD, disks=(disk,)),),
        history=(past,),
        benchmarks=(Benchmark(volume=ODD, answer=ODD, reason=ODD, made=ODD, certain=True),),
        broken=(ODD,),
    )
    text = html_page(content)
    assert "script" not in {tag for tag, _ in Page(text).tags}
    assert text.count("&lt;script&gt;") > 12
    assert "1970-01-01 00:00:00 UTC" in text


@pytest.mark.parametrize(("state", "number"), [("io-error", 1), ("running", 0)])
def test_a_guest_that_stands_still_is_in_the_tiles_with_what_stops_it(state: str, number: int) -> None:
    warning = DiskWarning(oddity=Oddity.FULL, words="sample/v is full; make room, then hvext resume --qmp /q")
    disk = ObservedDisk(uuid=UUID(int=1), warnings=(warning,) if number else ())
    vm = ObservedVm(name="vm", state=state, taken_s=0.0, disks=(disk,))
    text = html_page(Content(host="h", version="1", taken=0.0, vms=(vm,)))
    assert f"<b>{number}</b><span>guests that stand still</span>" in text
    assert f"<b>{number}</b><span>warnings</span>" in text
    assert ("make room, then hvext resume --qmp /q" in text) == bool(number)


def test_a_long_history_is_cut_where_it_says() -> None:
    history = tuple(_past(number, volume=f"sample/v{number % (LANES + 7)}") for number in range(ROWS + 60))
    text = html_page(Content(host="h", version="1", taken=0.0, vms=(), history=history))
    assert text.count('<div class="lane">') == LANES
    assert "7 more disks are left out here" in text
    assert f"The last {ROWS} operations, of {ROWS + 60}" in text
    assert text.count("<tr><th scope=row>") == ROWS
    # The latest ones stay.
    assert "1970-01-01 00:04:19" in text


def _past(number: int, **values: object) -> Past:
    plain: dict[str, object] = {
        "vm": "vm",
        "disk": UUID(int=1),
        "volume": "sample/v",
        "operation": Operation.PLUG,
        "since": number - 0.5,
        "until": float(number),
        "ending": Ending.DONE,
    }
    return Past(**{**plain, **values})
