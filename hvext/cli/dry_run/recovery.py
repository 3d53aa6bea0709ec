"""What ``hvext recover`` would do."""

from __future__ import annotations

import argparse

from hvext.cli.arguments import provider_host
from hvext.cli.dry_run.show import show_all
from hvext.core.identity import parse_uuid
from hvext.host import interrupts
from hvext.host.journal import JournalFolder
from hvext.operations.dry_run.planned import Planned
from hvext.operations.dry_run.recovery import DryRecovery
from hvext.operations.journal import check_names


def recover(arguments: argparse.Namespace) -> int:
    """Print what ``hvext recover`` would do; 1 when something would be left as it is."""
    check_names([*arguments.vm, *arguments.gone], JournalFolder())

    async def work() -> list[Planned]:
        recovery = DryRecovery(provider_host(arguments), timeout_s=arguments.qmp_timeout)
        return await recovery.plans(
            monitors=arguments.qmp,
            names=arguments.vm,
            gone=arguments.gone,
            forget=[parse_uuid(each) for each in arguments.forget],
        )

    plans = interrupts.run(work())
    if not plans and not arguments.json:
        print("nothing to recover")
    return show_all(arguments, plans)
