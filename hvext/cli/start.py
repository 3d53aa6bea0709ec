"""``hvext args``: the disks of an instance that is about to start."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence

from hvext.cli.arguments import pairs, provider_host, split_commas
from hvext.cli.output import print_json, print_warnings
from hvext.core.disk import Disk
from hvext.errors import InputError
from hvext.host.files import program_path
from hvext.host.private import read_secret_file
from hvext.operations.start import Start, start_disks, stop_disks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hvext.core.capability import Capabilities


def args(arguments: argparse.Namespace) -> int:
    """Attach all disks and print QEMU's arguments for them."""
    host = provider_host(arguments)
    disks = given_disks(arguments)
    check_format(arguments)
    start = start_disks(
        host,
        disks,
        exclusive=not arguments.shared,
        capabilities=_capabilities(arguments.qemu, arguments.format),
        name=arguments.vm,
    )
    try:
        for disk in start.disks:
            print_warnings(disk.warnings)
        if arguments.connect is not None:
            from hvext.operations.domains.secrets import define_for_start

            define_for_start(arguments.connect, [disk.plan for disk in start.disks])
        _print(start, arguments.format, as_json=arguments.json)
        sys.stdout.flush()
    except BaseException:
        # Nobody has the arguments: nothing may stay attached.
        print_warnings([f"NOT detached: {words}" for words in stop_disks(host, disks, name=arguments.vm)])
        raise
    return 0


def check_format(arguments: argparse.Namespace) -> None:
    """Raise InputError for ``--connect`` without the XML that it is for."""
    if arguments.connect is not None and arguments.format != "xml":
        raise InputError("--connect defines the secrets that libvirt's XML refers to", hint="add --format xml")


def _capabilities(qemu: str | None, form: str) -> Capabilities | None:
    """Return what the QEMU that will be started can open: the named one, else the installed one if there is one.

    libvirt starts its own.
    """
    if qemu is None and form == "xml":
        return None
    from hvext.operations.kept_capabilities import DEFAULT_QEMU, disk_capabilities

    if qemu is None and program_path(DEFAULT_QEMU) is None:
        return None
    return disk_capabilities(qemu or DEFAULT_QEMU)


def parse_disk(text: str) -> Disk:
    """Return the disk of one ``--disk``: ``key=value,…`` with commas in values doubled, or a JSON object."""
    if text.lstrip().startswith("{"):
        return _from_json(text, "--disk")
    values: dict[str, object] = {}
    for part in split_commas(text):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"--disk takes KEY=VALUE,…; got {part!r}", hint="a comma in a value is doubled")
        if key in values:
            raise InputError(f"--disk has {key} twice")
        values[key] = value
    return Disk.from_mapping(values)


def given_disks(arguments: argparse.Namespace) -> list[Disk]:
    """Return the disks of ``--disk`` and ``--disks``; raises InputError when there is none."""
    disks = _parse_disks(arguments.disk)
    if arguments.disks:
        secrets = file_values(arguments.parameter_file)
        disks += _from_file(arguments.disks, secrets)
    if not disks:
        raise InputError("no disks are given", hint="name them with --disk or --disks")
    return disks


def _parse_disks(texts: Sequence[str]) -> list[Disk]:
    """Return the disks of all ``--disk``; of several, an error says which one is wrong."""
    disks = []
    for number, text in enumerate(texts, start=1):
        try:
            disks.append(parse_disk(text))
        except InputError as error:
            if len(texts) == 1:
                raise
            hint = error.hint or "each --disk is a whole disk: provider=NAME,volume=NAME,…"
            raise InputError(f"the {_ordinal(number)} --disk: {error.message}", hint=hint) from error
    return disks


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def file_values(texts: Sequence[str]) -> dict[str, str]:
    """Return the values of ``--parameter-file`` by name; raises InputError."""
    return {name: read_secret_file(path) for name, path in pairs(texts, "--parameter-file", "NAME=FILE").items()}


def read_json(name: str, what: str) -> object:
    """Return the JSON in a file, or on standard input for ``-``; raises InputError."""
    try:
        if name == "-":
            return json.loads(sys.stdin.read())
        with open(name, encoding="utf-8") as file:  # noqa: PTH123
            return json.loads(file.read())
    except OSError as error:
        raise InputError(f"cannot read {what} from {name}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot read {what} from {name}: it is no JSON ({_why_no_json(error)})") from error


def _why_no_json(error: Exception) -> str:
    """Return what is wrong with a text that is no JSON, in words."""
    if isinstance(error, json.JSONDecodeError):
        if not error.doc.strip():
            return "it is empty"
        return f"line {error.lineno}, column {error.colno}"
    return "it is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else "it is nested too deeply"


def _from_json(text: str, where: str) -> Disk:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({_why_no_json(error)})") from error
    if not isinstance(value, dict):
        raise InputError(f"{where} must be a JSON object")
    return Disk.from_mapping(value)


def _from_file(name: str, secrets: Mapping[str, str]) -> list[Disk]:
    values = read_json(name, "disks")
    if isinstance(values, dict) and "disks" in values:
        from hvext.core.migration import Description

        return [*Description.from_json(values).completed(secrets).disks]
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise InputError(f"{name} must hold a JSON list of disks, or what hvext migrate-begin printed")
    disks = []
    for number, value in enumerate(values, start=1):
        try:
            disks.append(Disk.from_mapping(value))
        except InputError as error:
            raise InputError(f"the {_ordinal(number)} disk in {name}: {error.message}", hint=error.hint) from error
    return disks


def _print(start: Start, form: str, *, as_json: bool) -> None:
    if form == "xml":
        xml = start.xml()
        print_json(xml) if as_json else print(xml, end="")
    elif form == "qmp":
        commands = start.commands()
        if as_json:
            print_json(commands)
        else:
            for command in commands:
                print(json.dumps(command, ensure_ascii=False))
    else:
        import shlex

        argv = start.argv() if form == "blockdev" else start.drive_argv()
        print_json(argv) if as_json else print(shlex.join(argv))
