"""Whether a disk would fit into a running guest: all that can be asked without doing anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hvext.core.access import Access, Candidate, Choice, choose_access
from hvext.core.answer import Attachment, check_block_path
from hvext.core.disk import Disk
from hvext.core.documentation import page
from hvext.core.file_kind import FileKind
from hvext.core.fit import Finding, Fit, Fitting, Subject, ok, problem, unknown, weighed
from hvext.core.plan import DiskPlan, plan_disk
from hvext.core.record import VmRecord
from hvext.core.shell import volume_arguments
from hvext.core.uri import FileLocation, Location, Opened, parse_uri, shown
from hvext.core.value import field, replace, value_object
from hvext.errors import AccessError, AnswerError, CapabilityError, HvextError, InputError
from hvext.host.files import file_kind, opened_as
from hvext.host.journal import JournalFolder
from hvext.host.private import private_folder
from hvext.host.process import Cancel
from hvext.host.provider import ProviderHost
from hvext.host.qmp import Monitor
from hvext.operations.attachments import check_attach, given_secrets
from hvext.operations.capabilities import is_installed_one
from hvext.operations.dry_run.books import own_record
from hvext.operations.dry_run.planned import PlannedStep, in_words
from hvext.operations.fit import guest as guests
from hvext.operations.fit.storage import Opener, of_driver, of_memory, of_reach
from hvext.operations.identify import process_of
from hvext.operations.inspect import running_disk
from hvext.operations.openable import check_plan
from hvext.operations.plug import PlugWork
from hvext.operations.questions import Guest
from hvext.operations.threads import in_thread

_HYPERVISOR = "kvm"


@value_object
class Examined:
    """What was found: whether the disk fits, which access it would get, with its plan, and the steps of a plug.

    Without an answer of ``attach`` there is no access, and no plan.
    """

    fitting: Fitting
    chosen: Candidate | None = None
    reason: str = ""
    plan: DiskPlan | None = None
    steps: tuple[PlannedStep, ...] = ()


@value_object
class _Asked:
    """What is known when the accesses are looked at."""

    disk: Disk
    guest: Guest
    opener: Opener
    records: Mapping[str, VmRecord]
    offline: bool
    cancel: Cancel = field(default_factory=Cancel)

    @property
    def volume(self) -> str:
        return volume_arguments(self.disk)


async def examine(
    monitor: Monitor,
    host: ProviderHost,
    disk: Disk,
    attachment: Attachment | None,
    *,
    name: str | None = None,
    offline: bool = False,
) -> Examined:
    """Return whether a disk would fit into the guest; nothing is changed, and no script of a provider is run.

    ``attachment`` is what ``attach`` of the volume printed; None where that is not known. ``offline`` looks at no
    storage. Raises what ``attach`` raises before it runs a script (ProviderNotFound, InputError, …), MonitorError,
    JournalError, QemuError.
    """
    check_attach(host, disk)
    words = f"{disk.provider}/{disk.volume.name}"
    folder = JournalFolder()
    own, records = await own_record(monitor, name, folder)
    running = await running_disk(monitor, disk.names)
    of_disk, present = guests.of_disk(running, own)
    findings = [*guests.of_journal(disk, own, records, folder), of_disk]
    if running.device is not None:
        # A plug changes nothing, or is refused, whatever else there is.
        return Examined(fitting=Fitting(disk=words, findings=tuple(findings), present=present))
    findings.append(await guests.of_migration(monitor, own))
    of_place, placed = await guests.of_place(monitor, disk)
    findings += of_place
    guest = await Guest.ask(monitor)
    process = process_of(monitor)
    opener = Opener.of(process.pid if process else None, installed=is_installed_one(monitor), offline=offline)
    asked = _Asked(disk=placed or disk, guest=guest, opener=opener, records=records, offline=offline)
    looked = await in_thread(lambda cancel: _of_storage(replace(asked, cancel=cancel), attachment))
    steps: tuple[PlannedStep, ...] = ()
    if placed is not None:
        work = PlugWork(monitor, host, host.find(disk.provider), disk, running, exclusive=True, shared=False)
        work.place(guest, placed)
        steps = in_words(work.steps())
    fitting = Fitting(
        disk=words,
        findings=(*findings, *looked.fitting.findings),
        place=guests.place_words(placed.options) if placed else "",
        location=looked.fitting.location,
    )
    return replace(looked, fitting=fitting, steps=steps)


def _of_storage(asked: _Asked, attachment: Attachment | None) -> Examined:
    """Return what is found about the accesses that a plug would try, and the one that it would use."""
    if attachment is None:
        found = "what the storage is, attach is going to say: that, and whether it opens, was not looked at"
        cure = f"hvext attach {asked.volume} >FILE, and name FILE; a password is *** there: --secret gives it"
        return _examined(asked, [unknown(Subject.ACCESS, found, cure), _of_shape(asked)])
    findings = _of_answer(asked, attachment)
    secrets = given_secrets(asked.disk)
    look = None if asked.offline else opened_as
    obstacle = asked.guest.obstacle(asked.disk, keep=lambda _plan: None)
    choice: Choice | None = None
    try:
        choice = choose_access(attachment, asked.disk.access, look=look, obstacle=obstacle, secrets=secrets)
    except AccessError as error:
        refused = problem(Subject.ACCESS, error.message, error.hint or "have attach print another URI, or a path")
    accesses: dict[str, list[Finding]] = {}
    plans: dict[str, tuple[Candidate, DiskPlan]] = {}
    for access, text in _offered(attachment, asked.disk.access):
        name = shown(text)
        try:
            location = _location(access, text, look).with_secrets(secrets)
        except InputError as error:
            cure = error.hint or f"{page('uris')} lists what there is"
            accesses[name] = [problem(Subject.ACCESS, error.message, cure, about=name)]
            continue
        accesses[name], plan = _of_access(asked, location, name, choice)
        if plan is not None:
            plans[name] = Candidate(access=access, text=name, location=location), plan
    if choice is None and not accesses:
        findings.append(refused)
    usable, weighted = weighed(accesses)
    candidate, plan = plans.get(usable, (None, None))
    examined = _examined(asked, [*findings, *weighted], location=usable)
    first = choice is not None and choice.chosen.text == usable
    reason = choice.reason if choice and first else "no access before it can be used here"
    return replace(examined, chosen=candidate, plan=plan, reason=reason)


def _of_answer(asked: _Asked, attachment: Attachment) -> list[Finding]:
    """Return what there is to say of an answer as a whole."""
    findings = []
    if asked.opener.why:
        found = f"who may open the storage, and who has it, was not looked at: {asked.opener.why}"
        findings.append(unknown(Subject.REACH, found, asked.opener.cure))
    path = attachment.block_path
    kind = file_kind(path) if path is not None else FileKind.MISSING
    # One that is not there yet is to be made by attach; of a QEMU that may be elsewhere, nothing is known of it.
    if path is not None and not asked.opener.why and kind is not FileKind.MISSING:
        try:
            check_block_path(path, kind)
        except AnswerError as error:
            findings.append(problem(Subject.ACCESS, error.message, error.hint or "correct the provider's attach"))
    return findings


def _offered(attachment: Attachment, access: Access) -> list[tuple[Access, str]]:
    """Return what a plug with this wish would try, in that order."""
    uris = [(Access.USERSPACE, uri) for uri in attachment.uris_for(_HYPERVISOR)]
    paths = [(Access.KERNELSPACE, attachment.block_path)] if attachment.block_path is not None else []
    return [*(uris if access is not Access.KERNELSPACE else []), *(paths if access is not Access.USERSPACE else [])]


def _location(access: Access, text: str, look: Callable[[str], Opened] | None) -> Location:
    """Return what a URI or path of an answer means; raises InputError."""
    if access is Access.USERSPACE:
        return parse_uri(text, look=look)
    return FileLocation(path=text, opened=Opened.HOST_DEVICE)


def _of_access(
    asked: _Asked, location: Location, name: str, choice: Choice | None
) -> tuple[list[Finding], DiskPlan | None]:
    """Return what is found about one access, and what QEMU would be given for it."""
    driver = of_driver(location, asked.guest, asked.opener, name)
    found = [driver, *of_memory(location, asked.guest, name)]
    options = asked.disk.options
    if choice is not None and any(each.text == name for each in choice.candidates):
        # What was refused, was refused with the options as they are wished.
        options = choice.options_at(location, options)
    try:
        plan = plan_disk(asked.disk.names, location, options, folder=private_folder())
        check_plan(asked.guest.capabilities, plan)
    except (CapabilityError, InputError) as error:
        # A driver that is not there has no options either.
        if driver.fit is not Fit.PROBLEM or isinstance(error, InputError):
            found.append(_options_problem(error, name))
        return found, None
    found.append(ok(Subject.OPTIONS, _taken(plan), about=name))
    found += of_reach(plan, asked.opener, asked.records, asked.cancel, about=name, volume=asked.volume)
    return found, plan


def _of_shape(asked: _Asked) -> Finding:
    """Return whether QEMU takes what all disks with these options have, wherever their storage is."""
    shape = FileLocation(path="/", opened=Opened.FILE)
    try:
        plan = plan_disk(asked.disk.names, shape, asked.disk.options, folder=private_folder())
        check_plan(asked.guest.capabilities, plan)
    except (CapabilityError, InputError) as error:
        return _options_problem(error, "")
    return ok(Subject.OPTIONS, "QEMU takes the options of its device, objects and nodes")


def _options_problem(error: HvextError, about: str) -> Finding:
    cure = error.hint or "leave that option out (-o), or use another access to the volume (--access)"
    return problem(Subject.OPTIONS, error.message, cure, about=about)


def _taken(plan: DiskPlan) -> str:
    sent = (*plan.all_objects, *plan.chardevs, *plan.nodes, plan.device)
    return f"QEMU takes all {sum(len(each) for each in sent)} options of its {len(sent)} parts"


def _examined(asked: _Asked, findings: list[Finding], location: str = "") -> Examined:
    words = f"{asked.disk.provider}/{asked.disk.volume.name}"
    return Examined(fitting=Fitting(disk=words, findings=tuple(findings), location=location))
