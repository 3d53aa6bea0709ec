"""Plugging a disk into a domain: attach, secrets, the persistent configuration, what runs.

The configuration comes before what runs: taking a disk out of it always works, and a guest may take long to let one go.
"""

from __future__ import annotations

import contextlib
import uuid as uuid_module
from collections.abc import Sequence
from pathlib import Path

from hvext.core.access import Access, Candidate
from hvext.core.causes import hint_for
from hvext.core.disk import Disk
from hvext.core.domain import DomainDisk, free_target_index, moved_xml, room_in_all, running_disk, target_of
from hvext.core.domain_xml import disk_xml
from hvext.core.observation import access_of
from hvext.core.options import DeviceModel, DiskOptions
from hvext.core.plan import DiskPlan, plan_disk
from hvext.core.provider import Provider
from hvext.core.topology import Topology, place_disk
from hvext.core.uri import FileLocation, Location, Opened, masked
from hvext.core.uri.nbd_tls import CERTIFICATES
from hvext.core.value import replace, value_object
from hvext.errors import (
    CommandTimeout,
    HvextError,
    InputError,
    LibvirtRefused,
    MonitorError,
    OperationFailed,
    QemuError,
    RenderError,
)
from hvext.host.domain import DomainHandle
from hvext.host.files import program_path
from hvext.host.private import private_folder
from hvext.host.process import Cancel
from hvext.host.provider import ProviderHost
from hvext.operations import attachments
from hvext.operations.attachments import Attached, Obstacle
from hvext.operations.domains.elsewhere import in_the_way
from hvext.operations.domains.secrets import define_secrets, remove_secrets
from hvext.operations.domains.unplug import take_back
from hvext.operations.domains.views import Scope, Views
from hvext.operations.kept_capabilities import disk_capabilities
from hvext.operations.openable import openable
from hvext.operations.plug import Plugged
from hvext.operations.rehearsal import rehearse
from hvext.operations.steps import Report, Step, carry_out, silent
from hvext.operations.threads import in_thread

_ALREADY = "the domain has this disk already; options and access of this call were not applied"
#: What libvirt says when a place or a name is taken: another candidate would fare no better.
_NOT_STORAGE = ("non unique alias", "already exists", "No more available PCI slots", "already in use")


@value_object
class DomainPlugged(Plugged):
    """A disk that a domain has, as ``target``: what a plug over QMP tells of it, and in which views it is."""

    target: str = ""
    live: bool = False
    persistent: bool = False

    def to_json(self) -> dict[str, object]:
        """Return the result for machines."""
        views = {"target": self.target, "live": self.live, "persistent": self.persistent}
        return {**Plugged.to_json(self), **views}


async def plug(
    domain: DomainHandle,
    host: ProviderHost,
    disk: Disk,
    views: Views,
    scope: Scope,
    *,
    exclusive: bool = True,
    shared: bool = False,
    report: Report = silent,
) -> DomainPlugged:
    """Attach a disk's volume and put it into those views of the domain that lack it.

    As ``hvext.operations.plug.plug``: candidates are tried in order, whatever fails is undone, and repeating it changes
    nothing. Raises OperationFailed, or PlugError, InputError, RenderError, ProviderNotFound and ProviderInvalid before
    anything was done.
    """
    work = work_of(domain, host, disk, views, scope, exclusive=exclusive, shared=shared, report=report)
    if isinstance(work, DomainPlugged):
        return work
    await work.learn()
    await carry_out(work.operation, work.steps(), report=report)
    return work.result()


def work_of(
    domain: DomainHandle,
    host: ProviderHost,
    disk: Disk,
    views: Views,
    scope: Scope,
    *,
    exclusive: bool = True,
    shared: bool = False,
    report: Report = silent,
) -> DomainPlug | DomainPlugged:
    """Return the work of a plug, or the disk that the domain has already; raises what ``plug`` does at first."""
    uuid = disk.volume.uuid
    live, config = views.live_disk(uuid), views.config_disk(uuid)
    missing = Scope(live=scope.live and live is None, config=scope.config and config is None)
    known = live or config
    if known is not None and not (missing.live or missing.config):
        return _already(known, views, uuid)
    placed = _placed(disk, views, missing)
    # What no candidate could have, XML cannot say: that is found out before anything is done.
    disk_xml(plan_disk(disk.names, FileLocation(path="/", opened=Opened.FILE), placed.options))
    provider = host.find(disk.provider)
    return DomainPlug(domain, host, provider, placed, views, missing, exclusive=exclusive, shared=shared, report=report)


def _already(known: DomainDisk, views: Views, uuid: uuid_module.UUID) -> DomainPlugged:
    return DomainPlugged(
        changed=False,
        device=known.alias,
        node="",
        access=access_of(running_disk(known, None)) or "",
        location=known.where,
        reason=_ALREADY,
        target=known.target,
        live=views.live_disk(uuid) is not None,
        persistent=views.config_disk(uuid) is not None,
    )


