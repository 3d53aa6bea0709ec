"""Operations that need no event loop, as lists of acts.

What ``hvext.operations.steps`` is for a running guest: each command that runs scripts of a provider says what it does
as a list, which is carried out, or only shown (``hvext.operations.dry_run``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hvext.core.value import value_object
from hvext.operations.outcome import Report, silent
from hvext.operations.telling import telling

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@value_object
class Act:
    """One step: ``name`` says in words what ``do`` does, ``inverse`` what takes it back; a ``one_way`` act has none."""

    name: str
    do: Callable[[], Any]
    inverse: str = ""
    one_way: bool = False


def perform(acts: Iterable[Act], *, report: Report = silent) -> list[Any]:
    """Do acts in order, each told before it is done, and return what came of each."""
    done = []
    for act in acts:
        report(act.name)
        with telling("step", step=act.name):
            done.append(act.do())
    return done
