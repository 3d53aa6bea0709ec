"""The disks of an instance that is about to start: all volumes attached, and QEMU's arguments for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from hvext.core.command_line import blockdev_argv, drive_argv
from hvext.core.device import SHARED_CONTROLLER
from hvext.core.disk import Disk
from hvext.core.identity import DiskNames
from hvext.core.options import DeviceModel
from hvext.core.plan import DiskPlan, controller_iothread, plan_disk
from hvext.core.record import Intent, Operation
from hvext.core.secret import is_secret_name
from hvext.core.value import replace, value_object
from hvext.errors import HvextError, InputError, OperationFailed
from hvext.host.journal import JournalFolder
from hvext.host.private import private_folder, write_private
from hvext.host.proc import is_alive
from hvext.host.provider import ProviderHost
from hvext.operations import attachments
from hvext.operations.acts import Act, perform
from hvext.operations.attachments import Attached
from hvext.operations.journal import Journal, forget_ended, owners_of, read_records, taken, users_of, waits
from hvext.operations.openable import check_plan, openable
from hvext.operations.outcome import Report, silent
from hvext.operations.records import check_twin
from hvext.operations.telling import named, telling

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hvext.core.capability import Capabilities

#: Buses on which QEMU finds a free slot by itself.
_ROOT_BUSES = ("pci.0", "pcie.0")


@value_object
class PreparedDisk:
    """One attached disk with its plan, whose secrets are in private files; ``index`` counts the disks of its bus."""

    attached: Attached
    plan: DiskPlan
    index: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the provider's author should mend, and what whoever starts QEMU has to see to."""
        return (*self.attached.attachment.warnings, *self.plan.notes)

    def xml(self) -> str:
        """Return libvirt's ``<disk>``."""
        from hvext.core.domain_xml import disk_xml

        return disk_xml(self.plan, self.index)


@value_object
class Start:
    """All disks of an instance, attached."""

    disks: tuple[PreparedDisk, ...]

    def argv(self) -> list[str]:
        """Return QEMU's arguments in JSON, in the disks' order."""
        return [word for disk in self.disks for word in blockdev_argv(disk.plan)]

    def drive_argv(self) -> list[str]:
        """Return QEMU's arguments in the legacy ``-drive`` form."""
        return [word for disk in self.disks for word in drive_argv(disk.plan)]

    def commands(self) -> list[dict[str, object]]:
        """Return QMP commands, for a QEMU that was started without the disks and has not run yet."""
        from hvext.core.commands import plug_commands

        return [command.to_json() for disk in self.disks for command in plug_commands(disk.plan)]

    def xml(self) -> str:
        """Return libvirt's ``<disk>`` elements."""
        return "".join(disk.xml() for disk in self.disks)


def check_disks(disks: Sequence[Disk]) -> None:
    """Raise InputError when two disks of one instance are the same, or want the same place or boot index."""
    seen: dict[tuple[str, object], Disk] = {}
    for disk in disks:
        for what, value in (
            ("uuid", disk.volume.uuid),
            ("volume", _volume(disk)),
            ("bootindex", disk.options.bootindex),
            ("place", _place(disk)),
        ):
            other = seen.setdefault((what, value), disk)
            if value is not None and other is not disk:
                raise InputError(f"disks {other.volume.name!r} and {disk.volume.name!r} have the same {what}: {value}")


def _volume(disk: Disk) -> str:
    """Return what tells one volume from another, in words."""
    parameters = "".join(
        f" {name}={value}" for name, value in sorted(disk.volume.parameters.items()) if not is_secret_name(name)
    )
    return f"{disk.provider}/{disk.volume.name}{parameters}"


def _place(disk: Disk) -> str | None:
    """Return the one place in the guest that the disk is given, in words; None where QEMU chooses."""
    place = disk.options.placement
    if place.bus is None:
        return None
    if disk.options.device is DeviceModel.SCSI_HD:
        fixed = place.scsi_id is not None and place.lun is not None
        return f"bus={place.bus}, scsi_id={place.scsi_id}, lun={place.lun}" if fixed else None
    if place.addr is None and place.bus in _ROOT_BUSES:
        return None
    # Everything else is a port with slot 0 alone.
    slot, _, function = (place.addr or "0").partition(".")
    return f"bus={place.bus}, addr={int(slot, 16):02x}.{function or 0}"


