"""The kit: has every check run against one provider, in order, and takes down what comes of it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hvext.core.value import value_object
from hvext.errors import InputError, ProgramError, ProviderNotFound
from hvext.host.provider import ProviderHost
from hvext.sanity import closing, contract, data, life, names, stress
from hvext.sanity.check import Check, Fault, Level, Need, NotReady, Outcome, Skip, Verdict
from hvext.sanity.trial import Settings, Trial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

#: Every check, in the order in which they run.
CHECKS: tuple[Check, ...] = (
    *contract.CHECKS,
    *life.CHECKS,
    *names.CHECKS,
    *data.CHECKS,
    *stress.CHECKS,
    *closing.CHECKS,
)
#: An action that takes longer is told: Ganeti has no limit, and an instance waits for it.
SLOW_S = 60.0


@value_object
class Verdicts:
    """What came of a whole run of the kit.

    ``left`` is what is still on the host, in words; ``times_s`` has the seconds of all runs that succeeded, by action.
    """

    provider: str
    level: Level
    prefix: str
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]
    left: tuple[str, ...]
    times_s: dict[str, tuple[float, ...]]
    seconds: float

    def of(self, verdict: Verdict) -> tuple[Outcome, ...]:
        """Return the outcomes with one verdict."""
        return tuple(outcome for outcome in self.outcomes if outcome.verdict is verdict)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.of(Verdict.FAILED)

    def to_json(self) -> dict[str, object]:
        """Return all of it as JSON can hold it."""
        return {
            "provider": self.provider,
            "level": str(self.level),
            "prefix": self.prefix,
            **{str(verdict): len(self.of(verdict)) for verdict in Verdict},
            "checks": [outcome.to_json() for outcome in self.outcomes],
            "notes": list(self.notes),
            "left": list(self.left),
            "times_s": {
                action: {"runs": len(taken), "median": _middle(taken), "longest": round(max(taken), 3)}
                for action, taken in self.times_s.items()
            },
            "seconds": round(self.seconds, 3),
        }


class Kit:
    """The checks of a level against one provider; as a context manager it leaves no volumes, whatever happens.

    ``skip`` are names of checks that are not to run. Raises InputError for a provider or a check that there is not.
    """

    def __init__(
        self, host: ProviderHost, provider: str, settings: Settings, *, level: Level, skip: Sequence[str] = ()
    ) -> None:
        known = {check.name for check in CHECKS}
        if unknown := [name for name in skip if name not in known]:
            raise InputError(f"there is no check {unknown[0]!r}", hint="--list names them all")
        try:
            host.folder(provider)
        except ProviderNotFound as error:
            raise InputError(error.message, hint=error.hint) from error
        self.level = level
        self.checks = tuple(check for check in CHECKS if level.has(check.level))
        self._skip = frozenset(skip)
        self._settings = settings
        self._outcomes: dict[str, Outcome] = {}
        self._begun = time.monotonic()
        self._folder = Path(tempfile.mkdtemp(prefix="hvext-"))
        self.trial = Trial(host, provider, settings, self._folder)

    def __enter__(self) -> Self:
        self.trial.watch.remember(self._settings.watched)
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.trial.clean_up()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, told: Callable[[Outcome], None] = lambda _outcome: None) -> Verdicts:
        """Run all checks and return what came of them; ``told`` is called with each outcome as it comes."""
        outcomes = []
        for check in self.checks:
            outcomes.append(self.outcome(check))
            told(outcomes[-1])
        return self.verdicts(outcomes)

    def outcome(self, check: Check) -> Outcome:
        """Return what came of a check: it is run when it was not, after all those that it needs."""
        if check.name not in self._outcomes:
            self._outcomes[check.name] = self._judge(check)
            if self._outcomes[check.name].verdict is Verdict.FAILED:
                self.trial.failed.append(check.name)
        return self._outcomes[check.name]

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """What came of the checks that have run so far."""
        return tuple(self._outcomes.values())

    def verdicts(self, outcomes: Sequence[Outcome]) -> Verdicts:
        """Return the outcomes with all that was seen beside them."""
        trial = self.trial
        trial.clean_up()
        left = tuple(f"the volume {name}" for name in trial.remaining) + trial.settled(trial.watch.of)
        times: dict[str, tuple[float, ...]] = {}
        for run in trial.runs:
            if run.ok:
                times[str(run.action)] = (*times.get(str(run.action), ()), run.seconds)
        for action, taken in times.items():
            if max(taken) > SLOW_S:
                trial.note(f"{action} took {max(taken):.0f} s: whoever starts an instance waits for it")
        return Verdicts(
            provider=trial.name,
            level=self.level,
            prefix=trial.prefix,
            outcomes=tuple(outcomes),
            notes=tuple(trial.notes),
            left=left,
            times_s=times,
            seconds=time.monotonic() - self._begun,
        )

    def _judge(self, check: Check) -> Outcome:
        if check.name in self._skip:
            return Outcome(check=check, verdict=Verdict.SKIPPED, words="asked for")
        if because := self._blocked(check):
            return _skipped(check, because)
        if check.name in closing.LAST:
            for earlier in self.checks[: self.checks.index(check)]:
                self.outcome(earlier)
        if lacks := self._lacks(check):
            return Outcome(check=check, verdict=Verdict.SKIPPED, words=f"it needs {lacks.value}")
        begun = time.monotonic()
        outcome = self._run(check)
        self.trial.check = f"after {check.name}"
        self.trial.clean_up()
        return Outcome(**{**vars(outcome), "seconds": time.monotonic() - begun})

    def _run(self, check: Check) -> Outcome:
        self.trial.check = check.name
        try:
            check.run(self.trial)
        except Fault as fault:
            if fault.script:
                check = Check(**{**vars(check), "script": fault.script})
            return Outcome(check=check, verdict=Verdict.FAILED, words=fault.words, cure=fault.cure, runs=fault.runs)
        except Skip as why:
            return Outcome(check=check, verdict=Verdict.SKIPPED, words=str(why))
        except NotReady as error:
            return self._not_ready(check, error)
        except ProgramError as error:
            return Outcome(
                check=check,
                verdict=Verdict.FAILED,
                words=f"the volume's bytes could not be reached: {error.message}",
                cure="let attach return only when what it prints can be opened, and keep it so until detach",
            )
        return Outcome(check=check, verdict=Verdict.PASSED)

    def _not_ready(self, check: Check, error: NotReady) -> Outcome:
        """What a check needs failed: because of a fault that is known, or of one that shows only here."""
        known = next((name for name in self.trial.failed if self._is_about(name, error)), "")
        if known:
            return _skipped(check, known)
        script = str(error.action or check.script)
        return Outcome(
            check=Check(**{**vars(check), "script": script}),
            verdict=Verdict.FAILED,
            words=f"the check could not begin: {error.words}",
            cure="the script did this before without a fault: it must not depend on what was done in between",
            runs=error.runs,
        )

    def _is_about(self, name: str, error: NotReady) -> bool:
        return error.action is not None and self._outcomes[name].check.script == str(error.action)

    def _blocked(self, check: Check) -> str:
        """Return the check whose failure has this one skipped, or nothing."""
        by_name = {each.name: each for each in CHECKS}
        for name in check.after:
            before = self.outcome(by_name[name])
            if before.verdict is Verdict.FAILED:
                return before.check.name
            if before.because:
                return before.because
        if check.name == closing.LEFTOVERS:
            return next(iter(self.trial.failed), "")
        return ""

    def _lacks(self, check: Check) -> Need | None:
        has = self.trial.capabilities()
        return next((need for need in check.needs if need not in has), None)


def _skipped(check: Check, because: str) -> Outcome:
    return Outcome(check=check, verdict=Verdict.SKIPPED, words=f"because {because} failed", because=because)


def _middle(taken: Sequence[float]) -> float:
    return round(sorted(taken)[len(taken) // 2], 3)
