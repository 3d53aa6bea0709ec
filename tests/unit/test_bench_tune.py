"""What a tuning concludes of its figures: the words say the same as the table."""

from __future__ import annotations

import io

import pytest

from hvext.bench.places import place
from hvext.bench.result import MeasuredAccess, Result
from hvext.bench.terminal import print_tuned
from hvext.bench.tune import AS_GIVEN, OPTION, NothingToVary, choose, preferred, variations
from hvext.core.access import Access
from hvext.core.options import DiskOptions
from hvext.core.uri import parse_uri
from hvext.core.uri.vhost_user import VhostUserLocation
from hvext.errors import InputError
from tests.benching import benchmark, chances

GIVEN = MeasuredAccess(name=AS_GIVEN, kind=OPTION, words="/dev/loop0")
NATIVE = MeasuredAccess(name="aio=native", kind=OPTION, words="/dev/loop0", options={"aio": "native"})


def tuned_by(factor: float, *, seed: int = 1, rounds: int = 8) -> Result:
    return benchmark(
        chances(seed),
        change=lambda access, _: (factor if access == NATIVE.name else 1, 0),
        accesses=(GIVEN, NATIVE),
        rounds=rounds,
    )


def test_what_is_faster_beyond_the_noise_is_to_be_used() -> None:
    tuned = choose(tuned_by(0.5))
    assert (tuned.best, tuned.options) == ("aio=native", {"aio": "native"})


def test_what_may_be_faster_is_not_said_to_be_none() -> None:
    found = [choose(tuned_by(0.93, seed=seed)) for seed in range(40)]
    unproven = [tuned for tuned in found if 0.02 < tuned.compared[0].speed.p < 0.05]
    assert unproven, "no benchmark of these is between the two"
    for tuned in unproven:
        assert (tuned.best, tuned.options) == (AS_GIVEN, {})
        assert tuned.reason.startswith("there may be a difference on the host, but these figures do not prove it: aio=")
    clear = [tuned for tuned in found if tuned.compared[0].speed.p > 0.05]
    assert {tuned.reason for tuned in clear} == {"nothing is shown to be faster than the options as given, on the host"}


def test_two_rounds_prove_nothing_about_any_option() -> None:
    assert choose(tuned_by(0.5, rounds=2)).reason == "2 rounds: too few for any conclusion on the host, it takes 7"


def test_a_disk_without_a_choice_is_told_so_and_given_its_own_options_without_a_table() -> None:
    found = place("nbd", "userspace", "nbd://h/x", parse_uri("nbd://h/x"), DiskOptions(read_only=True, queues=1))
    assert len(variations(found, guest=False)) == 1
    tuned = NothingToVary(found, guest=False).tuned
    written = io.StringIO()
    print_tuned(None, tuned, file=written)
    assert written.getvalue().splitlines() == [
        "Disk options to use: queues=1",
        "nothing was measured: on the host there is no option to choose for nbd; --level guest varies iothread",
    ]


def test_a_volume_that_is_only_there_over_vhost_user_is_refused() -> None:
    found = place("vhost-user", "userspace", "", VhostUserLocation(path="/run/s"), DiskOptions())
    with pytest.raises(InputError, match="only offered over vhost-user"):
        preferred([found], Access.PREFER_USERSPACE)
