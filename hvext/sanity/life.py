"""Checks of the contract: letting go, removing, growing, snapshots, and two volumes beside each other."""

from __future__ import annotations

import time

from hvext.core.documentation import page
from hvext.core.provider import Action
from hvext.core.volume import Volume
from hvext.errors import ProgramError
from hvext.sanity import storage
from hvext.sanity.check import MANUAL, PAGE, Fault, Need, NotReady, Run, check
from hvext.sanity.storage import Way
from hvext.sanity.trial import Offer, Trial

_REPEATED = (
    "look whether there is anything to do, and end with 0 when there is not: an interrupted caller runs it again"
)
_GROW_MIB = 16


@check("detach", "detach", "detach of an attached volume ends with 0", source=f"{MANUAL}, detach",
       after=["attach-answer"])  # fmt: skip
def detach(t: Trial) -> None:
    """Attach and detach."""
    volume, _offer = t.attached()
    run = t.run(Action.DETACH, volume)
    if not run.ok:
        raise Fault(
            f"detach failed: {run.ended}",
            cure="undo all that attach did, and end with 0. It is given VOL_NAME and no size",
            runs=[run],
        )


@check("detach-again", "detach", "detach of a detached volume ends with 0", source=f"{MANUAL}, detach: idempotent",
       after=["detach"])  # fmt: skip
def detach_again(t: Trial) -> None:
    """Detach a volume that was never attached, attach it, and detach it twice."""
    volume = t.existing()
    run = t.run(Action.DETACH, volume)
    if not run.ok:
        raise Fault(f"detach of a volume that was never attached failed: {run.ended}", cure=_REPEATED, runs=[run])
    t.attach(volume)
    t.detach(volume)
    run = t.run(Action.DETACH, volume)
    if not run.ok:
        raise Fault(f"the second detach failed: {run.ended}", cure=_REPEATED, runs=[run])


@check("detach-leaves-nothing", "detach", "after detach nothing on this host serves the volume", after=["detach"],
       source=f"{MANUAL}, detach: undoes everything attach did")  # fmt: skip
def detach_leaves_nothing(t: Trial) -> None:
    """Attach twice, detach once, and look for devices, mounts and processes."""
    volume, offer = t.attached()
    again = t.run(Action.ATTACH, volume)
    run = t.detach(volume)
    if left := t.settled(lambda: t.watch.serving(volume.name)):
        raise Fault(
            f"after detach there is still {', '.join(left)}",
            cure="undo everything that attach did, also what an earlier attach has made: end its processes, take down "
            "all its devices and mounts, and look that they are gone",
            runs=[offer.run, again, run],
        )


@check("remove", "remove", "remove of a detached volume ends with 0", source=f"{MANUAL}, remove", after=["detach"])
def remove(t: Trial) -> None:
    """Create, attach, detach and remove."""
    volume, _offer = t.attached()
    t.detach(volume)
    run = t.run(Action.REMOVE, volume)
    if not run.ok:
        raise Fault(f"remove failed: {run.ended}", cure="delete the volume, and end with 0", runs=[run])


@check("removed-is-gone", "remove", "a removed volume cannot be attached, and its name is free",
       source=f"{MANUAL}, remove", after=["remove", "attach-unknown"], needs=[Need.MAKING])  # fmt: skip
def removed_is_gone(t: Trial) -> None:
    """Remove a volume, attach it, and make it anew."""
    volume = t.existing()
    removed = t.remove(volume)
    run = t.run(Action.ATTACH, volume)
    if run.ok:
        raise Fault(
            "the volume was removed with status 0, and can be attached all the same",
            cure="delete the volume before ending with 0; end with another status when that fails",
            runs=[removed, run],
        )
    made = t.run(Action.CREATE, volume, size_mib=t.size_mib)
    if not made.ok:
        raise Fault(f"create after remove failed: {made.ended}", cure="free the name as well", runs=[removed, made])


