"""What the commands on disks of a running guest would do to a domain of libvirt."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence

from hvext.cli.arguments import provider_host
from hvext.cli.libvirt import check_domain
from hvext.core.disk import Disk
from hvext.core.identity import DiskNames
from hvext.core.uri import Location
from hvext.host.domain import connect
from hvext.operations.dry_run.domains import DryDomain
from hvext.operations.dry_run.planned import Planned


def plug(arguments: argparse.Namespace, disks: Sequence[Disk]) -> list[Planned]:
    """Return what a plug of each disk would do."""
    with _domain(arguments) as domain:
        return domain.plug(disks)


def unplug(arguments: argparse.Namespace, names: DiskNames, disk: Disk | None) -> Planned:
    """Return what an unplug would do."""
    with _domain(arguments) as domain:
        return domain.unplug(names, disk)


def repoint(arguments: argparse.Namespace, names: DiskNames, location: Location | None, disk: Disk | None) -> Planned:
    """Return what a move would do."""
    with _domain(arguments) as domain:
        return domain.repoint(names, location, disk, through_monitor=arguments.through_monitor)


def resize(arguments: argparse.Namespace, disk: Disk, new_size_mib: int, *, old_size_mib: int | None) -> Planned:
    """Return what a resize would do."""
    with _domain(arguments) as domain:
        return domain.resize(disk, new_size_mib, old_size_mib=old_size_mib)


@contextlib.contextmanager
def _domain(arguments: argparse.Namespace) -> Iterator[DryDomain]:
    check_domain(arguments)
    with connect(arguments.connect, read_only=True) as connection:
        yield DryDomain(
            connection.domain(arguments.domain),
            provider_host(arguments),
            live=bool(arguments.live),
            config=bool(arguments.config),
            name=arguments.vm,
        )
