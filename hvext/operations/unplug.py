"""Unplugging a disk from a running guest.

The guest decides when it lets a PCI device go. Until then the disk is *pending*: nothing of it may be removed, and
its volume stays attached. A later call, in any process, finishes what the guest has let go by then.

Source: QEMU, docs/system/device-emulation; qemu-qmp-ref(7): device_del, DEVICE_DELETED, DEVICE_UNPLUG_GUEST_ERROR.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from hvext.core.causes import hint_for
from hvext.core.disk import Disk
from hvext.core.identity import DiskNames
from hvext.core.running import RunningDisk
from hvext.core.value import replace, value_object
from hvext.errors import CommandRefused, CommandTimeout, HvextError, OperationFailed, PlugError, ProviderNotFound
from hvext.host.process import Cancel
from hvext.host.provider import ProviderHost
from hvext.host.qmp import Monitor
from hvext.operations import attachments
from hvext.operations.frozen import stuck_now
from hvext.operations.inspect import has_device, running_disk
from hvext.operations.nodes import remove_remains
from hvext.operations.steps import Report, Step, carry_out, silent
from hvext.operations.threads import in_thread

#: Native PCIe hot-plug needs six seconds by design (the attention button's delay); ACPI a tenth of one.
DEFAULT_TIMEOUT_S = 15.0
#: How often the guest is looked at beside waiting for the event: a reset or a paused guest may send none.
_LOOK_S = 1.0
#: A request to a guest that still boots can get lost (ACPI). This long until the next, then twice as long each time.
ASK_AGAIN_S = 1.0
_STUCK = (
    "its storage answers nothing, and the guest cannot let it go while requests wait: asking again does not help; "
    "hvext watch --fence puts the next access in its place"
)
#: The name of an unplug's second step.
REMOVE = "remove its block nodes and objects"
#: What QEMU says to a second device_del while the first is under way.
UNDER_WAY = ("already in the process of unplug", "being removed", "unplug pending", "is busy")


class UnplugState(StrEnum):
    """How an unplug stands."""

    UNPLUGGED = "unplugged"
    ABSENT = "absent"
    PENDING = "pending"
    REJECTED = "rejected"


@value_object
class Unplugged:
    """How an unplug stands; ``detached`` tells of the volume.

    ``removed`` are the nodes, objects and character devices that are gone; ``warnings`` tell when another disk may be
    meant.
    """

    state: UnplugState
    device: str
    removed: tuple[str, ...] = ()
    detached: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the guest has let the disk go."""
        return self.state in (UnplugState.UNPLUGGED, UnplugState.ABSENT)

    def to_json(self) -> dict[str, object]:
        """Return the result for machines."""
        return {
            "state": str(self.state),
            "device": self.device,
            "removed": list(self.removed),
            "detached": self.detached,
            "warnings": list(self.warnings),
        }


async def unplug(
    monitor: Monitor, names: DiskNames, *, timeout_s: float = DEFAULT_TIMEOUT_S, report: Report = silent
) -> Unplugged:
    """Unplug a disk and remove its nodes and objects; its volume stays attached.

    Waits up to ``timeout_s`` for the guest. May be repeated in every state: PENDING asks the guest again, ABSENT
    removes what is left. Raises OperationFailed when something cannot be removed, QemuError.
    """
    work = Unplugging(monitor, await running_disk(monitor, names), timeout_s=timeout_s)
    await carry_out(work.operation, work.ask_steps(), report=report)
    if work.state is UnplugState.PENDING and names.uuid in await stuck_now(monitor):
        return replace(work.result(), warnings=(_STUCK,))
    if work.state in (UnplugState.PENDING, UnplugState.REJECTED):
        return work.result()
    await carry_out(work.operation, work.remove_steps(), report=report)
    return work.result()


