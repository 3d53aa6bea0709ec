"""``hvext sanity``: a provider, run through the whole contract on volumes of its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hvext.cli.arguments import pairs, parameters, provider_host, split_commas
from hvext.cli.output import print_json
from hvext.core.volume import check_size_mib
from hvext.errors import HvextError, InputError
from hvext.sanity.check import Level, Outcome
from hvext.sanity.kit import CHECKS, Kit
from hvext.sanity.report import junit, line, listed, summary
from hvext.sanity.trial import Settings


def sanity(arguments: argparse.Namespace) -> int:
    """Run the checks; fails when one of them does."""
    level = Level(arguments.level)
    if arguments.list:
        return _list(arguments, level)
    if arguments.provider is None:
        raise InputError("which provider?", hint="hvext providers lists them; hvext sanity --list lists the checks")
    settings = Settings(
        parameters=parameters(arguments),
        places=tuple(pairs(split_commas(text), "--place") for text in arguments.place),
        size_mib=check_size_mib(arguments.size),
        watched=tuple(str(Path(folder).absolute()) for folder in arguments.watch),
    )
    if arguments.junit and not Path(arguments.junit).absolute().parent.is_dir():
        raise InputError(f"cannot write {arguments.junit}: there is no such folder")
    kit = Kit(provider_host(arguments), arguments.provider, settings, level=level, skip=arguments.skip)
    try:
        with kit:
            print(f"volumes of this run have {kit.trial.token} in their names", file=sys.stderr)
            verdicts = kit.run(_tell if not arguments.json else lambda _outcome: None)
    except KeyboardInterrupt:
        for name in kit.trial.remaining:
            print(f"LEFT BEHIND, to be removed by hand: the volume {name}", file=sys.stderr)
        raise
    if arguments.junit:
        try:
            Path(arguments.junit).write_text(junit(verdicts), encoding="utf-8")
        except OSError as error:
            raise HvextError(f"cannot write {arguments.junit}: {error.strerror}") from error
    if arguments.json:
        print_json(verdicts.to_json())
    else:
        print(summary(verdicts))
    return 0 if verdicts.passed else 1


def _tell(outcome: Outcome) -> None:
    print(line(outcome), flush=True)


def _list(arguments: argparse.Namespace, level: Level) -> int:
    checks = [each for each in CHECKS if level.has(each.level)]
    if arguments.json:
        rows = [
            {"name": each.name, "level": str(each.level), "script": each.script, "says": each.says,
             "source": each.source, "after": list(each.after), "needs": [need.name.lower() for need in each.needs]}
            for each in checks
        ]  # fmt: skip
        print_json(rows)
    else:
        print(listed(checks))
    return 0
