"""Unplugging a disk from a domain: the persistent configuration, what runs, secrets, the volume.

The guest decides when it lets a PCI device go. Until then nothing but the configuration has changed; when it does, also
late, libvirt removes nodes and objects by itself, and whoever comes next does the rest.
"""

from __future__ import annotations

import contextlib
import queue
import time

from hvext.core.disk import Disk
from hvext.core.domain import parse_domain
from hvext.core.identity import DiskNames
from hvext.core.value import replace, value_object
from hvext.errors import CommandTimeout, DomainError, HvextError, LibvirtRefused
from hvext.host.domain import DomainHandle, Removal
from hvext.host.process import Cancel
from hvext.host.provider import ProviderHost
from hvext.operations.domains.secrets import remove_secrets
from hvext.operations.domains.views import Scope, Views, look
from hvext.operations.steps import Report, Step, carry_out, silent
from hvext.operations.threads import in_thread
from hvext.operations.unplug import (
    ASK_AGAIN_S,
    DEFAULT_TIMEOUT_S,
    UNDER_WAY,
    Unplugged,
    UnplugState,
    detach_step,
)

#: How often the domain is looked at beside waiting for the event, and how soon Ctrl-C is heard.
_LOOK_S, _HEAR_S = 1.0, 0.2
#: A device that was asked for before may just be going. libvirtd 9.0 dies (SIGSEGV) of a request that reaches QEMU
#: between the device's end and the event that tells of it, so that its event is waited for this long first.
_SETTLE_S = 0.5
#: What libvirt says of a device that is not there (any more).
_NOT_THERE = ("no device found with alias", "not found", "DeviceNotFound")


@value_object
class DomainUnplugged(Unplugged):
    """How an unplug from a domain stands: what one over QMP tells of it, and which views have the disk still."""

    live: bool = False
    persistent: bool = False

    def to_json(self) -> dict[str, object]:
        """Return the result for machines."""
        return {**Unplugged.to_json(self), "live": self.live, "persistent": self.persistent}


async def unplug(
    domain: DomainHandle,
    names: DiskNames,
    views: Views,
    scope: Scope,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    asked: bool = False,
    report: Report = silent,
) -> DomainUnplugged:
    """Take a disk out of these views of a domain; secrets go when neither view has it. Its volume stays attached.

    Waits up to ``timeout_s`` for the guest, which may have been ``asked`` before. May be repeated in every state. What
    the guest rejects is put back into the configuration. Raises OperationFailed, QemuError.
    """
    work = DomainUnplug(domain, names, views, scope, timeout_s=timeout_s, asked=asked)
    steps = work.steps()
    await carry_out(f"unplug {names.alias}", steps, report=report)
    state = work.state
    if state is UnplugState.REJECTED:
        await carry_out(f"unplug {names.alias}", work.back_steps(), report=report)
    elif state is UnplugState.ABSENT and steps:
        state = UnplugState.UNPLUGGED
    removed: tuple[str, ...] = ()
    after = await look(domain)
    if not after.has(names.uuid):
        # Also those that an unplug left which was finished late.
        removed = await remove_secrets(domain.connection, names)
    return DomainUnplugged(
        state=state,
        device=names.alias,
        removed=removed,
        live=after.live_disk(names.uuid) is not None,
        persistent=after.config_disk(names.uuid) is not None,
    )


class DomainUnplug:
    """One unplug in progress; ``state`` is what the guest has said, ABSENT when it was not asked."""

    def __init__(
        self,
        domain: DomainHandle,
        names: DiskNames,
        views: Views,
        scope: Scope,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        asked: bool = False,
    ) -> None:
        self._domain = domain
        self._names = names
        self._timeout_s = timeout_s
        self._asked = asked
        self._config = views.config_disk(names.uuid) if scope.config else None
        self._live = views.live_disk(names.uuid) if scope.live else None
        self.state = UnplugState.ABSENT

    def steps(self) -> list[Step]:
        """Return the steps: for each view that is meant and has the disk."""
        out = Step(
            name="take it out of the persistent configuration",
            do=self._forget,
            undo=self._put_back,
            inverse="put it back there",
        )
        away = Step(name=f"ask the guest to let {self._names.alias} go", do=self._ask, one_way=True)
        return [*([out] if self._config else []), *([away] if self._live else [])]

    def back_steps(self) -> list[Step]:
        """Return what is done when the guest rejects it."""
        back = Step(name="put it back into the persistent configuration", do=self._put_back)
        return [back] if self._config else []

    async def _forget(self) -> None:
        await take_back(self._domain, self._names, live=False)

    async def _put_back(self) -> None:
        config = self._config
        if config is not None and (await look(self._domain)).config_disk(self._names.uuid) is None:
            await in_thread(lambda _cancel: self._domain.attach(config.xml, live=False))

    async def _ask(self) -> None:
        alias, limit_s = self._names.alias, self._timeout_s
        self.state = await in_thread(lambda cancel: let_go(self._domain, alias, limit_s, cancel, asked=self._asked))


