"""``hvext audit`` and ``hvext recover``: what does not fit together, and bringing it in order."""

from __future__ import annotations

import argparse

from hvext.cli.arguments import provider_host
from hvext.cli.output import print_hint, print_json, print_note, print_table, reporter
from hvext.core.identity import parse_uuid
from hvext.host import interrupts
from hvext.host.journal import JournalFolder, closed_folder
from hvext.operations import audit as auditing
from hvext.operations import recover as recovering
from hvext.operations.journal import check_names
from hvext.operations.recover import Outcome
from hvext.operations.whose import where_looked


def audit(arguments: argparse.Namespace) -> int:
    """List what does not fit together; 1 when there is anything to do about it."""
    check_names(arguments.vm, JournalFolder())
    findings = interrupts.run(
        auditing.audit(monitors=arguments.qmp, names=arguments.vm, timeout_s=arguments.qmp_timeout)
    )
    folder = JournalFolder()
    note = "" if arguments.qmp else where_looked(folder)
    if arguments.json:
        print_json([finding.to_json() for finding in findings])
    elif not findings:
        # What another journal has is not known.
        where = f"in this journal ({folder.path}) " if note and closed_folder() else ""
        print(f"{where}nothing is left over, and nothing is unfinished")
    else:
        rows = [[finding.vm or "-", str(finding.kind), str(finding.uuid or "-"), finding.words] for finding in findings]
        print_table(("VM", "WHAT", "DISK", "IN WORDS"), rows)
        if any(finding.recovers for finding in findings):
            print_hint("hvext recover finishes or undoes what was left")
    print_note(note)
    return 0 if all(finding.harmless for finding in findings) else 1


def recover(arguments: argparse.Namespace) -> int:
    """Finish or undo what was left; 1 when something had to be left as it is."""
    check_names([*arguments.vm, *arguments.gone], JournalFolder())
    done = interrupts.run(
        recovering.recover(
            provider_host(arguments),
            monitors=arguments.qmp,
            names=arguments.vm,
            gone=arguments.gone,
            forget=[parse_uuid(each) for each in arguments.forget],
            timeout_s=arguments.qmp_timeout,
            report=reporter(verbose=arguments.verbose),
        )
    )
    if arguments.json:
        print_json([item.to_json() for item in done])
    elif not done:
        print("nothing to recover")
    for item in done:
        if not arguments.json:
            print(f"{item.vm or '-'}: {item.outcome}: {item.words}")
            print_hint(item.hint)
    return 1 if any(item.outcome is Outcome.LEFT for item in done) else 0
