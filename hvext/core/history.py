"""What was done to the disks of a host and has ended: one line for each operation on a disk, oldest first.

A record says how things are, the history how they came to be; nothing but a report stands on it.
"""

from __future__ import annotations

import json
import uuid as uuid_module
from collections.abc import Iterable
from enum import StrEnum

from hvext.core.record import Operation
from hvext.core.value import value_object


class Ending(StrEnum):
    """How an operation ended: ``failed`` left nothing of itself, ``left`` something that ``recover`` settles."""

    DONE = "done"
    FAILED = "failed"
    LEFT = "left"


@value_object
class Past:
    """An operation on a disk that has ended; ``volume`` is provider and name, times are seconds since 1970.

    ``step`` is the one that failed.
    """

    vm: str
    disk: uuid_module.UUID
    volume: str
    operation: Operation
    since: float
    until: float
    ending: Ending
    step: str = ""

    def line(self) -> str:
        """Return it as it is written down."""
        words = {"vm": self.vm, "disk": str(self.disk), "volume": self.volume, "operation": str(self.operation)}
        times = {"since": round(self.since, 3), "until": round(self.until, 3), "ending": str(self.ending)}
        return json.dumps(words | times | ({"step": self.step} if self.step else {})) + "\n"


def parse_history(lines: Iterable[str]) -> list[Past]:
    """Return what lines tell, in order of its end; lines that are not whole, or from another hvext, are left out."""
    found = []
    for line in lines:
        try:
            found.append(_past(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda past: past.until)


def _past(value: dict[str, str | float]) -> Past:
    return Past(
        vm=str(value["vm"]),
        disk=uuid_module.UUID(str(value["disk"])),
        volume=str(value["volume"]),
        operation=Operation(str(value["operation"])),
        since=float(value["since"]),
        until=float(value["until"]),
        ending=Ending(str(value["ending"])),
        step=str(value.get("step", "")),
    )