def start_disks(
    host: ProviderHost,
    disks: Sequence[Disk],
    *,
    exclusive: bool | None = True,
    capabilities: Capabilities | None = None,
    name: str | None = None,
    state: str | None = None,
    report: Report = silent,
) -> Start:
    """Attach all disks side by side and plan them as a hot-plug would; secrets are written to private files.

    ``exclusive`` is what the volumes are opened with; None leaves opening to the caller, before QEMU starts.
    ``capabilities`` are those of the QEMU that will be started: URIs that it cannot open are passed over. ``name`` is
    the VM's in the journal: what its QEMU will be called with ``-name``. Without one, the disks are written down under
    a name of their own until their QEMU is seen. ``state`` is the journal's folder.

    SCSI disks that name no controller share one, ``scsi0``, which the arguments make; with ``iothread=auto`` it gets
    an iothread of its own. When anything fails, all volumes are let go again. Raises OperationFailed, JournalError, and
    InputError and PlugError before anything is attached.
    """
    work = Starting(host, disks, exclusive=exclusive, capabilities=capabilities, name=name, state=state)
    if not work.disks:
        return Start(disks=())
    return work.carry_out(report)


class Starting:
    """One start in progress: what its acts hand to each other. ``disks`` have their places. Raises InputError."""

    def __init__(
        self,
        host: ProviderHost,
        disks: Sequence[Disk],
        *,
        exclusive: bool | None,
        capabilities: Capabilities | None = None,
        name: str | None,
        state: str | None = None,
    ) -> None:
        self._host = host
        self._exclusive = exclusive
        self._capabilities = capabilities
        self._sharing = [disk for disk in disks if _is_scsi(disk) and disk.options.placement.bus is None]
        self.disks = _placed(disks, self._sharing)
        check_disks(self.disks)
        for disk in self.disks:
            check_twin(disk, name or "to be started", self.disks)
        self._folder = JournalFolder(state)
        self._name = name
        # Of a start whose QEMU is still to come, or has come: it goes on having them.
        self._had: set[DiskNames] = set()
        self._attached: list[Attached] = []
        self._start = Start(disks=())

    def acts(self) -> list[Act]:
        """Return what is done."""
        return [
            Act(name="attach the volumes", do=self._attach, inverse="detach them"),
            Act(name="write the private files", do=self._prepare, inverse="remove them"),
        ]

    def check(self) -> None:
        """Raise what is known to speak against the start; nothing is done for that."""
        records = read_records(self._folder)
        journal = _journal(self._folder, self._name, self.disks[0])
        for disk in self.disks:
            users = users_of(disk, records, but=journal.name)
            if self._exclusive and users:
                raise taken(_words(disk), users[0])
        attachments.check_all(self._host, self.disks, exclusive=self._exclusive)

    def carry_out(self, report: Report) -> Start:
        """Do it, written down; whatever fails, all volumes are let go again."""
        journal = _journal(self._folder, self._name, self.disks[0])
        told = telling("operation", begins=True, vm=journal.name, operation=str(Operation.START), **named(self.disks))
        with told, journal.locked_now(), contextlib.ExitStack() as entries:
            begun = [
                entries.enter_context(
                    journal.begin(
                        Operation.START, disk, intent=Intent.PRESENT, exclusive=bool(self._exclusive)
                    ).written_down()
                )
                for disk in self.disks
            ]
            notes = [entry.reporter() for entry in begun]
            self._had = {disk.names for disk, entry in zip(self.disks, begun, strict=True) if entry.before is not None}
            self._host = journal.host(self._host)

            def step(words: str) -> None:
                with journal.at_once():
                    for note in notes:
                        note(words)
                report(words)

            attach, prepare = self.acts()
            perform([attach], report=step)
            try:
                perform([prepare], report=step)
                # Volumes that are opened for shared access are those of a guest that is still to come.
                waiting = None if self._exclusive else waits(Operation.MIGRATE, "waits for its guest", incoming=True)
                with journal.at_once():
                    for entry in begun:
                        entry.end(waiting=waiting)
            except BaseException as error:
                self._take_back(error)
                for entry in begun:
                    entry.revert()
                raise
        return self._start

    def _attach(self) -> None:
        self._attached = attachments.attach_all(
            self._host,
            self.disks,
            exclusive=self._exclusive,
            obstacle=lambda disk: openable(self._capabilities, disk.names, disk.options),
            shared=lambda disk: disk.names in self._had,
        )

    def _prepare(self) -> None:
        self._start = Start(disks=tuple(_prepared(self._attached, self._sharing)))
        for prepared in self._start.disks:
            if self._capabilities is not None:
                check_plan(self._capabilities, prepared.plan)
            write_private(prepared.plan.needs.files)

    def _take_back(self, error: BaseException) -> None:
        new = [item.disk for item in self._attached if item.disk.names not in self._had]
        if left := attachments.detach_all(self._host, new):
            raise OperationFailed(
                f"cannot plan the disks: {error}; NOT detached: {'; '.join(left)}", step="plan", left=left
            ) from error


