"""``hvext completion``: what a shell needs to complete hvext's command lines, made from the parser itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from hvext.cli.parser import whole_parser
from hvext.core.extras import install_words
from hvext.errors import InputError

#: Names without what stands around them in the table of ``hvext providers``; nothing where there are none.
_LIST = "hvext providers 2>/dev/null | sed 1d | cut -d' ' -f1"
_PROVIDERS: Mapping[str, object] = {
    "bash": "_hvext_providers",
    "zsh": "_hvext_providers",
    "fish": "(_hvext_providers)",
    "preamble": {
        "bash": f'_hvext_providers() {{\n  compgen -W "$({_LIST})" -- "$1"\n}}',
        "zsh": f'_hvext_providers() {{\n  local -a names=(${{(f)"$({_LIST})"}})\n  compadd -a names\n}}',
        "fish": f"function _hvext_providers\n  {_LIST}\nend",
    },
}
#: How arguments are called that take the name of a file, and of a folder.
_FILES = frozenset({"FILE", "SOCKET", "PATTERN", "BINARY", "CMD", "BEFORE.json", "AFTER.json", "RESULT.json"})
_FOLDERS = frozenset({"DIR", "DIR:DIR…"})


def completion(arguments: argparse.Namespace) -> int:
    """Print the script that has a shell complete hvext's commands, options and arguments."""
    print(completion_script(arguments.shell))
    return 0


def completion_script(shell: str) -> str:
    """Return the script for ``bash``, ``zsh`` or ``fish``; raises InputError where shtab is missing, which makes it."""
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise InputError(
            "shtab, which hvext completion needs, is not installed", hint=install_words("completion")
        ) from error
    parser = whole_parser()
    for action in _arguments(parser):
        # argparse has no attribute for this: shtab looks for one of that name.
        if action.dest == "provider":
            vars(action)["complete"] = _PROVIDERS
        elif action.metavar in _FILES:
            vars(action)["complete"] = shtab.FILE
        elif action.metavar in _FOLDERS:
            vars(action)["complete"] = shtab.DIRECTORY
    return shtab.complete(parser, shell)


def _arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _arguments(command)
        else:
            yield action
