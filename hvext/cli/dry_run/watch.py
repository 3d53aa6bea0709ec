"""What ``hvext watch --once`` would do."""

from __future__ import annotations

import argparse

from hvext.cli.arguments import provider_host
from hvext.cli.dry_run.show import show_all
from hvext.cli.watch import check_goes_on, nobody, settings
from hvext.errors import InputError
from hvext.host import interrupts
from hvext.operations.dry_run.planned import Planned
from hvext.operations.dry_run.watch import plan_guest
from hvext.operations.watch import Watch


def watch(arguments: argparse.Namespace) -> int:
    """Print what a watch that looks once would do; 1 when a guest is not reached."""
    host = provider_host(arguments)
    wished = settings(arguments, host)
    check_goes_on(arguments)
    if not arguments.once:
        raise InputError("--dry-run says what a watch would do now, not what comes later", hint="add --once")
    addresses = Watch(wished, host=host).addresses()
    if not addresses:
        raise nobody()

    async def work() -> list[Planned]:
        return [await plan_guest(address, wished, host) for address in addresses]

    return show_all(arguments, interrupts.run(work()))
