"""What a benchmark says, on a terminal: while it runs, and at its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from hvext.bench.extra import bench_extra
from hvext.bench.figures import Row, columns, rows
from hvext.bench.overall import Finding, finding
from hvext.bench.result import Result
from hvext.bench.statistics import Samples
from hvext.bench.verdict import LevelVerdict, Verdict, recommended
from hvext.bench.words import change_text, count_words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.table import Table

    from hvext.bench.compare import Comparison
    from hvext.bench.tune import Tuned

#: Without a terminal, a line this often.
LINE_EVERY_S = 30.0
#: What stands for the signs that an encoding does not have.
PLAIN = str.maketrans({"µ": "u", "\u2212": "-", "–": "-", "…": "...", "·": "-"})  # noqa: RUF001 - the very signs
STYLES = {Finding.FASTER: "green", Finding.SLOWER: "red", Finding.UNCLEAR: "dim"}
SHORT = {Finding.FASTER: "faster", Finding.SLOWER: "slower", Finding.UNCLEAR: "unsure"}
#: What the last of these means: an interval beside it may well leave out 0.
UNSURE = "unsure: may be chance, as so many are compared (corrected for their number), or too small to count"


def print_result(result: Result, verdict: Verdict, *, file: IO[str] | None = None) -> None:
    """Print the figures of every place, and the recommendation below them; raises InputError when rich is missing."""
    console = _console(file)
    samples = Samples(result)
    for where in samples.places:
        print_rows(console, where.words, rows(samples, verdict, where), verdict.baseline)
    if any(finding(item) is Finding.UNCLEAR for item in verdict.differences):
        _say(console, UNSURE)
    for note in result.notes:
        _say(console, f"note: {note}")
    for level in reversed(verdict.levels):
        _print_level(console, level, decides=level is verdict.levels[0])


def print_rows(console: Console, title: str, table_rows: Sequence[Row], baseline: str) -> None:
    """Print one table."""
    table = _table(console, f"{title} (speed against {baseline})")
    table.add_column("workload")
    shown = [(name, field) for _, name, field in columns(table_rows) if name]
    for name, _ in shown:
        table.add_column(name, justify="right")
    table.add_column("")
    last = ""
    for row in table_rows:
        if row.workload != last:
            _group(table, console, row.workload)
        cells = [f"  {row.access}", *(getattr(row, field) for _, field in shown)]
        table.add_row(*(_escaped(console, text) for text in cells), _found(row.finding))
        last = row.workload
    console.print(table)


def print_comparison(comparison: Comparison, *, file: IO[str] | None = None) -> None:
    """Print before and after; raises InputError when rich is missing."""
    console = _console(file)
    for difference in comparison.hosts:
        _say(console, f"The hosts differ: {difference}.")
    table = _table(console, "After against before")
    table.add_column("workload")
    for name in ("before", "after", "speed", "95 %"):
        table.add_column(name, justify="right")
    table.add_column("")
    last = ""
    for change in comparison.changes:
        group = f"{change.where.words}: {change.workload}"
        if group != last:
            _group(table, console, group)
        last = group
        speed, interval = change_text(change.speed, interval=False), change_text(change.speed, value=False)
        shown = [f"  {change.access}", change.before, change.after, speed, interval.removesuffix(" %")]
        table.add_row(*(_escaped(console, text) for text in shown), _found(change.finding))
    console.print(table)
    if any(change.finding is Finding.UNCLEAR for change in comparison.changes):
        _say(console, UNSURE)
    console.print()
    for total in comparison.overall:
        _say(console, total.words)
    for note in (*comparison.empty, *comparison.missing):
        _say(console, f"note: {note}")


def print_tuned(result: Result | None, tuned: Tuned, *, file: IO[str] | None = None) -> None:
    """Print how other options compare with those given, and which to use; raises InputError when rich is missing.

    ``result`` is None where nothing had to be measured.
    """
    console = _console(file)
    if result is not None:
        _print_compared(console, result, tuned)
    options = ",".join(f"{name}={value}" for name, value in tuned.options.items()) or "none"
    console.print(_plain(console, f"Disk options to use: {options}"), style="bold", markup=False)
    _say(console, tuned.reason)


def _print_compared(console: Console, result: Result, tuned: Tuned) -> None:
    table = _table(console, "Speed against the options as given, over all workloads")
    table.add_column("options")
    for name in ("speed", "95 %", "p"):
        table.add_column(name, justify="right")
    for item in tuned.compared:
        speed, interval = change_text(item.speed, interval=False), change_text(item.speed, value=False)
        cells = (item.access, speed, interval.removesuffix(" %"), f"{item.speed_holm:.2g}")
        table.add_row(*(_escaped(console, text) for text in cells))
    console.print(table)
    for note in result.notes:
        _say(console, f"note: {note}")
    console.print()


class Progress:
    """How far a benchmark is, on standard error: a bar on a terminal, else a line now and then; nothing when quiet.

    ::

        with Progress(quiet=as_json) as progress:
            progress.begin(120, 2.8)
            progress.step("randread-4k over nbd")
    """

    def __init__(self, *, quiet: bool = False, file: IO[str] | None = None) -> None:
        self._file = sys.stderr if file is None else file
        self._quiet = quiet
        self._total = self._begun = 0
        self._began = self._said = time.monotonic()
        self._bar: RichProgress | None = None

    def __enter__(self) -> Self:
        if not self._quiet and self._file.isatty():
            self._bar = _bar(self._file)
            self._bar.add_task("preparing", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, n_runs: int, seconds: float) -> None:
        """Take in how many runs come, of so many seconds each."""
        self._total, self._begun = n_runs, 0
        self._began = self._said = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=n_runs, completed=0)
        elif not self._quiet:
            print(f"{count_words(n_runs, 'run')}: {_about(n_runs * seconds)}", file=self._file, flush=True)

    def step(self, words: str) -> None:
        """Say what begins now: whatever was said before has ended."""
        done = min(self._begun, self._total)
        self._begun += 1
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, description=words)
        elif not self._quiet and now - self._said >= LINE_EVERY_S:
            self._said = now
            left = (now - self._began) / max(1, done) * (self._total - done)
            print(f"{done} of {self._total} runs, {_about(left)} left: {words}", file=self._file, flush=True)

    def warn(self, words: str) -> None:
        """Say what makes the figures worth less."""
        if self._bar is not None:
            self._bar.console.print(f"warning: {words}", markup=False, highlight=False)
        elif not self._quiet:
            print(f"warning: {words}", file=self._file, flush=True)


def _bar(file: IO[str]) -> RichProgress:
    with bench_extra():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column
    return RichProgress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=3)),
        BarColumn(bar_width=None, table_column=Column(ratio=2)),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(file=file),
        transient=True,
        expand=True,
    )


def _about(seconds: float) -> str:
    return "about " + (count_words(round(seconds / 60), "minute") if seconds >= 90 else f"{max(1, round(seconds))} s")


def _print_level(console: Console, level: LevelVerdict, *, decides: bool) -> None:
    console.print()
    if decides:
        console.print(_plain(console, recommended(level)), style="bold", markup=False)
    _say(console, f"{level.reason} {level.advice}".strip())
    if len(level.overall) > 1:
        every = ", ".join(f"{item.access} {change_text(item.speed)}" for item in level.overall)
        _say(console, f"Over all workloads: {every}.")


def _console(file: IO[str] | None) -> Console:
    with bench_extra():
        from rich.console import Console
    return Console(file=file, highlight=False)


def _table(console: Console, title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(
        title=_escaped(console, title[:1].upper() + title[1:]),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )


def _say(console: Console, text: str) -> None:
    console.print(_plain(console, text), markup=False, soft_wrap=not console.is_terminal)


def _plain(console: Console, text: str) -> str:
    """Return text that the console's encoding has."""
    if console.encoding.startswith("utf"):
        return text
    return text.translate(PLAIN).encode(console.encoding, "backslashreplace").decode(console.encoding)


def _escaped(console: Console, text: str) -> str:
    from rich.markup import escape

    return escape(_plain(console, text))


def _group(table: Table, console: Console, name: str) -> None:
    """Begin a group of rows with a name of its own: a column for it would not fit into 80."""
    if table.row_count:
        table.add_section()
    table.add_row(f"[bold]{_escaped(console, name)}[/]")


def _found(finding: Finding | None) -> str:
    return "" if finding is None else f"[{STYLES[finding]}]{SHORT[finding]}[/]"
