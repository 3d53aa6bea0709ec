"""What an operation would do to a disk of a domain of libvirt, in which view of it, and with what XML.

libvirt is asked over a connection that can change nothing. QEMU's monitor is not used: that marks a domain as tainted.
"""

from __future__ import annotations

from collections.abc import Sequence

from hvext.core.disk import Disk
from hvext.core.identity import DiskNames
from hvext.core.record import Intent, VmRecord
from hvext.core.uri import FileLocation, Location, Opened
from hvext.core.volume import check_size_mib
from hvext.errors import HvextError, RepointRefused
from hvext.host.domain import DomainHandle
from hvext.host.journal import JournalFolder
from hvext.host.provider import ProviderHost
from hvext.operations.acts import Act
from hvext.operations.attachments import offer_act
from hvext.operations.domains.books import journal_of
from hvext.operations.domains.elsewhere import check_disk, in_the_way
from hvext.operations.domains.plug import DomainPlugged, work_of
from hvext.operations.domains.repoint import DomainMove, disk_that_runs, is_at, refusal
from hvext.operations.domains.resize import ShowingSize, check_grows, growable
from hvext.operations.domains.unplug import DomainUnplug
from hvext.operations.domains.views import look_now
from hvext.operations.dry_run.books import adopted
from hvext.operations.dry_run.planned import Planned, in_words
from hvext.operations.dry_run.unknown import ANYWHERE, unknown
from hvext.operations.journal import taken
from hvext.operations.records import check_staying, check_twin, disks_of, read_records, users_of
from hvext.operations.resize import MIB, Growing
from hvext.operations.steps import Step, check_steps
from hvext.operations.unplug import detach_step, pending

LOOKED_AT = ("libvirt, over a connection that can only read", "the journal")
#: Stands in the XML for what only attach says.
_IN_XML = FileLocation(path="/ADDRESS-THAT-ATTACH-PRINTS", opened=Opened.FILE)
_ATTACH = (
    "the <source> is what the provider's attach prints; secrets that it needs are defined in libvirt before, and "
    "removed with the disk"
)
_MONITOR = "the move goes through QEMU's monitor, past libvirt, which marks the domain as tainted; it is not asked here"


