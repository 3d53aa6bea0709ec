"""Modules of the library without what they load and hvext does not use: a third of the time that Python takes to start.

argparse looks for translations and uuid asks for the platform's name, and both compile a page of patterns for it;
subprocess may be asked for text, and loads a table of the world's languages for that; and it may have to write and
read at the same time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def import_argparse() -> None:
    """Import argparse without gettext, unless one of them is there already."""
    _import_beside("argparse", gettext={"gettext": str, "ngettext": lambda one, more, n: one if n == 1 else more})


def import_uuid() -> None:
    """Import uuid without platform, unless one of them is there already."""
    _import_beside("uuid", platform={"system": lambda: os.uname().sysname})


def import_subprocess() -> None:
    """Import subprocess without locale, unless one of them is there already."""
    import _locale

    def selectors(name: str) -> Any:
        return getattr(import_module("selectors"), name)

    _import_beside(
        "subprocess",
        locale={"getencoding": _locale.getencoding},
        # Where a program is given input and read at the same time, it is loaded then.
        selectors={"PollSelector": lambda: selectors("PollSelector")(), "__getattr__": selectors},
    )


def _import_beside(name: str, **others: Mapping[str, object]) -> None:
    """Import a module that finds only these values in the other ones, which whoever needs them loads afterwards.

    Where that is not enough, nothing is imported: it is when it is needed, with all that it loads.
    """
    if name in sys.modules or not others.keys().isdisjoint(sys.modules):
        return
    for other, values in others.items():
        sys.modules[other] = stand_in = ModuleType(other)
        vars(stand_in).update(values)
    try:
        with suppress(ImportError, AttributeError):
            import_module(name)
    finally:
        for other in others:
            del sys.modules[other]