@check("remove-leaves-nothing", "remove", "after remove no file of the volume is left",
       source=f"{MANUAL}, remove: along with all its data", after=["removed-is-gone", "detach-leaves-nothing"],
       )  # fmt: skip
def remove_leaves_nothing(t: Trial) -> None:
    """Do with a volume whatever can be done with it, remove it, and look for its files."""
    volume, _offer = t.attached()
    t.run(Action.SETINFO, volume, **t.metadata())
    t.detach(volume)
    run = t.remove(volume)
    if left := t.settled(lambda: t.watch.files(volume.name)):
        raise Fault(
            f"after remove there is still {', '.join(left)}",
            cure="delete all that any script has made for the volume: its data, metadata, locks and temporary files",
            runs=[run],
        )


@check("two-volumes", "create", "two volumes are two volumes", source=f"{MANUAL}, VOL_NAME",
       after=["attach-again", "detach", "remove"])  # fmt: skip
def two_volumes(t: Trial) -> None:
    """Make and attach two volumes, and compare what they offer."""
    first = t.existing("one")
    second = t.volume("two")
    made = t.run(Action.CREATE, second, size_mib=t.size_mib)
    if not made.ok:
        raise Fault(f"a second volume could not be made beside the first: {made.ended}", cure=_NAMED, runs=[made])
    one, two = _offered(t, first), _offered(t, second)
    shared = {way.words for way in one.ways} & {way.words for way in two.ways}
    if shared:
        raise Fault(
            f"two volumes are both at {sorted(shared)[0]}", cure=_NAMED, runs=[one.run, two.run], script="attach"
        )


@check("detach-other", "detach", "detach of one volume leaves the others attached", source=f"{MANUAL}, detach",
       after=["two-volumes"])  # fmt: skip
def detach_other(t: Trial) -> None:
    """Detach and remove one of two volumes, and look at the other."""
    (gone, _), (kept, offer) = t.attached("gone"), t.attached("kept")
    before = _identities(offer)
    run = t.detach(gone)
    _still(t, offer, before, Fault(
        "detach of one volume has cut off another one",
        cure="let go of what VOL_NAME has alone: find it by its whole name, not by the beginning of it",
        runs=[run],
    ))  # fmt: skip
    t.detach(kept)


@check("remove-other", "remove", "remove of one volume leaves the others as they are", source=f"{MANUAL}, remove",
       after=["detach-other"])  # fmt: skip
def remove_other(t: Trial) -> None:
    """Remove one of two volumes, and look at the other."""
    gone, (_kept, offer) = t.existing("gone"), t.attached("kept")
    before = _identities(offer)
    run = t.remove(gone)
    _still(t, offer, before, Fault(
        "remove of one volume has taken another one away",
        cure="delete what VOL_NAME has alone, and quote \"$VOL_NAME\" wherever it stands",
        runs=[run],
    ))  # fmt: skip


@check("grow", "grow", "grow makes an attached volume VOL_NEW_SIZE MiB large", source=f"{MANUAL}, grow",
       after=["detach", "size-path", "size-uri"])  # fmt: skip
def grow(t: Trial) -> None:
    """Grow an attached volume, attach it anew and look at its size."""
    volume, _offer = t.attached()
    run = t.run(Action.GROW, volume, size_mib=t.size_mib, new_size_mib=_grown(t))
    if not run.ok:
        raise Fault(f"grow failed: {run.ended}", cure="grow to VOL_NEW_SIZE MiB, and end with 0", runs=[run])
    t.detach(volume)
    _at_least(t, t.first_way(t.attach(volume)), _grown(t), Fault(
        "grow ended with 0, and the volume that is attached anew has not the new size",
        cure="grow to VOL_NEW_SIZE, which is the size it is to have; VOL_SIZE is the one it has",
        runs=[run],
    ))  # fmt: skip


@check("grow-path", "grow", "the block device of an attached volume has the new size when grow ends",
       source=f"{PAGE}, the grow of a volume that is attached", after=["grow"], needs=[Need.PATH])  # fmt: skip
