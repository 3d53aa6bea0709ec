"""Which disk options are the fastest ones for a volume, over one of its accesses.

All combinations of the choices that are ours to make are measured against the options as they are, in one benchmark.
What keeps data safe is no such choice: the cache mode, discard and error policies stay as they were given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from hvext.bench import statistics
from hvext.bench.empty import CURE, data_share, emptiness, nearly_empty
from hvext.bench.overall import DECISION_ALPHA, DECISIVE_ROUNDS, MIN_EFFECT, Overall, corrected, differs, overall
from hvext.bench.places import Place, place
from hvext.bench.result import Level, Result
from hvext.bench.statistics import Samples, Where
from hvext.bench.words import change_text, count_words
from hvext.core.access import Access
from hvext.core.options import Aio, DeviceModel, DiskOptions
from hvext.core.plan import options_obstacle
from hvext.core.uri.file import FileLocation
from hvext.core.value import replace
from hvext.errors import InputError

#: What the options as they are given are called.
AS_GIVEN = "as given"
OPTION = "option"


def preferred(places: Sequence[Place], access: Access) -> Place:
    """Return the place that the disk's access choice comes to: a URI where there is one, unless the path is wished.

    Raises InputError where only vhost-user is offered.
    """
    userspace = [item for item in places if item.access.kind == Access.USERSPACE]
    kernelspace = [item for item in places if item.access.kind == Access.KERNELSPACE]
    ordered = [*kernelspace, *userspace] if access is Access.KERNELSPACE else [*userspace, *kernelspace]
    for item in ordered:
        if item.location.block_node:
            return item
    raise InputError("the volume is only offered over vhost-user: it has no options to choose")


def variations(found: Place, *, guest: bool, cpus: int = 1) -> list[Place]:
    """Return one access with every combination of options, the options as they are first.

    In a guest with several processors a virtio-blk has a queue for each, unless it is told to have one.
    """
    aios: list[Aio | None] = [found.options.aio]
    if isinstance(found.location, FileLocation):
        aios += [aio for aio in Aio if aio not in (found.options.aio, _default_aio(found.options))]
    iothreads = [found.options.iothread]
    if guest:
        iothreads += [thread for thread in (None, "auto") if thread != found.options.iothread]
    queues = [found.options.queues]
    if guest and cpus > 1 and found.options.device is DeviceModel.VIRTIO_BLK:
        queues += [number for number in (None, 1) if number != found.options.queues]
    options = [replace_options(found.options, *choice) for choice in product(aios, iothreads, queues)]
    able = [item for item in options if item is not None and options_obstacle(found.location, item) is None]
    words = found.access.words
    return [place(_name(found.options, item), OPTION, words, found.location, item) for item in able]


def replace_options(
    options: DiskOptions, aio: Aio | None, iothread: str | None, queues: int | None
) -> DiskOptions | None:
    """Return the options with others in their place, or None where these do not go together."""
    if aio is Aio.NATIVE and not options.cache_mode.direct:
        return None
    return replace(options, aio=aio, iothread=iothread, queues=queues)


def _default_aio(options: DiskOptions) -> Aio | None:
    """Return what QEMU does when nothing is said."""
    return Aio.THREADS if options.aio is None else None


def _name(before: DiskOptions, now: DiskOptions) -> str:
    changed = []
    if now.aio is not before.aio:
        changed.append(f"aio={now.aio or Aio.THREADS}")
    if now.iothread != before.iothread:
        changed.append(f"iothread={now.iothread or 'none'}")
    if now.queues != before.queues:
        changed.append(f"queues={now.queues or 'one for each processor'}")
    return " ".join(changed) or AS_GIVEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What a tuning says: ``best`` is a name among the result's accesses, ``options`` what to give as disk options.

    ``compared`` are all others against the options as they were given.
    """

    best: str
    options: Mapping[str, str]
    reason: str
    compared: tuple[Overall, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON-able mapping."""
        return {
            "best": self.best,
            "options": dict(self.options),
            "reason": self.reason,
            "compared": [item.to_json() for item in self.compared],
        }


def choose(result: Result) -> Tuned:
    """Return the fastest options; those that were given, unless others are faster by more than the noise carries.

    What was measured in a guest decides where there is any. Raises InputError when scipy is missing.
    """
    samples = Samples(result)
    guest = [where for where in samples.places if where.level is Level.GUEST]
    places: list[Where] = guest or list(samples.places)
    others = [access.name for access in result.accesses if access.name != AS_GIVEN]
    found = [overall(samples, places, AS_GIVEN, name) for name in others]
    compared = corrected([item for item in found if item is not None])
    faster = [item for item in compared if item.speed.value > 1 and item.differs]
    where = "in a guest" if guest else "on the host"
    if nearly_empty(result):
        reason = f"{emptiness(data_share(result))} {CURE}"
        return Tuned(best=AS_GIVEN, options=_options(result, AS_GIVEN), reason=reason, compared=tuple(compared))
    if not faster:
        return Tuned(
            best=AS_GIVEN,
            options=_options(result, AS_GIVEN),
            reason=_undecided(compared, where),
            compared=tuple(compared),
        )
    best = max(faster, key=lambda item: item.speed.value)
    rounds = f"{best.rounds} rounds, p {best.speed.p:.3f}"
    return Tuned(
        best=best.access,
        options=_options(result, best.access),
        reason=f"{best.access}: {change_text(best.speed)} against the options as given, {where} ({rounds})",
        compared=tuple(compared),
    )


def _undecided(compared: Sequence[Overall], where: str) -> str:
    """Return why the options as given are to be kept: also where others seem to be faster, and that is not proven."""
    rounds = max((item.rounds for item in compared), default=DECISIVE_ROUNDS)
    if rounds < DECISIVE_ROUNDS:
        return f"{count_words(rounds, 'round')}: too few for any conclusion {where}, it takes {DECISIVE_ROUNDS}"
    likely = [item for item in compared if item.speed.value > 1 and differs(item.speed, MIN_EFFECT, statistics.ALPHA)]
    if not likely:
        return f"nothing is shown to be faster than the options as given, {where}"
    best = max(likely, key=lambda item: item.speed.value)
    evidence = f"{count_words(best.rounds, 'round')}, p {best.speed.p:.3f}"
    return (
        f"there may be a difference {where}, but these figures do not prove it: {best.access} "
        f"{change_text(best.speed)} against the options as given ({evidence}; p has to be below {DECISION_ALPHA}, and "
        f"below {statistics.ALPHA} when corrected for the number of options); more --rounds can tell"
    )


class NothingToVary(Exception):
    """An access has no option that is ours to choose: ``tuned`` says so, and nothing has to be measured for it."""

    def __init__(self, found: Place, *, guest: bool) -> None:
        where = "in a guest" if guest else "on the host"
        more = "" if guest else "; --level guest varies iothread"
        reason = f"nothing was measured: {where} there is no option to choose for {found.name}{more}"
        super().__init__(reason)
        self.tuned = Tuned(best=AS_GIVEN, options=_to_give(found.access.options), reason=reason, compared=())


def _options(result: Result, name: str) -> Mapping[str, str]:
    """Return what to give as ``-o``."""
    return _to_give(next(item for item in result.accesses if item.name == name).options)


def _to_give(options: Mapping[str, str]) -> Mapping[str, str]:
    """Return options without what the benchmark itself had set."""
    return {key: value for key, value in options.items() if key != "read_only"}
