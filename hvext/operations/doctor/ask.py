"""What is asked of the doctor, and what a host has to be able to for it."""

from __future__ import annotations

from hvext.core.finding import BASIC, TRANSPORTS, Severity, transport_of
from hvext.core.record import DiskRecord
from hvext.core.uri import Location, parse_uri
from hvext.core.uri.nbd import NbdLocation
from hvext.core.value import field, value_object
from hvext.errors import HvextError, InputError, ProviderNotFound
from hvext.host.files import opened_as
from hvext.host.journal import JournalFolder
from hvext.host.opening import Identity
from hvext.host.process import Cancel
from hvext.host.provider import SHIPPED, ProviderHost
from hvext.operations.kept_capabilities import DEFAULT_QEMU
from hvext.operations.records import read_records


@value_object
class Ask:
    """What is asked: ``uris`` and ``providers`` restrict it to what these need, ``only`` to some subjects.

    ``identity`` is who QEMU runs as; ``cancel`` ends what is under way.
    """

    uris: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    identity: Identity = field(default_factory=Identity)
    qemu: str = DEFAULT_QEMU
    host: ProviderHost = field(default_factory=ProviderHost)
    folder: JournalFolder = field(default_factory=JournalFolder)
    cancel: Cancel = field(default_factory=Cancel)

    @property
    def restricted(self) -> bool:
        """Whether only a part of the host is asked for."""
        return bool(self.uris or self.providers)


@value_object
class Shipped:
    """What a provider that comes with hvext needs: transports, programs with their packages, loop devices.

    ``extras`` are programs that it can do without.
    """

    transports: tuple[str, ...]
    tools: tuple[tuple[str, str], ...] = ()
    extras: tuple[tuple[str, str], ...] = ()
    loop: bool = False


PROVIDERS = {
    "blockdev": Shipped(transports=("path",)),
    "iscsi": Shipped(
        transports=("path", "iscsi"), tools=(("qemu-img", "qemu-utils"),), extras=(("iscsiadm", "open-iscsi"),)
    ),
    "rbd": Shipped(transports=("path", "rbd"), tools=(("rbd", "ceph-common"),)),
    "sample": Shipped(
        transports=("path", "nbd"),
        tools=(("losetup", "mount"), ("qemu-storage-daemon", "qemu-system-common")),
        loop=True,
    ),
    "sharedfile": Shipped(transports=("path",), loop=True),
}


def shipped(name: str, host: ProviderHost) -> Shipped | None:
    """Return what a provider needs when it is the one that comes with hvext; None for any other of that name."""
    try:
        return PROVIDERS.get(name) if host.folder(name) == SHIPPED else None
    except (InputError, ProviderNotFound):
        return None


@value_object
class Needs:
    """What the host has to be able to.

    ``transports`` are those that have to work, ``shown`` those that are looked at, ``providers`` those that have to be
    there. ``locations`` are what the given URIs name; ``disks`` are those of the journal.
    """

    transports: frozenset[str] = frozenset(BASIC)
    shown: tuple[str, ...] = tuple(TRANSPORTS)
    providers: frozenset[str] = frozenset()
    loop: bool = False
    locations: tuple[Location, ...] = ()
    disks: tuple[DiskRecord, ...] = ()

    def missing(self, *transports: str) -> Severity:
        """Return how bad it is that something is missing which these transports need."""
        return Severity.ERROR if self.transports.intersection(transports) else Severity.ABSENT


def transport_name(location: Location) -> str:
    """Return the transport of a location."""
    return transport_of(location.driver, tls=isinstance(location, NbdLocation) and location.tls is not None)


def needs_of(ask: Ask) -> Needs:
    """Return what is needed: by the given URIs and providers, or else by the disks that the journal knows."""
    disks = () if ask.restricted else _journal_disks(ask.folder)
    providers = frozenset(ask.providers or (record.disk.provider for record in disks))
    known = {name: shipped(name, ask.host) for name in providers}
    locations = tuple(_locations(ask.uris))
    wanted = {transport_name(location) for location in locations}
    for each in known.values():
        wanted.update(each.transports if each is not None else ())
    # Of a provider that is somebody's own it is not known what it will print.
    telling = ask.restricted and None not in known.values()
    return Needs(
        transports=frozenset(wanted if telling else wanted | set(BASIC)),
        shown=tuple(name for name in TRANSPORTS if name in wanted or not telling),
        providers=providers,
        loop=any(each is not None and each.loop for each in known.values()),
        locations=locations,
        disks=disks,
    )


def _locations(uris: tuple[str, ...]) -> list[Location]:
    found = []
    for uri in uris:
        try:
            found.append(parse_uri(uri, look=opened_as))
        except InputError:
            # The subject "files" says so.
            continue
    return found


def _journal_disks(folder: JournalFolder) -> tuple[DiskRecord, ...]:
    try:
        return tuple(disk for record in read_records(folder).values() for disk in record.disks.values())
    except HvextError:
        # The subject "journal" says so.
        return ()
