"""Plugging a disk into a running guest."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Sequence
from functools import partial

from hvext.core.access import Access, Candidate
from hvext.core.capability import Capabilities
from hvext.core.causes import hint_for
from hvext.core.disk import Disk
from hvext.core.options import DeviceModel, DiskOptions
from hvext.core.plan import DiskPlan, plan_disk
from hvext.core.provider import Provider
from hvext.core.running import RunningDisk
from hvext.core.uri import FileLocation, Location, Opened, masked
from hvext.core.value import value_object
from hvext.errors import (
    CommandRefused,
    CommandTimeout,
    HvextError,
    MonitorError,
    OperationFailed,
    PlugError,
    QemuError,
)
from hvext.host.private import private_folder
from hvext.host.process import Cancel
from hvext.host.provider import ProviderHost
from hvext.host.qmp import Monitor
from hvext.operations import attachments
from hvext.operations.attachments import Attached
from hvext.operations.inspect import (
    has_device,
    has_node,
    has_object,
)
from hvext.operations.nodes import (
    add_chardev,
    add_needs,
    add_node,
    delete_chardev,
    delete_node,
    delete_object,
    remove_needs,
    remove_remains,
)
from hvext.operations.openable import check_plan
from hvext.operations.questions import Guest, Places, Questions, asking
from hvext.operations.rehearsal import rehearse
from hvext.operations.steps import Report, Step, carry_out, silent
from hvext.operations.threads import in_thread
from hvext.operations.unplug import remove_device

#: The phases of a plug, in order.
CLEAN, ATTACH, OBJECTS, OPEN, NODES, DEVICE = PHASES = ("clean", "attach", "objects", "open", "nodes", "device")
#: What is waited for beside the attach.
_PLACE = "find a place in the guest"
#: How soon a thread that waits for QEMU's answers sees that it is to end.
_LOOK_S = 0.05
_ALREADY = "the guest has this disk already; options and access of this call were not applied"


@value_object
class Plugged:
    """A disk that the guest has. ``changed`` is False when it had it before; ``node`` is empty behind vhost-user."""

    changed: bool
    device: str
    node: str
    access: str
    location: str
    reason: str
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the result for machines."""
        return {
            "state": "plugged",
            "changed": self.changed,
            "device": self.device,
            "node": self.node,
            "access": self.access,
            "location": self.location,
            "reason": self.reason,
            "warnings": list(self.warnings),
        }


async def plug(
    monitor: Monitor,
    host: ProviderHost,
    disk: Disk,
    *,
    exclusive: bool = True,
    shared: bool = False,
    known: bool = True,
    questions: Questions,
    report: Report = silent,
) -> Plugged:
    """Attach a disk's volume and plug it into the guest.

    ``exclusive`` is what the volume is opened with: False on the target of a migration. A volume that is ``shared``
    with other guests of this host stays attached whatever happens. A disk with a second candidate gets the error
    policy ``stop``, unless its options say otherwise. What an earlier plug left is looked for (and removed) when the
    disk is ``known``: when anything is written down about it. ``questions`` are those that were asked before: while
    QEMU answers them, the volume is attached.

    The candidates of the access choice are tried in order; the result's reason says why an earlier one was passed
    over. Whatever fails, everything is as before afterwards. Repeating it for a disk that is plugged changes nothing
    and says so. Raises OperationFailed; PlugError and InputError when the guest has no place for it, ProviderNotFound
    and ProviderInvalid before anything was done.
    """
    running = await questions.running()
    if running.device is not None:
        return already(running)
    work = PlugWork(monitor, host, await questions.provider(), disk, running, exclusive=exclusive, shared=shared)
    try:
        async with _placing(work, questions) as placed:
            await carry_out(work.operation, work.steps(placed), report=report)
    except OperationFailed as error:
        if error.step == _PLACE and not error.left and isinstance(error.__cause__, HvextError):
            raise error.__cause__ from None
        # What nobody wrote down may be there all the same.
        if known or error.left or _about_storage(error.message):
            raise
    else:
        return work.result()
    async with asking(monitor, host, disk, known=True) as questions:
        return await plug(monitor, host, disk, exclusive=exclusive, shared=shared, questions=questions, report=report)


@contextlib.asynccontextmanager
async def _placing(work: PlugWork, questions: Questions) -> AsyncIterator[asyncio.Future[None]]:
    """Have the place looked for in the block, as soon as QEMU has answered; gives what tells when it is found."""

    async def find() -> None:
        try:
            guest = await questions.guest()
            work.place(guest, await questions.places.take(work.wished))
        finally:
            work.go_on()

    finding = asyncio.ensure_future(find())
    try:
        yield finding
    finally:
        finding.cancel()
        await asyncio.gather(finding, return_exceptions=True)


