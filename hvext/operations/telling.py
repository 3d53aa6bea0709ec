"""Telling somebody who listens what is done: operations, their steps, the scripts they run, and how each ended.

What is told carries what it is part of: a step has the VM, the disk and the operation around it. When nobody listens,
nothing is made up. No secret is told: names and errors have none.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache

from hvext.core.disk import Disk
from hvext.errors import HvextError
from hvext.operations.outcome import is_interrupt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextvars import ContextVar

    from hvext.host.provider import ScriptEnd

#: Called with one thing that is told, in the thread that tells it.
Listener = Callable[[Mapping[str, object]], None]
_listeners: list[Listener] = []
#: Steps are many, and mostly nobody listens.
_UNHEARD: AbstractContextManager[None] = contextlib.nullcontext()


@cache
def _around() -> ContextVar[Mapping[str, object] | None]:
    """What all that is told now is part of; made when somebody listens."""
    from contextvars import ContextVar

    return ContextVar("around", default=None)


def listen(listener: Listener) -> None:
    """Have all be told to ``listener`` from now on; it must not raise."""
    _listeners.append(listener)


def stop_listening(listener: Listener) -> None:
    """Tell ``listener`` no more."""
    _listeners.remove(listener)


def is_heard() -> bool:
    """Return whether anybody listens."""
    return bool(_listeners)


def tell(event: str, outcome: str, **values: object) -> None:
    """Tell that something has begun or ended."""
    if _listeners:
        told = {"event": event, **(_around().get() or {}), **values, "outcome": outcome}
        for listener in _listeners:
            listener(told)


def around(**values: object) -> AbstractContextManager[None]:
    """Add to all that is told in the block what it is part of."""
    return _around_with(values) if _listeners else _UNHEARD


def telling(event: str, *, begins: bool = False, **values: object) -> AbstractContextManager[None]:
    """Tell how what is done in the block ended, and with ``begins`` also that it begins."""
    return _telling(event, values, begins=begins) if _listeners else _UNHEARD


@contextlib.contextmanager
def _around_with(values: Mapping[str, object]) -> Iterator[None]:
    token = _around().set({**(_around().get() or {}), **values})
    try:
        yield
    finally:
        _around().reset(token)


@contextlib.contextmanager
def _telling(event: str, values: Mapping[str, object], *, begins: bool) -> Iterator[None]:
    began = time.monotonic()
    with _around_with(values):
        if begins:
            tell(event, "begun")
        try:
            yield
        except BaseException as error:
            tell(event, _ended(error), took_ms=_ms(time.monotonic() - began), **_why(error))
            raise
        tell(event, "done", took_ms=_ms(time.monotonic() - began))


def tell_failed(event: str, error: BaseException, **values: object) -> None:
    """Tell that something has failed."""
    tell(event, _ended(error), **values, **_why(error))


def tell_script(end: ScriptEnd) -> None:
    """Tell how a provider's script ended."""
    if _listeners:
        volume = end.volume
        names = {"disk": str(volume.uuid), "volume": f"{end.provider}/{volume.name}", "action": str(end.action)}
        with around(**names):
            tell("script", end.outcome, took_ms=_ms(end.duration_s))


def named(disks: Sequence[Disk]) -> dict[str, object]:
    """Return the names that are told of disks: ``disk`` and ``volume`` of one, ``disks`` of several."""
    if len(disks) == 1:
        (disk,) = disks
        return {"disk": str(disk.volume.uuid), "volume": f"{disk.provider}/{disk.volume.name}"}
    return {"disks": [str(disk.volume.uuid) for disk in disks]} if disks else {}


def _ended(error: BaseException) -> str:
    return "interrupted" if is_interrupt(error) else "failed"


def _why(error: BaseException) -> dict[str, object]:
    if isinstance(error, HvextError):
        return {"error": error.to_json()}
    return {} if is_interrupt(error) else {"error": {"type": type(error).__name__, "message": str(error)}}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
