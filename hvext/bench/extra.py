"""The libraries that only measuring needs: the extra ``bench``, imported where it is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from hvext.core.extras import library_missing
from hvext.errors import ProgramError


@contextmanager
def bench_extra() -> Iterator[None]:
    """Import libraries of the extra within this; raises ProgramError with the cure where one is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise _missing(error.name) from error


def check_extra(*, table: bool, page: bool) -> None:
    """Look for what a benchmark needs at its end: measuring takes minutes, and is lost where nothing can be shown.

    What is concluded needs scipy, a ``table`` rich, and a ``page`` matplotlib. Raises ProgramError as `bench_extra`.
    """
    for name, wanted in (("scipy", True), ("rich", table), ("matplotlib", page)):
        if wanted and find_spec(name) is None:
            raise _missing(name)


def _missing(name: str | None) -> ProgramError:
    return library_missing(str(name), "hvext bench needs", "bench")
