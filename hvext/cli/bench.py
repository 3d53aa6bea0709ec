"""``hvext bench``: which access to a volume is the faster one, here."""

from __future__ import annotations

import argparse
import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from hvext.bench.places import Made, Place
from hvext.bench.result import Level, Result, Workload
from hvext.bench.run import Settings, measure
from hvext.bench.workload import FULL, QUICK, STANDARD, Length, parse_jobs, size_bytes
from hvext.cli.arguments import disk, provider_host
from hvext.cli.output import print_json
from hvext.core.options import DeviceModel
from hvext.errors import HvextError, InputError

_Kind = TypeVar("_Kind", bound=StrEnum)
#: How the name of a file ends that is to be packed: fio's whole output is large.
_PACKED = ".gz"
_MAX_CPUS = 64


def bench(arguments: argparse.Namespace) -> int:
    """Measure every access to a volume, and say which to choose."""
    from hvext.bench.report import html_report
    from hvext.bench.terminal import Progress, print_result
    from hvext.bench.verdict import judge

    settings = _settings(arguments)
    for name in (arguments.out, arguments.html):
        _check_writable(name)
    with Progress(quiet=arguments.json) as progress:
        result = measure(provider_host(arguments), disk(arguments), settings, progress)
    # The file first: whatever fails afterwards, what was measured is there.
    _write(arguments.out, json.dumps(result.to_json(), ensure_ascii=False))
    verdict = judge(result)
    if arguments.html:
        _write(arguments.html, html_report(result, verdict))
    if arguments.json:
        print_json({"verdict": verdict.to_json(), "result": None if arguments.out else result.to_json()})
    else:
        print_result(result, verdict)
    return 0


def tune(arguments: argparse.Namespace) -> int:
    """Measure the options of a disk, and print those to use."""
    from hvext.bench.beside import Layer, beside
    from hvext.bench.terminal import Progress, print_tuned
    from hvext.bench.tune import choose, preferred, variations

    layers = _each(Layer, arguments.beside, "--beside")
    settings = _settings(arguments)
    _check_writable(arguments.out)
    wished = disk(arguments)
    guest = Level.GUEST in settings.levels

    def vary(places: Sequence[Place]) -> Sequence[Place]:
        found = preferred(places, wished.access)
        return beside(found, layers) if layers else variations(found, guest=guest, cpus=settings.cpus)

    with Progress(quiet=arguments.json) as progress:
        result = measure(provider_host(arguments), wished, settings, progress, vary=vary)
    _write(arguments.out, json.dumps(result.to_json(), ensure_ascii=False))
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

    comparison = compared(_read(arguments.before), _read(arguments.after))
    if arguments.json:
        print_json(comparison.to_json())
    else:
        print_comparison(comparison)
    return 0


def report(arguments: argparse.Namespace) -> int:
    """Make the page of a benchmark that was kept in a file."""
    from hvext.bench.report import html_report
    from hvext.bench.verdict import judge

    result = _read(arguments.result)
    _write(arguments.html, html_report(result, judge(result)))
    return 0


def _settings(arguments: argparse.Namespace) -> Settings:
    levels = (Level.HOST, Level.GUEST) if arguments.level == "both" else (Level(arguments.level),)
    return Settings(
        length=_length(arguments),
        levels=levels,
        devices=_each(DeviceModel, arguments.devices, "--devices"),
        made=_each(Made, arguments.made, "--made"),
        jobs=_jobs(arguments.job),
        span_bytes=size_bytes(arguments.span, "--span"),
        destroy_data=arguments.destroy_data,
        guest=Path(arguments.guest),
        cpus=arguments.cpus,
        seed=arguments.seed,
    )


def _each(kind: type[_Kind], text: str, option: str) -> tuple[_Kind, ...]:
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


def _read(name: str) -> Result:
    try:
        kept = Path(name).read_bytes()
        return Result.read((gzip.decompress(kept) if name.endswith(_PACKED) else kept).decode())
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {name}: {error}") from error
    except InputError as error:
        raise InputError(f"{name}: {error.message}", hint=error.hint) from error


def _check_writable(name: str | None) -> None:
    """Raise InputError now for a file that could not be written later: a benchmark takes its time."""
    if name and not Path(name).absolute().parent.is_dir():
        raise InputError(f"cannot write {name}: there is no folder {Path(name).absolute().parent}")


def _write(name: str | None, text: str) -> None:
    if not name:
        return
    path = Path(name)
    new = path.with_name(f".{path.name}.new")
    kept = f"{text}\n".encode()
    try:
        new.write_bytes(gzip.compress(kept, mtime=0) if name.endswith(_PACKED) else kept)
        new.replace(path)
    except OSError as error:
        raise HvextError(f"cannot write {name}: {error.strerror}") from error
