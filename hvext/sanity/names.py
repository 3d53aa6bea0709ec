"""Checks of names: those that Ganeti makes, and those at the limits.

A provider may refuse a name, with a status that is not 0 and nothing made. One that it takes has to work, and must
not be mixed up with another. Each part of each name has the trial's token in it, so that a script which does not
quote the name comes to volumes of this trial only.
"""

from __future__ import annotations

import uuid as uuid_module
from functools import partial

from hvext.core.provider import Action
from hvext.core.volume import Volume
from hvext.sanity.check import MANUAL, Fault, NotReady, Run, check
from hvext.sanity.trial import Trial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SOURCE = f"{MANUAL}, VOL_NAME"
_QUOTE = 'quote it wherever it stands ("$VOL_NAME"), or refuse names with other characters than you handle, in create'
_WHOLE = "use the whole VOL_NAME: the part behind the first dot tells the disks of an instance apart"
_CUT = "use the whole name, or refuse in create one that is too long for the storage; never cut it off"


@check("name-ganeti", "create", "names as Ganeti makes them work: UUID.ext.diskN", source=_SOURCE,
       after=["two-volumes"])  # fmt: skip
def name_ganeti(t: Trial) -> None:
    """Make disks with Ganeti's names that differ at the end alone."""
    uuid = t.token + str(uuid_module.uuid4())[8:]
    _apart(t, [f"{uuid}.ext.disk{number}" for number in (0, 1, 10)], _WHOLE, refusable=False)


@check("name-long", "create", "long names are taken whole, or refused", source=_SOURCE, after=["name-ganeti"])
def name_long(t: Trial) -> None:
    """Make volumes whose names are long and differ at the end alone."""
    for length in (64, 120, 250):
        stem = f"{t.prefix}long-".ljust(length - 1, "x")
        _apart(t, [f"{stem}1", f"{stem}2"], _CUT, refusable=True)


@check("name-signs", "create", "names with odd characters are taken as they are, or refused", source=_SOURCE,
       after=["name-ganeti"])  # fmt: skip
def name_signs(t: Trial) -> None:
    """Make volumes whose names a shell would take apart, each beside those that it would come to."""
    plain = f"{t.prefix}plain"
    for name in (f"{plain} {t.prefix}two", f"{plain}*", f"{t.prefix}a+b@c:d=e_f", f"{t.prefix}..x"):
        _apart(t, [plain, name], _QUOTE, refusable=True)


@check("cname", "create", "a disk's name for people may be anything", source=f"{MANUAL}, VOL_CNAME", after=["remove"])
def cname(t: Trial) -> None:
    """Run the life of a volume with a VOL_CNAME of several words and quotes."""
    volume = t.volume("named", cname='it\'s "my" disk; echo $HOME & * |')
    size: dict[str, Any] = {"size_mib": t.size_mib}
    for action, values in ((Action.CREATE, size), (Action.ATTACH, {}), (Action.DETACH, {}), (Action.REMOVE, {})):
        run = t.run(action, volume, **values)
        if not run.ok:
            raise Fault(
                f"{action!s} failed with a VOL_CNAME of several words and quotes: {run.ended}",
                cure='quote "$VOL_CNAME" wherever it stands, and never have a shell read it (eval, sh -c)',
                runs=[run],
                script=str(action),
            )


def _apart(t: Trial, names: list[str], cure: str, *, refusable: bool) -> None:
    """Make volumes, attach them all, and take them down again; raise a fault when that goes wrong."""
    made: list[Volume] = []
    refused: list[tuple[Volume, Run]] = []
    for name in names:
        volume = t.volume(name=name)
        run = t.run(Action.CREATE, volume, size_mib=t.size_mib)
        if run.ok:
            made.append(volume)
        elif refusable:
            refused.append((volume, run))
        else:
            raise Fault(f"create refuses the name {name!r}: {run.ended}", cure=cure, runs=[run])
    _together(t, made, cure)
    for volume, run in refused:
        alone = t.run(Action.CREATE, volume, size_mib=t.size_mib)
        if alone.ok:
            words = f"create refuses {volume.name!r} only while there is {made[0].name!r}"
            raise Fault(f"{words}: the two are taken for one", cure=cure, runs=[run, alone])
        shown = repr(volume.name) if len(volume.name) < 80 else f"of {len(volume.name)} characters"
        t.note(f"create refuses the name {shown}")
    t.clean_up()


def _together(t: Trial, volumes: list[Volume], cure: str) -> None:
    seen: dict[str, str] = {}
    runs: list[Run] = []
    for volume in volumes:
        try:
            offer = t.attach(volume)
        except NotReady as error:
            raise Fault(f"{volume.name!r} was made, and {error.words}", cure=cure, runs=error.runs) from error
        runs.append(offer.run)
        for way in offer.ways:
            if way.words in seen:
                raise Fault(f"{volume.name!r} and {seen[way.words]!r} are both at {way.words}", cure=cure, runs=runs)
            seen[way.words] = volume.name
    for action in (Action.DETACH, Action.REMOVE):
        for volume in volumes:
            run = t.run(action, volume)
            if not run.ok:
                raise Fault(
                    f"{action!s} of {volume.name!r} failed: {run.ended}", cure=cure, runs=[run], script=str(action)
                )
    if t.always_leaves:
        return
    for name in (volume.name for volume in volumes):
        if left := t.settled(partial(t.watch.of, name), 1.0):
            raise Fault(f"{name!r} was removed, and there is still {left[0]}", cure=cure, runs=runs, script="remove")


CHECKS = (name_ganeti, name_long, name_signs, cname)
