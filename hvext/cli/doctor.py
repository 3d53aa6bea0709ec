"""``hvext doctor``: whether this host is ready, and for which transports."""

from __future__ import annotations

import argparse
import sys

from hvext.cli.output import print_json, print_table
from hvext.core.finding import CHECKS, Finding, Severity, by_cure
from hvext.host.journal import JournalFolder
from hvext.host.opening import find_identity
from hvext.host.provider import DEFAULT_SEARCH_PATH, ProviderHost
from hvext.operations.doctor.ask import Ask
from hvext.operations.doctor.examination import Report, examine

_WORDS = {Severity.OK: "ok", Severity.WARNING: "WARNING", Severity.ERROR: "ERROR", Severity.ABSENT: "absent"}


def doctor(arguments: argparse.Namespace) -> int:
    """Print what is found; 0 when the host is ready."""
    if arguments.list:
        _print_checks(as_json=arguments.json)
        return 0
    ask = Ask(
        uris=tuple(sys.stdin.read().strip() if uri == "-" else uri for uri in arguments.uri),
        providers=tuple(arguments.provider),
        only=tuple(arguments.only),
        identity=find_identity(arguments.user, arguments.chroot),
        qemu=arguments.qemu,
        host=ProviderHost(search_path=_folders(arguments.search_path)),
        folder=JournalFolder(),
    )
    report = examine(ask)
    ready = report.is_ready(strict=arguments.strict)
    if arguments.json:
        print_json({**report.to_json(), "ready": ready})
    else:
        _print_report(report, ready=ready)
    return 0 if ready else 1


def _folders(path: str | None) -> tuple[str, ...]:
    return tuple(folder for folder in path.split(":") if folder) if path else DEFAULT_SEARCH_PATH


def _print_report(report: Report, *, ready: bool) -> None:
    for group in by_cure(report.findings):
        for finding in group:
            about = f" [{finding.about}]" if finding.about and finding.about not in finding.found else ""
            print(f"{_WORDS[finding.severity]:8} {finding.id:22} {finding.found}{about}")
        if group[0].severity is not Severity.OK:
            print(f"{'':8}   tried: {'; '.join(dict.fromkeys(finding.tried for finding in group))}")
            print(f"{'':8}   cure:  {group[0].cure}")
    if report.transports:
        print()
        rows = [
            (each.transport.name, "yes" if each.ready else "no", each.transport.words, each.why)
            for each in report.transports
        ]
        print_table(("TRANSPORT", "READY", "", "WHY NOT"), rows)
    print()
    print(_verdict(report.findings, ready=ready))


def _verdict(findings: tuple[Finding, ...], *, ready: bool) -> str:
    counts = [
        (sum(finding.severity is severity for finding in findings), one, more)
        for severity, one, more in (
            (Severity.ERROR, "error", "errors"),
            (Severity.WARNING, "warning", "warnings"),
            (Severity.ABSENT, "thing is not there and not needed", "things are not there and not needed"),
        )
    ]
    said = ", ".join(f"{count} {one if count == 1 else more}" for count, one, more in counts if count)
    return f"{'ready' if ready else 'NOT READY'}{': ' if said else ''}{said}"


def _print_checks(*, as_json: bool) -> None:
    if as_json:
        print_json([{"id": each.id, "what": each.what, "fault": each.fault} for each in CHECKS.values()])
        return
    print_table(("CHECK", "WHAT IS LOOKED AT"), [(each.id, each.what) for each in CHECKS.values()])
