"""Migrating a running guest with all its disks to another host.

``migrate`` does all of it where both monitors and both hosts' providers are within reach. On two machines, each side
does its part: ``begin`` (source), ``start_disks`` (target), ``listen`` (target), ``send`` (source), ``finish``
(target), ``handover.detach`` (source). Each of them leaves things as they were before it when it fails, and may be
repeated.

The target opens its disks with its own attach answer: to the guest, a block path here and a URI there are the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from hvext.core.capability import Capabilities
from hvext.core.disk import Disk
from hvext.core.migration import Description, check_address
from hvext.errors import (
    HvextError,
    MigrationRefused,
)
from hvext.host.provider import ProviderHost
from hvext.host.qmp import Monitor, connect
from hvext.operations import handover
from hvext.operations.describe import describe
from hvext.operations.handover import HandOver
from hvext.operations.sending import ARRIVAL_S, Migrated, Sending, SourceEnd, check_alike, say_what_is_left
from hvext.operations.start import Start, forget_disks, start_disks
from hvext.operations.steps import Report, Step, carry_out, silent
from hvext.operations.threads import in_thread
from hvext.operations.transfer import (
    Limits,
    Progress,
    check_can_leave,
    check_waits,
    give_up,
    let_run,
    listen_on,
    listening_at,
    nothing_to_show,
    prepare_target,
    run_state,
    to_the_end,
    transfer_state,
    wait_loaded,
)


class TargetMachine(Protocol):
    """How a caller starts the target's QEMU."""

    async def start(self, disk_arguments: list[str]) -> str:
        """Start a QEMU like the source's with these arguments, ``-S`` and ``-incoming defer``; return its monitor."""

    async def end(self) -> None:
        """End it, if it was started; may be repeated."""


async def begin(
    monitor: Monitor,
    host: ProviderHost,
    disks: Sequence[Disk],
    *,
    own_controller: bool = False,
    report: Report = silent,
) -> Description:
    """Describe the guest for its target, and open its volumes for shared access: on the source, first of all.

    Arguments as for ``describe``. `cancel` takes it back. Raises MigrationRefused, OperationFailed.
    """
    await check_can_leave(monitor)
    description = await describe(monitor, disks, own_controller=own_controller)
    step = Step(
        name="open the volumes shared on the source",
        do=lambda: handover.open_shared(host, disks),
        undo=lambda: handover.open_exclusive(host, disks),
    )
    await carry_out("begin the migration", [step], report=report)
    return description


async def listen(monitor: Monitor, description: Description, uri: str, *, report: Report = silent) -> str:
    """Have the target's QEMU wait for the guest at ``uri``, and return the address: on the target.

    It was started with its own disks, ``-S`` and ``-incoming defer``. One that listens already is compared and left as
    it is, wherever that is. Raises InputError, MigrationRefused, which lists everything about it that is not like the
    source, and OperationFailed.
    """
    check_address(uri)
    await check_waits(monitor)
    await check_alike(monitor, description)
    if (before := await listening_at(monitor)) is not None:
        return before
    address = uri

    async def work() -> None:
        nonlocal address
        await prepare_target(monitor, running=description.running)
        address = await listen_on(monitor, uri)

    await carry_out("wait for the guest", [Step(name=f"listen at {uri}", do=work)], report=report)
    return address


async def send(
    monitor: Monitor,
    host: ProviderHost,
    disks: Sequence[Disk],
    uri: str,
    *,
    target: Monitor | None = None,
    keep_source: bool = False,
    limits: Limits | None = None,
    progress: Progress = nothing_to_show,
    report: Report = silent,
) -> Migrated:
    """Send the guest to a target that listens at ``uri``, end QEMU here and close the volumes: on the source.

    With ``target``, the target's monitor, it runs there at once; without, when `finish` is called there. What is left
    afterwards is `finish` on the target, and ``handover.detach`` here. ``keep_source`` leaves this QEMU and its volumes
    to the caller, who must end it, close and detach them, and never let it go on, unless the target is lost: `cancel`.

    When the guest could not be sent, it runs on here, and the volumes stay open for shared access: another `send` or
    `cancel` comes next. Raises InputError, MigrationRefused, OperationFailed.
    """
    check_address(uri)
    await check_can_leave(monitor)
    found = await describe(monitor, disks)
    if target is not None:
        await check_waits(target)
        await check_alike(target, found)
    sending = Sending(monitor, uri, found, limits or Limits(), progress)
    sending.target = target
    steps = [sending.prepare_step(), sending.send_step()]
    if target is not None:
        steps.append(sending.resume_step())
    await carry_out("migrate the guest", steps, report=report)
    await sending.look_again()
    if keep_source:
        return sending.result(source_ended=False)
    rest = HandOver(host, host, disks)
    last = SourceEnd(keep_source=False, source=monitor)
    steps = [*last.end_steps(), Step(name="close the volumes on the source", do=rest.close_on_source)]
    await to_the_end(carry_out("hand the volumes over", steps, report=report))
    say_what_is_left([*last.problems, *rest.problems])
    return sending.result(source_ended=True)


