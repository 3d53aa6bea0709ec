"""A domain of libvirt for the commands on disks of a running guest: ``--connect`` in the place of ``--qmp``."""

from __future__ import annotations

import argparse
import contextlib
import uuid as uuid_module
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from hvext.cli.output import place_text, print_json, print_note, print_table, print_warnings, reporter, size_text
from hvext.core.disk import Disk
from hvext.core.observation import ObservedVm
from hvext.core.uri import Location
from hvext.errors import InputError
from hvext.host.provider import ProviderHost
from hvext.operations.batch import PlugOutcome
from hvext.operations.domains.listing import ListedDisk
from hvext.operations.domains.plug import DomainPlugged
from hvext.operations.domains.repoint import DomainRepointed
from hvext.operations.domains.unplug import DomainUnplugged
from hvext.operations.domains.vm import LibvirtVm, open_domain
from hvext.operations.resize import Resized
from hvext.operations.unplug import DEFAULT_TIMEOUT_S, UnplugState


class GivenDomain:
    """A domain with what the command line says of it; it is called like a ``Vm``."""

    def __init__(self, domain: LibvirtVm, arguments: argparse.Namespace) -> None:
        self._domain = domain
        self._live = bool(arguments.live)
        self._config = bool(arguments.config)
        self._through_monitor = bool(getattr(arguments, "through_monitor", False))

    def disks(self) -> dict[uuid_module.UUID, ListedDisk]:
        """See ``AsyncDomain.disks``."""
        return self._domain.disks()

    def observe(self) -> tuple[ObservedVm, dict[uuid_module.UUID, ListedDisk]]:
        """See ``AsyncDomain.observe``."""
        return self._domain.observe()

    def plug(self, disk: Disk) -> DomainPlugged:
        """See ``AsyncDomain.plug``."""
        result = self._domain.plug(disk, live=self._live, config=self._config)
        print_note(_plugged_note([result]))
        return result

    def plug_all(self, disks: Sequence[Disk]) -> tuple[PlugOutcome, ...]:
        """See ``AsyncDomain.plug_all``."""
        outcomes = self._domain.plug_all(disks, live=self._live, config=self._config)
        print_note(_plugged_note([cast("DomainPlugged", each.plugged) for each in outcomes if each.plugged]))
        return outcomes

    def unplug(self, disk: Disk, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> DomainUnplugged:
        """See ``AsyncDomain.unplug``."""
        result = self._domain.unplug(disk, live=self._live, config=self._config, timeout_s=timeout_s)
        print_note(_kept_note(result))
        return result

    def unplug_only(self, uuid: uuid_module.UUID, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> DomainUnplugged:
        """See ``AsyncDomain.unplug_only``."""
        result = self._domain.unplug_only(uuid, live=self._live, config=self._config, timeout_s=timeout_s)
        print_note(_kept_note(result))
        return result

    def repoint(self, uuid: uuid_module.UUID, target: Location) -> DomainRepointed:
        """See ``AsyncDomain.repoint``."""
        return self.repoint_to_first(uuid, [target])

    def repoint_to_first(self, uuid: uuid_module.UUID, locations: Sequence[Location]) -> DomainRepointed:
        """See ``AsyncDomain.repoint``."""
        result = self._domain.repoint(uuid, locations, through_monitor=self._through_monitor)
        print_warnings(result.warnings)
        return result

    def resize(self, disk: Disk, new_size_mib: int, *, old_size_mib: int | None = None) -> Resized:
        """See ``AsyncDomain.resize``."""
        return self._domain.resize(disk, new_size_mib, old_size_mib=old_size_mib)


def _plugged_note(results: Sequence[DomainPlugged]) -> str:
    """Say that no guest has disks that were plugged, where none has them."""
    if not any(each.persistent and not each.live for each in results):
        return ""
    return "the persistent configuration alone has it: a guest sees it when the domain is started the next time"


def _kept_note(result: DomainUnplugged) -> str:
    """Say which view keeps a disk that the other has let go."""
    if result.state is not UnplugState.UNPLUGGED or not (result.live or result.persistent):
        return ""
    if result.live:
        return "what runs keeps the disk, and its volume stays attached; without --config both let it go"
    return (
        "the persistent configuration keeps the disk, and its volume stays attached: the domain has it again when it "
        "is started the next time; without --live both let it go"
    )


def check_domain(arguments: argparse.Namespace) -> None:
    """Raise InputError when a command line names libvirt and no domain of it."""
    if not arguments.domain:
        raise InputError("--connect names libvirt, but no domain of it", hint="add --domain NAME (or its uuid)")


@contextlib.contextmanager
def given_domain(arguments: argparse.Namespace, host: ProviderHost) -> Iterator[GivenDomain]:
    """Connect to the domain that a command line names; raises InputError where it names none."""
    check_domain(arguments)
    report = reporter(verbose=arguments.verbose)
    with open_domain(arguments.connect, arguments.domain, host=host, report=report, name=arguments.vm) as domain:
        yield GivenDomain(domain, arguments)


def disks(arguments: argparse.Namespace) -> int:
    """List hvext's disks of a domain, or say all that is known of each."""
    if arguments.places:
        raise InputError(
            "--places opens a disk's places beside the QEMU that a monitor of hvext's own leads to: name it with --qmp",
            hint="--stats says all the rest with --connect",
        )
    with given_domain(arguments, ProviderHost()) as domain:
        seen, listed = domain.observe()
    if arguments.json:
        print_json([{**disk.to_json(), **listed[disk.uuid].to_json()} for disk in seen.disks if disk.uuid in listed])
    elif arguments.stats:
        from hvext.cli.observe import print_in_depth

        views = {uuid: {**disk.to_json(), "views": _views(disk.to_json())} for uuid, disk in listed.items()}
        print_in_depth(seen, none="the domain has no disks of hvext", views=views)
    else:
        _print_list(seen, listed)
    return 0


def _print_list(seen: ObservedVm, listed: Mapping[uuid_module.UUID, ListedDisk]) -> None:
    rows = []
    for disk in seen.disks:
        if disk.uuid not in listed:
            # The journal knows it, and neither view has it.
            continue
        row = listed[disk.uuid].to_json()
        pending = f"{disk.pending.operation} pending" if disk.pending else ""
        cells = (row["uuid"], row["target"], row["model"], ", ".join(each for each in (_views(row), pending) if each))
        where = place_text(row["uri"] or row["filename"])
        size = size_text(cast("int | None", row["size_bytes"]))
        rows.append([*map(str, cells), size, disk.access or "-", where])
    if rows:
        print_table(("DISK", "TARGET", "DEVICE", "IN", "SIZE", "ACCESS", "LOCATION"), rows)
    else:
        print("the domain has no disks of hvext")


def _views(row: dict[str, object]) -> str:
    names = (("live", "live"), ("persistent", "config"))
    return ",".join(word for key, word in names if row[key])
