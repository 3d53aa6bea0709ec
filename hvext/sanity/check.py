"""What a check is, and what comes of one.

A check is a function that is given a ``Trial`` and raises ``Fault`` when the provider breaks the rule that the check
is about. What it only needs on the way (a volume that is attached, say) raises ``NotReady``: that is the business of
another check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

from hvext.core.documentation import page
from hvext.core.provider import Action
from hvext.core.value import field, value_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hvext.sanity.trial import Trial

#: Ganeti's manual page of the interface.
MANUAL = "ganeti-extstorage-interface(7)"
#: hvext's own page about providers.
PAGE = page("providers")


class Level(StrEnum):
    """How far the kit goes: each level has the checks of those before it, too."""

    CONTRACT = "contract"
    DATA = "data"
    STRESS = "stress"

    def has(self, other: Level) -> bool:
        """Return whether the checks of another level belong to this one."""
        every = list(Level)
        return every.index(other) <= every.index(self)


class Need(StrEnum):
    """What a check needs the provider to have; without it, the check is skipped."""

    PATH = "a block device path in line 1 of attach's answer"
    URI = "a kvm: URI in attach's answer that QEMU opens as a block node"
    MAKING = "a create that makes volumes: those of --place are there before"
    SNAPSHOT = "a snapshot script"
    OPEN = "an open script"
    CLOSE = "a close script"


class Verdict(StrEnum):
    """What came of a check."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@value_object
class Run:
    """One run of a script, as evidence.

    ``environment`` holds what the interface gives the script. ``status`` is the exit status, minus a signal's number,
    or None when the script ran into its time limit or could not be started; ``error`` then says more. Secrets are
    masked everywhere but in ``raw``, the standard output.
    """

    action: Action
    script: str
    volume: str
    environment: dict[str, str]
    status: int | None
    raw: bytes = field(repr=False)
    stdout: str
    stderr: str
    error: str
    seconds: float
    check: str
    #: Whether it was ended, because it ran into its time limit.
    late: bool = False
    #: How many values that are secrets were printed where they do not belong.
    spilled: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the script ended with status 0."""
        return self.status == 0

    @property
    def ended(self) -> str:
        """How it ended, in words."""
        if self.status is None:
            return self.error
        return f"exit status {self.status}" if self.status >= 0 else f"killed by signal {-self.status}"

    def to_json(self) -> dict[str, object]:
        """Return the evidence as JSON can hold it."""
        return {
            "script": self.script,
            "environment": self.environment,
            "status": self.status,
            "ended": self.ended,
            "stdout": self.stdout,
            "stderr": self.stderr,
            "seconds": round(self.seconds, 3),
        }


class Fault(Exception):
    """The provider breaks the rule of a check.

    ``words`` say what happened, ``cure`` what to change in the script, ``runs`` are the evidence. ``script`` names
    another script than the check's own.
    """

    def __init__(self, words: str, *, cure: str, runs: Sequence[Run] = (), script: str = "") -> None:
        super().__init__(words)
        self.words = words
        self.cure = cure
        self.runs = tuple(runs)
        self.script = script


class NotReady(Exception):
    """What a check needs before it can begin does not work."""

    def __init__(self, words: str, *, action: Action | None = None, runs: Sequence[Run] = ()) -> None:
        super().__init__(words)
        self.words = words
        self.action = action
        self.runs = tuple(runs)


class Skip(Exception):
    """The check does not apply here; the text says why."""


@value_object
class Check:
    """One rule, and the function that finds out whether a provider keeps it.

    ``says`` is the rule in one sentence, ``source`` where it is written, ``script`` whose business it is. A check of
    ``after`` that failed, or was skipped because another one failed, has this one skipped.
    """

    name: str
    level: Level
    script: str
    says: str
    source: str
    needs: tuple[Need, ...] = ()
    after: tuple[str, ...] = ()
    run: Callable[[Trial], None] = field(repr=False)


@value_object
class Outcome:
    """What came of one check.

    ``words`` say why it failed or was skipped. ``because`` is the check whose failure had this one skipped, or empty.
    """

    check: Check
    verdict: Verdict
    words: str = ""
    cure: str = ""
    because: str = ""
    runs: tuple[Run, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, object]:
        """Return the outcome as JSON can hold it."""
        return {
            "name": self.check.name,
            "level": str(self.check.level),
            "verdict": str(self.verdict),
            "script": self.check.script,
            "says": self.check.says,
            "source": self.check.source,
            "words": self.words,
            "cure": self.cure,
            "because": self.because,
            "seconds": round(self.seconds, 3),
            "evidence": [run.to_json() for run in self.runs],
        }


def check(
    name: str,
    script: str,
    says: str,
    *,
    level: Level = Level.CONTRACT,
    source: str = MANUAL,
    needs: Sequence[Need] = (),
    after: Sequence[str] = (),
) -> Callable[[Callable[[Trial], None]], Check]:
    """Return what turns a function into the check with these properties."""

    def made(run: Callable[[Trial], None]) -> Check:
        return Check(
            name=name,
            level=level,
            script=script,
            says=says,
            source=source,
            needs=tuple(needs),
            after=tuple(after),
            run=run,
        )

    return made
