"""The journal of one VM: every operation is written down before each of its side effects.

One process at a time works on a VM: it holds the VM's lock from the beginning of an operation to its end. What stands
in the record when the lock is taken and is unfinished was left by a process that is gone.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid as uuid_module
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

from hvext.core.disk import Disk
from hvext.core.history import Ending, Past
from hvext.core.identity import DiskNames
from hvext.core.record import DiskRecord, Intent, Operation, ProcessId, Unfinished, VmRecord, is_whole
from hvext.core.secret import Secret
from hvext.core.uri.location import PrivateFile
from hvext.core.value import replace
from hvext.core.volume import Volume
from hvext.errors import HvextError, InputError, JournalError, OperationFailed, PlugError, ProviderNotFound
from hvext.host.journal import JournalFolder, Lock, Sync
from hvext.host.private import private_folder, read_secret_file, remove_private, write_private
from hvext.host.proc import is_alive, process_id, this_process
from hvext.host.provider import ProviderHost
from hvext.operations.outcome import Report, is_interrupt, may_have_done, silent
from hvext.operations.records import another_runs as another_runs
from hvext.operations.records import broken_records as broken_records
from hvext.operations.records import check_names as check_names
from hvext.operations.records import check_staying, check_twin, disks_of
from hvext.operations.records import end_scripts as end_scripts
from hvext.operations.records import name_beside as name_beside
from hvext.operations.records import owners_of as owners_of
from hvext.operations.records import read_records as read_records
from hvext.operations.records import runs as runs
from hvext.operations.records import users_of as users_of
from hvext.operations.records import waits as waits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Longer than the scripts and commands of one operation take that goes well.
LOCK_LIMIT_S = 180.0
_POLL_S = 0.02
#: How much may stand behind the record of a VM before it is written anew, beside as much as the record is long.
_ROOM = 1 << 15
#: Operations that change nothing about whether a disk is meant to be in the guest: its unplug may be pending.
_STAYING = (Operation.FAIL_OVER, Operation.REPOINT, Operation.RESIZE)


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
        # What the file holds, and the record that this makes: the one above, or None where only the whole can be
        # written.
        self._text = ""
        self._whole_length = 0
        self._written: VmRecord | None = None
        # Steps are written by the event loop, scripts' beginnings by threads.
        self._writing = threading.RLock()
        self._sync: Sync | None = None
        # Inside of `at_once`: the disks that were changed so far.
        self._deferred: set[uuid_module.UUID] | None = None

    def read(self) -> VmRecord:
        """Return the record as it is now, also while somebody works on it; raises JournalError."""
        return self._read(self.folder.load(self.name))

    def _read(self, text: str | None) -> VmRecord:
        if text is None:
            return VmRecord(name=self.name)
        known = self._written
        if known is not None and text == self._text:
            return known
        return VmRecord.from_json(text, self.folder.where(self.name))

    @contextlib.asynccontextmanager
    async def locked(self, limit_s: float = LOCK_LIMIT_S) -> AsyncIterator[Journal]:
        """Hold the VM's lock in the block; raises JournalError when somebody else holds it for longer than that."""
        # Here, because a start needs no event loop, and asyncio takes longer to load than all of it.
        import asyncio

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
            text = self.folder.load(self.name)
            self._record = self._read(text)
            self._text = text or ""
            self._whole_length = self._text.find("\n") + 1
            self._written = self._record if text is not None and is_whole(text) else None
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
            try:
                self.wait_for_disk()
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

    def known(self, uuid: uuid_module.UUID) -> Disk | None:
        """Return a disk that the record has; what it lacks are only secrets that are gone."""
        record = self._record.disks.get(uuid)
        if record is None:
            return None
        try:
            return self.whole(uuid)
        except JournalError:
            return record.disk

    def is_shared(self, disk: Disk) -> bool:
        """Return whether other VMs of this host have the disk's volume as well; raises JournalError."""
        return bool(users_of(disk, self._others(), but=self.name))

    def check_staying(self) -> None:
        """Raise PlugError once a migration of the VM has begun: its target would not be like the guest any more."""
        check_staying(self._record)

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
            before, self._deferred = self._record, set()
            try:
                yield
                changed, self._deferred = self._deferred, None
                self._write(self._record, changed)
            except BaseException:
                self._record = before
                raise
            finally:
                self._deferred = None

    def write(self, record: VmRecord) -> None:
        """Put ``record`` in the place of what is written; one without disks is removed. Raises JournalError."""
        self._write(record, None)

    def write_disk(self, record: DiskRecord) -> None:
        """Put the record of one disk into that of the VM. Raises JournalError."""
        self._write(self._record.with_disk(record), {record.disk.volume.uuid})

    def _write(self, record: VmRecord, changed: set[uuid_module.UUID] | None) -> None:
        """Write a record in which these disks have changed; None: any may have."""
        with self._writing:
            if self._deferred is not None:
                self._deferred |= {*record.disks, *self._record.disks} if changed is None else changed
                self._record = record
                return
            if record.disks:
                self._put(record, changed)
            else:
                self.folder.remove(self.name)
                self._written = None
            self._record = record

    def _put(self, record: VmRecord, changed: set[uuid_module.UUID] | None) -> None:
        """Write what has changed behind what stands there, or all of it: the file stays less than twice as long.

        What has to outlive the host gets to the disk while the operation goes on, and is there when it ends: a host
        that loses its power before has lost the guest as well. In a migration it has not, and that is awaited here.
        """
        changes = record.changes_since(self._written, changed) if self._written is not None else None
        room = changes is not None and len(self._text) + len(changes.text) <= 2 * self._whole_length + _ROOM
        # When writing fails, it is not known what stands there.
        self._written = None
        if changes is not None and room and self.folder.append(self.name, changes.text):
            if changes.matters:
                self.wait_for_disk()
                self._sync = Sync(self.folder, self.name)
            if changes.first:
                self.wait_for_disk()
            self._text += changes.text
            self._written = record
            return
        self._text = record.to_json()
        self._whole_length = len(self._text)
        self.folder.store(self.name, self._text)
        self._written = record

    def wait_for_disk(self) -> None:
        """Return when all that has to outlive the host is on the disk; raises JournalError."""
        sync, self._sync = self._sync, None
        if sync is not None:
            try:
                sync.wait()
            except JournalError:
                self._written = None
                raise

    def forget(self, *uuids: uuid_module.UUID) -> None:
        """Remove disks and their kept secrets; one that is not there is no error. Raises JournalError."""
        # In this order: a record whose secrets are gone could not be recovered, files without a record can.
        self._write(replace(self._record, disks=_but(self._record.disks, uuids)), set(uuids))
        self._forget_secrets(uuids)

    def _forget_secrets(self, uuids: Iterable[uuid_module.UUID]) -> None:
        # Whoever writes the disk down for another VM at this moment keeps its secrets first.
        with self.folder.comparing():
            elsewhere = {uuid for record in self._others().values() for uuid in record.disks}
            for uuid in uuids:
                if uuid not in elsewhere:
                    remove_private(_kept_name(uuid))

    def settle(self, ended: Sequence[Entry], reverted: Sequence[Entry]) -> None:
        """Write down in one piece that operations on several disks ended well, and that nothing is left of others.

        Like ``Entry.end`` and ``Entry.revert``. Raises OperationFailed.
        """
        gone = [entry.uuid for entry in reverted if entry.before is None]
        disks = dict(_but(self._record.disks, gone))
        for entry in ended:
            disks[entry.uuid] = replace(disks[entry.uuid], intent=Intent.PRESENT, unfinished=None)
        for entry in reverted:
            if entry.before is not None:
                entry.keep_again()
                disks[entry.uuid] = entry.before
        try:
            self.write(replace(self._record, disks=disks))
            if gone:
                self._forget_secrets(gone)
            self.wait_for_disk()
        except JournalError as error:
            raise _not_ended(error) from error
        self.remember(ended, Ending.DONE)
        self.remember([entry for entry in reverted if entry.did_something], Ending.FAILED)

    def remember(self, entries: Sequence[Entry], ending: Ending) -> None:
        """Put operations that have ended into the history of this host: what cannot be written there is left out."""
        until = time.time()
        for entry in entries:
            work = entry.record.unfinished
            if work is not None:
                past = Past(
                    vm=self.name,
                    disk=entry.uuid,
                    volume=entry.record.words,
                    operation=work.operation,
                    since=work.since,
                    until=until,
                    ending=ending,
                    step="" if ending is Ending.DONE else entry.step,
                )
                with contextlib.suppress(JournalError):
                    self.folder.remember(past.line())

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
        with self.folder.comparing():
            entry = self._begun(operation, disk, self._others(), intent=intent, exclusive=exclusive, details=details)
            self._write(self.seen().with_disk(entry.record), {entry.uuid})
        return entry

    def begin_all(
        self, operation: Operation, disks: Sequence[Disk], *, intent: Intent, exclusive: bool = False
    ) -> list[Entry | PlugError]:
        """Write down that an operation on several disks begins, in one piece; PlugError for those that are refused.

        Like ``begin``. Raises JournalError.
        """
        entries: list[Entry | PlugError] = []
        with self.folder.comparing():
            records = self._others()
            for disk in disks:
                try:
                    beside = [entry.record.disk for entry in entries if isinstance(entry, Entry)]
                    entries.append(
                        self._begun(operation, disk, records, intent=intent, exclusive=exclusive, beside=beside)
                    )
                except PlugError as error:
                    entries.append(error)
            begun = {entry.uuid: entry.record for entry in entries if isinstance(entry, Entry)}
            seen = self.seen()
            self.write(replace(seen, disks={**seen.disks, **begun}))
        return entries

    def _others(self) -> dict[str, VmRecord]:
        """The records of the other VMs: to read one's own again would take the longer the more disks it has."""
        return read_records(self.folder, but=self.name)

    def _begun(
        self,
        operation: Operation,
        disk: Disk,
        records: Mapping[str, VmRecord],
        *,
        intent: Intent,
        exclusive: bool,
        details: Mapping[str, Any] | None = None,
        beside: Sequence[Disk] = (),
    ) -> Entry:
        """Return the entry of an operation that begins, with its secrets kept; it is still to be written down.

        ``beside`` are disks on which operations begin at the same time.
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
        users = users_of(disk, records, but=self.name)
        if exclusive and users:
            raise taken(record.words, users[0])
        if exclusive and operation in (Operation.PLUG, Operation.START):
            # Those of a QEMU that has ended are attached anew, and may be named in another way.
            ended = self._record.process is not None and not is_alive(self._record.process)
            check_twin(disk, self.name, [*(() if ended else disks_of(self._record)), *beside])
        kept = self.kept_secrets(record)
        self._keep_secrets(disk, record)
        return Entry(self, record, before, kept, shared=bool(users))

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
                self.write_disk(replace(known, unfinished=work))


class Entry:
    """What stands in the journal about one operation on one disk.

    ``record`` is what it began with, ``before`` what stood there before it; ``shared`` says whether other VMs of this
    host had the volume as well when it began. ``step`` is the last one that was noted.
    """

    def __init__(
        self,
        journal: Journal,
        record: DiskRecord,
        before: DiskRecord | None,
        kept: Mapping[str, str],
        *,
        shared: bool = False,
    ) -> None:
        self.record = record
        self.before = before
        self.shared = shared
        self._kept = kept
        self._journal = journal
        self._uuid = record.disk.volume.uuid
        self._n_steps = 0
        self.step = ""

    @property
    def uuid(self) -> uuid_module.UUID:
        """The disk's."""
        return self._uuid

    def note(self, step: str) -> None:
        """Write down that a step is about to be done. Raises JournalError."""
        self.step = step
        self._journal.note(self._uuid, step=step, script=None)
        self._n_steps += 1

    def reporter(self, report: Report = silent) -> Report:
        """Return what writes each step down before ``report`` hears of it and it is done."""

        def step(name: str) -> None:
            self.note(name)
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
                if self.did_something:
                    self._journal.remember([self], Ending.DONE)
                return
            known = self._journal.record.disks[self._uuid]
            if known.unfinished is not None and known.unfinished.operation in _STAYING:
                intent = known.intent
            self._journal.write_disk(replace(known, intent=intent, unfinished=waiting, **values))
            self._journal.wait_for_disk()
            ending = self._ending(intent)
            if waiting is None and ending is not None:
                self._journal.remember([self], ending)
        except JournalError as error:
            raise _not_ended(error) from error

    def _ending(self, intent: Intent) -> Ending | None:
        """Return how it ended, the disk being there still; None for an unplug that the guest has yet to answer."""
        work = self.record.unfinished
        if work is None or work.operation is not Operation.UNPLUG:
            return Ending.DONE
        return Ending.FAILED if intent is Intent.PRESENT else None

    @property
    def did_something(self) -> bool:
        """Whether there is anything to remember: of a disk that was not known, and no step, only a name was wrong."""
        return self.before is not None or bool(self._n_steps)

    def keep_again(self) -> None:
        """Keep the secret parameters that the disk had before."""
        if self._kept:
            self._journal.keep_secrets(self._uuid, self._kept)

    def revert(self) -> None:
        """Write down that nothing of the operation is left. Raises JournalError."""
        if self.before is None:
            self._journal.forget(self._uuid)
        else:
            self.keep_again()
            self._journal.write_disk(self.before)

    @contextlib.contextmanager
    def written_down(self, *, one_way: bool = False) -> Iterator[Entry]:
        """Take the entry back when the operation in the block fails without leaving anything.

        What it leaves (``OperationFailed.left``), and what nobody foresaw, stays written down for ``recover``; so does
        a ``one_way`` operation, which has no way back, once its first step was done or may have been.
        """
        try:
            yield self
        except BaseException as error:
            if not isinstance(error, HvextError) and not is_interrupt(error):
                raise
            left = isinstance(error, OperationFailed) and bool(error.left)
            refused = isinstance(error, HvextError) and not may_have_done(error.__cause__ or error)
            stays = left or (one_way and self._n_steps and (self._n_steps > 1 or not refused))
            if not stays:
                _quietly(self.revert)
            misnamed = self.before is None and isinstance(error.__cause__ or error, ProviderNotFound)
            if stays or (self.did_something and not misnamed):
                self._journal.remember([self], Ending.LEFT if stays else Ending.FAILED)
            raise


