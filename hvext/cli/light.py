"""Modules of the library without what they load and hvext does not use: a third of the time that Python takes to start.

argparse looks for translations and uuid asks for the platform's name, and both compile a page of patterns for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from types import ModuleType


def import_argparse() -> None:
    """Import argparse without gettext, unless one of them is there already."""
    _import_beside("argparse", "gettext", {"gettext": str, "ngettext": lambda one, more, n: one if n == 1 else more})


def import_uuid() -> None:
    """Import uuid without platform, unless one of them is there already."""
    _import_beside("uuid", "platform", {"system": lambda: os.uname().sysname})


def _import_beside(name: str, other: str, values: Mapping[str, object]) -> None:
    """Import a module that finds only ``values`` in the other one, which whoever needs it loads afterwards.

    Where that is not enough, nothing is imported: it is when it is needed, with all that it loads.
    """
    if name in sys.modules or other in sys.modules:
        return
    sys.modules[other] = stand_in = ModuleType(other)
    vars(stand_in).update(values)
    try:
        with suppress(ImportError, AttributeError):
            import_module(name)
    finally:
        del sys.modules[other]
