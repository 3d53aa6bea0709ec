"""Whether a disk fits: what is decided from the findings."""

from __future__ import annotations

import pytest

from hvext.core.fit import Finding, Fit, Fitting, Subject, ok, problem, unknown, weighed
from hvext.errors import InputError

GOOD = ok(Subject.DRIVER, "has it", about="a")
BAD = problem(Subject.REACH, "closed", "open it", about="b")
OPEN_END = unknown(Subject.REACH, "not there", "attach it", about="c")


def fitting(*findings: Finding, **values: object) -> Fitting:
    return Fitting(disk="fake/v1", findings=findings, **values)  # type: ignore[arg-type]


def test_an_access_that_cannot_be_used_keeps_nothing_out_while_there_is_another() -> None:
    usable, findings = weighed({"b": [BAD], "c": [OPEN_END], "a": [GOOD]})
    assert usable == "c"
    assert [finding.needed for finding in findings] == [False, True, False]
    said = fitting(*findings, location=usable, place="port rp0")
    assert said.fits
    assert said.verdict == "fits: fake/v1 would be plugged at port rp0, opened as c; one thing cannot be told from here"


def test_without_a_usable_access_each_of_its_problems_keeps_the_disk_out() -> None:
    usable, findings = weighed({"b": [BAD], "a": [GOOD, problem(Subject.LOCK, "locked", "unplug it", about="a")]})
    assert usable == ""
    said = fitting(*findings)
    assert not said.fits
    assert said.verdict == "does not fit: closed (and 1 more)"


def test_a_problem_of_the_disk_itself_is_not_made_good_by_an_access() -> None:
    said = fitting(problem(Subject.PLACE, "no free slot", "start it with more"), GOOD, location="a")
    assert said.verdict == "does not fit: no free slot"


def test_what_is_about_the_disk_is_said_first_and_accesses_stay_in_the_order_of_a_plug() -> None:
    last = ok(Subject.PLACE, "free")
    first = ok(Subject.VOLUME, "nobody has it")
    said = fitting(BAD, last, GOOD, first)
    assert said.in_order == (first, last, BAD, GOOD)


def test_a_disk_that_is_there_fits_and_a_plug_would_change_nothing() -> None:
    assert "change nothing" in fitting(ok(Subject.DISK, "it is there"), present=True).verdict


@pytest.mark.parametrize("fit", [Fit.PROBLEM, Fit.UNKNOWN])
def test_nothing_is_found_fault_with_without_a_cure(fit: Fit) -> None:
    with pytest.raises(InputError, match="no cure"):
        Finding(subject=Subject.LOCK, fit=fit, found="locked")