def taken(volume: str, vm: str) -> PlugError:
    """Return what is raised for a volume that another VM of this host has."""
    return PlugError(
        f"the volume {volume} is a disk of VM {vm} on this host",
        hint="unplug it there first; hvext audit shows what each VM has",
    )


def forget_ended(disks: Sequence[Disk], folder: JournalFolder, *, name: str | None = None) -> None:
    """Forget disks whose volumes were detached, in the records of their `owners_of`. Raises JournalError."""
    for owner in owners_of(disks, read_records(folder), name=name):
        journal = Journal(folder, owner)
        with journal.locked_now():
            for disk in disks:
                journal.forget(disk.volume.uuid)


def _not_ended(error: JournalError) -> OperationFailed:
    words = f"it is done, but its end could not be written down: {error.message}"
    hint = "hvext recover writes it down once there is room"
    return OperationFailed(words, step="write the journal", left=["the journal"], hint=hint)


def _but(
    disks: Mapping[uuid_module.UUID, DiskRecord], gone: Sequence[uuid_module.UUID]
) -> dict[uuid_module.UUID, DiskRecord]:
    without = set(gone)
    return {uuid: record for uuid, record in disks.items() if uuid not in without}


def _quietly(write: Callable[[], None]) -> None:
    """Write what can be written: the error under way is the one to hear of, and ``recover`` looks for itself."""
    with contextlib.suppress(HvextError):
        write()


def _kept_name(uuid: uuid_module.UUID) -> str:
    return f"{DiskNames(uuid).device}-parameters"