async def finish(
    monitor: Monitor,
    host: ProviderHost,
    description: Description,
    *,
    timeout_s: float = ARRIVAL_S,
    report: Report = silent,
) -> str:
    """Let the guest run that has arrived, and open its volumes for exclusive access: on the target, after `send`.

    One that was paused on the source stays paused. Returns QEMU's run state. Raises OperationFailed: a volume that
    cannot be opened leaves the guest running.
    """
    state = ""

    async def arrive() -> None:
        nonlocal state
        await wait_loaded(monitor, timeout_s)
        if await run_state(monitor) == "postmigrate" or (await transfer_state(monitor)).status == "none":
            raise MigrationRefused(
                "no guest has arrived at this QEMU", hint="name the target's monitor; on the source: migrate-cancel"
            )
        if description.running:
            await let_run(monitor)
        state = await run_state(monitor)

    disks = description.disks
    steps = [
        Step(name="let the guest run on the target", do=arrive),
        Step(name="open the volumes exclusively on the target", do=lambda: handover.open_exclusive(host, disks)),
    ]
    await carry_out("finish the migration", steps, report=report)
    return state


async def cancel(
    monitor: Monitor,
    host: ProviderHost,
    disks: Sequence[Disk],
    *,
    target_ended: bool = False,
    report: Report = silent,
) -> str:
    """Give a migration up, and open the volumes for exclusive access again: on the source, when the target let go.

    ``target_ended`` says that the target's QEMU has ended and never let the guest run: then a guest that was sent
    completely runs here again. Without it, that raises MigrationRefused. Returns QEMU's run state.
    """
    sent = False

    async def stay() -> None:
        nonlocal sent
        ended = await give_up(monitor)
        sent = ended.status == "completed" and await run_state(monitor) == "postmigrate"
        if sent and not target_ended:
            raise MigrationRefused(
                "the guest was sent completely: if it ran here too, both would write to its disks",
                hint="if the target's QEMU has ended and never let the guest run, say so with --target-ended",
            )

    async def come_back() -> None:
        if sent:
            await monitor.execute("cont")

    steps = [
        Step(name="keep the guest on the source", do=stay),
        Step(name="open the volumes exclusively on the source", do=lambda: handover.open_exclusive(host, disks)),
        # Only now: whatever the volumes were closed for, they are the source's again.
        Step(name="let a guest that was sent in vain run on the source", do=come_back),
    ]
    await carry_out("give the migration up", steps, report=report)
    return await run_state(monitor)


async def migrate(
    source: Monitor,
    source_host: ProviderHost,
    target: TargetMachine,
    target_host: ProviderHost,
    disks: Sequence[Disk],
    uri: str,
    *,
    own_controller: bool = False,
    keep_source: bool = False,
    capabilities: Capabilities | None = None,
    limits: Limits | None = None,
    target_name: str | None = None,
    target_state: str | None = None,
    started: Callable[[Monitor, str], Awaitable[object]] | None = None,
    progress: Progress = nothing_to_show,
    report: Report = silent,
) -> Migrated:
    """Move a running guest with all its disks to a target that is started for it.

    ``uri`` is where the target listens (``tcp:HOST:PORT``, ``unix:PATH``; port 0: it chooses). ``capabilities`` are
    those of the target's QEMU, ``target_name`` and ``target_state`` its name in the journal and the journal's folder;
    ``started`` is called with its monitor and that one's address. Other arguments as for `begin` and `send`.

    When anything fails before the guest runs on the target, both sides are as before. What fails afterwards is said,
    and changes nothing about the guest. Raises MigrationRefused before anything was done, OperationFailed.
    """
    await check_can_leave(source)
    description = await describe(source, disks, own_controller=own_controller)
    sending = Sending(source, uri, description, limits or Limits(), progress)
    async with contextlib.AsyncExitStack() as connections:
        whole = _Whole(sending, source_host, target, target_host, capabilities, connections)
        whole.written_down(target_name, target_state, started)
        await carry_out(f"migrate the guest with {len(disks)} disks", whole.steps(), report=report)
        await sending.look_again()
        rest = HandOver(source_host, target_host, description.disks)
        last = SourceEnd(keep_source=keep_source, source=source)
        steps = [
            *last.end_steps(),
            Step(name="close the volumes on the source", do=rest.close_on_source),
            Step(name="open the volumes exclusively on the target", do=rest.open_on_target),
        ]
        if not keep_source:
            steps.append(Step(name="detach the volumes on the source", do=rest.detach_on_source))
        await to_the_end(carry_out("hand the volumes over", steps, report=report))
        say_what_is_left([*last.problems, *rest.problems])
        return sending.result(source_ended=not keep_source, warnings=whole.warnings)


