"""What the disks of all VMs of this host are doing, again and again."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from hvext.cli.output import print_note, print_table
from hvext.core.activity import COLUMNS, NUMBERS, Row, activity, busiest
from hvext.core.extras import install_words
from hvext.core.moment import local_text, utc_text
from hvext.host import interrupts
from hvext.host.journal import JournalFolder, closed_folder
from hvext.operations.observe_host import HostObserver
from hvext.operations.records import check_names
from hvext.operations.whose import where_looked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.console import RenderableType

_NONE = "no VM of this host has a disk of hvext, as far as its journal knows: {}"
#: Lines above the rows of a table, and one that stays free.
_HEAD = 3
_Show = Callable[[Sequence[Row]], None]


def top(arguments: argparse.Namespace) -> int:
    """Show what is done in each interval, until Ctrl-C or as many times as wished."""
    check_names(arguments.vm, JournalFolder())
    if closed_folder():
        # Of any other, the table says which journal it is.
        print_note(where_looked(JournalFolder()))
    observer = HostObserver(names=arguments.vm, wait_s=arguments.wait)
    times = 1 if arguments.once else arguments.count
    live = times is None and not arguments.json and sys.stdout.isatty()
    with contextlib.suppress(*([KeyboardInterrupt] if times is None else [])), _shown(arguments, live=live) as show:
        interrupts.run(_look(observer, arguments.interval, times, show))
    return 0


async def _look(observer: HostObserver, interval_s: float, times: int | None, show: _Show) -> None:
    before = await observer.observe(in_flight=True)
    loop = asyncio.get_running_loop()
    due, number = loop.time(), 0
    while times is None or number < times:
        # A look that takes long does not make the ones behind it late.
        due = max(due + interval_s, loop.time() + interval_s / 2)
        await asyncio.sleep(due - loop.time())
        now = await observer.observe(in_flight=True)
        show(activity(before, now))
        before, number = now, number + 1


@contextlib.contextmanager
def _shown(arguments: argparse.Namespace, *, live: bool) -> Iterator[_Show]:
    """Yield what shows rows: a line of JSON, tables one below the other, or in a terminal one that changes."""
    if arguments.json:
        yield lambda rows: _print_json(rows, arguments.interval)
        return
    if live:
        try:
            from rich.live import Live
        except ModuleNotFoundError:
            print(f"hint: {install_words('top')} for a table that stays in its place", file=sys.stderr)
        else:
            with Live("looking …", screen=True, auto_refresh=False) as screen:
                yield lambda rows: screen.update(_table(rows, screen.console.height), refresh=True)
            return
    tables = itertools.count()

    def show(rows: Sequence[Row]) -> None:
        if next(tables):
            print()
        _print_rows(rows)

    yield show


def _print_json(rows: Sequence[Row], interval_s: float) -> None:
    value = {"time": utc_text(time.time()), "interval_s": interval_s, "disks": [row.to_json() for row in rows]}
    print(json.dumps(value, ensure_ascii=False), flush=True)


def _print_rows(rows: Sequence[Row]) -> None:
    print(local_text(time.time()))
    if rows:
        print_table(COLUMNS, [row.cells() for row in rows])
    else:
        print(_NONE.format(JournalFolder().path))
    sys.stdout.flush()


def _table(rows: Sequence[Row], height: int = 0) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    title = f"{len(rows)} disks, {local_text(time.time())}" if rows else _NONE.format(JournalFolder().path)
    if height and len(rows) > (room := height - _HEAD):
        title += f"; the {max(0, room)} busiest, --vm shows those of one VM"
        rows = busiest(rows, room)
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for name in COLUMNS:
        # On a narrow screen names and states are cut, and no figure.
        table.add_column(name, justify="right" if name in NUMBERS else "left", no_wrap=name in NUMBERS)
    for row in rows:
        odd = row.state != "running" or bool(row.disk and any(not each.note for each in row.disk.warnings))
        # Names are text, whatever is in them.
        cells = (Text(cell, no_wrap=True, overflow="ellipsis") for cell in row.cells())
        table.add_row(*cells, style="yellow" if odd else None)
    return table
