"""The journal of one VM: every operation is written down before each of its side effects.

One process at a time works on a VM: it holds the VM's lock from the beginning of an operation to its end. What stands
in the record when the lock is taken and is unfinished was left by a process that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
import uuid as uuid_module
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from hvext.core.disk import Disk
from hvext.core.identity import DiskNames
from hvext.core.record import DiskRecord, Intent, Operation, ProcessId, Unfinished, VmRecord, same_volume
from hvext.core.secret import Secret
from hvext.core.uri.location import PrivateFile
from hvext.errors import HvextError, InputError, JournalError, OperationFailed, PlugError
from hvext.host.journal import JournalFolder, Lock
from hvext.host.private import private_folder, read_secret_file, remove_private, write_private
from hvext.host.proc import is_alive, process_id, this_process
from hvext.host.process import end_group
from hvext.host.provider import ProviderHost
from hvext.operations.steps import Report, may_have_done, silent

#: Longer than the scripts and commands of one operation take that goes well.
LOCK_LIMIT_S = 180.0
_POLL_S = 0.02


def read_records(folder: JournalFolder) -> dict[str, VmRecord]:
    """Return the records of all VMs of this host by name; raises JournalError."""
    records = [VmRecord.from_json(text, where) for where, text in folder.texts().items()]
    return {record.name: record for record in records}


def users_of(disk: Disk, records: Mapping[str, VmRecord], *, but: str) -> list[str]:
    """Return the names of the VMs that have the volume of ``disk``, other than the one called ``but``.

    A VM whose QEMU has ended uses nothing any more.
    """
    return [
        record.name
        for record in records.values()
        if record.name != but
        and (record.process is None or is_alive(record.process))
        and any(same_volume(disk, other.disk) for other in record.disks.values())
    ]


class Journal:
    """The record of one VM, and its lock; for one event loop."""

    def __init__(
        self, folder: JournalFolder, name: str, *, monitor: str = "", process: ProcessId | None = None
    ) -> None:
        if not name:
            raise InputError("a VM's name is empty")
        self.folder = folder
        self.name = name
        self._monitor = monitor
        self._process = process
        self._record = VmRecord(name=name)
        # Steps are written by the event loop, scripts' beginnings by threads.
        self._writing = threading.Lock()

    def read(self) -> VmRecord:
        """Return the record as it is now, also while somebody works on it; raises JournalError."""
        text = self.folder.load(self.name)
        if text is None:
            return VmRecord(name=self.name)
        return VmRecord.from_json(text, self.folder.where(self.name))

    @contextlib.asynccontextmanager
    async def locked(self, limit_s: float = LOCK_LIMIT_S) -> AsyncIterator[Journal]:
        """Hold the VM's lock in the block; raises JournalError when somebody else holds it for longer than that."""
        lock = self.folder.try_lock(self.name)
        deadline = time.monotonic() + limit_s
        while lock is None:
            if time.monotonic() >= deadline:
                raise JournalError(
                    f"another hvext ({self.folder.holder(self.name)}) works on VM {self.name} for more than "
                    f"{limit_s:g} s",
                    hint="wait for it, or end it; hvext recover completes what it leaves",
                )
            await asyncio.sleep(_POLL_S)
            lock = self.folder.try_lock(self.name)
        with self._held(lock):
            yield self

    @contextlib.contextmanager
    def locked_now(self, limit_s: float = LOCK_LIMIT_S) -> Iterator[Journal]:
        """Hold the VM's lock as ``locked`` does, for callers without an event loop."""
        lock = self.folder.try_lock(self.name)
        deadline = time.monotonic() + limit_s
        while lock is None:
            if time.monotonic() >= deadline:
                raise JournalError(f"another hvext ({self.folder.holder(self.name)}) works on VM {self.name}")
            time.sleep(_POLL_S)
            lock = self.folder.try_lock(self.name)
        with self._held(lock):
            yield self

    @contextlib.contextmanager
    def _held(self, lock: Lock) -> Iterator[None]:
        try:
            self._record = self.read()
            yield
        finally:
            lock.release(remove=not self._record.disks)

    @property
    def record(self) -> VmRecord:
        """The record as it was read or written last."""
        return self._record

    def seen(self) -> VmRecord:
        """Return the record with the monitor and the process that this was made for."""
        return self._record.seen(self._monitor, self._process) if self._monitor else self._record

    def whole(self, uuid: uuid_module.UUID) -> Disk | None:
        """Return a disk that the record has, with its secrets; None for one that it has not. Raises JournalError."""
        known = self.read().disks.get(uuid)
        return None if known is None else known.whole(_kept_secrets(known))

    def write(self, record: VmRecord) -> None:
        """Put ``record`` in the place of what is written; one without disks is removed. Raises JournalError."""
        with self._writing:
            if record.disks:
                self.folder.store(self.name, record.to_json())
            else:
                self.folder.remove(self.name)
            self._record = record

    def forget(self, uuid: uuid_module.UUID) -> None:
        """Remove a disk and its kept secrets; one that is not there is no error. Raises JournalError."""
        remove_private(_kept_name(uuid))
        self.write(self._record.without_disk(uuid))

    def begin(
        self,
        operation: Operation,
        disk: Disk,
        *,
        intent: Intent,
        exclusive: bool = False,
        details: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Write down that an operation on a disk begins; call it with the lock held.

        With ``exclusive`` a volume that another VM has is refused. Raises PlugError, JournalError.
        """
        before = self._record.disks.get(disk.volume.uuid)
        if before is not None and before.unfinished is not None:
            end_script(before.unfinished)
        work = Unfinished(operation=operation, since=time.time(), by=this_process(), details=details or {})
        record = DiskRecord.of(disk, intent=intent, unfinished=work)
        if before is not None and operation not in (Operation.PLUG, Operation.START):
            # The disk is there: its options are those that it was given then.
            record = replace(before, intent=intent, unfinished=work)
        with self.folder.comparing():
            if exclusive and (users := users_of(disk, read_records(self.folder), but=self.name)):
                raise PlugError(
                    f"the volume {record.words} is a disk of VM {users[0]} on this host",
                    hint="unplug it there first; hvext audit shows what each VM has",
                )
            self._keep_secrets(disk, record)
            self.write(self.seen().with_disk(record))
        return Entry(self, disk.volume.uuid, before)

    def _keep_secrets(self, disk: Disk, record: DiskRecord) -> None:
        if record.withheld:
            values = {name: disk.volume.parameters[name] for name in record.withheld}
            path = f"{private_folder()}/{_kept_name(disk.volume.uuid)}"
            write_private([PrivateFile(path=path, text=Secret(json.dumps(values)))])

    def note(self, uuid: uuid_module.UUID, **values: Any) -> None:
        """Change what is written about the operation under way on a disk."""
        known = self._record.disks.get(uuid)
        if known is not None and known.unfinished is not None:
            work = replace(known.unfinished, **values)
            self.write(self._record.with_disk(replace(known, unfinished=work)))


class Entry:
    """What stands in the journal about one operation on one disk; ``before`` is what stood there before it."""

    def __init__(self, journal: Journal, uuid: uuid_module.UUID, before: DiskRecord | None) -> None:
        self.before = before
        self._journal = journal
        self._uuid = uuid
        self._n_steps = 0

    def reporter(self, report: Report = silent) -> Report:
        """Return what writes each step down before ``report`` hears of it and it is done."""

        def step(name: str) -> None:
            self._journal.note(self._uuid, step=name, script=None)
            self._n_steps += 1
            report(name)

        return step

    def host(self, host: ProviderHost) -> ProviderHost:
        """Return ``host`` so that the scripts it starts are written down."""

        def started(pid: int) -> None:
            # The step that starts it is written down: this only lets somebody else end it sooner.
            _quietly(lambda: self._journal.note(self._uuid, script=process_id(pid)))

        return replace(host, on_start=started)

    def end(self, intent: Intent | None = Intent.PRESENT, **values: Any) -> None:
        """Write down that the operation ended well; with None the disk is gone.

        ``values`` are more of what a DiskRecord has. Raises OperationFailed when it cannot be written.
        """
        try:
            if intent is None:
                self._journal.forget(self._uuid)
                return
            known = self._journal.record.disks[self._uuid]
            ended = replace(known, intent=intent, unfinished=None, **values)
            self._journal.write(self._journal.record.with_disk(ended))
        except JournalError as error:
            words = f"it is done, but its end could not be written down: {error.message}"
            hint = "hvext recover writes it down once there is room"
            raise OperationFailed(words, step="write the journal", left=["the journal"], hint=hint) from error

    def revert(self) -> None:
        """Write down that nothing of the operation is left. Raises JournalError."""
        if self.before is None:
            self._journal.forget(self._uuid)
        else:
            self._journal.write(self._journal.record.with_disk(self.before))

    @contextlib.contextmanager
    def written_down(self, *, one_way: bool = False) -> Iterator[Entry]:
        """Take the entry back when the operation in the block fails without leaving anything.

        What it leaves (``OperationFailed.left``), and what nobody foresaw, stays written down for ``recover``; so does
        a ``one_way`` operation, which has no way back, once its first step was done or may have been.
        """
        try:
            yield self
        except (HvextError, asyncio.CancelledError) as error:
            left = isinstance(error, OperationFailed) and bool(error.left)
            refused = isinstance(error, HvextError) and not may_have_done(error.__cause__ or error)
            if not left and not (one_way and self._n_steps and (self._n_steps > 1 or not refused)):
                _quietly(self.revert)
            raise


def _quietly(write: Callable[[], None]) -> None:
    """Write what can be written: the error under way is the one to hear of, and ``recover`` looks for itself."""
    with contextlib.suppress(HvextError):
        write()


def end_script(work: Unfinished) -> None:
    """End the script that a process which is gone had started: as Ctrl-C would have."""
    if work.script is not None and is_alive(work.script) and not is_alive(work.by):
        end_group(work.script.pid)


def _kept_name(uuid: uuid_module.UUID) -> str:
    return f"{DiskNames(uuid).device}-parameters"


def _kept_secrets(record: DiskRecord) -> dict[str, str]:
    """Return the secret parameters of a disk that are kept on this host; none where there are none."""
    if not record.withheld:
        return {}
    with contextlib.suppress(InputError, ValueError):
        found = json.loads(read_secret_file(f"{private_folder()}/{_kept_name(record.disk.volume.uuid)}"))
        return {str(name): str(value) for name, value in found.items()}
    return {}