def _journal(folder: JournalFolder, name: str | None, first: Disk) -> Journal:
    """Return where the start is written down: under the VM's name, unless another QEMU runs under it."""
    known = read_records(folder).get(name) if name else None
    if name and not (known and is_alive(known.process)):
        return Journal(folder, name)
    return Journal(folder, f"start of {first.names.device}")


def _is_scsi(disk: Disk) -> bool:
    return disk.options.device is DeviceModel.SCSI_HD


def _prepared(attached: Sequence[Attached], sharing: Sequence[Disk]) -> Iterator[PreparedDisk]:
    counts = dict.fromkeys(DeviceModel, 0)
    for item in attached:
        disk = item.disk
        index = counts[disk.options.device]
        counts[disk.options.device] += 1
        first = bool(sharing) and disk.names == sharing[0].names
        location = item.choice.chosen.location
        plan = plan_disk(
            disk.names,
            location,
            item.choice.options_at(location, disk.options),
            controller=SHARED_CONTROLLER if first else None,
            folder=private_folder(),
        )
        yield PreparedDisk(attached=item, plan=plan.stored(), index=index)


def _placed(disks: Sequence[Disk], sharing: Sequence[Disk]) -> list[Disk]:
    """Return the disks, those that share the controller with an address on it; what the caller fixed stays."""
    for disk in disks:
        if _is_scsi(disk) and disk not in sharing:
            _check_named(disk, sharing)
        elif disk in sharing:
            _check_iothread(disk, sharing[0])
    taken = {
        (place.scsi_id, place.lun)
        for place in (disk.options.placement for disk in sharing)
        if place.scsi_id is not None and place.lun is not None
    }
    return [_on_controller(disk, sharing[0], taken) if disk in sharing else disk for disk in disks]


def _check_named(disk: Disk, sharing: Sequence[Disk]) -> None:
    """Check a disk that names a controller, which the caller makes."""
    if disk.options.iothread == "auto":
        raise InputError(
            f"disk {disk.volume.name!r}: a scsi-hd runs in the iothread of its controller, and with bus= the "
            "controller is not made here",
            hint="leave out bus=, or give the controller an iothread and leave out iothread=auto",
        )
    if sharing and disk.options.placement.bus == SHARED_CONTROLLER:
        raise InputError(
            f"disk {disk.volume.name!r} names the SCSI controller {SHARED_CONTROLLER!r}, which is made for disk "
            f"{sharing[0].volume.name!r}, which names none",
            hint="name a controller for all SCSI disks, or for none",
        )


def _check_iothread(disk: Disk, first: Disk) -> None:
    if disk.options.iothread != first.options.iothread:
        raise InputError(
            f"disk {disk.volume.name!r} wants another iothread than the SCSI controller {SHARED_CONTROLLER!r} has",
            hint="SCSI disks share their controller's iothread; name one controller per iothread with bus=",
        )


