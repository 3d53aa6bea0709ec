"""From words of the command line to plain values and disk options; imports nothing that only other values need."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from hvext.core.options import DiskOptions
from hvext.core.uri.mask import masked
from hvext.errors import InputError


def pairs(texts: Iterable[str], option: str, form: str = "NAME=VALUE") -> dict[str, str]:
    """Return ``NAME=VALUE`` texts as a mapping; raises InputError."""
    result = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"{option} takes {form}; got {masked(text)!r}")
        if name in result:
            raise InputError(f"{option} {name} is given twice")
        result[name] = value
    return result


def options(arguments: argparse.Namespace) -> DiskOptions:
    """Return the disk options of ``-o``."""
    return DiskOptions.from_mapping(pairs(getattr(arguments, "option", []), "-o"))


def split_commas(text: str) -> list[str]:
    """Return the parts of a comma-separated list in which a comma in a value is doubled."""
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
