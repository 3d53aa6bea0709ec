"""What the commands of a migration would do, and ``hvext stop``."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable

from hvext.cli.arguments import provider_host
from hvext.cli.dry_run.show import show
from hvext.cli.migrate import limits, stop_failure, the_description
from hvext.cli.start import given_disks
from hvext.host import interrupts
from hvext.host.provider import ProviderHost
from hvext.host.qmp import CONNECT_TIMEOUT_S, connect
from hvext.operations.dry_run.migration import DryMigration
from hvext.operations.dry_run.planned import Planned, in_words
from hvext.operations.reach import CONNECT_S
from hvext.operations.start import Stopping


def begin(arguments: argparse.Namespace) -> int:
    """Print what ``hvext migrate-begin`` would do."""
    disks = given_disks(arguments)
    return _show(arguments, lambda guest: guest.begin(disks, own_controller=arguments.own_controller))


def listen(arguments: argparse.Namespace) -> int:
    """Print what ``hvext migrate-listen`` would do."""
    description = the_description(arguments)
    return _show(arguments, lambda guest: guest.listen(description, arguments.at))


def migrate(arguments: argparse.Namespace) -> int:
    """Print what ``hvext migrate`` would do."""
    disks, keep = given_disks(arguments), arguments.keep_source
    limits(arguments)

    async def ask(guest: DryMigration) -> Planned:
        if arguments.target_qmp is None:
            return await guest.send(disks, arguments.to, keep_source=keep)
        async with connect(arguments.target_qmp, connect_timeout_s=CONNECT_S) as target:
            return await guest.send(disks, arguments.to, target=target, keep_source=keep)

    return _show(arguments, ask)


def finish(arguments: argparse.Namespace) -> int:
    """Print what ``hvext migrate-finish`` would do."""
    description = the_description(arguments)
    return _show(arguments, lambda guest: guest.finish(description, timeout_s=arguments.wait))


def cancel(arguments: argparse.Namespace) -> int:
    """Print what ``hvext migrate-cancel`` would do."""
    disks = given_disks(arguments)
    return _show(arguments, lambda guest: guest.cancel(disks, target_ended=arguments.target_ended))


def stop(arguments: argparse.Namespace) -> int:
    """Print what ``hvext stop`` would do; what a running VM has is refused."""
    work = Stopping(provider_host(arguments), given_disks(arguments), name=arguments.vm, close=arguments.close)
    plan = Planned(
        operation="stop",
        steps=in_words(work.acts()),
        looked_at=("the provider's folder", "the journal"),
    )
    show(arguments, plan)
    if left := work.refused():
        raise stop_failure(left)
    return 0


def _show(arguments: argparse.Namespace, ask: Callable[[DryMigration], Awaitable[Planned]]) -> int:
    async def work() -> Planned:
        limit_s = arguments.qmp_timeout
        host = provider_host(arguments) if hasattr(arguments, "search_path") else ProviderHost()
        async with connect(
            arguments.qmp, timeout_s=limit_s, connect_timeout_s=min(limit_s, CONNECT_TIMEOUT_S)
        ) as monitor:
            return await ask(DryMigration(monitor, host, name=arguments.vm))

    return show(arguments, interrupts.run(work()))
