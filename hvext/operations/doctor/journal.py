"""The journal: without it, nothing is done."""

from __future__ import annotations

import errno
import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hvext.core.finding import Finding, Severity
from hvext.core.record import VmRecord
from hvext.errors import JournalError
from hvext.host.journal import JournalFolder
from hvext.host.proc import is_alive
from hvext.operations.doctor.ask import Ask, Needs
from hvext.operations.records import broken_records, read_records

#: More than the record of a VM with many disks.
_ROOM_BYTES = 1 << 20
_ELSEWHERE = "or name another folder with HVEXT_STATE_DIR"


def look(ask: Ask, _needs: Needs) -> Iterator[Finding]:
    """Yield what is found about its folder and its records."""
    yield _folder(ask.folder)
    tried = f"read every record in {ask.folder.path}"
    try:
        broken, records = broken_records(ask.folder), read_records(ask.folder)
    except JournalError as error:
        yield Finding(
            id="journal.record",
            severity=Severity.ERROR,
            tried=tried,
            found=error.message,
            cure=f"run it as root, {_ELSEWHERE}",
        )
        return
    for fault in broken:
        yield Finding(
            id="journal.record",
            severity=Severity.ERROR,
            tried=tried,
            found=fault.message,
            cure=f"{fault.hint}; hvext audit shows the rest",
        )
    disks = sum(len(record.disks) for record in records.values())
    yield Finding(
        id="journal.record", severity=Severity.OK, tried=tried, found=f"VMs: {len(records)}, with disks: {disks}"
    )
    yield from _left(records)


def _folder(folder: JournalFolder) -> Finding:
    path = folder.path
    if not os.path.lexists(path):
        parent = next(each for each in Path(path).parents if os.path.lexists(each))
        if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
            found = f"{path} is not there yet, and can be made"
            return Finding(id="journal.folder", severity=Severity.OK, tried=f"looked at {parent}", found=found)
        found = f"{path} is not there, and cannot be made in {parent}"
        return _no_folder(f"looked at {parent}", found, f"install -d -m 0700 {shlex.quote(path)}")
    tried = f"wrote {_ROOM_BYTES >> 20} MiB into a file without a name in {path}"
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(_ROOM_BYTES))
            file.flush()
    except OSError as error:
        cures = {errno.ENOSPC: f"make room in {path}", errno.EROFS: f"mount {path} for writing"}
        cure = cures.get(error.errno or 0, f"run it as root, or chown $(id -u) {shlex.quote(path)}")
        return _no_folder(tried, f"{path}: {error.strerror}", cure)
    return Finding(id="journal.folder", severity=Severity.OK, tried=tried, found=f"{path} can be written")


def _no_folder(tried: str, found: str, cure: str) -> Finding:
    cure = f"{cure}, {_ELSEWHERE}"
    return Finding(id="journal.folder", severity=Severity.ERROR, tried=tried, found=found, cure=cure)


def _left(records: dict[str, VmRecord]) -> Iterator[Finding]:
    ended = [name for name, each in records.items() if each.process is not None and not is_alive(each.process)]
    tried = "looked for the processes that the records name"
    if ended:
        yield Finding(
            id="journal.ended",
            severity=Severity.WARNING,
            tried=tried,
            found=f"the QEMU of {_listed(ended)} has ended, and volumes are attached for it",
            cure="hvext recover",
        )
    else:
        yield Finding(id="journal.ended", severity=Severity.OK, tried=tried, found="all of them run")
    waiting = [
        f"{each.unfinished.operation} of {each.words} ({name})"
        for name, record in records.items()
        for each in record.disks.values()
        if each.unfinished is not None and each.unfinished.by is not None and not is_alive(each.unfinished.by)
    ]
    if waiting:
        yield Finding(
            id="journal.unfinished",
            severity=Severity.WARNING,
            tried=tried,
            found=f"nobody works any more on: {_listed(waiting)}",
            cure="hvext audit shows more; hvext recover",
        )
    else:
        yield Finding(id="journal.unfinished", severity=Severity.OK, tried=tried, found="nothing was left half-way")


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
