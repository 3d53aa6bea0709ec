"""Structured logs: one JSON object a line for each thing that a command does, for programs that collect them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from threading import Lock

from hvext.core.moment import utc_text
from hvext.errors import HvextError
from hvext.operations.telling import listen, stop_listening, telling

#: Logs name VMs and volumes: for their owner alone.
_MODE = 0o600


def logged(run: Callable[[argparse.Namespace], int | None], command: str) -> Callable[[argparse.Namespace], int | None]:
    """Return a command that logs what it does, as its arguments say."""

    def logging(arguments: argparse.Namespace) -> int | None:
        with _log(arguments.log_file) as write:
            listen(write)
            try:
                with telling("command", command=command):
                    return run(arguments)
            finally:
                stop_listening(write)

    return logging


@contextlib.contextmanager
def _log(path: str | None) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """Yield what writes a line, to standard error or behind what a file holds; raises HvextError."""
    if path is None:
        yield _Lines(sys.stderr.fileno()).write
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
    except OSError as error:
        raise HvextError(f"cannot write the log {path}: {error.strerror}", hint="choose another --log-file") from error
    try:
        yield _Lines(descriptor).write
    finally:
        os.close(descriptor)


class _Lines:
    """Writes lines whole: several threads and processes may have the file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = Lock()

    def write(self, told: Mapping[str, object]) -> None:
        """Write one line; a disk that is full must not end what is logged."""
        line = json.dumps({"time": utc_text(time.time()), **told})
        with self._lock, contextlib.suppress(OSError):
            os.write(self._descriptor, line.encode() + b"\n")
