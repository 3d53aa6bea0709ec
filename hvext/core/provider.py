"""What an ExtStorage provider directory is made of, and the rules it has to keep.

Source: ganeti-extstorage-interface(7); Ganeti, lib/storage/extstorage.py, ExtStorageFromDisk.
"""

from __future__ import annotations

from enum import StrEnum

from hvext.core.file_kind import FileKind as FileKind
from hvext.core.text import quoted
from hvext.core.value import value_object
from hvext.errors import InputError

#: Where Ganeti looks for providers, in this order; the first directory of the name wins.
GANETI_SEARCH_PATH = (
    "/srv/ganeti/extstorage",
    "/usr/local/lib/ganeti/extstorage",
    "/usr/lib/ganeti/extstorage",
    "/usr/share/ganeti/extstorage",
)
PARAMETERS_FILE = "parameters.list"
_NAME_SIGNS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


class Action(StrEnum):
    """The ten scripts of a provider."""

    CREATE = "create"
    REMOVE = "remove"
    GROW = "grow"
    ATTACH = "attach"
    DETACH = "detach"
    SETINFO = "setinfo"
    VERIFY = "verify"
    SNAPSHOT = "snapshot"
    OPEN = "open"
    CLOSE = "close"


#: Scripts a provider may leave out.
OPTIONAL_ACTIONS = frozenset({Action.SNAPSHOT, Action.OPEN, Action.CLOSE})


def check_provider_name(name: str) -> str:
    """Return ``name`` when it can name a provider; raises InputError otherwise."""
    if not (name and _NAME_SIGNS.issuperset(name)):
        raise InputError(f"provider name {quoted(name)} must consist of letters, digits, '_' and '-'")
    return name


@value_object
class Parameter:
    """One line of ``parameters.list``."""

    name: str
    description: str


def parse_parameters(text: str) -> tuple[Parameter, ...]:
    """Return the parameters that a ``parameters.list`` declares; blank lines are nothing."""
    lines = (line.split(None, 1) for line in text.replace("\r", "\n").split("\n") if line.strip())
    return tuple(Parameter(name=words[0], description=words[1].rstrip() if words[1:] else "") for words in lines)


def script_problem(action: Action, kind: FileKind, *, executable: bool) -> str | None:
    """Return what is wrong with the file of a script, or None when it is fine.

    A missing optional script is fine; one that is there has to be right.
    """
    if kind is FileKind.MISSING:
        return None if action in OPTIONAL_ACTIONS else f"script {action!s} is missing"
    if kind is not FileKind.REGULAR:
        return f"script {action!s} is {kind.value}, not a regular file"
    if not executable:
        return f"script {action!s} is not executable"
    return None


@value_object
class Provider:
    """A provider directory that kept every rule.

    ``path`` is the directory (no symlinks resolved); ``actions`` are the scripts it has.
    """

    name: str
    path: str
    actions: frozenset[Action]
    parameters: tuple[Parameter, ...]

    def __post_init__(self) -> None:
        check_provider_name(self.name)

    def script(self, action: Action) -> str:
        """Return the path of the script of an action."""
        return f"{self.path}/{action!s}"