def grow_path(t: Trial) -> None:
    """Grow an attached volume, and look at its block device."""
    volume, offer = t.attached()
    run = _grow(t, volume)
    _at_least(t, offer.paths[0], _grown(t), Fault(
        "the volume has grown, and its block device has not",
        cure="tell the device its new size as well: losetup -c, blockdev --rereadpt, echo 1 >…/device/rescan, "
        "multipathd resize map, whatever it takes",
        runs=[offer.run, run],
    ))  # fmt: skip


@check("grow-uri", "grow", "a URI that is opened after grow shows the new size", source=f"{page('operations')}, resize",
       after=["grow", "attach-uri"], needs=[Need.URI])  # fmt: skip
def grow_uri(t: Trial) -> None:
    """Grow an attached volume, and look at it by its URIs."""
    volume, offer = t.attached()
    run = _grow(t, volume)
    for way in t.openable(offer):
        _at_least(t, way, _grown(t), Fault(
            f"the volume has grown, and {way.words} shows the old size",
            cure="have what serves the URI look at the new size, or put another server behind the same URI",
            runs=[offer.run, run],
        ))  # fmt: skip


@check("grow-detached", "grow", "a detached volume grows as well", source=f"{MANUAL}, grow", after=["grow"])
def grow_detached(t: Trial) -> None:
    """Grow a volume that is not attached, then attach it."""
    volume = t.existing()
    run = t.run(Action.GROW, volume, size_mib=t.size_mib, new_size_mib=_grown(t))
    if not run.ok:
        raise Fault(
            f"grow of a detached volume failed: {run.ended}",
            cure="grow the volume in the storage; its device only where there is one",
            runs=[run],
        )
    _at_least(t, t.first_way(t.attach(volume)), _grown(t), Fault(
        "grow of a detached volume ended with 0 and did nothing", cure="grow it where it is", runs=[run]
    ))  # fmt: skip


@check("grow-again", "grow", "grow to the size that it has already ends with 0", source=f"{page('operations')}, resize",
       after=["grow"])  # fmt: skip
def grow_again(t: Trial) -> None:
    """Grow twice with the same sizes, as after an interruption."""
    volume, _offer = t.attached()
    first = _grow(t, volume)
    run = t.run(Action.GROW, volume, size_mib=t.size_mib, new_size_mib=_grown(t))
    if not run.ok:
        raise Fault(f"the same grow once more failed: {run.ended}", cure=_REPEATED, runs=[first, run])
    found = storage.size_mib(t.first_way(t.attach(volume)))
    if found >= _grown(t) + _GROW_MIB and not t.settings.places:
        raise Fault(
            f"the same grow once more made it {found:g} MiB large; VOL_NEW_SIZE was {_grown(t)}",
            cure="set the size to VOL_NEW_SIZE; do not add a difference to whatever is there",
            runs=[first, run],
        )


@check("grow-unknown", "grow", "grow of a volume that there is not fails, and makes none", source=f"{MANUAL}, grow",
       after=["grow", "attach-unknown"], needs=[Need.MAKING])  # fmt: skip
def grow_unknown(t: Trial) -> None:
    """Grow a volume that was never made."""
    run = t.run(Action.GROW, t.volume("unknown"), size_mib=t.size_mib, new_size_mib=_grown(t))
    if run.ok:
        raise Fault(
            "grow of a volume that was never created ended with 0",
            cure="look whether the volume is there, and end with a status that is not 0 when it is not",
            runs=[run],
        )


@check("snapshot", "snapshot", "a snapshot is a volume that can be attached and removed",
       source=f"{MANUAL}, snapshot", after=["remove"], needs=[Need.SNAPSHOT])  # fmt: skip
