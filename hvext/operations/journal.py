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
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from hvext.core.disk import Disk
from hvext.core.identity import DiskNames
from hvext.core.record import DiskRecord, Intent, Operation, ProcessId, Unfinished, VmRecord, same_volume
from hvext.core.secret import Secret
from hvext.core.uri.location import PrivateFile
from hvext.core.volume import Volume
from hvext.errors import HvextError, InputError, JournalError, OperationFailed, PlugError
from hvext.host.journal import JournalFolder, Lock
from hvext.host.private import private_folder, read_secret_file, remove_private, write_private
from hvext.host.proc import is_alive, process_id, scripts_of, this_process
from hvext.host.process import end_group
from hvext.host.provider import ProviderHost
from hvext.operations.steps import Report, may_have_done, silent

#: Longer than the scripts and commands of one operation take that goes well.
LOCK_LIMIT_S = 180.0
_POLL_S = 0.02
#: Operations that change nothing about whether a disk is meant to be in the guest: its unplug may be pending.
_STAYING = (Operation.FAIL_OVER, Operation.REPOINT, Operation.RESIZE)


def read_records(folder: JournalFolder) -> dict[str, VmRecord]:
    """Return the records of all VMs of this host by name; raises JournalError.

    A record that cannot be read is left out: it must not keep anybody from working on the other VMs.
    """
    return {record.name: record for record in _parsed(folder).values() if isinstance(record, VmRecord)}


def broken_records(folder: JournalFolder) -> list[JournalError]:
    """Return why records cannot be read, one error for each that cannot; raises JournalError."""
    return [error for error in _parsed(folder).values() if isinstance(error, JournalError)]


def _parsed(folder: JournalFolder) -> dict[str, VmRecord | JournalError]:
    found: dict[str, VmRecord | JournalError] = {}
    for where, text in folder.texts().items():
        try:
            found[where] = text if isinstance(text, JournalError) else _read_before(text, where)
        except JournalError as error:
            found[where] = error
    return found


def check_names(names: Sequence[str], folder: JournalFolder) -> None:
    """Raise InputError for the name of a VM that the journal does not have; a record that cannot be read may be its."""
    known = read_records(folder)
    unknown = [name for name in names if name not in known]
    if unknown and not broken_records(folder):
        have = ", ".join(known) or "none"
        raise InputError(f"the journal in {folder.path} has no VM {unknown[0]!r}", hint=f"it has: {have}")


@lru_cache(maxsize=1024)
def _read_before(text: str, where: str) -> VmRecord:
    """Return the record in a text: one process that supervises hundreds of VMs reads the same ones again and again."""
    return VmRecord.from_json(text, where)


def another_runs(record: VmRecord, process: ProcessId | None) -> bool:
    """Return whether a record is that of another QEMU than ``process``, and that one still runs."""
    return process is not None and record.process not in (None, process) and is_alive(record.process)


