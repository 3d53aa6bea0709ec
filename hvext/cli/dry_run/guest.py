"""What the commands on disks of a running guest would do."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from hvext.cli.arguments import disk, provider_host, secret_files
from hvext.cli.dry_run.show import show, show_all
from hvext.cli.guest import (
    absence_told,
    check_alone,
    check_place,
    check_without_libvirt,
    disk_to_grow,
    given_place,
    names_volume,
)
from hvext.cli.start import given_disks
from hvext.core.disk import Disk, parse_uuid
from hvext.core.identity import DiskNames
from hvext.core.uri import Location, parse_uri
from hvext.errors import InputError
from hvext.host import interrupts
from hvext.host.files import opened_as
from hvext.host.provider import ProviderHost
from hvext.host.qmp import CONNECT_TIMEOUT_S, connect
from hvext.operations import attachments
from hvext.operations.dry_run import DryRun
from hvext.operations.start import check_disks
from hvext.operations.whose import end_told

_T = TypeVar("_T")


def plug(arguments: argparse.Namespace) -> int:
    """Print what ``hvext plug`` would do."""
    several = bool(arguments.disk or arguments.disks)
    if several:
        check_alone(arguments)
        wished = given_disks(arguments)
        check_disks(wished)
    else:
        wished = [_named(arguments)]
    if arguments.connect is not None:
        from hvext.cli.dry_run import domain

        plans = domain.plug(arguments, wished)
    else:
        plans = asked(arguments, lambda guest: guest.plug(wished))
    return show_all(arguments, plans) if several else show(arguments, plans[0])


def unplug(arguments: argparse.Namespace) -> int:
    """Print what ``hvext unplug`` would do."""
    wished = disk(arguments) if names_volume(arguments) else None
    names = wished.names if wished else DiskNames(parse_uuid(arguments.disk_uuid))
    if arguments.connect is not None:
        from hvext.cli.dry_run import domain

        return show(arguments, domain.unplug(arguments, names, wished))
    return show(arguments, asked(arguments, lambda guest: guest.unplug(names, wished)))


def repoint(arguments: argparse.Namespace) -> int:
    """Print what ``hvext repoint`` would do."""
    check_place(arguments)
    wished = disk(arguments) if names_volume(arguments) else None
    if wished is None and arguments.to is None:
        raise InputError("--access needs PROVIDER and VOLUME, to ask the provider what it offers")
    names = wished.names if wished else DiskNames(parse_uuid(arguments.disk_uuid))
    location = _location(arguments, wished)
    with absence_told(wished):
        if arguments.connect is not None:
            from hvext.cli.dry_run import domain

            return show(arguments, domain.repoint(arguments, names, location, wished))
        if location is not None:
            return show(arguments, asked(arguments, lambda guest: guest.repoint(names, location)))
        assert wished is not None  # noqa: S101
        return show(arguments, asked(arguments, lambda guest: guest.repoint_to_offered(wished)))


def _location(arguments: argparse.Namespace, wished: Disk | None) -> Location | None:
    """Return where the disk is to be moved; None for what the provider is to say."""
    if arguments.to is None:
        return None
    text = str(given_place(arguments))
    if wished is None:
        secrets = attachments.secrets_in_files(secret_files(arguments))
    else:
        secrets = attachments.given_secrets(wished)
    return parse_uri(text, look=opened_as).with_secrets(secrets)


def resize(arguments: argparse.Namespace) -> int:
    """Print what ``hvext resize`` would do."""
    wished, size_mib, old_mib = disk_to_grow(arguments), arguments.new_size, arguments.size
    with absence_told(wished):
        if arguments.connect is not None:
            from hvext.cli.dry_run import domain

            return show(arguments, domain.resize(arguments, wished, size_mib, old_size_mib=old_mib))
        return show(arguments, asked(arguments, lambda guest: guest.resize(wished, size_mib, old_size_mib=old_mib)))


def _named(arguments: argparse.Namespace) -> Disk:
    if arguments.provider is None or arguments.volume is None:
        raise InputError("no disk is named", hint="name PROVIDER and VOLUME, or several disks with --disk and --disks")
    return disk(arguments)


def asked(arguments: argparse.Namespace, ask: Callable[[DryRun], Awaitable[_T]]) -> _T:
    """Ask the guest behind ``--qmp`` and return the answer."""
    check_without_libvirt(arguments)
    return asked_over_monitor(arguments, provider_host(arguments), ask)


def asked_over_monitor(arguments: argparse.Namespace, host: ProviderHost, ask: Callable[[DryRun], Awaitable[_T]]) -> _T:
    """Ask the guest behind ``--qmp`` of a command that knows nothing of libvirt, and return the answer."""

    async def work() -> _T:
        limit_s = arguments.qmp_timeout
        opening = connect(arguments.qmp, timeout_s=limit_s, connect_timeout_s=min(limit_s, CONNECT_TIMEOUT_S))
        async with contextlib.AsyncExitStack() as stack:
            with end_told(arguments.qmp):
                monitor = await stack.enter_async_context(opening)
            return await ask(DryRun(monitor, host, name=arguments.vm))

    return interrupts.run(work())