def snapshot(t: Trial) -> None:
    """Take a snapshot of a detached volume, and attach it."""
    volume = t.existing()
    copy = t.volume(name=f"{volume.name}.snap")
    run = t.run(Action.SNAPSHOT, volume, snapshot_name=copy.name, snapshot_size_mib=t.size_mib)
    if not run.ok:
        raise Fault(f"snapshot failed: {run.ended}", cure=_SNAPSHOT, runs=[run])
    attached = t.run(Action.ATTACH, copy)
    if not attached.ok:
        raise Fault(
            f"snapshot ended with 0, and attach of {copy.name} failed: {attached.ended}",
            cure=_SNAPSHOT,
            runs=[run, attached],
        )
    t.detach(copy)
    removed = t.run(Action.REMOVE, copy)
    if not removed.ok:
        raise Fault(f"the snapshot cannot be removed: {removed.ended}", cure=_SNAPSHOT, runs=[run, removed])


@check("snapshot-unknown", "snapshot", "snapshot of a volume that there is not fails", source=f"{MANUAL}, snapshot",
       after=["snapshot"], needs=[Need.SNAPSHOT, Need.MAKING])  # fmt: skip
def snapshot_unknown(t: Trial) -> None:
    """Take a snapshot of a volume that was never made."""
    volume, copy = t.volume("unknown"), t.volume("copy")
    run = t.run(Action.SNAPSHOT, volume, snapshot_name=copy.name, snapshot_size_mib=t.size_mib)
    if run.ok:
        raise Fault(
            "snapshot of a volume that was never created ended with 0: a backup that does not exist is lost data",
            cure="end with a status that is not 0 when no snapshot was made",
            runs=[run],
        )


_NAMED = "make everything that belongs to a volume of its whole VOL_NAME: file, device, target, lock"
_SNAPSHOT = "make VOL_SNAPSHOT_NAME a volume like any other, with the bytes that VOL_NAME has now: Ganeti attaches it, "
_SNAPSHOT += "copies it and removes it (gnt-backup export)"


def _offered(t: Trial, volume: Volume) -> Offer:
    try:
        return t.attach(volume)
    except NotReady as error:
        raise Fault(f"of two volumes one cannot be attached: {error.words}", cure=_NAMED, runs=error.runs) from error


def _grown(t: Trial) -> int:
    return t.size_mib + _GROW_MIB


def _grow(t: Trial, volume: Volume) -> Run:
    return t.must(Action.GROW, volume, size_mib=t.size_mib, new_size_mib=_grown(t))


def _at_least(t: Trial, way: Way, wanted_mib: int, fault: Fault, *, limit_s: float = 1.0) -> None:
    """Raise the fault, with the sizes, unless a way shows so many MiB (the kernel may need a moment to see it)."""
    found: list[float] = []

    def smaller() -> tuple[str, ...]:
        found.append(storage.size_mib(way))
        return () if found[-1] >= wanted_mib else ("too small",)

    try:
        wrong = t.settled(smaller, limit_s)
    except ProgramError as error:
        raise Fault(f"{fault.words}: {error.message}", cure=fault.cure, runs=fault.runs) from error
    if wrong:
        raise Fault(f"{fault.words}: {found[-1]:g} MiB, not {wanted_mib}", cure=fault.cure, runs=fault.runs)


def _identities(offer: Offer) -> list[str]:
    return [storage.identity(way) for way in offer.paths]


def _still(t: Trial, offer: Offer, before: list[str], fault: Fault) -> None:
    """Raise the fault unless every way to an attached volume is as it was, a moment later."""
    # The kernel lets go of a device that somebody looks at only when he has done so.
    time.sleep(0.2)
    if _identities(offer) != before:
        raise fault
    for way in t.reachable(offer):
        _at_least(t, way, t.size_mib, fault, limit_s=0)


CHECKS = (
    detach, detach_again, detach_leaves_nothing, remove, removed_is_gone, remove_leaves_nothing, two_volumes,
    detach_other, remove_other, grow, grow_path, grow_uri, grow_detached, grow_again, grow_unknown, snapshot,
    snapshot_unknown,
)  # fmt: skip