def _placed(disk: Disk, views: Views, scope: Scope) -> Disk:
    """Return the disk with its place on a SCSI controller chosen; raises PlugError when there is no room, InputError.

    For a PCI device, libvirt chooses the place; the configuration gets another root port when it has no free one.
    """
    options = disk.options
    wanted = [view for view, meant in ((views.live, scope.live), (views.config, scope.config)) if view and meant]
    if options.device is DeviceModel.SCSI_HD:
        room = Topology(ports=(), controllers=room_in_all(*wanted), pci_slots=None)
        place = place_disk(options, room, options.iothread)
        # Its iothread is its controller's.
        return replace(disk, options=replace(options, placement=place, iothread=None))
    place = options.placement
    if place.bus is not None or place.addr is not None:
        raise InputError(
            "libvirt chooses the PCI slot of a disk itself", hint="leave bus and addr out, or plug it with --qmp"
        )
    if scope.live and views.live is not None:
        place_disk(options, views.live.topology, None)
    return disk


@value_object
class _Qemu:
    """The QEMU of a domain, for a rehearsal."""

    pid: int

    @property
    def owner(self) -> int | None:
        """Who runs it."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}").stat().st_uid
        return None


class DomainPlug:
    """One plug in progress: what the steps hand to each other. ``missing`` are the views that get the disk."""

    def __init__(
        self,
        domain: DomainHandle,
        host: ProviderHost,
        provider: Provider,
        disk: Disk,
        views: Views,
        missing: Scope,
        *,
        exclusive: bool,
        shared: bool,
        report: Report,
    ) -> None:
        self._report = report
        self._domain = domain
        self._host = host
        self._provider = provider
        self._disk = disk
        self._views = views
        self._missing = missing
        # Its volume is attached for the view that has it.
        self._had = views.has(disk.volume.uuid)
        self._exclusive = exclusive
        self._shared = shared or self._had
        known = views.live_disk(disk.volume.uuid) or views.config_disk(disk.volume.uuid)
        self._index = free_target_index(disk.options.device, *views.present, wish=known.target if known else "")
        self._obstacle: Obstacle = attachments.nothing_in_the_way
        self._here = True
        self._pid: int | None = None
        self._certificates = CERTIFICATES
        self._attached: Attached | None = None
        self._candidate: Candidate | None = None
        self._passed_over: list[str] = []

    @property
    def operation(self) -> str:
        """What is done, for people."""
        return f"plug {self._disk.provider}/{self._disk.volume.name}"

    async def learn(self) -> None:
        """Find out what the domain's QEMU can open, where it is on this host."""

        def ask(_cancel: Cancel) -> None:
            self._here = self._domain.is_here
            self._pid = self._domain.pid if self._missing.live else None
            view = self._views.live or self._views.config
            emulator = view.emulator if view else ""
            self._certificates = self._domain.nbd_certificates(self._pid) if self._here else CERTIFICATES
            found = self._here and emulator and program_path(emulator)
            capabilities = disk_capabilities(emulator) if found else None
            shared = self._views.live.shared_memory if self._views.live and self._missing.live else None
            known = openable(capabilities, self._disk.names, self._disk.options, shared_memory=shared)
            self._obstacle = lambda location: known(location) or self._unsayable(location)

        await in_thread(ask)

    def _unsayable(self, location: Location) -> str | None:
        """Return why libvirt cannot be told of a location, or cannot reach it."""
        if why := in_the_way(self._domain, location):
            return why
        try:
            disk_xml(self._plan_at(location, self._disk.options))
        except RenderError as error:
            return f"{error.message}: {error.hint}" if error.hint else error.message
        return None

    def steps(self) -> Sequence[Step]:
        """Return the steps."""
        disk = self._disk
        return [
            Step(
                name=f"attach {disk.provider}/{disk.volume.name}",
                do=self._attach,
                undo=None if self._shared else self._detach,
                carries_later=True,
                inverse=f"detach {disk.provider}/{disk.volume.name}",
                check=lambda: attachments.check_attach(self._host, disk, exclusive=self._exclusive),
            ),
            Step(name="open the storage", do=self._open),
        ]

    async def _attach(self) -> None:
        def work(cancel: Cancel) -> Attached:
            return attachments.attach(
                self._host,
                self._disk,
                provider=self._provider,
                exclusive=self._exclusive,
                shared=self._shared,
                cancel=cancel,
                obstacle=self._obstacle,
            )

        self._attached = await in_thread(work)

    async def _detach(self) -> None:
        await in_thread(lambda cancel: attachments.detach(self._host, self._disk, cancel=cancel))

    def _plan_at(self, location: Location, options: DiskOptions) -> DiskPlan:
        return plan_disk(self._disk.names, self._as_libvirt_has_it(location), options, folder=private_folder())

    def _as_libvirt_has_it(self, location: Location) -> Location:
        """Return a location that names the certificates which libvirt takes anyway, without their folder."""
        known = location == _with_certificates(location, self._certificates)
        return _with_certificates(location, CERTIFICATES) if known else location

    async def _open(self) -> None:
        """Have libvirt open the first candidate that it can."""
        assert self._attached is not None  # noqa: S101
        choice = self._attached.choice
        *others, last = choice.candidates
        for candidate in (*others, last):
            self._candidate = candidate
            try:
                if why := self._in_the_way(candidate):
                    raise QemuError(why)
                plan = self._plan_at(candidate.location, choice.options_at(candidate.location, self._disk.options))
                await self._rehearse(plan)
                await carry_out("open it", self.opening_steps(plan), report=self._report)
            except HvextError as error:
                cause = error.__cause__ if isinstance(error, OperationFailed) and not error.left else error
                if not isinstance(cause, HvextError) or isinstance(
                    cause, CommandTimeout | MonitorError | OperationFailed
                ):
                    raise
                words = cause.description if isinstance(cause, LibvirtRefused) else cause.message
                self._passed_over.append(f"{candidate.text}: {masked(' '.join(words.split()))}")
                if candidate is last or not _about_storage(words):
                    raise QemuError(
                        f"libvirt opens none of the candidates: {'; '.join(self._passed_over)}",
                        hint=cause.hint or hint_for(candidate.location.driver, words),
                    ) from error
            else:
                return

    def _in_the_way(self, candidate: Candidate) -> str | None:
        # URIs were looked at when they were chosen.
        return self._obstacle(candidate.location) if candidate.access is Access.KERNELSPACE else None

    async def _rehearse(self, plan: DiskPlan) -> None:
        """Open it in a process of its own first, where QEMU would wait for a server: libvirt would wait as well."""
        if self._pid is None or not plan.nodes:
            return
        # Outside of libvirt, QEMU has to be told the folder that libvirt takes.
        location = _with_certificates(plan.location, self._certificates)
        if location != plan.location:
            plan = plan_disk(self._disk.names, location, DiskOptions(), folder=private_folder())
        await rehearse(_Qemu(pid=self._pid), location, plan.needs, plan.nodes[0])

    def xml_at(self, location: Location) -> str:
        """Return what libvirt is given for a disk at a location."""
        return disk_xml(self._plan_at(location, self._disk.options), self._index)

    def steps_at(self, location: Location) -> Sequence[Step]:
        """Return all steps for a disk at a location, also those that come once its volume is attached."""
        return [*self.steps(), *self.opening_steps(self._plan_at(location, self._disk.options))]

    def opening_steps(self, plan: DiskPlan) -> Sequence[Step]:
        """Return the steps that give libvirt a disk as planned."""
        domain, names = self._domain, self._disk.names
        xml = disk_xml(plan, self._index)
        kept = self._missing.config or self._views.config_disk(names.uuid) is not None
        secret = any(item.get("qom-type") == "secret" for item in plan.needs.objects)
        define = Step(
            name="define its secrets",
            do=lambda: define_secrets(domain.connection, plan, kept=kept),
            # The view that has the disk already uses the same.
            undo=None if self._had else lambda: remove_secrets(domain.connection, names),
            inverse="remove them",
        )
        write = Step(
            name="write it into the persistent configuration",
            do=lambda: in_thread(lambda _cancel: domain.attach(xml, live=False)),
            undo=lambda: take_back(domain, names, live=False),
            inverse="take it out again",
        )
        run = Step(
            name="plug it into what runs",
            do=lambda: in_thread(lambda _cancel: self._run(xml)),
            undo=lambda: take_back(domain, names, live=True),
            inverse="unplug it again",
        )
        chosen = ((secret, define), (self._missing.config, write), (self._missing.live, run))
        return [step for wanted, step in chosen if wanted]

    def _run(self, xml: str) -> None:
        uuid, live = self._disk.volume.uuid, self._views.live
        if live is not None and uuid in live.moved:
            # It was there before, and was moved past libvirt; now it is where libvirt says.
            self._domain.set_moved(moved_xml({each: uri for each, uri in live.moved.items() if each != uuid}))
        self._domain.attach(xml, live=True)

    def result(self) -> DomainPlugged:
        """What was done."""
        assert self._attached is not None  # noqa: S101
        assert self._candidate is not None  # noqa: S101
        reason = self._attached.choice.reason
        if self._passed_over:
            reason = f"libvirt could not open {'; '.join(self._passed_over)}; using the next: {self._candidate.text}"
        uuid = self._disk.volume.uuid
        return DomainPlugged(
            changed=True,
            device=self._disk.names.alias,
            node="",
            access=str(self._candidate.access),
            location=self._candidate.text,
            reason=reason,
            warnings=self._attached.attachment.warnings,
            target=target_of(self._disk.options.device, self._index),
            live=self._missing.live or self._views.live_disk(uuid) is not None,
            persistent=self._missing.config or self._views.config_disk(uuid) is not None,
        )


def _with_certificates(location: Location, folder: str) -> Location:
    """Return a location of NBD with its certificates in this folder; one without certificates stays as it is."""
    if location.driver != "nbd":
        return location
    from hvext.core.uri.nbd import NbdLocation
    from hvext.core.uri.nbd_tls import Certificates

    if not isinstance(location, NbdLocation) or not isinstance(location.tls, Certificates):
        return location
    return replace(location, tls=replace(location.tls, folder=folder))


def _about_storage(words: str) -> bool:
    """Whether another candidate could do better."""
    return not any(each in words for each in _NOT_STORAGE)