class _Whole:
    """The steps of `migrate` up to the guest's running on the target, each with its inverse."""

    def __init__(
        self,
        sending: Sending,
        source_host: ProviderHost,
        target: TargetMachine,
        target_host: ProviderHost,
        capabilities: Capabilities | None,
        connections: contextlib.AsyncExitStack,
    ) -> None:
        self._sending = sending
        self._source_host = source_host
        self._target = target
        self._target_host = target_host
        self._capabilities = capabilities
        self._connections = connections
        self._start: Start | None = None
        self._name: str | None = None
        self._state: str | None = None
        self._started: Callable[[Monitor, str], Awaitable[object]] | None = None

    def written_down(
        self, name: str | None, state: str | None, started: Callable[[Monitor, str], Awaitable[object]] | None
    ) -> None:
        """Say where the target's disks are written down, and who hears of its monitor."""
        self._name, self._state, self._started = name, state, started

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the provider's author should mend."""
        return tuple(words for disk in self._start.disks for words in disk.warnings) if self._start else ()

    def steps(self) -> list[Step]:
        """Return the steps, in the contract's order."""
        disks = self._sending.description.disks
        return [
            _kept("attach the volumes on the target", self._attach, self._detach),
            _kept(
                "open the volumes shared on the source",
                lambda: handover.open_shared(self._source_host, disks),
                lambda: handover.open_exclusive(self._source_host, disks),
            ),
            _kept(
                "open the volumes shared on the target",
                lambda: handover.open_shared_too(self._target_host, disks),
                lambda: handover.close(self._target_host, disks),
            ),
            _kept("start the target's QEMU", self._start_machine, self._target.end),
            Step(name="compare the target with the source", do=self._compare),
            self._sending.prepare_step(),
            Step(name="listen on the target", do=self._listen),
            self._sending.send_step(),
            self._sending.resume_step(),
        ]

    async def _attach(self) -> None:
        disks = self._sending.description.disks
        self._start = await in_thread(
            lambda _cancel: start_disks(
                self._target_host,
                disks,
                exclusive=None,
                capabilities=self._capabilities,
                name=self._name,
                state=self._state,
            )
        )

    async def _detach(self) -> None:
        disks = self._sending.description.disks
        await in_thread(lambda _cancel: forget_disks(self._target_host, disks, name=self._name, state=self._state))

    async def _start_machine(self) -> None:
        assert self._start is not None  # noqa: S101
        try:
            address = await self._target.start(self._start.argv())
            self._sending.target = await self._connections.enter_async_context(connect(address))
            if self._started is not None:
                await self._started(self._sending.target, address)
        except HvextError:
            # It may have been started.
            await self._target.end()
            raise

    async def _compare(self) -> None:
        target = self._sending.target
        assert target is not None  # noqa: S101
        await check_waits(target)
        await check_alike(target, self._sending.description)

    async def _listen(self) -> None:
        target = self._sending.target
        assert target is not None  # noqa: S101
        await prepare_target(target, running=self._sending.description.running)
        self._sending.uri = await listen_on(target, self._sending.uri)


def _kept(name: str, do: Callable[[], Awaitable[object]], undo: Callable[[], Awaitable[object]]) -> Step:
    """A step whose work must stay when it is not known where the guest is."""
    return Step(name=name, do=do, undo=undo, carries_later=True)
