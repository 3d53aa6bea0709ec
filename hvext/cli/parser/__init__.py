"""Every command with its arguments. Nothing is imported here that is not needed to print help."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

# Not typing's own, see hvext.core.value.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from hvext.cli.parser.shared import Add

# hvext has no translations, and argparse looks for them at each parser that is made, for which it loads locale.
vars(argparse)["_"] = str
#: Commands that hypervisor layers run again and again, with the module and the function that make them.
ALONE = {
    "args": "starting:args_command",
    "explain": "starting:explain_command",
    **dict.fromkeys(("plug", "unplug", "repoint", "resize", "disks"), "guests:guest_commands"),
}
#: Commands that look at libvirt's guests without ``--connect``, or leave them to libvirt's own tools, and what to do.
_WITHOUT_CONNECT = {
    **dict.fromkeys(("audit", "recover"), "libvirt's guests are in the journal too: --vm NAME names one"),
    "resume": "for a libvirt domain, make room first, then virsh -c URI resume NAME",
}


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line with a hint, and JSON where JSON was asked for."""

    _connects = False
    _words: Sequence[str] = ()

    def __init__(self, **values: Any) -> None:
        # The beginning of an option is no option: it would mean another one as soon as there are two with it.
        super().__init__(allow_abbrev=False, **values)

    def error(self, message: str) -> NoReturn:
        if "required" in message and (unknown := self._unknown_options()):
            # Most often it is one of these that was to be the one that is missing.
            message = self._unrecognized(unknown)
        message = _with_the_word_meant(message)
        instead = _WITHOUT_CONNECT.get(self.prog.removeprefix("hvext "), "") if self._connects else ""
        hint = f"{instead}; {self.prog} --help" if instead else f"{self.prog} --help"
        if "--json" in sys.argv:
            import json

            from hvext.core.documentation import page_here

            value = {
                "error": {"type": "UsageError", "message": message, "hint": hint},
                "help": f"{page_here('troubleshooting')}#inputerror",
                "man": "hvext-errors(7)",
            }
            print(json.dumps(value, ensure_ascii=False), file=sys.stderr)
            self.exit(2)
        # No usage: it would hide the one line that says what is wrong.
        self.exit(2, f"{self.prog}: error: {message}\nhint: {hint}\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Return the arguments; words that the command does not know are refused here, in its own name.

        argparse leaves them to the parser of all commands.
        """
        self._words = args or ()
        self._connects = any(word.partition("=")[0] == "--connect" for word in self._words)
        known, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(self._unrecognized(rest))
        return known, rest

    def _unknown_options(self) -> list[str]:
        """Return the words that look like options and are none of this command's."""
        before_names = list(self._words)
        if "--" in before_names:
            del before_names[before_names.index("--") :]
        names = [word.partition("=")[0] for word in before_names if word.startswith("--")]
        return [name for name in names if name not in self._option_string_actions]

    def _unrecognized(self, words: Sequence[str]) -> str:
        """Return the complaint about words that the command does not know, with the option that the first may mean."""
        from hvext.core.text import meant

        first = next((word.partition("=")[0] for word in words if word.startswith("--")), "")
        options = [name for name in self._option_string_actions if name.startswith("--")]
        return f"unrecognized arguments: {' '.join(words)}{meant(first, options) if first else ''}"


def _with_the_word_meant(message: str) -> str:
    """Return argparse's complaint about a word that is none of the choices, with the choice that is most like it."""
    import re

    wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)\Z", message)
    if wrong is None:
        return message
    from difflib import get_close_matches

    choices = re.findall(r"[\w-]+", wrong[2])
    meant = get_close_matches(wrong[1], choices, 1)
    if message.startswith("argument COMMAND:"):
        message = message[: wrong.start(2) - len(" (choose from ")] + "; hvext --help lists the commands"
    return f"{message}; did you mean {meant[0]}?" if meant else message


class _Unasked(argparse.ArgumentParser):
    """The parser of another command, which is made with the one that is asked for: to fill it takes its time."""

    def __init__(self) -> None:
        pass

    def add_argument(self, *_names: Any, **_values: Any) -> Any:
        return None


class _Version(argparse.Action):
    """Print the installed version; looked up only when it is asked for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        _namespace: argparse.Namespace,
        _values: object,
        _option_string: str | None = None,
    ) -> None:
        from importlib.metadata import version

        print(f"hvext {version('hvext')}")
        parser.exit()


def parse_line(words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of a command line; ends the program for ``--help`` and for one that is wrong.

    A command whose start-up counts gets a parser without all the others, which take longer than Python itself.
    """
    if not words or words[0] not in ALONE:
        return whole_parser().parse_args(words)
    made: dict[str, argparse.ArgumentParser] = {}

    def command(name: str, run: str, text: str, *adds: Add, epilog: str | None = None) -> argparse.ArgumentParser:
        if name != words[0]:
            return _Unasked()
        made[name] = _Parser(prog=f"hvext {name}", **_described_as(text, epilog))
        return _filled(made[name], run, adds)

    module, _, function = ALONE[words[0]].partition(":")
    getattr(importlib.import_module(f"hvext.cli.parser.{module}"), function)(command)
    return made[words[0]].parse_args(words[1:])


def _described_as(text: str, epilog: str | None) -> dict[str, Any]:
    return {"description": text[0].upper() + text[1:] + ".", "epilog": epilog, "formatter_class": _raw_formatter}


def _filled(parser: argparse.ArgumentParser, run: str, adds: Sequence[Add]) -> argparse.ArgumentParser:
    for add in adds:
        add(parser)
    parser.set_defaults(run=run)
    return parser


def _raw_formatter(prog: str) -> argparse.HelpFormatter:
    """Return what lays out help, in lines as wide as the terminal.

    argparse asks for it at each argument, and to find the width by itself loads all that packs files (shutil).
    """
    wished = os.environ.get("COLUMNS", "")
    columns = int(wished) if wished.isdecimal() else 0
    with contextlib.suppress(ValueError, OSError):
        if not columns and sys.__stdout__ is not None:
            columns = os.get_terminal_size(sys.__stdout__.fileno()).columns
    return argparse.RawDescriptionHelpFormatter(prog, width=(columns or 80) - 2)


def whole_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="hvext",
        description="ExtStorage volumes as disks of KVM guests: through their userspace URIs, or their block devices.",
        epilog="Each command has its own --help. Exit status: 0 done, 1 failed, 2 wrong command or value.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    # Without prog, argparse formats a usage for it, and loads what looks at the terminal's size.
    commands = parser.add_subparsers(metavar="COMMAND", required=True, prog=parser.prog)

    def command(name: str, run: str, text: str, *adds: Add, epilog: str | None = None) -> argparse.ArgumentParser:
        # hvext takes both spellings of what belongs to bench: shown is the one with a blank.
        spoken = name.replace("bench-", "bench ")
        made = commands.add_parser(name, help=text, prog=f"{parser.prog} {spoken}", **_described_as(text, epilog))
        commands._choices_actions[-1].metavar = spoken
        return _filled(made, run, adds)

    from hvext.cli.parser import guests, measuring, providers, starting, watching

    for make in (
        providers.volume_commands,
        starting.args_command,
        starting.explain_command,
        guests.guest_commands,
        guests.recovery_commands,
        watching.watch_command,
        watching.observing_commands,
        watching.report_command,
        guests.migration_commands,
        measuring.bench_commands,
        providers.sanity_command,
        providers.new_provider_command,
        watching.doctor_command,
        watching.trying_commands,
    ):
        make(command)
    return parser
