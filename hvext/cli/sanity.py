"""``hvext sanity``: a provider, run through the whole contract on volumes of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from hvext.cli.arguments import pairs, parameters, provider_host, split_commas
from hvext.cli.output import print_json
from hvext.core.volume import check_size_mib
from hvext.errors import HvextError, InputError, ProviderInvalid
from hvext.host.provider import ProviderHost, check_known
from hvext.sanity.check import Level, Outcome, Verdict
from hvext.sanity.kit import CHECKS, Kit
from hvext.sanity.report import folded, junit, line, listed, summary
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
    host = provider_host(arguments)
    _check_parameters(host, arguments.provider, settings)
    kit = Kit(host, arguments.provider, settings, level=level, skip=arguments.skip)
    try:
        with kit:
            print(f"volumes of this run have {kit.trial.token} in their names", file=sys.stderr)
            verdicts = kit.run(_teller(arguments))
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
        skipped = verdicts.of(Verdict.SKIPPED)
        if skipped and not arguments.verbose:
            print(folded(skipped))
        print(summary(verdicts))
    return 0 if verdicts.passed else 1


def _check_parameters(host: ProviderHost, name: str, settings: Settings) -> None:
    """Raise InputError for a parameter that was typed and that the provider does not have, before a script runs.

    The provider would be blamed for it, and its volumes made in its default folder. What is wrong with the provider
    itself is the checks' to say; a provider that is not there is no provider to check.
    """
    try:
        provider = host.find(name)
    except ProviderInvalid:
        return
    for given in (settings.parameters, *settings.places):
        check_known(provider, given)


def _teller(arguments: argparse.Namespace) -> Callable[[Outcome], None]:
    """Return what prints a check's line as soon as there is one; those that are skipped come at the end, together."""

    def tell(outcome: Outcome) -> None:
        if not arguments.json and (arguments.verbose or outcome.verdict is not Verdict.SKIPPED):
            print(line(outcome), flush=True)

    return tell


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
