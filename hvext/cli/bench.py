"""``hvext bench``: which access to a volume is the faster one, here."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from hvext.bench.extra import check_extra
from hvext.bench.places import Made, Place
from hvext.bench.result import Level, Result, Workload
from hvext.bench.run import Settings, measure
from hvext.bench.workload import FULL, QUICK, STANDARD, Length, parse_jobs, size_bytes
from hvext.cli.arguments import disk, provider_host
from hvext.cli.files import check_writable, read_result, write_whole
from hvext.cli.output import print_json
from hvext.core.options import DeviceModel
from hvext.errors import HvextError, InputError

_Kind = TypeVar("_Kind", bound=StrEnum)
_MAX_CPUS = 64


def bench(arguments: argparse.Namespace) -> int:
    """Measure every access to a volume, and say which to choose."""
    from hvext.bench.report import html_report
    from hvext.bench.terminal import Progress, print_result
    from hvext.bench.verdict import judge

    wished_settings = settings(arguments)
    for name in (arguments.out, arguments.html):
        check_writable(name)
    check_extra(table=not arguments.json, page=bool(arguments.html))
    with Progress(quiet=arguments.json) as progress:
        result = measure(provider_host(arguments), disk(arguments), wished_settings, progress)
    # Whichever of file, page and table fails, the others are had; the file is the first of them.
    kept = False
    try:
        keep(arguments.out, result)
        kept = bool(arguments.out)
    finally:
        verdict = judge(result)
        try:
            if arguments.html:
                write_whole(arguments.html, html_report(result, verdict))
        finally:
            if arguments.json:
                print_json({"verdict": verdict.to_json(), "result": None if kept else result.to_json()})
            else:
                print_result(result, verdict)
    return 0


def tune(arguments: argparse.Namespace) -> int:
    """Measure the options of a disk, and print those to use."""
    from hvext.bench.beside import Layer, beside
    from hvext.bench.terminal import Progress, print_tuned
    from hvext.bench.tune import NothingToVary, choose, preferred, variations

    layers = each(Layer, arguments.beside, "--beside")
    wished_settings = settings(arguments)
    check_writable(arguments.out)
    check_extra(table=not arguments.json, page=False)
    wished = disk(arguments)
    guest = Level.GUEST in wished_settings.levels

    def vary(places: Sequence[Place]) -> Sequence[Place]:
        found = preferred(places, wished.access)
        if layers:
            return beside(found, layers)
        varied = variations(found, guest=guest, cpus=wished_settings.cpus)
        if len(varied) == 1:
            raise NothingToVary(found, guest=guest)
        return varied

    try:
        with Progress(quiet=arguments.json) as progress:
            result = measure(provider_host(arguments), wished, wished_settings, progress, vary=vary)
    except NothingToVary as nothing:
        if arguments.json:
            print_json(nothing.tuned.to_json())
        else:
            print_tuned(None, nothing.tuned)
        return 0
    try:
        keep(arguments.out, result)
    finally:
        tuned = choose(result)
        if arguments.json:
            print_json(tuned.to_json())
        else:
            print_tuned(result, tuned)
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """Compare two benchmarks: before and after."""
    from hvext.bench.compare import compare as compared
    from hvext.bench.terminal import print_comparison

    comparison = compared(read_result(arguments.before), read_result(arguments.after))
    if arguments.json:
        print_json(comparison.to_json())
    else:
        print_comparison(comparison)
    return 0


def report(arguments: argparse.Namespace) -> int:
    """Make the page of a benchmark that was kept in a file."""
    from hvext.bench.report import html_report
    from hvext.bench.verdict import judge

    result = read_result(arguments.result)
    write_whole(arguments.html, html_report(result, judge(result)))
    print(f"the page is in {arguments.html}", file=sys.stderr)
    return 0


def keep(name: str | None, result: Result) -> None:
    """Write a result into a file; without a name nothing.

    Raises HvextError where that fails. What was measured is written into the folder for temporary files then, if that
    has room, as measuring it again takes its time: the hint says so.
    """
    text = json.dumps(result.to_json(), ensure_ascii=False)
    try:
        write_whole(name, text)
    except HvextError as error:
        if elsewhere := _kept_elsewhere(text):
            error.hint = f"what was measured is in {elsewhere}; `hvext bench report` makes a page of it"
        else:
            error.hint = "what was measured is kept nowhere; what it says is printed"
        raise


def _kept_elsewhere(text: str) -> str | None:
    """Return the file in the folder for temporary files that has the text now; None where it has no room either."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="hvext-bench-"))
    except OSError:
        return None
    try:
        write_whole(f"{folder}/result.json", text)
    except HvextError:
        folder.rmdir()
        return None
    return f"{folder}/result.json"


def settings(arguments: argparse.Namespace) -> Settings:
    """Return what is to be measured; raises InputError."""
    levels = (Level.HOST, Level.GUEST) if arguments.level == "both" else (Level(arguments.level),)
    return Settings(
        length=_length(arguments),
        levels=levels,
        devices=each(DeviceModel, arguments.devices, "--devices"),
        made=each(Made, arguments.made, "--made"),
        jobs=_jobs(arguments.job),
        span_bytes=size_bytes(arguments.span, "--span"),
        destroy_data=arguments.destroy_data,
        guest=Path(arguments.guest),
        cpus=arguments.cpus,
        seed=arguments.seed,
    )


def each(kind: type[_Kind], text: str, option: str) -> tuple[_Kind, ...]:
    """Return the values of a list with commas; raises InputError."""
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in tuple(kind)]
    if unknown:
        raise InputError(f"{option} takes a list of {', '.join(kind)}; got {unknown[0]!r}")
    return tuple(kind(name) for name in dict.fromkeys(names))


def _length(arguments: argparse.Namespace) -> Length:
    length = QUICK if arguments.quick else FULL if arguments.full else STANDARD
    if not 1 <= arguments.cpus <= _MAX_CPUS:
        raise InputError(f"--cpus must be between 1 and {_MAX_CPUS}; got {arguments.cpus}")
    if arguments.rounds is not None and arguments.rounds < 1:
        raise InputError(f"--rounds must be at least 1; got {arguments.rounds}")
    return replace(
        length,
        rounds=length.rounds if arguments.rounds is None else arguments.rounds,
        run_s=length.run_s if arguments.runtime is None else arguments.runtime,
    )


def _jobs(name: str | None) -> tuple[Workload, ...]:
    if name is None:
        return ()
    try:
        return parse_jobs(Path(name).read_text(encoding="utf-8"), name)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the jobs in {name}: {error}") from error
