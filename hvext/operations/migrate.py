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

#: What is done, for people.
BEGIN, LISTEN = "begin the migration", "wait for the guest"
SEND, FINISH, CANCEL = "migrate the guest", "finish the migration", "give the migration up"


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
    await carry_out(BEGIN, begin_steps(host, disks), report=report)
    return description


def begin_steps(host: ProviderHost, disks: Sequence[Disk]) -> list[Step]:
    """Return the steps of ``begin``."""
    return [_open_shared_step(host, disks)]


def _open_shared_step(host: ProviderHost, disks: Sequence[Disk]) -> Step:
    return Step(
        name="open the volumes shared on the source",
        do=lambda: handover.open_shared(host, disks),
        undo=lambda: handover.open_exclusive(host, disks),
        carries_later=True,
        inverse="open them exclusively",
        check=lambda: handover.check(host, disks, "open shared"),
    )


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
    listening = Listening(monitor, uri, running=description.running)
    await carry_out(LISTEN, listening.steps(), report=report)
    return listening.address


class Listening:
    """A target that begins to wait; ``address`` is where, as QEMU says it."""

    def __init__(self, monitor: Monitor, uri: str, *, running: bool) -> None:
        self._monitor = monitor
        self._running = running
        self.address = uri

    def steps(self) -> list[Step]:
        """Return the steps of ``listen``."""
        return [Step(name=f"listen at {self.address}", do=self._listen, one_way=True)]

    async def _listen(self) -> None:
        await prepare_target(self._monitor, running=self._running)
        self.address = await listen_on(self._monitor, self.address)


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
    await carry_out(SEND, sending.steps(), report=report)
    await sending.look_again()
    if keep_source:
        return sending.result(source_ended=False)
    rest = HandOver(host, host, disks)
    last = SourceEnd(keep_source=False, source=monitor)
    await to_the_end(carry_out("hand the volumes over", leaving_steps(last, rest), report=report))
    say_what_is_left([*last.problems, *rest.problems])
    return sending.result(source_ended=True)


def leaving_steps(last: SourceEnd, rest: HandOver) -> list[Step]:
    """Return the steps of ``send`` once the guest is gone: there is no way back from them."""
    close = Step(name="close the volumes on the source", do=rest.close_on_source, one_way=True)
    return [*last.end_steps(), close]


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
    arrival = Arrival(monitor, host, description, timeout_s=timeout_s)
    await carry_out(FINISH, arrival.steps(), report=report)
    return arrival.state


class Arrival:
    """The end of a migration on its target; ``state`` is QEMU's run state then."""

    def __init__(self, monitor: Monitor, host: ProviderHost, description: Description, *, timeout_s: float) -> None:
        self._monitor = monitor
        self._host = host
        self._description = description
        self._timeout_s = timeout_s
        self.state = ""

    def steps(self) -> list[Step]:
        """Return the steps of ``finish``."""
        disks = self._description.disks
        return [
            Step(name="let the guest run on the target", do=self._arrive, one_way=True),
            Step(
                name="open the volumes exclusively on the target",
                do=lambda: handover.open_exclusive(self._host, disks),
                one_way=True,
                check=lambda: handover.check(self._host, disks, "open exclusively"),
            ),
        ]

    async def check(self) -> None:
        """Raise MigrationRefused for a QEMU that has no guest, and waits for none."""
        if await run_state(self._monitor) == "postmigrate" or (await transfer_state(self._monitor)).status == "none":
            raise MigrationRefused(
                "no guest has arrived at this QEMU", hint="name the target's monitor; on the source: migrate-cancel"
            )

    async def _arrive(self) -> None:
        await wait_loaded(self._monitor, self._timeout_s)
        await self.check()
        if self._description.running:
            await let_run(self._monitor)
        self.state = await run_state(self._monitor)


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
    await carry_out(CANCEL, Cancelling(monitor, host, disks, target_ended=target_ended).steps(), report=report)
    return await run_state(monitor)


class Cancelling:
    """A migration that is given up on its source."""

    def __init__(self, monitor: Monitor, host: ProviderHost, disks: Sequence[Disk], *, target_ended: bool) -> None:
        self._monitor = monitor
        self._host = host
        self._disks = disks
        self._target_ended = target_ended
        self._sent = False

    def steps(self) -> list[Step]:
        """Return the steps of ``cancel``."""
        return [
            Step(name="keep the guest on the source", do=self._stay, one_way=True),
            Step(
                name="open the volumes exclusively on the source",
                do=lambda: handover.open_exclusive(self._host, self._disks),
                one_way=True,
                check=lambda: handover.check(self._host, self._disks, "open exclusively"),
            ),
            # Only now: whatever the volumes were closed for, they are the source's again.
            Step(name="let a guest that was sent in vain run on the source", do=self._come_back, one_way=True),
        ]

    async def check(self, status: str) -> None:
        """Raise MigrationRefused for a guest that was sent, unless its target has ended; ``status`` is its transfer's.

        Asks QEMU only.
        """
        self._sent = status == "completed" and await run_state(self._monitor) == "postmigrate"
        if self._sent and not self._target_ended:
            raise MigrationRefused(
                "the guest was sent completely: if it ran here too, both would write to its disks",
                hint="if the target's QEMU has ended and never let the guest run, say so with --target-ended",
            )

    async def _stay(self) -> None:
        await self.check((await give_up(self._monitor)).status)

    async def _come_back(self) -> None:
        if self._sent:
            await self._monitor.execute("cont")


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
            _open_shared_step(self._source_host, disks),
            _kept(
                "open the volumes shared on the target",
                lambda: handover.open_shared_too(self._target_host, disks),
                lambda: handover.close(self._target_host, disks),
            ),
            _kept("start the target's QEMU", self._start_machine, self._target.end),
            Step(name="compare the target with the source", do=self._compare),
            self._sending.prepare_step(),
            Step(name="listen on the target", do=self._listen),
            *self._sending.move_steps(),
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
