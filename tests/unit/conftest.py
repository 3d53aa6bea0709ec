"""Unit tests are about values: none of them may start a program or open a socket."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

_FORBIDDEN = frozenset(
    (
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
        "socket.__new__",
        "socket.getaddrinfo",
        "subprocess.Popen",
    )
)
_guarded = False


def _refuse(event: str, _arguments: tuple[Any, ...]) -> None:
    if _guarded and event in _FORBIDDEN:
        raise AssertionError(f"a unit test tried {event}: it belongs into tests/host")


# A hook cannot be taken back, so there is one for the whole run, which acts during unit tests only.
sys.addaudithook(_refuse)


@pytest.fixture(autouse=True)
def _no_program_and_no_socket() -> Iterator[None]:
    global _guarded
    _guarded = True
    yield
    _guarded = False
