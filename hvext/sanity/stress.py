"""Checks under stress: many at once, and scripts that are killed half-way."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hvext.core.documentation import page
from hvext.core.provider import Action
from hvext.core.value import replace
from hvext.core.volume import Volume
from hvext.sanity.check import MANUAL, PAGE, Check, Fault, Level, Need, NotReady, Run, check
from hvext.sanity.trial import Trial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MANY = 20
#: How often one volume is attached that many times.
_ROUNDS = 4
#: When a script is killed, as parts of the time that it takes when it is left alone.
_MOMENTS = (0.1, 0.35, 0.6, 0.85)
_PAGE = f"{PAGE}, How providers are found and run"
_LOCK = "take a lock for the whole of the script (exec 9>lock; flock 9), and have $$ in the names of temporary things"
_KILLED = "make things under another name and rename them when they are whole; take locks with flock, which go with "
_KILLED += "the process, never by making a file or folder; and begin by looking at what is there, whoever left it"


@check("attach-20-volumes", "attach", "20 volumes (with --place: all) are attached at the same time",
       level=Level.STRESS, source=_PAGE, after=["two-volumes"])  # fmt: skip
def attach_many(t: Trial) -> None:
    """Make, attach and detach 20 volumes side by side."""
    volumes = [t.volume(f"many{number}") for number in range(len(t.settings.places) or _MANY)]
    created = _at_once(t, Action.CREATE, volumes, size_mib=t.size_mib)
    attached = _at_once(t, Action.ATTACH, volumes)
    answers = [run.raw for run in attached]
    if len(set(answers)) < len(answers):
        twice = next(run for run in attached if answers.count(run.raw) > 1)
        same = [run for run in attached if run.raw == twice.raw]
        raise Fault("of the volumes that were attached at once, two got the same answer", cure=_LOCK, runs=same[:2])
    detached = _at_once(t, Action.DETACH, volumes)
    removed = _at_once(t, Action.REMOVE, volumes)
    slowest = max(run.seconds for runs in (created, attached, detached, removed) for run in runs)
    t.note(f"with {len(volumes)} volumes at once the slowest script took {slowest:.1f} s")


@check("attach-20-times", "attach", "20 attaches of one volume at the same time give one answer", level=Level.STRESS,
       source=f"{MANUAL}, attach: idempotent", after=["attach-again", "detach-leaves-nothing"])  # fmt: skip
def attach_together(t: Trial) -> None:
    """Attach one volume 20 times side by side, and detach it once; again, as a gap of milliseconds is often missed."""
    volume = t.existing()
    for _round in range(_ROUNDS):
        runs = _at_once(t, Action.ATTACH, [volume] * _MANY)
        other = next((run for run in runs if run.raw != runs[0].raw), None)
        if other:
            raise Fault("attaches of one volume that ran at once gave two answers", cure=_LOCK, runs=[runs[0], other])
        run = t.detach(volume)
        if left := t.settled(lambda: t.watch.serving(volume.name)):
            raise Fault(f"after 20 attaches at once and one detach there is still {left[0]}", cure=_LOCK, runs=[run])


def _killed(action: Action, needs: Sequence[Need] = (), after: str = "") -> Check:
    @check(f"killed-{action!s}", str(action), f"{action!s} that was killed half-way succeeds when it is repeated",
           level=Level.STRESS, source=page("recovery"), after=[after or str(action), "removed-is-gone"],
           needs=needs)  # fmt: skip
    def killed(t: Trial) -> None:
        """Kill the script at several moments, each with a volume of its own, and repeat it."""
        values = _values(t, action)
        alone = t.must(action, _prepared(t, action), **values)
        for part in _MOMENTS:
            _kill_once(t, action, alone.seconds * part, values)

    return killed


def _kill_once(t: Trial, action: Action, after_s: float, values: dict[str, Any]) -> None:
    volume = _prepared(t, action)
    timers: list[threading.Timer] = []

    def started(_volume: Volume, pid: int) -> None:
        timers.append(threading.Timer(after_s, _kill_session, [pid]))
        timers[0].start()

    first = t.run(action, volume, host=replace(t.host, on_start=started), **values)
    for timer in timers:
        timer.cancel()
        timer.join()
    again = _repeated(t, action, volume, values)
    if not again.ok:
        raise Fault(
            f"{action!s} was killed after {after_s:.3f} s, and fails when it is repeated: {again.ended}",
            cure=_KILLED,
            runs=[first, again],
        )
    try:
        _finished(t, action, volume)
    except NotReady as error:
        raise Fault(
            f"{action!s} was killed after {after_s:.3f} s and repeated with success; then {error.words}",
            cure=_KILLED,
            runs=[first, again, *error.runs],
        ) from error


def _repeated(t: Trial, action: Action, volume: Volume, values: dict[str, Any]) -> Run:
    """Repeat a script that was killed; create may find that it had been done, and then is removed and made anew."""
    again = t.run(action, volume, **values)
    if again.ok or action is not Action.CREATE:
        return again
    removed = t.run(Action.REMOVE, volume)
    return t.run(action, volume, **values) if removed.ok else removed


def _finished(t: Trial, action: Action, volume: Volume) -> None:
    """Take the volume through the rest of its life."""
    if action is not Action.REMOVE:
        t.attach(volume)
        t.detach(volume)
        t.remove(volume)
    if not t.always_leaves and (left := t.settled(lambda: t.watch.of(volume.name))):
        raise NotReady(f"there is still {', '.join(left[:3])} when the volume is removed", action=action)


def _prepared(t: Trial, action: Action) -> Volume:
    """Return a volume that is as an action finds it."""
    if action is Action.CREATE:
        return t.volume("killed")
    volume = t.existing("killed")
    if action in (Action.DETACH, Action.GROW, Action.OPEN, Action.CLOSE):
        t.attach(volume)
    return volume


def _values(t: Trial, action: Action) -> dict[str, Any]:
    if action is Action.CREATE:
        return {"size_mib": t.size_mib}
    if action is Action.GROW:
        return {"size_mib": t.size_mib, "new_size_mib": t.size_mib * 2}
    if action is Action.SETINFO:
        return dict(t.metadata())
    return {"exclusive": True} if action is Action.OPEN else {}


def _kill_session(pid: int) -> None:
    """Kill all processes of a script's session; daemons have sessions of their own, and are not of it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.getsid(int(entry.name)) == pid:
                    os.kill(int(entry.name), signal.SIGKILL)


def _at_once(t: Trial, action: Action, volumes: Sequence[Volume], **values: Any) -> list[Run]:
    """Run an action for many volumes side by side; raises Fault when one of them fails."""
    run: Callable[[Volume], Run] = lambda volume: t.run(action, volume, **values)  # noqa: E731
    with ThreadPoolExecutor(max_workers=len(volumes), thread_name_prefix="sanity") as pool:
        runs = list(pool.map(run, volumes))
    failed = [run for run in runs if not run.ok]
    if failed:
        raise Fault(
            f"{len(failed)} of {len(runs)} runs of {action!s} at the same time failed: {failed[0].ended}",
            cure=_LOCK,
            runs=failed[:2],
            script=str(action),
        )
    return runs


CHECKS = (
    attach_many,
    attach_together,
    _killed(Action.CREATE),
    _killed(Action.ATTACH, after="attach-again"),
    _killed(Action.DETACH, after="detach-again"),
    _killed(Action.REMOVE),
    _killed(Action.GROW, after="grow-again"),
    _killed(Action.SETINFO),
    _killed(Action.OPEN, [Need.OPEN]),
    _killed(Action.CLOSE, [Need.CLOSE]),
)
