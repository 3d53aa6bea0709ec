"""Steps that open storage of which only the real run learns where it is: the provider's ``attach`` says it."""

from __future__ import annotations

from collections.abc import Iterable

from hvext.core.uri import FileLocation, Opened
from hvext.core.value import replace
from hvext.operations.steps import Step

#: Stands for a location that is not known: the steps and the names of all parts are the same wherever the storage is.
ANYWHERE = FileLocation(path="/", opened=Opened.FILE)
#: What is said in its place.
OPEN = "open the storage at the address that attach prints"


def unknown(steps: Iterable[Step]) -> list[Step]:
    """Return steps to ``ANYWHERE`` with what is not known said so."""
    return [replace(step, name=OPEN) if step.name == f"open {ANYWHERE.words}" else step for step in steps]
