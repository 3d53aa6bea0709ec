"""Checks of the bytes: what is written stays, and is the same whichever way it is looked at."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

from hvext.core.documentation import page
from hvext.core.provider import Action
from hvext.core.volume import Volume
from hvext.errors import ProgramError
from hvext.sanity import storage
from hvext.sanity.check import MANUAL, PAGE, Fault, Level, Need, Run, check
from hvext.sanity.storage import Way
from hvext.sanity.trial import Offer, Trial

_SAME = "give out one storage: what serves the URI and what is behind the path open the same image, and neither "
_SAME += "keeps a cache of its own (cache.direct=on, losetup --direct-io=on)"
#: How long a detach may wait for the user of a volume before that one lets go, beyond twice what detach takes.
_PATIENCE_S = 2.0
#: How long storage may take to see that a user has gone.
_RELEASED_S = 10.0
#: How soon a device that goes with its last user has gone.
_LAZY_S = 0.2


@check("write-read-path", "attach", "what is written by the path is there after detach and attach", level=Level.DATA,
       source=f"{MANUAL}, detach: doesn't affect the volume itself", after=["detach", "size-path"],
       needs=[Need.PATH])  # fmt: skip
def write_read_path(t: Trial) -> None:
    """Write by the path, detach, attach and read."""
    _write_read(t, lambda offer: offer.paths)


@check("write-read-uri", "attach", "what is written by a URI is there after detach and attach", level=Level.DATA,
       source=f"{MANUAL}, detach: doesn't affect the volume itself", after=["size-uri", "write-read-path"],
       needs=[Need.URI])  # fmt: skip
def write_read_uri(t: Trial) -> None:
    """Write by each URI, detach, attach and read."""
    _write_read(t, t.openable)


@check("path-to-uri", "attach", "every URI shows what was written by the path", level=Level.DATA,
       source=f"{page('operations')}, re-point", after=["write-read-path", "write-read-uri"],
       needs=[Need.PATH, Need.URI])  # fmt: skip
def path_to_uri(t: Trial) -> None:
    """Write by the path, and read by the URIs: before and after they were read first."""
    volume, offer = t.attached()
    path = offer.paths[0]
    for _time in range(2):
        _passed_on(t, path, t.openable(offer), offer)
    t.detach(volume)


@check("uri-to-path", "attach", "the path and the other URIs show what was written by a URI", level=Level.DATA,
       source=f"{page('operations')}, re-point", after=["path-to-uri"], needs=[Need.PATH, Need.URI])  # fmt: skip
def uri_to_path(t: Trial) -> None:
    """Write by each URI, and read by the path and all other URIs: before and after they were read first."""
    _volume, offer = t.attached()
    for way in t.openable(offer) * 2:
        _passed_on(t, way, (offer.paths[0], *(other for other in t.openable(offer) if other is not way)), offer)


@check("two-volumes-data", "attach", "what is written to one volume does not come to another", level=Level.DATA,
       source=f"{MANUAL}, VOL_NAME", after=["two-volumes", "write-read-path", "write-read-uri"])  # fmt: skip
def two_volumes_data(t: Trial) -> None:
    """Write to two volumes at once, and read both."""
    (_one, first), (_two, second) = t.attached("one"), t.attached("two")
    written = [(t.first_way(offer), t.pattern()) for offer in (first, second)]
    for way, byte in written:
        storage.write(way, byte, t.size_mib)
    for way, byte in written:
        _expect(t, way, byte, Fault(
            "two volumes share their bytes: what was written to one has changed the other",
            cure="make everything that belongs to a volume of its whole VOL_NAME", runs=[first.run, second.run],
        ))  # fmt: skip


@check("create-existing", "create", "create of a name that is taken leaves its bytes alone", level=Level.DATA,
       source=f"{MANUAL}, create: conflicts and possible loss of data",
       after=["write-read-path", "write-read-uri"])  # fmt: skip
def create_existing(t: Trial) -> None:
    """Write to a volume, create it once more, and read."""
    volume, offer = t.attached()
    byte = t.pattern()
    storage.write(t.first_way(offer), byte, t.size_mib)
    t.detach(volume)
    run = t.run(Action.CREATE, volume, size_mib=t.size_mib)
    _expect(t, t.first_way(t.attach(volume)), byte, Fault(
        f"create of a volume that is there ended with {run.status}, and the volume's bytes are lost",
        cure="look whether the name is taken before anything is made, and refuse: the bytes may be somebody's",
        runs=[run],
    ))  # fmt: skip


@check("grow-keeps-data", "grow", "grow loses no bytes", level=Level.DATA, source=f"{MANUAL}, grow",
       after=["grow", "write-read-path", "write-read-uri"])  # fmt: skip
def grow_keeps_data(t: Trial) -> None:
    """Write to a volume, grow it, read; then detach, attach and read."""
    volume, offer = t.attached()
    byte = t.pattern()
    storage.write(t.first_way(offer), byte, t.size_mib)
    run = t.must(Action.GROW, volume, size_mib=t.size_mib, new_size_mib=t.size_mib * 2)
    lost = Fault(
        "bytes that were written before grow are lost",
        cure="lengthen what is there; do not make it anew",
        runs=[run],
    )
    _expect(t, t.first_way(offer), byte, lost)
    t.detach(volume)
    _expect(t, t.first_way(t.attach(volume)), byte, lost)


@check("snapshot-data", "snapshot", "a snapshot has the bytes of its moment, and keeps them", level=Level.DATA,
       source=f"{MANUAL}, snapshot", after=["snapshot", "write-read-path", "write-read-uri"],
       needs=[Need.SNAPSHOT])  # fmt: skip
def snapshot_data(t: Trial) -> None:
    """Write, take a snapshot, write again, and read both."""
    volume, offer = t.attached()
    then, now = t.pattern(), t.pattern()
    storage.write(t.first_way(offer), then, t.size_mib)
    t.detach(volume)
    copy = t.volume(name=f"{volume.name}.snap")
    run = t.must(Action.SNAPSHOT, volume, snapshot_name=copy.name, snapshot_size_mib=t.size_mib)
    way = t.first_way(t.attach(volume))
    storage.write(way, now, t.size_mib)
    _expect(t, t.first_way(t.attach(copy)), then, Fault(
        "the snapshot does not have the bytes that the volume had when it was taken",
        cure="copy or clone the volume's bytes; a link to the same bytes changes with the volume", runs=[run],
    ))  # fmt: skip
    _expect(t, way, now, Fault("the volume lost bytes to its snapshot", cure="copy or clone it", runs=[run]))
    t.detach(copy)


@check("close-fence", "close", "after close nothing can be written, and after open again", level=Level.DATA,
       source=f"{MANUAL}, close: disables I/O on the volume", after=["close", "write-read-path", "write-read-uri"],
       needs=[Need.CLOSE])  # fmt: skip
def close_fence(t: Trial) -> None:
    """Close an attached volume, write to it by every way, open it, and write again."""
    volume, offer = t.attached()
    ways = t.reachable(offer)
    run = t.must(Action.CLOSE, volume)
    for way in ways:
        if _can_write(t, way):
            raise Fault(
                f"close ended with 0, and {way.words} can still be written",
                cure="end the servers and make the device read-only (blockdev --setro), or fence this host at the "
                "storage; a provider that cannot do that has no close script at all",
                runs=[run],
            )
    if Need.OPEN not in t.capabilities():
        return
    opened = t.must(Action.OPEN, volume, exclusive=True)
    for way in ways:
        if not _can_write(t, way):
            raise Fault(
                f"after close and open, {way.words} cannot be written",
                cure="bring back in open what close has ended: a migration that is cancelled goes on here",
                runs=[run, opened],
                script="open",
            )


@check("detach-in-use", "detach", "detach of a volume that is in use is refused, or its user goes on reading",
       level=Level.DATA, source=f"{page('operations')}, Plug",
       after=["detach-again", "write-read-path", "write-read-uri"])  # fmt: skip
def detach_in_use(t: Trial) -> None:
    """Keep a volume open by each way in turn, and detach it; then let go, and detach it for good."""
    volume, offer = t.attached()
    t.first_way(offer)  # or it does not apply
    for index in range(len(t.reachable(offer))):
        way = t.reachable(offer)[index]
        before = t.watch.serving(volume.name)
        run, lost = _detached_under(t, volume, way)
        if lost:
            raise Fault(
                f"detach ended with {run.status}, and whoever had {way.words} open cannot read it any more: {lost}",
                cure="look for users before anything is taken down (fuser on the device, the connections of a server: "
                "ss -x), and end with another status than 0, with everything as it was: a guest that runs would "
                "lose its disk",
                runs=[offer.run, run],
            )
        if not run.ok and (gone := _gone_with_its_user(t, volume, before)):
            raise Fault(
                f"detach was refused while {way.words} was open, and {gone} went all the same, with its last user",
                cure="look for users before anything is taken down, also before losetup --detach: it marks a device "
                "that is in use to go with its last user. A refusal leaves everything as it was",
                runs=[offer.run, run],
            )
        again = [run]
        if not run.ok and t.settled(partial(_still_refused, t, volume, again), _RELEASED_S):
            raise Fault(
                f"detach was refused while {way.words} was open, and {_RELEASED_S:g} s after that, too",
                cure="ask the storage or the kernel each time who uses the volume: what was true once is not any more",
                runs=[run, again[-1]],
            )
        offer = t.attach(volume)


@check("remove-attached", "remove", "remove of an attached volume is refused, or takes down what attach has made",
       level=Level.DATA, source=f"{PAGE}, How providers are found and run",
       after=["removed-is-gone", "detach-leaves-nothing"])  # fmt: skip
def remove_attached(t: Trial) -> None:
    """Remove an attached volume, and see that detach still works; which of both answers it is, is told."""
    volume, _offer = t.attached()
    run = t.run(Action.REMOVE, volume)
    t.note(
        f"remove of an attached volume {'removes it' if run.ok else 'is refused'}; both are right: say which it is in "
        "what you write for those who use the provider (its README)"
    )
    detached = t.run(Action.DETACH, volume)
    if left := t.settled(lambda: t.watch.serving(volume.name)):
        raise Fault(
            f"an attached volume was removed, and detach cannot take down {left[0]} any more",
            cure="refuse to remove a volume that is attached on this host",
            runs=[run, detached],
        )


def _write_read(t: Trial, ways: Callable[[Offer], tuple[Way, ...]]) -> None:
    volume, offer = t.attached()
    for index in range(len(ways(offer))):
        way, byte = ways(offer)[index], t.pattern()
        try:
            storage.write(way, byte, t.size_mib)
        except ProgramError as error:
            raise Fault(
                f"{way.words} cannot be written: {error.message}",
                cure="offer each access for reading and writing",
                runs=[offer.run],
            ) from error
        detached = t.detach(volume)
        offer = t.attach(volume)
        _expect(t, ways(offer)[index], byte, Fault(
            f"what was written to {way.words} is not there after detach and attach",
            cure="attach the volume itself, not a copy of it, and have detach write out what is in caches",
            runs=[detached, offer.run],
        ))  # fmt: skip


def _passed_on(t: Trial, source: Way, targets: tuple[Way, ...], offer: Offer) -> None:
    byte = t.pattern()
    storage.write(source, byte, t.size_mib)
    for way in targets:
        _expect(t, way, byte, Fault(
            f"{way.words} does not show what was written to {source.words}", cure=_SAME, runs=[offer.run]
        ))  # fmt: skip


def _expect(t: Trial, way: Way, byte: int, fault: Fault) -> None:
    """Raise the fault unless the places of a volume hold what was written."""
    wrong = storage.differences(way, byte, t.size_mib)
    if wrong:
        where = ", ".join(str(place) for place in wrong)
        runs: tuple[Run, ...] = fault.runs
        raise Fault(f"{fault.words} (other bytes at {where})", cure=fault.cure, runs=runs, script=fault.script)


def _detached_under(t: Trial, volume: Volume, way: Way) -> tuple[Run, str]:
    """Return the detach of a volume that is kept open, and why its user cannot read any more, or nothing.

    One that waits for the user is right, too, and gets its end.
    """
    slowest = max((run.seconds for run in t.runs if run.action is Action.DETACH), default=0.0)
    with ThreadPoolExecutor(1) as pool:
        with storage.held(way, t.folder) as failure:
            pending = pool.submit(t.run, Action.DETACH, volume)
            ended = wait([pending], 2 * slowest + _PATIENCE_S).done
            lost = failure()
        if not ended:
            t.note(f"detach of a volume in use waits until nobody has it open ({way.name})")
        return pending.result(), lost


def _gone_with_its_user(t: Trial, volume: Volume, before: Sequence[str]) -> str:
    """Return what of ``before`` is not there any more, soon after the user of a volume has let it go."""
    time.sleep(_LAZY_S)
    there = t.watch.serving(volume.name)
    return ", ".join(each for each in before if each not in there)


def _still_refused(t: Trial, volume: Volume, runs: list[Run]) -> tuple[str, ...]:
    runs.append(t.run(Action.DETACH, volume))
    return () if runs[-1].ok else (runs[-1].ended,)


def _can_write(t: Trial, way: Way) -> bool:
    try:
        storage.write(way, t.pattern(), t.size_mib)
    except ProgramError:
        return False
    return True


CHECKS = (
    write_read_path, write_read_uri, path_to_uri, uri_to_path, two_volumes_data, create_existing, grow_keeps_data,
    snapshot_data, close_fence, detach_in_use, remove_attached,
)  # fmt: skip
