"""Whether storage can be used, as a process of its own found out."""

from __future__ import annotations

from enum import StrEnum

from hvext.core.value import value_object


class HealthState(StrEnum):
    """What came of opening storage and reading from it.

    HEALTHY: a block was read. REFUSED: somebody said no (nobody listens, no such image, an I/O error). SILENT: no
    answer in time; whoever should give it may still be alive.
    """

    HEALTHY = "healthy"
    REFUSED = "refused"
    SILENT = "silent"


@value_object
class Health:
    """The state of storage at one moment; ``words`` say why it is not healthy, without secrets."""

    state: HealthState
    words: str = ""

    @property
    def healthy(self) -> bool:
        """Whether a block could be read."""
        return self.state is HealthState.HEALTHY

    def to_json(self) -> dict[str, str]:
        """Return the result for machines."""
        return {"state": str(self.state), "words": self.words}