def name_beside(name: str, process: ProcessId) -> str:
    """Return what a VM is called when another one that runs has its name."""
    return f"{name}@{process.pid}"


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
        self._writing = threading.RLock()
        self._deferred = False

    def read(self) -> VmRecord:
        """Return the record as it is now, also while somebody works on it; raises JournalError."""
        text = self.folder.load(self.name)
        if text is None:
            return VmRecord(name=self.name)
        return VmRecord.from_json(text, self.folder.where(self.name))

    @contextlib.asynccontextmanager
    async def locked(self, limit_s: float = LOCK_LIMIT_S) -> AsyncIterator[Journal]:
        """Hold the VM's lock in the block; raises JournalError when somebody else holds it for longer than that."""
        deadline = time.monotonic() + limit_s
        while (lock := self._try_lock()) is None:
            self._check_waiting(deadline, limit_s)
            await asyncio.sleep(_POLL_S)
        with self._held(lock):
            yield self

    @contextlib.contextmanager
    def locked_now(self, limit_s: float = LOCK_LIMIT_S) -> Iterator[Journal]:
        """Hold the VM's lock as ``locked`` does, for callers without an event loop."""
        deadline = time.monotonic() + limit_s
        while (lock := self._try_lock()) is None:
            self._check_waiting(deadline, limit_s)
            time.sleep(_POLL_S)
        with self._held(lock):
            yield self

    def _try_lock(self) -> Lock | None:
        """Return the VM's lock with its record read; None while somebody else holds it.

        When a running QEMU of the same name was written down meanwhile, this one has to have another.
        """
        lock = self.folder.try_lock(self.name)
        if lock is None:
            return None
        try:
            self._record = self.read()
        except BaseException:
            lock.release()
            raise
        if not another_runs(self._record, self._process):
            return lock
        lock.release()
        assert self._process is not None  # noqa: S101
        self.name = name_beside(self.name, self._process)
        return None

    def _check_waiting(self, deadline: float, limit_s: float) -> None:
        if time.monotonic() >= deadline:
            raise JournalError(
                f"another hvext ({self.folder.holder(self.name)}) works on VM {self.name} for more than {limit_s:g} s",
                hint="wait for it, or end it; hvext recover completes what it leaves",
            )

    @contextlib.contextmanager
    def _held(self, lock: Lock) -> Iterator[None]:
        try:
            yield
        finally:
            lock.release(remove=not self._record.disks)

    @property
    def record(self) -> VmRecord:
        """The record as it was read or written last."""
        return self._record

    def seen(self) -> VmRecord:
        """Return the record with the monitor and the process that this was made for.

        Without a monitor it is for a QEMU that is still to come: the one before it is none of its.
        """
        if self._monitor:
            ended = self._record.process is not None and not is_alive(self._record.process)
            before = replace(self._record, process=None) if ended else self._record
            return before.seen(self._monitor, self._process)
        return self._record if is_alive(self._record.process) else replace(self._record, process=None, monitors=())

    @property
    def is_seen(self) -> bool:
        """Whether the record, as it was read last, has the monitor and the process that this was made for."""
        known = self._record
        return not known.disks or (self._monitor in known.monitors and known.process == self._process)

    def whole(self, uuid: uuid_module.UUID) -> Disk | None:
        """Return a disk that the record has, with its secrets; None for one that it has not. Raises JournalError."""
        known = self.read().disks.get(uuid)
        return None if known is None else known.whole(self.kept_secrets(known))

    def kept_secrets(self, record: DiskRecord) -> dict[str, str]:
        """Return the secret parameters of a disk that are kept on this host; none where there are none."""
        if not record.withheld:
            return {}
        with contextlib.suppress(InputError, ValueError):
            found = json.loads(read_secret_file(f"{private_folder()}/{_kept_name(record.disk.volume.uuid)}"))
            return {str(name): str(value) for name, value in found.items()}
        return {}

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Write all that is changed in the block in one piece, at its end. Raises JournalError."""
        with self._writing:
            before, self._deferred = self._record, True
            try:
                yield
                self._deferred = False
                self.write(self._record)
            except BaseException:
                self._record = before
                raise
            finally:
                self._deferred = False

    def write(self, record: VmRecord) -> None:
        """Put ``record`` in the place of what is written; one without disks is removed. Raises JournalError."""
        with self._writing:
            if self._deferred:
                self._record = record
                return
            if record.disks:
                self.folder.store(self.name, record.to_json())
            else:
                self.folder.remove(self.name)
            self._record = record

    def forget(self, uuid: uuid_module.UUID) -> None:
        """Remove a disk and its kept secrets; one that is not there is no error. Raises JournalError."""
        # In this order: a record whose secrets are gone could not be recovered, files without a record can.
        self.write(self._record.without_disk(uuid))
        # Whoever writes the disk down for another VM at this moment keeps its secrets first.
        with self.folder.comparing():
            if not any(uuid in record.disks for record in read_records(self.folder).values()):
                remove_private(_kept_name(uuid))

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
        if before is not None:
            end_scripts(before)
        if operation is Operation.START and self._record.process is not None and not is_alive(self._record.process):
            # Of a QEMU that has ended: what it had is attached anew.
            before = None
        work = Unfinished(operation=operation, since=time.time(), by=this_process(), details=details or {})
        record = DiskRecord.of(disk, intent=intent, unfinished=work)
        if before is not None and operation not in (Operation.PLUG, Operation.START):
            # The disk is there: its options are those that it was given then.
            record = replace(before, intent=before.intent if operation in _STAYING else intent, unfinished=work)
        with self.folder.comparing():
            if exclusive and (users := users_of(disk, read_records(self.folder), but=self.name)):
                raise PlugError(
                    f"the volume {record.words} is a disk of VM {users[0]} on this host",
                    hint="unplug it there first; hvext audit shows what each VM has",
                )
            kept = self.kept_secrets(record)
            self._keep_secrets(disk, record)
            self.write(self.seen().with_disk(record))
        return Entry(self, disk.volume.uuid, before, kept)

    def _keep_secrets(self, disk: Disk, record: DiskRecord) -> None:
        values = {name: disk.volume.parameters[name] for name in record.withheld if name in disk.volume.parameters}
        # A caller who names the disk without them has no newer ones.
        if values and len(values) == len(record.withheld):
            self.keep_secrets(disk.volume.uuid, values)

    def keep_secrets(self, uuid: uuid_module.UUID, values: Mapping[str, str]) -> None:
        """Keep the secret parameters of a disk on this host, in a private file."""
        path = f"{private_folder()}/{_kept_name(uuid)}"
        write_private([PrivateFile(path=path, text=Secret(json.dumps(dict(values))))])

    def host(self, host: ProviderHost) -> ProviderHost:
        """Return ``host`` so that the scripts it starts are written down."""

        def started(volume: Volume, pid: int) -> None:
            # The step that starts it is written down: this only lets somebody else end it sooner.
            _quietly(lambda: self.note(volume.uuid, script=process_id(pid)))

        return replace(host, on_start=started)

    def note(self, uuid: uuid_module.UUID, **values: Any) -> None:
        """Change what is written about the operation under way on a disk."""
        with self._writing:
            known = self._record.disks.get(uuid)
            if known is not None and known.unfinished is not None:
                work = replace(known.unfinished, **values)
                self.write(self._record.with_disk(replace(known, unfinished=work)))


class Entry:
    """What stands in the journal about one operation on one disk; ``before`` is what stood there before it."""

    def __init__(
        self, journal: Journal, uuid: uuid_module.UUID, before: DiskRecord | None, kept: Mapping[str, str]
    ) -> None:
        self.before = before
        self._kept = kept
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

    def end(self, intent: Intent | None = Intent.PRESENT, *, waiting: Unfinished | None = None, **values: Any) -> None:
        """Write down that the operation ended well; with None the disk is gone.

        ``waiting`` is what somebody else has to do next. ``values`` are more of what a DiskRecord has. Raises
        OperationFailed when it cannot be written.
        """
        try:
            if intent is None:
                self._journal.forget(self._uuid)
                return
            known = self._journal.record.disks[self._uuid]
            if known.unfinished is not None and known.unfinished.operation in _STAYING:
                intent = known.intent
            ended = replace(known, intent=intent, unfinished=waiting, **values)
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
            if self._kept:
                self._journal.keep_secrets(self._uuid, self._kept)
            self._journal.write(self._journal.record.with_disk(self.before))

    @contextlib.contextmanager
    def written_down(self, *, one_way: bool = False) -> Iterator[Entry]:
        """Take the entry back when the operation in the block fails without leaving anything.

        What it leaves (``OperationFailed.left``), and what nobody foresaw, stays written down for ``recover``; so does
        a ``one_way`` operation, which has no way back, once its first step was done or may have been.
        """
        try:
            yield self
        except (HvextError, asyncio.CancelledError, KeyboardInterrupt) as error:
            left = isinstance(error, OperationFailed) and bool(error.left)
            refused = isinstance(error, HvextError) and not may_have_done(error.__cause__ or error)
            if not left and not (one_way and self._n_steps and (self._n_steps > 1 or not refused)):
                _quietly(self.revert)
            raise


def runs(record: VmRecord) -> bool:
    """Return whether a VM's QEMU runs, as far as is known: one that was seen over TCP only may."""
    return is_alive(record.process) or (record.process is None and bool(record.monitors))