def already(running: RunningDisk) -> Plugged:
    """Return the result for a disk that the guest has; raises PlugError for a device that is not the disk's."""
    # Most disks that are plugged are not there: what tells the access in use has no other use here.
    from hvext.core.observation import access_of

    if running.behind_vhost_user:
        return Plugged(
            changed=False,
            device=str(running.device),
            node="",
            access=access_of(running) or "",
            location=str(running.to_json()["uri"]),
            reason=_ALREADY,
        )
    if running.root is None:
        raise PlugError(
            f"the guest has a device {running.device!r} that is not this disk: there is no node {running.names.root!r}",
            hint="unplug that device, or give the disk another uuid",
        )
    node = running.protocol
    return Plugged(
        changed=False,
        device=str(running.device),
        node=running.root.name,
        access=access_of(running) or "",
        location=node.where if node else "",
        reason=_ALREADY,
    )


class PlugWork:
    """One plug in progress: what the steps hand to each other.

    ``wished`` is the disk as it was asked for. Its place is given with ``place``, before the steps or meanwhile.
    """

    def __init__(
        self,
        monitor: Monitor,
        host: ProviderHost,
        provider: Provider,
        wished: Disk,
        remains: RunningDisk,
        *,
        exclusive: bool,
        shared: bool,
    ) -> None:
        self._monitor = monitor
        self._host = host
        self._provider = provider
        self.wished = wished
        self._disk = wished
        self._remains = remains
        self._guest: Guest | None = None
        self._plans: list[DiskPlan] = []
        # Attaching waits in a thread.
        self._answered = threading.Event()
        self._exclusive = exclusive
        self._shared = shared
        self._attached: Attached | None = None
        self._candidate: Candidate | None = None
        self._plan: DiskPlan | None = None
        self._passed_over: list[str] = []

    @property
    def operation(self) -> str:
        """What is done, for people."""
        return f"plug {self._disk.provider}/{self._disk.volume.name}"

    def place(self, guest: Guest, disk: Disk) -> None:
        """Tell what there is to know of the guest, and the disk with its place in it."""
        self._guest, self._disk = guest, disk
        # With these options the plans are made that QEMU is found to be able to have.
        self._planned = disk.options
        self._obstacle = guest.obstacle(disk, keep=self._plans.append)
        self.go_on()

    def go_on(self) -> None:
        """Wait no longer for ``place``; without it, the step that waits for it fails."""
        self._answered.set()

    def steps(self, placed: Awaitable[None] | None = None) -> Sequence[Step]:
        """Return the steps, with their ``PHASES``; ``placed`` tells when ``place`` was called, if that is to come."""
        disk, monitor = self._disk, self._monitor
        names = disk.names
        # The names of all parts are the same wherever the storage is; what they are is known once it is open.
        shape = plan_disk(names, FileLocation(path="/", opened=Opened.FILE), disk.options)
        clean = Step(name="remove what an earlier plug left", do=self._clean, phase=CLEAN)
        return [
            *([clean] if self._remains.has_remains else []),
            Step(
                name=f"attach {disk.provider}/{disk.volume.name}",
                do=self._attach,
                undo=None if self._shared else self._detach,
                carries_later=True,
                phase=ATTACH,
                inverse=f"detach {disk.provider}/{disk.volume.name}",
                check=lambda: attachments.check_attach(self._host, disk, exclusive=self._exclusive),
            ),
            *([Step(name=_PLACE, do=lambda: placed)] if placed is not None else []),
            *(_object_step(monitor, item) for item in shape.objects),
            Step(name="open the storage", do=self._open, undo=self._close, phase=OPEN, inverse="close it"),
            *(self._node_step(index, node) for index, node in enumerate(shape.nodes) if index > 0),
            Step(
                name=f"plug device {names.device}",
                do=self._plug_device,
                undo=lambda: remove_device(monitor, names.device),
                happened=lambda: has_device(monitor, names.device),
                phase=DEVICE,
                inverse=f"unplug device {names.device}",
            ),
        ]

    def _node_step(self, index: int, node: dict[str, object]) -> Step:
        name = node["node-name"]

        async def add() -> None:
            # Behind vhost-user there are no nodes.
            if self._opened.nodes:
                await add_node(self._monitor, self._opened.nodes[index])

        return Step(
            name=f"make {node['driver']} node {name}",
            do=add,
            undo=lambda: delete_node(self._monitor, name),
            happened=lambda: has_node(self._monitor, name),
            phase=NODES,
            inverse=f"delete node {name}",
        )

    @property
    def _capabilities(self) -> Capabilities:
        assert self._guest is not None  # noqa: S101
        return self._guest.capabilities

    @property
    def _opened(self) -> DiskPlan:
        """The plan with the candidate that was opened."""
        assert self._plan is not None  # noqa: S101
        return self._plan

    def _plan_at(self, location: Location, options: DiskOptions) -> DiskPlan:
        assert self._attached is not None  # noqa: S101
        options = self._attached.choice.options_at(location, options)
        if options is self._planned:
            for plan in self._plans:
                if plan.location is location:
                    return plan
        return plan_disk(self._disk.names, location, options, folder=private_folder())

    async def _plug_device(self) -> None:
        """Plug at the chosen place; others may have plugged there meanwhile, and then it is another.

        Of two disks at one SCSI address QEMU refuses the second. A root port takes a second device without a word.
        """
        if self._disk.options.device is not DeviceModel.SCSI_HD:
            self._disk = await self._still_free()
        try:
            await self._add_device(self._disk)
        except CommandRefused:
            placed = await Places(self._monitor, afresh=True).take(self.wished)
            if placed.options.placement == self._disk.options.placement:
                raise
            self._disk = placed
            await self._add_device(placed)

    async def _still_free(self) -> Disk:
        """Return the disk at its chosen place when that is free yet, or else at another."""
        try:
            return await Places(self._monitor).take(self._disk)
        except PlugError:
            return await Places(self._monitor).take(self.wished)

    async def _add_device(self, disk: Disk) -> None:
        moved = disk.options.placement != self._opened.options.placement
        plan = self._plan_at(self._opened.location, disk.options) if moved else self._opened
        if moved:
            self._capabilities.check_device(plan.device)
        await self._monitor.execute("device_add", plan.device)

    async def _clean(self) -> None:
        await remove_remains(self._monitor, self._remains)

    async def _attach(self) -> None:
        def work(cancel: Cancel) -> Attached:
            return attachments.attach(
                self._host,
                self._disk,
                provider=self._provider,
                exclusive=self._exclusive,
                shared=self._shared,
                cancel=cancel,
                obstacle=partial(self._obstacle_once_known, cancel),
            )

        self._attached = await in_thread(work)

    def _obstacle_once_known(self, cancel: Cancel, location: Location) -> str | None:
        """Return what speaks against a location once QEMU has told what it can do; called in a thread."""
        while not self._answered.wait(_LOOK_S):
            if cancel.is_set:
                raise PlugError("interrupted")
        # Without a place there is a step that fails, and says why.
        return None if self._guest is None else self._obstacle(location)

    async def _detach(self) -> None:
        await in_thread(lambda cancel: attachments.detach(self._host, self._disk, cancel=cancel))

    async def _open(self) -> None:
        """Open the first candidate that QEMU opens."""
        assert self._attached is not None  # noqa: S101
        *others, last = self._attached.choice.candidates
        for candidate in (*others, last):
            plan = self._plan_at(candidate.location, self._disk.options)
            self._plan, self._candidate = plan, candidate
            try:
                if candidate.access is not Access.USERSPACE:
                    # What a URI needs of QEMU was looked at when it was chosen.
                    check_plan(self._capabilities, plan)
                await self._make(plan)
            except (CommandTimeout, MonitorError):
                # It may have been opened: not the time to open another.
                raise
            except HvextError as error:
                words = error.description if isinstance(error, CommandRefused) else error.message
                if _about_storage(words):
                    await self._close()
                self._passed_over.append(f"{candidate.text}: {masked(' '.join(words.split()))}")
                if candidate is last or not _about_storage(words):
                    raise QemuError(
                        f"QEMU opens none of the candidates: {'; '.join(self._passed_over)}",
                        hint=error.hint or hint_for(candidate.location.driver, words),
                    ) from error
            else:
                return

    async def _make(self, plan: DiskPlan) -> None:
        """Make the protocol node with all that it needs, or the character device of vhost-user."""
        await add_needs(self._monitor, plan.needs)
        for chardev in plan.chardevs:
            await add_chardev(self._monitor, chardev)
        if plan.nodes:
            await rehearse(self._monitor, plan.location, plan.needs, plan.nodes[0])
            await add_node(self._monitor, plan.nodes[0])

    async def _close(self) -> None:
        plan = self._opened
        if plan.nodes:
            await delete_node(self._monitor, plan.nodes[0]["node-name"])
        for chardev in plan.chardevs:
            await delete_chardev(self._monitor, chardev["id"])
        if plan.needs.objects or plan.needs.files:
            await remove_needs(self._monitor, plan.companions.node)

    def result(self) -> Plugged:
        """What was done."""
        assert self._attached is not None  # noqa: S101
        assert self._candidate is not None  # noqa: S101
        choice = self._attached.choice
        reason = choice.reason
        if self._passed_over:
            reason = f"QEMU could not open {'; '.join(self._passed_over)}; using the next: {self._candidate.text}"
        return Plugged(
            changed=True,
            device=self._disk.names.device,
            node=self._disk.names.root if self._opened.nodes else "",
            access=str(self._candidate.access),
            location=self._candidate.text,
            reason=reason,
            warnings=self._attached.attachment.warnings,
        )


def _about_storage(description: str) -> bool:
    """Whether another candidate could do better.

    A name that exists already is not about the storage: somebody else plugs the disk at the same moment, and what has
    that name is theirs.
    """
    return not any(words in description for words in ("Duplicate node", "node-name", "duplicate property"))


def _object_step(monitor: Monitor, item: dict[str, object]) -> Step:
    return Step(
        name=f"make object {item['id']}",
        do=lambda: monitor.execute("object-add", item),
        undo=lambda: delete_object(monitor, item["id"]),
        happened=lambda: has_object(monitor, item["id"]),
        phase=OBJECTS,
        inverse=f"delete object {item['id']}",
    )
