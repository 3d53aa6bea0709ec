"""Migration, written down in the journals of both sides; what each command does is in ``hvext.operations.migrate``.

Between the commands of the two sides a disk *waits*: nobody works on it, and it is not as it was. Such an entry is
left alone until somebody goes on with the migration, or gives it up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hvext.core.disk import Disk
from hvext.core.migration import Description
from hvext.core.record import DiskRecord, Intent, Operation, VmRecord
from hvext.core.value import replace
from hvext.errors import HvextError, InputError, MigrationRefused, QemuError
from hvext.host.journal import JournalFolder
from hvext.host.proc import this_process
from hvext.host.provider import ProviderHost
from hvext.host.qmp import Monitor, connect
from hvext.operations import handover
from hvext.operations import migrate as migration
from hvext.operations.identify import journal_of
from hvext.operations.inspect import running_disks
from hvext.operations.journal import Journal, read_records, users_of, waits
from hvext.operations.migrate import TargetMachine
from hvext.operations.reach import CONNECT_S
from hvext.operations.sending import Migrated
from hvext.operations.steps import Step, carry_out
from hvext.operations.transfer import end_machine, give_up, late, let_run, run_state, runs, wait_loaded
from hvext.operations.vm import AsyncVm

_BEGUN = "begun: its volumes are open for shared access"
_SENT = "sent: the guest lives on the target"
#: The state of a QEMU whose guest was sent, and of one that waits for a guest.
_GONE, _TO_COME = "postmigrate", "inmigrate"
_ARRIVAL_S = 10.0


async def begin(vm: AsyncVm, disks: Sequence[Disk], *, own_controller: bool = False) -> Description:
    """Describe a guest for its target and open its volumes shared; see ``migrate.begin``."""
    async with vm.alone(), vm.operation(Operation.MIGRATE, *disks) as work:
        description = await migration.begin(
            vm.monitor, work.host, disks, own_controller=own_controller, report=work.report
        )
        work.end(waiting=waits(Operation.MIGRATE, _BEGUN))
        return description


async def listen(vm: AsyncVm, description: Description, uri: str) -> str:
    """Have a target wait for its guest; see ``migrate.listen``. Raises MigrationRefused also for one on the same host.

    There, the source's ``close`` would cut the volumes off from whoever uses them, and that is the target.
    """
    check_elsewhere(description, read_records(vm.journal.folder), vm.journal.name)
    async with vm.alone():
        return await migration.listen(vm.monitor, description, uri, report=vm.report)


def check_elsewhere(description: Description, records: Mapping[str, VmRecord], name: str) -> None:
    """Raise MigrationRefused when another VM of this host than the one called ``name`` has disks of a description."""
    for disk in description.disks:
        if users := users_of(disk, records, but=name):
            raise MigrationRefused(
                f"{disk.provider}/{disk.volume.name} is a disk of VM {users[0]} on this same host: closing it there, "
                "at the end of the migration, would take it from this one",
                hint="a guest is migrated to another host, whose journal (--state-dir, HVEXT_STATE_DIR) is its own",
            )


async def send(vm: AsyncVm, disks: Sequence[Disk], uri: str, *, target: str | None = None, **options: Any) -> Migrated:
    """Send a guest to its target; see ``migrate.send``. ``target`` is the address of the target's monitor."""
    details = {"target": target} if target else {}
    async with vm.alone(), vm.operation(Operation.MIGRATE, *disks, details=details) as work:
        if target is None:
            result = await migration.send(vm.monitor, work.host, disks, uri, report=work.report, **options)
        else:
            async with connect(target, connect_timeout_s=CONNECT_S) as monitor:
                result = await migration.send(
                    vm.monitor, work.host, disks, uri, target=monitor, report=work.report, **options
                )
        work.end(waiting=waits(Operation.MIGRATE, _SENT, sent=True))
        return result


