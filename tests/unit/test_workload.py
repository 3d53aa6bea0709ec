from __future__ import annotations

from collections import Counter

import pytest

from hvext.bench.result import Workload
from hvext.bench.workload import FULL, QUICK, STANDARD, Length, job_lines, order, parse_jobs, size_bytes
from hvext.errors import InputError

JOBS = """
; of somebody who has measured before
[global]
ioengine=libaio
direct=1
bs=8k
runtime=60
time_based

[databases]
rw=randrw
rwmixread=70
iodepth=16

[log]
readwrite=write
blocksize=64KiB
fsync=1
"""


def test_a_job_file_of_the_user_is_measured_as_it_says() -> None:
    assert parse_jobs(JOBS, "jobs.fio") == (
        Workload(name="databases", rw="randrw", block_bytes=8192, depth=16, read_percent=70),
        Workload(name="log", rw="write", block_bytes=65536, depth=1, read_percent=0, fsync=1),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no job"),
        ("[global]\nrw=read\n", "has no job"),
        ("rw=read\n", "not a fio job file"),
        ("[a]\nrw=trim\n", "rw=trim"),
        ("[a]\nbs=4x\n", "size such as"),
        ("[a]\niodepth=many\n", "whole number"),
        ("[a]\niodepth=0\n", "whole number from 1"),
        ("[a]\nbs=1000\n", "multiple of 512"),
        ("[a]\nbs=64M\n", "up to 16M"),
        ("[a]\nverify=crc32c\n", "verify="),
        ("[a]\nrw=read\n[a]\nrw=write\n", "not a fio job file"),
    ],
)
def test_a_job_that_would_not_be_measured_as_written_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_jobs(text, "jobs.fio")


@pytest.mark.parametrize(
    ("text", "value"), [("4k", 4096), ("4K", 4096), ("1MiB", 1 << 20), ("2g", 2 << 30), ("512", 512), ("64kb", 65536)]
)
def test_sizes_are_fios(text: str, value: int) -> None:
    assert size_bytes(text, "bs") == value


@pytest.mark.parametrize("length", [QUICK, STANDARD, FULL], ids=lambda length: length.name)
def test_a_volume_that_holds_data_is_only_read(length: Length) -> None:
    assert all(not workload.writes for workload in length.workloads(destroy_data=False))
    assert any(workload.writes for workload in length.workloads(destroy_data=True))


def test_the_quick_benchmark_of_two_accesses_takes_less_than_a_minute() -> None:
    assert QUICK.total_s(2, destroy_data=False) < 60


def test_all_accesses_of_a_round_are_asked_for_the_same_places_and_another_round_for_others() -> None:
    workload = STANDARD.reads[0]

    def lines(seed: int) -> list[str]:
        return job_lines(workload, run_s=1, warm_up_s=0.5, span_bytes=1 << 26, seed=seed)

    assert lines(1) == lines(1)
    assert lines(1) != lines(2)
    assert "runtime=1000ms" in lines(1)
    assert "ramp_time=500ms" in lines(1)


@pytest.mark.parametrize("n_names", [1, 2, 3, 4])
def test_every_access_has_every_turn_equally_often(n_names: int) -> None:
    names = [f"a{number}" for number in range(n_names)]
    rounds = [order(names, turn) for turn in range(2 * n_names)]
    assert all(sorted(names) == sorted(each) for each in rounds)
    for position in range(n_names):
        assert set(Counter(each[position] for each in rounds).values()) == {2}
