"""What a person reads on a terminal of 80 columns, in a pipe, and where there is no UTF-8."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from hvext.bench import terminal
from hvext.bench.result import Level, Result
from hvext.bench.terminal import Progress, print_result, print_tuned
from hvext.bench.tune import Tuned
from hvext.bench.verdict import judge
from tests.benching import BLOCK, NBD, VHOST, benchmark, chances

PLACES = ((Level.HOST, ""), (Level.GUEST, "virtio-blk-pci"))


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def result() -> Result:
    return benchmark(
        chances(1),
        change=lambda access, _: (0.6 if access == "nbd" else 1, 0),
        cpu={"block": 20, "nbd": 15, "vhost-user": 20},
        accesses=(BLOCK, NBD, VHOST),
        places=PLACES,
    )


def test_the_table_fits_into_80_columns_with_its_figures(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    written = io.StringIO()
    print_result(result, judge(result), file=written)
    lines = written.getvalue().splitlines()
    rows = [line for line in lines if line.startswith("  nbd")]
    assert len(rows) == 10
    assert all(len(row) <= 80 and " %" in row and "µs" in row and " to " in row for row in rows)
    assert sum("faster" in row for row in rows) >= 5
    assert "In a guest, virtio-blk-pci (speed against block)" in written.getvalue()
    assert lines.index("Recommendation: access=userspace (nbd)") > lines.index(rows[-1]), "at the end, where one looks"
    assert judge(result).reason in lines, "a pipe gets sentences in one piece"
    assert "\x1b" not in written.getvalue()


def test_an_interval_beside_which_nothing_is_concluded_has_its_reason(result: Result) -> None:
    written = io.StringIO()
    print_result(result, judge(result), file=written)
    assert "unsure: may be chance" in written.getvalue(), "an access like the block path is among them"
    assert any(line.rstrip().endswith(" unsure") for line in written.getvalue().splitlines())
    clear = benchmark(chances(1), change=lambda access, _: (0.2 if access == "nbd" else 1, 0))
    written = io.StringIO()
    print_result(clear, judge(clear), file=written)
    assert "unsure" not in written.getvalue()


def test_an_encoding_without_signs_gets_plain_ones(result: Result) -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii") as written:
        print_result(result, judge(result), file=written)
        written.flush()
        text = raw.getvalue().decode("ascii")
    assert " us" in text
    assert "\\u" not in text
    assert "\\x" not in text


def test_names_with_brackets_are_shown_as_they_are(result: Result) -> None:
    odd = replace(BLOCK, name="[bold]block[/]")
    written = io.StringIO()
    made = benchmark(chances(2), accesses=(odd, NBD))
    print_result(made, judge(made), file=written)
    lines = written.getvalue().splitlines()
    assert lines[0].strip() == "On the host (speed against [bold]block[/])"
    assert sum(line.startswith("  [bold]block[/] ") for line in lines) == 5


def test_progress_is_a_bar_on_a_terminal() -> None:
    written = Terminal()
    with Progress(file=written) as progress:
        progress.begin(3, 2.5)
        for words in ("first", "randread-4k over nbd", "third"):
            progress.step(words)
    assert "third" in written.getvalue()
    assert "2/3" in written.getvalue()


def test_progress_without_a_terminal_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    with Progress(file=written) as progress:
        progress.begin(120, 3)
        for number in range(100):
            progress.step(f"run {number}")
        monkeypatch.setattr(terminal, "LINE_EVERY_S", 0.0)
        progress.step("the next")
    lines = written.getvalue().splitlines()
    assert lines[0] == "120 runs: about 6 minutes"
    assert len(lines) == 2
    assert lines[1].startswith("100 of 120 runs, about ")
    assert lines[1].endswith("left: the next")


def test_quiet_progress_says_nothing() -> None:
    written = Terminal()
    with Progress(quiet=True, file=written) as progress:
        progress.begin(3, 2.5)
        progress.step("first")
    assert written.getvalue() == ""


def test_a_tuning_ends_with_the_options_to_use() -> None:
    compared = (
        judge(benchmark(chances(3), change=lambda access, _: (0.6 if access == "nbd" else 1, 0))).levels[0].overall
    )
    tuned = Tuned(best="nbd", options={"aio": "native", "iothread": "io0"}, reason="for a reason", compared=compared)
    written = io.StringIO()
    print_tuned(replace(benchmark(chances(3), rounds=1), notes=("a note",)), tuned, file=written)
    lines = written.getvalue().splitlines()
    assert lines[-2:] == ["Disk options to use: aio=native,iothread=io0", "for a reason"]
    assert any(line.startswith("nbd ") and "+" in line for line in lines)
    assert "note: a note" in lines