async def cancel(vm: AsyncVm, disks: Sequence[Disk], *, target_ended: bool = False) -> str:
    """Keep a guest on the source and open its volumes exclusively; see ``migrate.cancel``."""
    async with vm.alone(), vm.operation(Operation.MIGRATE, *disks) as work:
        state = await migration.cancel(vm.monitor, work.host, disks, target_ended=target_ended, report=work.report)
        work.end()
        return state


async def finish(vm: AsyncVm, description: Description, **options: Any) -> str:
    """Let a guest run on its target and open its volumes exclusively; see ``migrate.finish``."""
    details = {"incoming": True}
    async with vm.alone(), vm.operation(Operation.MIGRATE, *description.disks, one_way=True, details=details) as work:
        state = await migration.finish(vm.monitor, work.host, description, report=work.report, **options)
        work.end()
        return state


async def migrate(
    vm: AsyncVm,
    target: TargetMachine,
    target_host: ProviderHost,
    disks: Sequence[Disk],
    uri: str,
    *,
    target_name: str | None = None,
    target_state: str | None = None,
    keep_source: bool = False,
    **options: Any,
) -> Migrated:
    """Move a running guest with all its disks; see ``migrate.migrate``.

    ``target_state`` is the journal's folder on the target's side (default: the source's).
    """
    folder = JournalFolder(target_state or vm.journal.folder.path)
    async with vm.alone(), vm.operation(Operation.MIGRATE, *disks) as work:
        arrived: list[Journal] = []
        uuids = [disk.volume.uuid for disk in disks]

        async def started(monitor: Monitor, address: str) -> None:
            for disk in disks:
                vm.journal.note(disk.volume.uuid, details={"target": address})
            journal = await journal_of(monitor, address, name=target_name, folder=folder)
            if (journal.name, journal.folder.path) == (vm.journal.name, vm.journal.folder.path):
                raise InputError(
                    f"source and target are both called {journal.name} in one journal",
                    hint="give the target a name or a journal of its own: target_name, target_state",
                )
            async with journal.locked():
                _work_on(journal, uuids)
            arrived.append(journal)

        result = await migration.migrate(
            vm.monitor,
            work.host,
            target,
            target_host,
            disks,
            uri,
            keep_source=keep_source,
            target_name=target_name,
            target_state=str(folder.path),
            started=started,
            report=work.report,
            **options,
        )
        for journal in arrived:
            async with journal.locked():
                _settle(journal, uuids)
        if keep_source:
            work.end(waiting=waits(Operation.MIGRATE, _SENT, sent=True))
        else:
            work.end(None)
        return result


def waiting(record: VmRecord) -> list[DiskRecord]:
    """Return the disks of a VM whose migration waits for somebody's next command."""
    return [known for known in migrating(record) if known.unfinished is not None and known.unfinished.by is None]


def migrating(record: VmRecord) -> list[DiskRecord]:
    """Return the disks of a VM whose migration is not finished."""
    return [known for known in record.disks.values() if known.migrating]


async def recover(vm: AsyncVm) -> str:
    """Bring a migration in order that was interrupted in the middle of a command, ``alone``; return what was done.

    A guest that was not sent completely stays on the source. One that was lives on the target, when that can be
    asked; its QEMU on the source is ended. On the target, the volumes of a guest that runs are opened exclusively.
    Raises HvextError when it cannot be told on which side the guest lives.
    """
    journal, monitor = vm.journal, vm.monitor
    known = migrating(journal.record)
    disks = [disk for record in known if (disk := journal.whole(record.disk.volume.uuid)) is not None]
    uuids = [disk.volume.uuid for disk in disks]
    details = {key: value for record in known if record.unfinished for key, value in record.unfinished.details.items()}
    if details.get("incoming"):
        await _recover_target(vm, disks)
        _settle(journal, uuids)
        return "the guest runs here, and its volumes are open exclusively"
    ended = await give_up(monitor)
    if ended.status == "completed" and await run_state(monitor) == _GONE:
        await _end_source(vm, disks, str(details.get("target", "")))
        for uuid in uuids:
            journal.forget(uuid)
        return "the guest lives on the target; QEMU here was ended, and its volumes let go"
    if target := str(details.get("target", "")):
        await _end_waiting(target, disks)
    await carry_out("give the migration up", stay_steps(vm.host, disks), report=vm.report)
    _settle(journal, uuids)
    return "the guest stays here, and its volumes are open exclusively"


