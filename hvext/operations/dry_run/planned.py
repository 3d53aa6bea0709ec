"""What an operation would do, as data: its steps in words, what takes each back, and what there is to know besides."""

from __future__ import annotations

from collections.abc import Iterable

from hvext.core.value import value_object
from hvext.errors import HvextError
from hvext.operations.acts import Act

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hvext.operations.steps import Step


@value_object
class PlannedStep:
    """One step in words, and what takes it back: empty where nothing has to, or, when it is ``one_way``, can."""

    name: str
    inverse: str = ""
    one_way: bool = False

    @property
    def way_back(self) -> str:
        """What takes it back, for people."""
        return self.inverse or ("cannot be undone" if self.one_way else "-")


@value_object
class Planned:
    """What an operation would do. Without steps it would do nothing, and ``notes`` say why.

    ``looked_at`` is what was asked to find that out. One of several operations that would fail for itself, and leave
    the others alone, has its error in ``refused``. ``xml`` is what libvirt would be given.
    """

    operation: str
    steps: tuple[PlannedStep, ...]
    notes: tuple[str, ...] = ()
    looked_at: tuple[str, ...] = ()
    refused: HvextError | None = None
    xml: str = ""

    def to_json(self) -> dict[str, object]:
        """Return this for machines."""
        return {
            "operation": self.operation,
            "steps": [
                {"step": step.name, "inverse": step.inverse or None, "one_way": step.one_way} for step in self.steps
            ],
            "notes": list(self.notes),
            "looked_at": list(self.looked_at),
            **({"refused": self.refused.to_json()} if self.refused else {}),
            **({"xml": self.xml} if self.xml else {}),
        }


def in_words(steps: Iterable[Step | Act]) -> tuple[PlannedStep, ...]:
    """Return the steps of an operation in words."""
    return tuple(
        PlannedStep(
            name=step.name,
            # Words without what they say are words for nothing; what undoes an act, the caller does.
            inverse=step.inverse if isinstance(step, Act) or step.undo else "",
            one_way=step.one_way,
        )
        for step in steps
    )
