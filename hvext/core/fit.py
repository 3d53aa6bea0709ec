"""Whether a disk fits into one running guest: what was looked at, what came of it, and the verdict.

A plug tries the accesses to a volume in order, so that one which cannot be used keeps a disk out of the guest only
when there is no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

from hvext.core.value import replace, value_object
from hvext.errors import InputError


class Fit(StrEnum):
    """What came of one look."""

    OK = "ok"
    PROBLEM = "problem"
    #: It cannot be told without doing it, or not from here.
    UNKNOWN = "unknown"


class Subject(StrEnum):
    """What is looked at, in the order in which it is shown."""

    #: Whether the volume is free: no other VM of this host has it.
    VOLUME = "volume"
    #: What this guest has of the disk, and what is under way with it.
    DISK = "disk"
    #: Whether the guest stays here.
    MIGRATION = "migration"
    #: The slot, port or SCSI address, and the iothread.
    PLACE = "place"
    #: What of the answer of ``attach`` can be used at all.
    ACCESS = "access"
    #: Whether this QEMU has the block driver, and can load it.
    DRIVER = "driver"
    #: Whether this QEMU takes every option that it would be sent.
    OPTIONS = "options"
    #: Whether the guest's memory is shared with a server that reads and writes it.
    MEMORY = "memory"
    #: Files, devices, sockets, keyrings and servers, as QEMU's user and in its root.
    REACH = "reach"
    #: Whether somebody else has the image or device in use.
    LOCK = "lock"


@value_object
class Finding:
    """What came of one look at one thing.

    ``about`` is the URI or path that it is about, empty for what is about the disk itself. ``cure`` says what to do
    about what is not OK. A problem that is not ``needed`` is one of an access that is passed over.
    """

    subject: Subject
    fit: Fit
    found: str
    cure: str = ""
    about: str = ""
    needed: bool = True

    def __post_init__(self) -> None:
        if self.fit is not Fit.OK and not self.cure:
            raise InputError(f"the finding {self.found!r} has no cure")

    def to_json(self) -> dict[str, object]:
        """Return the finding for machines."""
        return {
            "subject": str(self.subject),
            "fit": str(self.fit),
            "found": self.found,
            "cure": self.cure,
            "about": self.about,
            "needed": self.needed,
        }


def ok(subject: Subject, found: str, *, about: str = "") -> Finding:
    """Return that something is as it has to be."""
    return Finding(subject=subject, fit=Fit.OK, found=found, about=about)


def problem(subject: Subject, found: str, cure: str, *, about: str = "") -> Finding:
    """Return that something is in the way."""
    return Finding(subject=subject, fit=Fit.PROBLEM, found=found, cure=cure, about=about)


def unknown(subject: Subject, found: str, cure: str, *, about: str = "") -> Finding:
    """Return that something cannot be told."""
    return Finding(subject=subject, fit=Fit.UNKNOWN, found=found, cure=cure, about=about)


def is_usable(findings: Iterable[Finding]) -> bool:
    """Return whether nothing that is known is in the way of what these findings are about."""
    return not any(finding.fit is Fit.PROBLEM for finding in findings)


def weighed(accesses: Mapping[str, Sequence[Finding]]) -> tuple[str, tuple[Finding, ...]]:
    """Return the first access that is usable, and all findings.

    ``accesses`` are the findings about each URI or path, in the order in which a plug tries them. Where one is usable,
    the problems of the others are not needed. Without a usable one the first result is empty.
    """
    usable = next((name for name, findings in accesses.items() if is_usable(findings)), "")
    findings = [
        replace(finding, needed=not usable or name == usable) for name, found in accesses.items() for finding in found
    ]
    return usable, tuple(findings)


@value_object
class Fitting:
    """Whether a disk fits into a guest.

    ``disk`` names it for people, ``place`` where it would be plugged and ``location`` what it would be opened as; both
    are empty where that is not known. ``present`` tells that the guest has it already.
    """

    disk: str
    findings: tuple[Finding, ...]
    place: str = ""
    location: str = ""
    present: bool = False

    @property
    def in_order(self) -> tuple[Finding, ...]:
        """The findings by what they are about: the disk first, then each access."""
        order = list(Subject)
        general = sorted((each for each in self.findings if not each.about), key=lambda each: order.index(each.subject))
        return (*general, *(each for each in self.findings if each.about))

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What keeps the disk out."""
        return tuple(each for each in self.in_order if each.fit is Fit.PROBLEM and each.needed)

    @property
    def fits(self) -> bool:
        """Whether nothing that is known keeps it out."""
        return not self.problems

    @property
    def verdict(self) -> str:
        """The verdict in one sentence."""
        if self.problems:
            first, *others = self.problems
            more = f" (and {len(others)} more)" if others else ""
            return f"does not fit: {first.found}{more}"
        if self.present:
            return f"fits: the guest has {self.disk} already, and a plug would change nothing"
        where = f" at {self.place}" if self.place else ""
        opened = f", opened as {self.location}" if self.location else ""
        n_unknown = sum(each.fit is Fit.UNKNOWN and each.needed for each in self.findings)
        things = "one thing" if n_unknown == 1 else f"{n_unknown} things"
        open_end = f"; {things} cannot be told from here" if n_unknown else ""
        return f"fits: {self.disk} would be plugged{where}{opened}{open_end}"

    def to_json(self) -> dict[str, object]:
        """Return this for machines."""
        return {
            "fits": self.fits,
            "verdict": self.verdict,
            "place": self.place or None,
            "location": self.location or None,
            "present": self.present,
            "findings": [finding.to_json() for finding in self.in_order],
        }