class DryDomain:
    """A domain that is asked and not changed. ``live`` and ``config`` are what the caller names; see ``Views.scope``.

    With ``recovers`` what was begun is finished: an unplug that is pending is nothing to stumble over. For one thread:
    libvirt's library waits.
    """

    def __init__(
        self,
        domain: DomainHandle,
        host: ProviderHost,
        *,
        live: bool,
        config: bool,
        name: str | None = None,
        recovers: bool = False,
    ) -> None:
        self._domain = domain
        self._host = host
        self._views = look_now(domain)
        self._live, self._config = live, config
        self._recovers = recovers
        self._records = read_records(JournalFolder())
        journal = journal_of(domain, JournalFolder(), name=name, pid=domain.pid)
        own = self._records.get(journal.name, VmRecord(name=journal.name))
        there = {uuid for view in self._views.present for uuid in view.disks}
        self._own, self._records = adopted(own, self._records, there)
        check_staying(self._own)

    def plug(self, disks: Sequence[Disk]) -> list[Planned]:
        """Return what a plug of each disk would do; of several, each may be refused for itself."""
        plans = []
        for disk in disks:
            try:
                plans.append(self._plug(disk))
            except HvextError as error:
                if len(disks) == 1:
                    raise
                plans.append(Planned(operation=f"plug {disk.provider}/{disk.volume.name}", steps=(), refused=error))
        return plans

    def _plug(self, disk: Disk) -> Planned:
        scope = self._views.scope(live=self._live, config=self._config)
        users = users_of(disk, self._records, but=self._own.name)
        if users:
            raise taken(f"{disk.provider}/{disk.volume.name}", users[0])
        check_twin(disk, self._own.name, disks_of(self._own))
        known = self._own.disks.get(disk.volume.uuid)
        leaving = known is not None and known.intent is Intent.ABSENT and not self._recovers
        if leaving and self._views.live_disk(disk.volume.uuid):
            raise pending(disk.names)
        work = work_of(self._domain, self._host, disk, self._views, scope)
        if isinstance(work, DomainPlugged):
            operation = f"plug {disk.provider}/{disk.volume.name}"
            return Planned(operation=operation, steps=(), notes=(work.reason,), looked_at=LOOKED_AT)
        return _planned(work.operation, work.steps_at(_IN_XML), _ATTACH, xml=work.xml_at(_IN_XML))

    def unplug(self, names: DiskNames, disk: Disk | None) -> Planned:
        """Return what an unplug would do; without ``disk`` the volume stays attached."""
        views = self._views
        scope = views.scope(live=self._live, config=self._config)
        found = views.live_disk(names.uuid) or views.config_disk(names.uuid)
        if disk is not None:
            check_disk(self._domain, found)
        steps = DomainUnplug(self._domain, names, views, scope).steps()
        known = self._own.disks.get(names.uuid)
        stays = (views.live_disk(names.uuid) is not None and not scope.live) or (
            views.config_disk(names.uuid) is not None and not scope.config
        )
        notes = []
        if stays:
            notes.append("the other view keeps the disk, and its volume stays attached")
        elif disk is not None and users_of(disk, self._records, but=self._own.name):
            notes.append("another VM of this host has the volume as well: it stays attached")
        elif disk is not None and (steps or (known is not None and known.attached)):
            steps.append(detach_step(self._host, disk))
        if views.live_disk(names.uuid) is not None and scope.live:
            notes.append("when the guest does not let it go, its volume stays attached; it is put back when it refuses")
        if not steps:
            notes.append("the domain does not have it, and it is not written down for this domain")
        return _planned(f"unplug {names.alias}", steps, *notes, xml=found.xml if found and steps else "")

    def repoint(
        self, names: DiskNames, location: Location | None, disk: Disk | None, *, through_monitor: bool
    ) -> Planned:
        """Return what a move would do, to ``location`` or to what the provider of ``disk`` offers."""
        if not through_monitor:
            raise refusal(names)
        if location is not None and (why := in_the_way(self._domain, location)):
            raise RepointRefused(f"cannot move a disk to {location.words}: {why}")
        found = disk_that_runs(names, self._views)
        ask = [] if location is not None or disk is None else [offer_act(self._host, disk)]
        place = ANYWHERE if location is None else location
        move = DomainMove(self._domain, found, place)
        move.check_place()
        words = "what the provider offers" if location is None else location.words
        operation = f"move disk {names.uuid} to {words}"
        if location is not None and is_at(found, location):
            return _planned(operation, (), "it is there already")
        return _planned(operation, [*ask, *unknown(move.steps()), *move.last_steps(self._views)], _MONITOR)

    def resize(self, disk: Disk, new_size_mib: int, *, old_size_mib: int | None = None) -> Planned:
        """Return what a resize would do."""
        check_disk(self._domain, self._views.live_disk(disk.volume.uuid) or self._views.config_disk(disk.volume.uuid))
        check_size_mib(new_size_mib, "new size")
        found = growable(disk, self._views)
        before = self._domain.size_of(found.target)
        old_mib = before // MIB if old_size_mib is None else check_size_mib(old_size_mib, "old size")
        check_grows(before, new_size_mib)
        steps = [Growing(self._host, disk, old_mib, new_size_mib).step()]
        if before < new_size_mib * MIB:
            steps += ShowingSize(self._domain, found, new_size_mib * MIB).steps()
        note = "a volume that has grown stays grown; repeating the command finishes what came after"
        return _planned(f"resize disk {disk.names.uuid}", steps, note)


def _planned(operation: str, steps: Sequence[Step | Act], *notes: str, xml: str = "") -> Planned:
    check_steps(operation, [step for step in steps if isinstance(step, Step)])
    return Planned(operation=operation, steps=in_words(steps), notes=notes, looked_at=LOOKED_AT, xml=xml)