def owners_of(disks: Sequence[Disk], records: Mapping[str, VmRecord], *, name: str | None = None) -> list[str]:
    """Return the VMs whose QEMU does not run and that have one of ``disks``: all, or the one called ``name``."""
    return [
        record.name
        for record in records.values()
        if (name is None or record.name == name)
        and not runs(record)
        and any(disk.volume.uuid in record.disks for disk in disks)
    ]


def forget_ended(disks: Sequence[Disk], folder: JournalFolder, *, name: str | None = None) -> None:
    """Forget disks whose volumes were detached, in the records of their `owners_of`. Raises JournalError."""
    for owner in owners_of(disks, read_records(folder), name=name):
        journal = Journal(folder, owner)
        with journal.locked_now():
            for disk in disks:
                journal.forget(disk.volume.uuid)


def waits(operation: Operation, step: str, **details: Any) -> Unfinished:
    """Return what stands in the journal while an operation waits for somebody to go on with it."""
    return Unfinished(operation=operation, since=time.time(), step=step, details=details)


def _quietly(write: Callable[[], None]) -> None:
    """Write what can be written: the error under way is the one to hear of, and ``recover`` looks for itself."""
    with contextlib.suppress(HvextError):
        write()


def end_scripts(record: DiskRecord) -> None:
    """End the scripts that a process which is gone had started for a disk: as Ctrl-C would have."""
    work = record.unfinished
    if work is None or is_alive(work.by):
        return
    noted = {work.script.pid} if work.script is not None and is_alive(work.script) else set()
    # One that was started a moment before its process was killed is not written down yet.
    for pid in noted | set(scripts_of(record.disk.volume.uuid)):
        end_group(pid)


def _kept_name(uuid: uuid_module.UUID) -> str:
    return f"{DiskNames(uuid).device}-parameters"