async def unplug_and_detach(
    domain: DomainHandle,
    host: ProviderHost,
    disk: Disk,
    views: Views,
    scope: Scope,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    asked: bool = False,
    attached: bool = False,
    shared: bool = False,
    report: Report = silent,
) -> DomainUnplugged:
    """Unplug a disk and, once neither view of the domain has it, detach its volume.

    As ``hvext.operations.unplug.unplug_and_detach``; a volume stays attached for the view that keeps it.
    """
    result = await unplug(domain, disk.names, views, scope, timeout_s=timeout_s, asked=asked, report=report)
    gone = not (result.live or result.persistent)
    if result.state is UnplugState.ABSENT and attached and gone:
        result = replace(result, state=UnplugState.UNPLUGGED)
    if result.state is not UnplugState.UNPLUGGED or shared or not gone:
        return result

    await carry_out(f"unplug {result.device}", [detach_step(host, disk)], report=report)
    return replace(result, detached=True)


async def take_back(
    domain: DomainHandle, names: DiskNames, *, live: bool, timeout_s: float = DEFAULT_TIMEOUT_S
) -> None:
    """Take a disk that may or may not be there out of one view: the inverse of plugging it.

    Raises HvextError when the guest does not let it go in time.
    """
    views = await look(domain)
    if (views.live_disk(names.uuid) if live else views.config_disk(names.uuid)) is None:
        return
    if not live:
        await in_thread(lambda _cancel: domain.detach(names.alias, live=False))
        return
    state = await in_thread(lambda cancel: let_go(domain, names.alias, timeout_s, cancel))
    if state is not UnplugState.UNPLUGGED:
        raise HvextError(f"the guest has not let {names.alias} go: {state}", hint="hvext unplug finishes it later")


def let_go(domain: DomainHandle, alias: str, timeout_s: float, cancel: Cancel, *, asked: bool = False) -> UnplugState:
    """Ask the guest to let a device go and wait; ask again, ever more seldom. For a thread."""
    begun = time.monotonic()
    deadline, look_at, pause_s = begun + timeout_s, begun + _LOOK_S, ASK_AGAIN_S
    ask_at = begun + min(_SETTLE_S, timeout_s / 2) if asked else begun
    with domain.removals(alias) as told:
        while not cancel.is_set:
            now = time.monotonic()
            if now >= ask_at:
                if (asked and not _has(domain, alias)) or not _ask(domain, alias):
                    return UnplugState.UNPLUGGED
                ask_at, pause_s, asked = now + pause_s, pause_s * 2, True
            with contextlib.suppress(queue.Empty):
                what = told.get(timeout=max(0.0, min(_HEAR_S, deadline - now, ask_at - now)))
                return UnplugState.UNPLUGGED if what is Removal.REMOVED else UnplugState.REJECTED
            now = time.monotonic()
            if now >= min(look_at, deadline):
                if not _has(domain, alias):
                    return UnplugState.UNPLUGGED
                look_at = now + _LOOK_S
            if now >= deadline:
                break
    return UnplugState.PENDING


def _ask(domain: DomainHandle, alias: str) -> bool:
    """Send one request to let a device go; False when it is gone already."""
    try:
        domain.detach(alias, live=True)
    except LibvirtRefused as error:
        if any(words in error.description for words in UNDER_WAY):
            return True
        if any(words in error.description for words in _NOT_THERE) or not _has(domain, alias):
            return False
        raise
    except CommandTimeout:
        # It may have been sent on: whether the device goes, libvirt will tell.
        pass
    return True


def _has(domain: DomainHandle, alias: str) -> bool:
    try:
        disks = parse_domain(domain.xml(live=True)).disks if domain.is_running else {}
    except DomainError:
        # A transient domain that has ended is gone.
        return False
    return any(disk.alias == alias for disk in disks.values())
