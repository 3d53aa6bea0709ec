"""Looking at all subjects, side by side: what goes wrong with one hides nothing of the others."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Sequence

from hvext.core.finding import (
    SUBJECTS,
    Finding,
    Severity,
    TransportState,
    in_order,
    is_ready,
    transport_states,
)
from hvext.core.value import replace, value_object
from hvext.errors import HvextError, InputError
from hvext.operations.doctor.ask import Ask, Needs, needs_of

#: Each probe has limits of its own, which are shorter; this is for one that waits in the kernel.
LIMIT_S = 20.0
#: For what starts a QEMU, and has to end it: one that says nothing is given up after half a minute.
_LONG_LIMIT_S = 40.0
_LONG = frozenset(("qemu", "aio", "memory"))
#: How long what was cancelled may take to tidy up.
_TIDY_S = 5.0
#: What a restricted question leaves out, unless something that is asked for needs it.
_GENERAL = frozenset(("acceleration", "fuse", "libvirt"))


@value_object
class Report:
    """All findings in order, and what they mean for the transports."""

    findings: tuple[Finding, ...]
    transports: tuple[TransportState, ...]

    def is_ready(self, *, strict: bool = False) -> bool:
        """Return whether nothing is in error; with ``strict``, whether there are no warnings either."""
        return is_ready(self.findings, strict=strict)

    def to_json(self) -> dict[str, object]:
        """Return the report as a JSON-able mapping."""
        return {
            "ready": self.is_ready(),
            "findings": [finding.to_json() for finding in self.findings],
            "transports": [state.to_json() for state in self.transports],
        }


def examine(ask: Ask) -> Report:
    """Look at the host and return what was found; blocks for a few seconds, and changes nothing.

    A subject that does not come back within its limit is reported as such, with what it had found by then. Raises
    InputError for a subject that there is not.
    """
    for name in ask.only:
        if name not in SUBJECTS:
            raise InputError(f"there is no subject {name!r}", hint=f"there are {', '.join(SUBJECTS)}")
    needs = needs_of(ask)
    subjects = [_Subject(name, ask, needs) for name in SUBJECTS if _wanted(name, ask, needs)]
    started = time.monotonic()
    try:
        for subject in subjects:
            subject.start()
        for subject in subjects:
            subject.join(max(0.0, started + subject.limit_s - time.monotonic()))
    finally:
        # Ctrl-C, too: what was started by a probe is ended by it.
        ask.cancel.set()
        tidy = time.monotonic() + _TIDY_S
        for subject in subjects:
            subject.join(max(0.0, tidy - time.monotonic()))
    findings = in_order(finding for subject in subjects for finding in subject.result())
    shown = needs.shown if any(subject.name in _OF_TRANSPORTS for subject in subjects) else ()
    states = tuple(_without_loops(state, findings) for state in transport_states(findings, shown))
    return Report(findings=tuple(findings), transports=states)


def _without_loops(state: TransportState, findings: Sequence[Finding]) -> TransportState:
    """Return the state of a transport; of paths that work, with what does not: files need loop devices to be one."""
    if state.transport.name != "path" or not state.ready:
        return state
    bad = [each.id for each in findings if each.id.startswith("loop.") and each.severity is not Severity.OK]
    return replace(state, why=f"files only through QEMU: no loop devices ({bad[0]})") if bad else state


#: Subjects that say something about transports: without them, there is nothing to say.
_OF_TRANSPORTS = frozenset(("qemu",))


def _wanted(name: str, ask: Ask, needs: Needs) -> bool:
    if ask.only:
        return name in ask.only
    if not ask.restricted:
        return True
    wanted = {
        "loop": needs.loop,
        "vfio": "nvme" in needs.transports,
        "aio": "path" in needs.transports,
        "memory": "vhost-user" in needs.transports,
        "providers": bool(ask.providers),
    }
    return name not in _GENERAL and wanted.get(name, True)


class _Subject:
    """One subject that is looked at in a thread of its own, with what it has found so far."""

    def __init__(self, name: str, ask: Ask, needs: Needs) -> None:
        self.name = name
        self.limit_s = _LONG_LIMIT_S if name in _LONG else LIMIT_S
        self._found: list[Finding] = []
        # A join that Ctrl-C interrupts takes its thread for ended (Python 3.11).
        self._done = threading.Event()
        self._ask, self._needs = ask, needs
        # What waits in the kernel for ever must not keep the process from ending.
        self._thread = threading.Thread(target=self._look, name=f"doctor-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        if self._thread.ident is not None:
            self._done.wait(timeout_s)

    def result(self) -> list[Finding]:
        """What it has found; that it did not come back is a finding as well."""
        found = list(self._found)
        if not self._done.is_set():
            words = f"it did not come back within {self.limit_s:g} s: a file system or a device does not answer"
            found.append(_failed(self.name, words, "dmesg | tail shows what the kernel waits for"))
        return found

    def _look(self) -> None:
        look = importlib.import_module(f"hvext.operations.doctor.{self.name}").look
        try:
            for finding in look(self._ask, self._needs):
                self._found.append(finding)
        except HvextError as error:
            self._found.append(_failed(self.name, error.message, error.hint or "see the other findings"))
        except OSError as error:
            words = f"it cannot be looked at: {error.filename or self.name}: {error.strerror}"
            self._found.append(_failed(self.name, words, f"see to that, then: hvext doctor --only {self.name}"))
        except Exception as error:
            # Whatever it is, a bug too: the other subjects are looked at all the same.
            words = f"the check itself failed: {type(error).__name__}: {error}"
            self._found.append(_failed(self.name, words, f"report it, with hvext doctor --only {self.name} --json"))
        finally:
            self._done.set()


def _failed(name: str, words: str, cure: str) -> Finding:
    return Finding(
        id="doctor.check",
        about=name,
        severity=Severity.ERROR,
        tried=f"looked at the subject {name}",
        found=words,
        cure=cure,
    )