async def _recover_target(vm: AsyncVm, disks: Sequence[Disk]) -> None:
    if not await runs(vm.monitor):
        raise HvextError(
            f"the guest does not run here ({await run_state(vm.monitor)})",
            hint="recover the source first; then hvext migrate-finish here, or end this QEMU",
        )
    await carry_out("finish the migration", stay_steps(vm.host, disks), report=vm.report)


def stay_steps(host: ProviderHost, disks: Sequence[Disk]) -> list[Step]:
    """Return what is done about the volumes of an interrupted migration on the side where the guest lives."""
    return [Step(name="open the volumes exclusively", do=lambda: handover.open_exclusive(host, disks), one_way=True)]


def leave_steps(monitor: Monitor, host: ProviderHost, disks: Sequence[Disk]) -> list[Step]:
    """Return what is done on the side that the guest has left."""
    return [
        Step(name="end the source's QEMU", do=lambda: end_machine(monitor), one_way=True),
        Step(name="close the volumes", do=lambda: handover.close(host, disks), one_way=True),
        Step(name="detach the volumes", do=lambda: handover.detach(host, disks), one_way=True),
    ]


async def _end_source(vm: AsyncVm, disks: Sequence[Disk], target: str) -> None:
    """End the source of a guest that was sent, once it is known to live on the target."""
    hint = "hvext migrate-finish on the target, then hvext stop here; or hvext migrate-cancel --target-ended here"
    if not target:
        raise HvextError("the guest was sent completely: it must not run here again", hint=hint)
    try:
        async with connect(target, connect_timeout_s=CONNECT_S) as there:
            await _check_target(there, disks, target)
            await wait_loaded(there, _ARRIVAL_S)
            # A guest that was paused is received without it, and stays paused.
            if await late(there):
                await let_run(there)
    except QemuError as error:
        raise HvextError(
            f"the guest was sent completely, and its target cannot be asked: {error.message}", hint=hint
        ) from error
    await carry_out("finish the migration", leave_steps(vm.monitor, vm.host, disks), report=vm.report)


async def _check_target(there: Monitor, disks: Sequence[Disk], target: str) -> None:
    """Raise HvextError when the QEMU at an address is not the target with these disks: it may be used again."""
    found = {uuid for uuid, disk in (await running_disks(there)).items() if disk.device is not None}
    if not {disk.volume.uuid for disk in disks} <= found:
        raise HvextError(
            f"the guest was sent completely, and another QEMU than its target is at {target} now",
            hint="hvext migrate-cancel --target-ended, if the target has ended and never let the guest run",
        )


async def _end_waiting(target: str, disks: Sequence[Disk]) -> None:
    """End a target's QEMU that waits for a guest which does not come; one that is gone is no error."""
    try:
        async with connect(target, connect_timeout_s=CONNECT_S) as there:
            await _check_target(there, disks, target)
            if await run_state(there) == _TO_COME:
                await end_machine(there)
    except HvextError:
        # Nobody there, or somebody else.
        return


def _work_on(journal: Journal, uuids: Sequence[Any]) -> None:
    """Write down that this process brings a guest to disks that waited for it: if it is killed, nobody else will."""
    record = journal.seen()
    for uuid in uuids:
        if (known := record.disks.get(uuid)) is not None and known.unfinished is not None:
            record = record.with_disk(replace(known, unfinished=replace(known.unfinished, by=this_process())))
    journal.write(record)


def _settle(journal: Journal, uuids: Sequence[Any]) -> None:
    """Write down that disks are as they are meant to be."""
    record = journal.seen()
    for uuid in uuids:
        if (known := record.disks.get(uuid)) is not None:
            record = record.with_disk(replace(known, intent=Intent.PRESENT, unfinished=None))
    journal.write(record)