class Unplugging:
    """One unplug in progress: what the steps hand to each other. Raises PlugError for a device that is not hvext's."""

    def __init__(self, monitor: Monitor, running: RunningDisk, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        check_own(running)
        self._monitor = monitor
        self._running = running
        self._timeout_s = timeout_s
        self._device = running.device or running.names.device
        self._removed: tuple[str, ...] = ()
        self.state = UnplugState.ABSENT

    @property
    def operation(self) -> str:
        """What is done, for people."""
        return f"unplug {self._device}"

    def ask_steps(self) -> list[Step]:
        """The step that has the guest let the device go; none where it has none."""
        if self._running.device is None:
            return []
        return [Step(name=ask_words(self._device), do=self._ask, one_way=True)]

    def remove_steps(self) -> list[Step]:
        """The step that removes what is left then; none where nothing is."""
        return [Step(name=REMOVE, do=self._remove, one_way=True)] if self._running.has_remains else []

    async def _ask(self) -> None:
        self.state = UnplugState.PENDING
        self.state = await _let_go(self._monitor, self._device, self._timeout_s)

    async def _remove(self) -> None:
        # Nodes made by -drive went with the device: they are no error.
        self._removed = await remove_remains(self._monitor, self._running)
        self.state = UnplugState.UNPLUGGED

    def result(self) -> Unplugged:
        """What was done."""
        return Unplugged(state=self.state, device=self._device, removed=self._removed)


def pending(names: DiskNames) -> PlugError:
    """Return what is raised for a plug of a disk whose unplug the guest has not answered yet."""
    return PlugError(
        f"an unplug of disk {names.uuid} is pending: the guest has not let it go yet",
        hint="repeat hvext unplug until it is done, then plug the disk",
    )


def check_own(running: RunningDisk) -> None:
    """Raise PlugError for a device that does not stand on the disk's nodes."""
    if running.device is not None and running.root is None and not running.behind_vhost_user:
        libvirt = running.device.startswith("ua-")
        raise PlugError(
            f"device {running.device!r} does not stand on the nodes of disk {running.names.uuid}: it is not hvext's to "
            "unplug",
            hint="libvirt made it: use virsh detach-device" if libvirt else "whoever plugged it has to unplug it",
        )


def ask_words(device: str) -> str:
    """Return the name of an unplug's first step."""
    return f"ask the guest to let {device} go"


def detach_words(disk: Disk) -> str:
    """Return the name of an unplug's last step."""
    return f"detach {disk.provider}/{disk.volume.name}"


async def unplug_and_detach(
    monitor: Monitor,
    host: ProviderHost,
    disk: Disk,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    attached: bool = False,
    shared: bool = False,
    report: Report = silent,
) -> Unplugged:
    """Unplug a disk and, once QEMU has let go of all of it, detach its volume.

    A disk that this guest does not have is ABSENT, and its volume is left alone, as another guest may be using it;
    unless it is known to be ``attached`` for this guest (an unplug was interrupted). A volume that is ``shared`` with
    other guests of this host stays attached. Raises OperationFailed, QemuError, ProviderError, and PlugError for a
    device that is not hvext's.
    """
    result = await unplug(monitor, disk.names, timeout_s=timeout_s, report=report)
    if result.state is UnplugState.ABSENT and attached:
        result = replace(result, state=UnplugState.UNPLUGGED)
    if result.state is not UnplugState.UNPLUGGED or shared:
        return result

    try:
        await carry_out(f"unplug {result.device}", [detach_step(host, disk)], report=report)
    except OperationFailed as error:
        cure = error.hint or "the same command again, or hvext recover, detaches it"
        if isinstance(error.__cause__, ProviderNotFound):
            cure += f"; if it is gone for good: {forget_words(disk)}"
        error.hint = f"the guest does not have {result.device} any more, only its volume is still attached; {cure}"
        raise
    return replace(result, detached=True)


def forget_words(disk: Disk) -> str:
    """Return the command that strikes a disk out whose provider is gone."""
    return f"hvext recover --forget {disk.volume.uuid}"


def detach_step(host: ProviderHost, disk: Disk) -> Step:
    """Return the step that detaches a disk's volume."""

    def work(cancel: Cancel) -> None:
        attachments.detach(host, disk, cancel=cancel)

    return Step(
        name=detach_words(disk),
        do=lambda: in_thread(work),
        one_way=True,
        check=lambda: host.find(disk.provider),
    )


async def remove_device(monitor: Monitor, device: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
    """Remove a device that may or may not be there: the inverse of ``device_add``.

    Raises HvextError when the guest does not let it go in time.
    """
    if not await has_device(monitor, device):
        return
    state = await _let_go(monitor, device, timeout_s)
    if state is not UnplugState.UNPLUGGED:
        raise HvextError(f"the guest has not let {device} go: {state}", hint="hvext unplug finishes it later")


async def _let_go(monitor: Monitor, device: str, timeout_s: float) -> UnplugState:
    """Ask the guest to let a device go and wait; ask again, ever more seldom, as a guest that boots hears nothing."""

    def about_device(message: Mapping[str, Any]) -> bool:
        # virtio-blk sends a first DEVICE_DELETED for its inner device, without an id.
        return bool(message["data"].get("device") == device)

    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    ask_at, pause_s = loop.time(), ASK_AGAIN_S
    with monitor.events("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR", matching=about_device) as events:
        while True:
            if loop.time() >= ask_at:
                if not await _ask(monitor, device):
                    return UnplugState.UNPLUGGED
                ask_at, pause_s = loop.time() + pause_s, pause_s * 2
            event = await events.get(max(0.0, min(_LOOK_S, deadline - loop.time(), ask_at - loop.time())))
            if event is not None:
                rejected = event["event"] == "DEVICE_UNPLUG_GUEST_ERROR"
                return UnplugState.REJECTED if rejected else UnplugState.UNPLUGGED
            try:
                if not await has_device(monitor, device):
                    return UnplugState.UNPLUGGED
            except CommandTimeout:
                return UnplugState.PENDING
            if loop.time() >= deadline:
                return UnplugState.PENDING


async def _ask(monitor: Monitor, device: str) -> bool:
    """Send one request to let a device go; False when it is gone already."""
    try:
        await monitor.execute("device_del", {"id": device})
    except CommandRefused as error:
        if error.error_class == "DeviceNotFound":
            return False
        if not any(words in error.description for words in UNDER_WAY):
            error.hint = error.hint or hint_for("", error.description)
            raise
    except CommandTimeout:
        # It may have been sent on: whether the device goes, QEMU will tell.
        pass
    return True
