"""Failing over from storage that is alive and silent, behind a fence.

A server that stopped answering may go on later, and then carries out the writes that it had received, over newer ones.
So its disk is moved only after something has made sure that it can write no more: the *fence*. That is the provider's
``close`` script, or a command that whoever runs the storage has chosen (kill the server, block its client in Ceph,
switch it off). Without a fence that succeeded, a disk on silent storage is left as it is.

Source: the ``close`` script: ganeti-extstorage-interface(7).
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from hvext.core.disk import Disk
from hvext.core.health import HealthState
from hvext.core.provider import Action
from hvext.core.running import RunningDisk
from hvext.core.text import quoted
from hvext.core.uri import Location, masked
from hvext.core.uri.nbd import NbdLocation, UnixServer
from hvext.core.value import field, value_object
from hvext.errors import (
    CannotCut,
    CommandRefused,
    DiskNotFound,
    FailoverRefused,
    FenceFailed,
    HvextError,
    InputError,
    OperationFailed,
    ProgramError,
    ProviderError,
    RepointRefused,
)
from hvext.host import process
from hvext.host.process import Cancel
from hvext.host.provider import ProviderHost
from hvext.host.qmp import Monitor
from hvext.operations import attachments
from hvext.operations.failover import FailedOver, fail_over
from hvext.operations.frozen import cuttable, stuck_now, yank
from hvext.operations.health import check_health
from hvext.operations.inspect import seen_again
from hvext.operations.opening import Movable, check_can_fail_over
from hvext.operations.repoint import disk_in_guest, whole
from hvext.operations.steps import Report, Step, carry_out, silent
from hvext.operations.threads import in_thread

COMMAND_TIMEOUT_S = 30.0
#: How long requests may take to fail once their connection is cut, or their server fenced.
WAIT_S = 10.0
_LOOK_S = 0.02
#: How long a server on this host may take to answer before it counts as silent still.
_SILENT_S = 1.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@value_object
class CommandFence:
    """A fence that is a program: exit status 0 means that the storage cannot be written through the old way any more.

    It is told in its environment what to fence: HVEXT_PROVIDER, HVEXT_VOLUME, HVEXT_UUID and HVEXT_LOCATION (without
    secrets). ``environment`` is added to that.

    It has to end the server; where that can be told (a unix socket of this host), it is looked at. One that leaves the
    server alive, and takes its storage away from it, says so with ``leaves_server``.
    """

    argv: Sequence[str]
    timeout_s: float = COMMAND_TIMEOUT_S
    leaves_server: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.argv, str) or not self.argv:
            raise InputError("a fence is a list of words: a program and its arguments")
        if not self.timeout_s > 0:
            raise InputError(f"a fence's time limit must be above 0 seconds; got {self.timeout_s}")

    @property
    def words(self) -> str:
        """The fence for people."""
        return f"command {shlex.join(self.argv)}"


@value_object
class ProviderFence:
    """The provider's own fence: its ``close``, which ends this host's access to the volume.

    Its ``attach`` and ``open`` give new access afterwards.
    """

    host: ProviderHost

    @property
    def words(self) -> str:
        """The fence for people."""
        return "the provider's close"


Fence = CommandFence | ProviderFence


@value_object
class FrozenDisk:
    """A disk whose storage is silent: where it may go, and what makes sure that it may.

    ``known`` is as ``fail_over`` takes it: without it, QEMU is asked, and hangs when the storage is not NBD or local.
    """

    disk: Disk
    candidates: Sequence[Location]
    fence: Fence | None
    known: RunningDisk | None = None


async def raise_fence(
    fence: Fence | None, disk: Disk, location: Location | None, *, monitor: Monitor | None = None
) -> None:
    """Make sure that nothing is written to a disk's volume at ``location`` any more; may be repeated.

    The fence has to say so, and a server on a unix socket must not be there any more: one that is silent still has
    not been ended. Raises FenceFailed, also where there is no fence.
    """
    if fence is None:
        raise FenceFailed(
            f"disk {disk.names.uuid} has no fence: its silent storage could carry out old writes when it wakes up",
            hint="name a fence command, or use a provider with a close script",
        )
    where = location.without_secrets().uri() if location else ""
    if isinstance(fence, CommandFence):
        await in_thread(lambda cancel: _run(fence, disk, where, cancel))
    else:
        await in_thread(lambda cancel: _close(fence, disk, cancel))
    if location is not None:
        await _check_gone(fence, disk, location, monitor)


async def reopen(fence: Fence | None, disk: Disk, candidates: Sequence[Location]) -> Sequence[Location]:
    """Return where the disk's volume can be had behind the fence.

    After a provider's ``close``, that is what its ``attach`` says now; the volume is opened again. Else these are the
    candidates as they were. Raises ProviderError, AccessError.
    """
    if not isinstance(fence, ProviderFence):
        return candidates
    host = fence.host

    def attach(cancel: Cancel) -> Sequence[Location]:
        # Not `attachments.attach`: when that fails, it lets the volume go.
        offered = attachments.offer(host, disk, cancel=cancel)
        host.run(offered.provider, Action.OPEN, disk.volume, cancel=cancel, access=disk.access, exclusive=True)
        return [candidate.location for candidate in offered.choice.candidates]

    return await in_thread(attach)


async def fail_over_frozen(
    monitor: Monitor, frozen: Sequence[FrozenDisk], *, report: Report = silent, wait_s: float = WAIT_S
) -> tuple[FailedOver, ...]:
    """Fence the silent storage of a guest's disks, cut it off, and fail the disks over; the guest is not resumed.

    All of its stuck disks must be among them: when the first is cut off, the guest stops, and QEMU then waits for the
    requests of all. Storage that QEMU cannot cut off must be ended by its fence: its requests are waited for.

    May be repeated after any failure. Raises FenceFailed and FailoverRefused before anything is cut: the guest runs on,
    with its disks as they were. Otherwise as ``fail_over``, for each disk.
    """
    disks = await _check_all(monitor, frozen)
    can_be_cut = await cuttable(monitor)
    nodes = [disk.protocol.name for disk in disks if disk.protocol.name in can_be_cut]
    candidates: dict[int, Sequence[Location]] = {}

    def fence_step(number: int, each: FrozenDisk) -> Step:
        async def fence() -> None:
            await raise_fence(each.fence, each.disk, disks[number].protocol.location, monitor=monitor)

        words = each.fence.words if each.fence else "nothing"
        return Step(name=f"fence disk {each.disk.names.uuid} with {words}", do=fence)

    async def cut_off() -> None:
        await yank(monitor, nodes)

    async def let_in() -> None:
        for number, each in enumerate(frozen):
            candidates[number] = await reopen(each.fence, each.disk, each.candidates)

    steps = [
        *(fence_step(number, each) for number, each in enumerate(frozen)),
        Step(name="cut off the silent storage", do=cut_off),
        Step(name="wait until its requests have failed", do=lambda: _settled(monitor, frozen, wait_s)),
        Step(name="ask for other storage", do=let_in),
    ]
    try:
        await carry_out("fail over from silent storage", steps, report=report)
    except OperationFailed as error:
        if isinstance(error.__cause__, FenceFailed | FailoverRefused):
            raise error.__cause__ from error
        raise
    return tuple(
        [
            await fail_over(monitor, each.disk.names, candidates[number], known=each.known, report=report)
            for number, each in enumerate(frozen)
        ]
    )


async def _check_all(monitor: Monitor, frozen: Sequence[FrozenDisk]) -> list[Movable]:
    """Return the disks; raises FailoverRefused or FenceFailed where one of them must be left as it is."""
    disks = []
    for each in frozen:
        if each.fence is None:
            await raise_fence(None, each.disk, None)
        if isinstance(each.fence, ProviderFence):
            _check_close(each.fence, each.disk)
        found = await seen_again(monitor, each.known) if each.known else None
        try:
            disks.append(whole(found or await disk_in_guest(monitor, each.disk.names)))
            # Before the fence: what it does cannot be taken back.
            check_can_fail_over(disks[-1])
        except (DiskNotFound, RepointRefused, CommandRefused) as error:
            raise FailoverRefused(error.message, hint=error.hint) from error
    listed = {each.disk.names.uuid for each in frozen}
    others = [str(uuid) for uuid, stuck in (await stuck_now(monitor)).items() if uuid not in listed and stuck.certain]
    if others:
        raise FailoverRefused(
            f"the guest has other disks whose requests are stuck: {', '.join(others)}; when one disk is cut off, QEMU "
            "waits for all of them",
            hint="fail all of them over together",
        )
    return disks


def _check_close(fence: ProviderFence, disk: Disk) -> None:
    try:
        provider = fence.host.find(disk.provider)
    except ProviderError as error:
        raise FenceFailed(f"disk {disk.names.uuid} cannot be fenced: {error.message}", hint=error.hint) from error
    if Action.CLOSE not in provider.actions:
        raise FenceFailed(
            f"provider {disk.provider!r} has no close script: it cannot fence disk {disk.names.uuid}",
            hint="name a fence command",
        )


def _close(fence: ProviderFence, disk: Disk, cancel: Cancel) -> None:
    _check_close(fence, disk)
    try:
        fence.host.run(fence.host.find(disk.provider), Action.CLOSE, disk.volume, cancel=cancel, access=disk.access)
    except HvextError as error:
        raise FenceFailed(f"the fence of disk {disk.names.uuid} failed: {error.message}", hint=error.hint) from error


def _run(fence: CommandFence, disk: Disk, where: str, cancel: Cancel) -> None:
    environment = {
        "PATH": _PATH,
        "LC_ALL": "C",
        "HOME": str(Path.home()),
        **fence.environment,
        "HVEXT_PROVIDER": disk.provider,
        "HVEXT_VOLUME": disk.volume.name,
        "HVEXT_UUID": str(disk.names.uuid),
        "HVEXT_LOCATION": where,
    }
    try:
        done = process.run(list(fence.argv), env=environment, timeout_s=fence.timeout_s, cancel=cancel)
    except ProgramError as error:
        raise FenceFailed(f"the fence of disk {disk.names.uuid} failed: {error.message}") from error
    if done.timed_out or done.cancelled:
        ended = "was cancelled" if done.cancelled else f"did not end within {fence.timeout_s:g} s"
        raise FenceFailed(f"the fence of disk {disk.names.uuid} {ended}: {fence.words}")
    if done.status:
        printed = masked((done.stderr or done.stdout).decode(errors="replace").strip())
        raise FenceFailed(
            f"the fence of disk {disk.names.uuid} failed with status {done.status}: {fence.words}"
            + (f": {quoted(printed[-500:])}" if printed else "")
        )


async def _check_gone(fence: Fence, disk: Disk, location: Location, monitor: Monitor | None) -> None:
    """Raise FenceFailed for a server of this host that still has its socket and answers nothing.

    Elsewhere silence proves nothing: a host that was switched off is silent as well.
    """
    if isinstance(fence, CommandFence) and fence.leaves_server:
        return
    if not (isinstance(location, NbdLocation) and isinstance(location.server, UnixServer)):
        return
    try:
        health = await check_health(monitor, location, limit_s=_SILENT_S)
    except ProgramError:
        return
    if health.state is HealthState.SILENT:
        raise FenceFailed(
            f"the fence of disk {disk.names.uuid} said that it succeeded, but the server at {location.words} still is "
            f"there, and silent: {fence.words}",
            hint="a fence must end the server, or whatever it writes through, before it succeeds",
        )


async def _settled(monitor: Monitor, frozen: Sequence[FrozenDisk], wait_s: float) -> None:
    """Wait until the guest has stopped, or its disks have nothing in flight any more; raises CannotCut."""
    uuids = {each.disk.names.uuid for each in frozen}
    deadline = asyncio.get_running_loop().time() + wait_s
    while True:
        if not (await monitor.execute("query-status"))["running"]:
            return
        stuck = await stuck_now(monitor)
        if not uuids & stuck.keys():
            return
        if asyncio.get_running_loop().time() >= deadline:
            raise CannotCut(
                f"the storage is fenced, but its requests did not fail within {wait_s:g} s",
                hint="repeat the failover when they have: end the server's connections",
            )
        await asyncio.sleep(_LOOK_S)
