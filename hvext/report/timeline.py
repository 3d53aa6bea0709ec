"""What was done to the disks, along time: a lane for each disk, and a table, the latest first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

from hvext.core.history import Ending, Past
from hvext.core.record import Operation

#: So many operations the table has, and so many disks the drawing.
ROWS, LANES = 200, 40
_SIGNS = {
    Operation.START: "S",
    Operation.PLUG: "P",
    Operation.UNPLUG: "U",
    Operation.REPOINT: "M",
    Operation.RESIZE: "G",
    Operation.FAIL_OVER: "F",
    Operation.MIGRATE: "→",
}
#: What the operations are called for people.
WORDS = {Operation.REPOINT: "move", Operation.RESIZE: "grow"}


def time_text(seconds: float) -> str:
    """Return a time in UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def took_text(seconds: float) -> str:
    """Return how long something took."""
    return (
        f"{seconds * 1000:.0f} ms"
        if seconds < 1
        else f"{seconds:.1f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
    )


def timeline(history: Sequence[Past]) -> str:
    """Return the section of what has ended; ``history`` is oldest first."""
    if not history:
        words = "None has ended yet, as far as this host remembers."
        return f'<section><h2>Operations</h2><p class="muted">{words}</p></section>'
    return f"<section><h2>Operations</h2>{_lanes(history)}{_legend(history)}{_table(history)}</section>"


def _lanes(history: Sequence[Past]) -> str:
    begin, end = history[0].until, history[-1].until
    span = max(end - begin, 1.0)
    lanes: dict[tuple[str, str], list[Past]] = {}
    for past in history:
        lanes.setdefault((past.vm, past.volume), []).append(past)
    latest = sorted(lanes, key=lambda lane: lanes[lane][-1].until, reverse=True)[:LANES]
    drawn = "".join(
        f'<div class="lane"><div class="label">{escape(volume)} <small>{escape(vm)}</small></div><div class="track">'
        + "".join(_mark(past, 100 * (past.until - begin) / span) for past in lanes[vm, volume])
        + "</div></div>"
        for vm, volume in sorted(latest)
    )
    more = f'<p class="muted">{len(lanes) - LANES} more disks are left out here.</p>' if len(lanes) > LANES else ""
    axis = f"<span>{time_text(begin)}</span><span>{time_text(end)} UTC</span>"
    return f'<div class="card lanes">{drawn}<div class="axis">{axis}</div>{more}</div>'


def _mark(past: Past, percent: float) -> str:
    words = f"{_words(past)}, {past.ending}, {time_text(past.until)}"
    return (
        f'<span class="mark {past.ending}{" over" if past.operation is Operation.FAIL_OVER else ""}" '
        f'style="left:{percent:.2f}%" title="{escape(words)}">{_SIGNS[past.operation]}</span>'
    )


def _legend(history: Sequence[Past]) -> str:
    there = {past.operation for past in history}
    words = ", ".join(f"{sign} {WORDS.get(each, str(each))}" for each, sign in _SIGNS.items() if each in there)
    return f'<p class="muted">{words}; filled red: it failed, and was taken back or left something.</p>'


def _words(past: Past) -> str:
    return WORDS.get(past.operation, str(past.operation))


def _table(history: Sequence[Past]) -> str:
    rows = "".join(
        f"<tr><th scope=row>{time_text(past.until)}</th><td>{escape(past.vm)}</td><td>{escape(past.volume)}</td>"
        f"<td>{_words(past)}</td><td>{_ending(past)}</td><td>{took_text(max(0.0, past.until - past.since))}</td></tr>"
        for past in reversed(history[-ROWS:])
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Ended (UTC)", "VM", "Disk", "Operation", "How", "Took"))
    title = f"The last {min(len(history), ROWS)} operations" + (f", of {len(history)}" if len(history) > ROWS else "")
    return (
        f"<details{' open' if len(history) <= 12 else ''}><summary>{title}"
        '</summary><div class="wide" tabindex="0" role="region" aria-label="Operations"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _ending(past: Past) -> str:
    if past.ending is Ending.DONE:
        return '<span class="badge good">done</span>'
    where = f" at “{escape(past.step)}”" if past.step else ""
    words = "left something" if past.ending is Ending.LEFT else "failed"
    return f'<span class="badge bad">{words}</span>{where}'
