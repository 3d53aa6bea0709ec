"""Checks of names: those that Ganeti makes, and those at the limits.

A provider may refuse a name, with a status that is not 0 and nothing made. One that it takes has to work, and must
not be mixed up with another. Each part of each name has the trial's token in it, so that a script which does not
quote the name comes to volumes of this trial only.
"""

from __future__ import annotations

import contextlib
import uuid as uuid_module
from functools import partial

from hvext.core.provider import Action
from hvext.core.uri import parse_uri
from hvext.core.uri.mask import masked
from hvext.core.volume import Volume
from hvext.errors import InputError, ProgramError
from hvext.host.files import opened_as
from hvext.sanity import storage
from hvext.sanity.check import MANUAL, Fault, NotReady, Run, Skip, check
from hvext.sanity.trial import Offer, Trial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SOURCE = f"{MANUAL}, VOL_NAME"
_QUOTE = 'quote it wherever it stands ("$VOL_NAME"), or refuse names with other characters than you handle, in create'
_WHOLE = "use the whole VOL_NAME: the part behind the first dot tells the disks of an instance apart"
_CUT = "use the whole name, or refuse in create one that is too long for the storage; never cut it off"
_URI = "write a name into a URI percent-encoded (# begins a fragment, ? a query, % an escape), and put no name into a "
_URI += "socket's path, which has 107 bytes at most: a digest of it (sha256sum), or refuse the name in create"
_LATE = "let attach return only when what it has started answers, and have detach end all that attach has begun, also "
_LATE += "what is still starting; it is not about the name"


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
    odd = (f"{plain} {t.prefix}two", f"{plain}*", f"{t.prefix}a+b@c:d=e_f", f"{t.prefix}..x", f"{t.prefix}g#h%41?i&j")
    for name in odd:
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
    offers = _attached(t, volumes, cure)
    runs = [offer.run for offer in offers]
    for volume, offer in zip(volumes, offers, strict=True):
        _opens(t, volume, offer)
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
        if left := t.settled(partial(t.watch.serving, name), 1.0):
            _blame_attach(t, left[0])
            raise Fault(f"{name!r} was detached, and there is still {left[0]}", cure=_LATE, runs=runs, script="detach")
        if left := t.settled(partial(t.watch.files, name), 1.0):
            raise Fault(f"{name!r} was removed, and there is still {left[0]}", cure=cure, runs=runs, script="remove")


def _attached(t: Trial, volumes: list[Volume], cure: str) -> list[Offer]:
    """Attach all volumes, each at places of its own."""
    seen: dict[str, str] = {}
    offers: list[Offer] = []
    for volume in volumes:
        try:
            offers.append(t.attach(volume))
        except NotReady as error:
            # A volume with an ordinary name, made in the same way: when that one fails as well, it is not the name.
            with contextlib.suppress(Skip):
                t.attached("ordinary")
            raise Fault(f"{volume.name!r} was made, and {error.words}", cure=cure, runs=error.runs) from error
        runs = [offer.run for offer in offers]
        for way in offers[-1].ways:
            if way.words in seen:
                raise Fault(f"{volume.name!r} and {seen[way.words]!r} are both at {way.words}", cure=cure, runs=runs)
            seen[way.words] = volume.name
    return offers


def _opens(t: Trial, volume: Volume, offer: Offer) -> None:
    """Raise a fault unless every way that is offered for the volume can be opened and read."""
    if "attach-uri" in t.failed:
        return
    try:
        for uri in offer.attachment.uris_for("kvm"):
            parse_uri(uri, look=opened_as)
        for way in t.reachable(offer):
            storage.differences(way, 0, t.size_mib)
    except (InputError, ProgramError) as error:
        words = f"{volume.name!r} was attached, and cannot be read where attach says: {masked(error.message)}"
        raise Fault(words, cure=_URI, runs=[offer.run], script="attach") from error


def _blame_attach(t: Trial, left: str) -> None:
    """Raise NotReady when attach is known to be at fault: what is left may be of that."""
    if any(name.startswith("attach") for name in t.failed):
        raise NotReady(f"of what attach has begun there is still {left}", action=Action.ATTACH)


CHECKS = (name_ganeti, name_long, name_signs, cname)
