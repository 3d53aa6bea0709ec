"""What the journals of this host say to who names something wrong, or looks in the wrong place.

Whose a volume is, whose a monitor was, and which journal was looked at. What finds monitors is only loaded by who needs
this: every plug has it at hand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from hvext.core.disk import Disk
from hvext.errors import JournalError, MonitorError
from hvext.host.journal import JournalFolder, closed_folder
from hvext.operations.records import read_records, same_storage


def whose_volume(disk: Disk, folder: JournalFolder | None = None) -> str:
    """Return in words which VMs of this host have the volume of a disk; raises JournalError."""
    from hvext.operations.reach import has_ended

    words = f"{disk.provider}/{disk.volume.name}"
    having = [
        record
        for record in read_records(folder or JournalFolder()).values()
        if any(same_storage(disk, known.disk) for known in record.disks.values())
    ]
    said = []
    for record in having:
        if has_ended(record):
            said.append(f"VM {record.name} had {words}, and has ended: hvext recover lets it go")
        else:
            said.append(f"VM {record.name} has {words}: name its monitor")
    return "; ".join(said) or (
        f"no VM of this host has {words}, as far as its journal knows: are its name and -p right? "
        "hvext detach lets go of a volume that was attached without a VM"
    )


def where_looked(folder: JournalFolder) -> str:
    """Return in words which journal has no VM, where another one may be meant; else nothing. Raises JournalError."""
    if folder.texts():
        return ""
    if closed := closed_folder():
        return (
            f"the journal in {folder.path} has no VM, and root's, in {closed}, cannot be read by this user: run it as "
            "root, or name the journal that is meant with HVEXT_STATE_DIR"
        )
    if folder.remembered():
        return ""
    return f"the journal in {folder.path} has no VM, and never had one; HVEXT_STATE_DIR is how another is named"


@contextlib.contextmanager
def end_told(address: str, folder: JournalFolder | None = None) -> Iterator[None]:
    """Have who cannot connect to a monitor told that the VM has ended which had it, as far as the journal knows."""
    try:
        yield
    except MonitorError as error:
        ended = _ended_at(address, folder or JournalFolder())
        if not ended:
            raise
        names = f"VM {ended[0]} has" if len(ended) == 1 else f"VMs {', '.join(ended)} have"
        raise MonitorError(error.message, hint=f"{names} ended: hvext recover lets the volumes go") from error


def _ended_at(address: str, folder: JournalFolder) -> list[str]:
    """Return the VMs that were seen at a monitor and whose QEMU has ended; none where one of them runs."""
    from hvext.operations.reach import has_ended

    there = {address, str(Path(address).absolute())}
    with contextlib.suppress(JournalError):
        seen = [record for record in read_records(folder).values() if there & set(record.monitors)]
        return [record.name for record in seen] if all(has_ended(record) for record in seen) else []
    return []
