"""The libraries that only measuring needs: the extra ``bench``, imported where it is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hvext.errors import InputError


@contextmanager
def bench_extra() -> Iterator[None]:
    """Import libraries of the extra within this; raises InputError with the cure where one is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name}, which hvext bench needs, is not installed", hint="pip install 'hvext[bench]'"
        ) from error
