"""One storage under two names: what attach prints of a volume tells whether another disk of this host is there already.

A volume is known by its provider, name and parameters. Two that differ there may be the same all the same (a folder
with a slash at its end, a default that is named), which only the places show that the provider prints.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from hvext.core.answer import Attachment
from hvext.core.disk import Disk
from hvext.core.record import DiskRecord, parameters_there, same_volume
from hvext.core.uri import shown
from hvext.errors import VolumeInUse
from hvext.host.files import loop_backing, private_folder
from hvext.host.journal import JournalFolder
from hvext.host.places import PlacesFolder
from hvext.host.proc import is_alive
from hvext.operations.records import read_records

_SUFFIX = ".places"
_HYPERVISOR = "kvm"


def claim(disk: Disk, attachment: Attachment, *, exclusive: bool | None) -> None:
    """Write down where a volume is; raises VolumeInUse when a disk of a running VM is there under another name.

    What is opened for shared access, with ``exclusive`` False, may be there, and several that only read.
    """
    folder = _folder()
    path = attachment.block_path
    texts = [shown(uri) for uri in attachment.uris_for(_HYPERVISOR)]
    if path:
        device = os.path.realpath(path)
        # Two loop devices may be on one file.
        texts += [device, *loop_backing(device)]
    beside = folder.enter(str(disk.volume.uuid), texts)
    if exclusive is False:
        return
    if found := _other(disk, beside):
        # It stays written down: to detach it would take the storage from the other one.
        name, known = found
        raise VolumeInUse(
            f"{disk.provider}/{disk.volume.name} is where disk {known.words} of VM {name} is: the same storage, under "
            "other parameters",
            hint=parameters_there(known.disk),
        )


def check_free(disk: Disk) -> None:
    """Raise VolumeInUse when a disk of a running VM is where this volume is, under another name: it stays attached."""
    if found := _other(disk, _folder().beside(str(disk.volume.uuid))):
        name, known = found
        raise VolumeInUse(
            f"{disk.provider}/{disk.volume.name} is not detached: disk {known.words} of VM {name} is at the same "
            "storage, under other parameters",
            hint="unplug that one first; hvext recover finishes this afterwards",
        )


def leave(disk: Disk) -> None:
    """Write down that a volume is detached."""
    _folder().leave(str(disk.volume.uuid))


def _folder() -> PlacesFolder:
    # Beside the private files, which end with the host as well: nothing is attached any more then.
    return PlacesFolder(f"{private_folder()}{_SUFFIX}")


def _other(disk: Disk, others: Sequence[str]) -> tuple[str, DiskRecord] | None:
    """Return a VM that runs, and its disk among others at the same place; None where there is none."""
    # Journals are read only where there is somebody to look for: most volumes are alone.
    if not others:
        return None
    for record in read_records(JournalFolder()).values():
        if record.process is not None and not is_alive(record.process):
            continue
        for uuid, known in record.disks.items():
            if str(uuid) not in others or same_volume(known.disk, disk):
                continue
            if not (known.disk.options.read_only and disk.options.read_only):
                return record.name, known
    return None