def _on_controller(disk: Disk, first: Disk, taken: set[tuple[int, int]]) -> Disk:
    """Return the disk with an address on the shared controller, which is taken from then on."""
    place = disk.options.placement
    scsi_id, lun = place.scsi_id, place.lun
    if scsi_id is None or lun is None:
        # Only for these disks, as above only for that form.
        from hvext.core.topology import Controller, Topology, place_disk

        controller = Controller(bus=SHARED_CONTROLLER, taken=frozenset(taken), iothread=None)
        place = place_disk(disk.options, Topology(ports=(), controllers=(controller,), pci_slots=None), None)
        if place.scsi_id is not None and place.lun is not None:
            taken.add((place.scsi_id, place.lun))
    options = replace(disk.options, placement=replace(place, bus=SHARED_CONTROLLER))
    if disk is not first and options.iothread == "auto":
        options = replace(options, iothread=controller_iothread(SHARED_CONTROLLER))
    return replace(disk, options=options)


def forget_disks(
    host: ProviderHost, disks: Sequence[Disk], *, name: str | None = None, state: str | None = None
) -> None:
    """Detach volumes that `start_disks` attached for a QEMU that is not there (any more); may be repeated.

    Raises OperationFailed, which names those that could not be.
    """
    if left := stop_disks(host, disks, name=name, state=state):
        raise OperationFailed(f"cannot detach {'; '.join(left)}", step="detach", left=left)


def stop_disks(
    host: ProviderHost,
    disks: Sequence[Disk],
    *,
    name: str | None = None,
    state: str | None = None,
    close: bool = False,
    report: Report = silent,
) -> list[str]:
    """Detach the volumes of an instance that has ended, side by side; return what went wrong.

    With ``close`` they are closed before: those of a migration's target that gets no guest, or of its source.

    A volume that a running VM of this host has stays attached, and is among them. ``name`` is the VM's in the journal;
    without one, the disks are forgotten by every VM whose QEMU does not run. Raises JournalError.
    """
    work = Stopping(host, disks, name=name, state=state, close=close)
    perform(work.acts(), report=report)
    return work.left


class Stopping:
    """The end of an instance's volumes. ``left`` says what went wrong, and who has those that stay."""

    def __init__(
        self, host: ProviderHost, disks: Sequence[Disk], *, name: str | None, state: str | None = None, close: bool
    ) -> None:
        self._host = host
        self._name = name
        self._folder = JournalFolder(state)
        self._close = close
        records = read_records(self._folder)
        self._owners = owners = owners_of(disks, records, name=name)
        users = {disk.names: [user for user in users_of(disk, records, but="") if user not in owners] for disk in disks}
        self._free = [disk for disk in disks if not users[disk.names]]
        self._kept = tuple(
            f"{_words(disk)}: stays attached, VM {users[disk.names][0]} on this host has it"
            for disk in disks
            if users[disk.names]
        )
        self._wrong: list[str] = []

    @property
    def left(self) -> list[str]:
        """What is left to do, in words."""
        return [*self._wrong, *self._kept]

    def refused(self) -> list[str]:
        """Return what is known to be ``left`` without doing anything."""
        wrong = []
        for disk in self._free:
            try:
                self._host.find(disk.provider)
            except HvextError as error:
                wrong.append(f"{_words(disk)}: {error}")
        return [*wrong, *self._kept]

    def acts(self) -> list[Act]:
        """Return what is done; what fails for a volume is said in ``left``, and the others go on."""
        if not self._free:
            return []
        volumes = ", ".join(_words(disk) for disk in self._free)
        close = Act(name=f"close {volumes}", do=self._close_all, inverse=f"open {volumes}")
        detach = Act(name=f"detach {volumes}", do=self._detach, inverse=f"attach {volumes}")
        forget = Act(name=f"forget them as disks of VM {', '.join(self._owners)}", do=self._forget, one_way=True)
        return [*([close] if self._close else []), detach, *([forget] if self._owners else [])]

    def _close_all(self) -> None:
        # Only at the end of a migration; a start would load all of it.
        from hvext.operations.handover import close_all

        self._wrong += close_all(self._host, self._free)

    def _detach(self) -> None:
        self._wrong += attachments.detach_all(self._host, self._free)

    def _forget(self) -> None:
        failed = [disk for disk in self._free if any(words.startswith(f"{_words(disk)}:") for words in self._wrong)]
        forget_ended([disk for disk in self._free if disk not in failed], self._folder, name=self._name)


def _words(disk: Disk) -> str:
    return f"{disk.provider}/{disk.volume.name}"
