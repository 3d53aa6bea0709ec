"""``--dry-run`` of a benchmark: what it says of the runs is what is measured then."""

from __future__ import annotations

import re

import pytest

from hvext.bench.places import Made
from hvext.bench.plan import plan
from hvext.bench.run import FILL, Settings, measure
from tests.host.test_bench import SHORT, Sample, loops, sample

pytestmark = pytest.mark.nightly
sample = sample


class Told:
    """What is told of the progress."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def begin(self, _n_runs: int, _seconds: float) -> None:
        return None

    def step(self, words: str) -> None:
        self.steps.append(words)

    def warn(self, _words: str) -> None:
        return None


@pytest.mark.parametrize("destroy_data", [False, True])
def test_the_runs_that_are_said_are_those_that_are_measured(sample: Sample, destroy_data: bool) -> None:
    settings = Settings(length=SHORT, made=(Made.LOOP,), destroy_data=destroy_data)
    before = sample.digest(), loops(sample)
    planned = plan(sample.host, sample.disk, settings)
    assert (sample.digest(), loops(sample)) == before
    told = Told()
    measure(sample.host, sample.disk, settings, told)
    said = [step.name for step in planned.steps]
    runs = [words.partition(" over each access, host")[0] for words in said if "over each access" in words]
    measured = [re.sub(r"^round \d+/\d+: (.*) over .*$", r"\1", words) for words in told.steps if words != FILL]
    # What mixes reads and writes, the host's level leaves out.
    assert [name for name in runs if not name.startswith("mixed")] == list(dict.fromkeys(measured))
    assert any(words.startswith(FILL) for words in said) == (FILL in told.steps) == destroy_data
    assert "make loop from the block path" in said
