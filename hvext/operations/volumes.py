"""Volumes without a guest: create, remove, grow, setinfo, snapshot, verify.

What each does is a list of acts, which is empty where there is nothing to do. To make it raises what can be told to
speak against it before any script runs.
"""

from __future__ import annotations

import uuid as uuid_module
from collections.abc import Sequence

from hvext.core.disk import Disk
from hvext.core.provider import Action
from hvext.core.record import VmRecord, namesakes
from hvext.core.value import value_object
from hvext.core.volume import check_size_mib
from hvext.errors import InputError, JournalError, VolumeInUse
from hvext.host.journal import JournalFolder
from hvext.host.process import Cancel
from hvext.host.provider import ProviderHost
from hvext.operations import attachments
from hvext.operations.acts import Act
from hvext.operations.attachments import Attached
from hvext.operations.journal import Journal, forget_ended, owners_of, read_records, runs, users_of
from hvext.operations.records import record_with, same_storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@value_object
class Grown:
    """Whether a ``grow`` had anything to do."""

    changed: bool
    size_mib: int


def create_acts(host: ProviderHost, disk: Disk, size_mib: int) -> list[Act]:
    """Return what creates a volume of ``size_mib``."""
    return _script(
        host,
        disk,
        Action.CREATE,
        f"create {_words(disk)} with {size_mib} MiB",
        inverse=f"remove {_words(disk)}",
        size_mib=size_mib,
    )


def create_volume(host: ProviderHost, disk: Disk, size_mib: int) -> None:
    """Create a volume of ``size_mib``."""
    _do(create_acts(host, disk, size_mib))


def attach_acts(host: ProviderHost, disk: Disk, *, exclusive: bool = True) -> list[Act]:
    """Return what attaches and opens a volume; what comes of it is an Attached."""
    attachments.check_attach(host, disk, exclusive=exclusive)
    shared = bool(users_of(disk, _running(), but=""))

    def attach() -> Attached:
        return attachments.attach(host, disk, exclusive=exclusive, shared=shared)

    return [Act(name=f"attach {_words(disk)}", do=attach, inverse=f"detach {_words(disk)}")]


def attach_volume(host: ProviderHost, disk: Disk, *, exclusive: bool = True) -> Attached:
    """Attach and open a volume for the caller; see ``attachments.attach``. The caller detaches it."""
    attached: Attached = attach_acts(host, disk, exclusive=exclusive)[0].do()
    return attached


def detach_acts(host: ProviderHost, disk: Disk) -> list[Act]:
    """Return what detaches a volume; raises VolumeInUse for one that a running VM of this host has."""
    if users := users_of(disk, _running(), but=""):
        raise VolumeInUse(
            f"{disk.provider}/{disk.volume.name} is a disk of VM {users[0]}, which runs",
            hint="hvext unplug lets it go; hvext audit shows what each VM has",
        )
    host.check(host.find(disk.provider), Action.DETACH, disk.volume, access=disk.access)
    acts = [
        Act(
            name=f"detach {_words(disk)}",
            do=lambda: attachments.detach(host, disk),
            inverse=f"attach {_words(disk)}",
        )
    ]
    if owners := owners_of([disk], read_records(JournalFolder())):
        name = f"forget it as a disk of VM {', '.join(owners)}"
        acts.append(Act(name=name, do=lambda: forget_ended([disk], JournalFolder()), one_way=True))
    return acts


def detach_volume(host: ProviderHost, disk: Disk) -> tuple[str, ...]:
    """Detach a volume that no running VM of this host has, and return warnings; may be repeated.

    Raises VolumeInUse for one that a VM has, and ProviderError.
    """
    _do(detach_acts(host, disk))
    return detach_warnings(disk)


def detach_warnings(disk: Disk) -> tuple[str, ...]:
    """Return what tells that another volume than ``disk`` may be meant."""
    return tuple(words for record in _running().values() for words in namesakes(disk, record))


def remove_acts(host: ProviderHost, disk: Disk) -> list[Act]:
    """Return what removes a volume; raises VolumeInUse for one that is attached for a VM of this host."""
    records = read_records(JournalFolder())
    for record in records.values():
        if any(same_storage(disk, known.disk) for known in record.disks.values()):
            raise VolumeInUse(
                f"{disk.provider}/{disk.volume.name} is attached for VM {record.name}",
                hint="hvext unplug lets it go; hvext recover does when its QEMU has ended",
            )
    return _script(host, disk, Action.REMOVE, f"remove {_words(disk)} with all its data", one_way=True)


def remove_volume(host: ProviderHost, disk: Disk) -> None:
    """Remove a volume with all its data; raises VolumeInUse for one that is attached for a VM of this host."""
    _do(remove_acts(host, disk))


def grow_acts(
    host: ProviderHost, disk: Disk, *, old_size_mib: int, new_size_mib: int, cancel: Cancel | None = None
) -> list[Act]:
    """Return what grows a volume: nothing where the sizes are equal; a smaller one is an InputError."""
    check_size_mib(old_size_mib, "old size")
    check_size_mib(new_size_mib, "new size")
    if new_size_mib < old_size_mib:
        raise InputError(
            f"volume {disk.volume.name!r} has {old_size_mib} MiB; it cannot be shrunk to {new_size_mib} MiB",
            hint="volumes can only grow",
        )
    if new_size_mib == old_size_mib:
        return []
    return _script(
        host,
        disk,
        Action.GROW,
        f"grow {_words(disk)} from {old_size_mib} to {new_size_mib} MiB",
        one_way=True,
        cancel=cancel,
        size_mib=old_size_mib,
        new_size_mib=new_size_mib,
    )


def grown_words(disk: Disk, new_size_mib: int) -> str:
    """Return what finishes the growth of a volume that running VMs of this host have; empty where none has it.

    The volume has grown by then: a journal that cannot be read is no failure of that.
    """
    try:
        running = _running()
    except JournalError:
        return ""
    return "; ".join(
        f"the guest of VM {record.name} still sees the old size of {_words(disk)}: "
        f"{_resize_words(record, uuid)} --new-size {new_size_mib} finishes it"
        for record in running.values()
        for uuid, known in record.disks.items()
        if same_storage(disk, known.disk)
    )


def _resize_words(record: VmRecord, uuid: uuid_module.UUID) -> str:
    import shlex

    # It loads all that talks to a guest.
    from hvext.operations.reach import LIBVIRT

    address = record.monitors[0] if record.monitors else "SOCKET"
    where = ["--qmp", address]
    if address.startswith(LIBVIRT):
        uri, _blank, name = address.removeprefix(LIBVIRT).partition(" ")
        where = ["--connect", uri, "--domain", name]
    return shlex.join(["hvext", "resize", *where, "--disk-uuid", str(uuid)])


def known_disk(uuid: uuid_module.UUID) -> Disk | None:
    """Return a disk that a VM of this host has, with all its parameters; None for one that the journal has not.

    Raises JournalError when its secret parameters are not on this host any more.
    """
    folder = JournalFolder()
    record = record_with(uuid, read_records(folder))
    return None if record is None else Journal(folder, record.name).whole(uuid)


def grow_volume(
    host: ProviderHost, disk: Disk, *, old_size_mib: int, new_size_mib: int, cancel: Cancel | None = None
) -> Grown:
    """Grow a volume from ``old_size_mib`` to ``new_size_mib``; equal sizes are a no-op, a smaller one InputError."""
    acts = grow_acts(host, disk, old_size_mib=old_size_mib, new_size_mib=new_size_mib, cancel=cancel)
    _do(acts)
    return Grown(changed=bool(acts), size_mib=new_size_mib)


def set_info_acts(host: ProviderHost, disk: Disk, metadata: str) -> list[Act]:
    """Return what stores metadata with a volume; what was stored before, no action tells."""
    name = f"store {metadata!r} with {_words(disk)}"
    return _script(host, disk, Action.SETINFO, name, one_way=True, metadata=metadata)


def set_volume_info(host: ProviderHost, disk: Disk, metadata: str) -> None:
    """Store metadata with a volume; Ganeti stores ``originstname+<instance>``."""
    _do(set_info_acts(host, disk, metadata))


def snapshot_acts(host: ProviderHost, disk: Disk, name: str, size_mib: int) -> list[Act]:
    """Return what takes a snapshot, a volume like any other; raises ProviderError when the provider cannot."""
    return _script(
        host,
        disk,
        Action.SNAPSHOT,
        f"take snapshot {name} of {_words(disk)}",
        inverse=f"remove {disk.provider}/{name}",
        snapshot_name=name,
        snapshot_size_mib=size_mib,
    )


def snapshot_volume(host: ProviderHost, disk: Disk, name: str, size_mib: int) -> None:
    """Take a snapshot ``name`` of a volume; raises ProviderError when the provider cannot."""
    _do(snapshot_acts(host, disk, name, size_mib))


def open_acts(host: ProviderHost, disk: Disk, *, exclusive: bool, cancel: Cancel | None = None) -> list[Act]:
    """Return what opens a volume for I/O: nothing when the provider has no ``open``."""
    name = f"open {_words(disk)} {'exclusively' if exclusive else 'for shared access'}"
    inverse = f"close {_words(disk)}"
    return _script(host, disk, Action.OPEN, name, inverse=inverse, cancel=cancel, exclusive=exclusive)


def open_volume(host: ProviderHost, disk: Disk, *, exclusive: bool, cancel: Cancel | None = None) -> bool:
    """Open a volume for I/O; False when the provider has no ``open``, which is fine."""
    return _do(open_acts(host, disk, exclusive=exclusive, cancel=cancel))


def close_acts(host: ProviderHost, disk: Disk, *, cancel: Cancel | None = None) -> list[Act]:
    """Return what closes a volume: nothing when the provider has no ``close``."""
    return _script(host, disk, Action.CLOSE, f"close {_words(disk)}", inverse=f"open {_words(disk)}", cancel=cancel)


def close_volume(host: ProviderHost, disk: Disk, *, cancel: Cancel | None = None) -> bool:
    """Close a volume; False when the provider has no ``close``, which is fine."""
    return _do(close_acts(host, disk, cancel=cancel))


def verify_parameters(host: ProviderHost, disk: Disk) -> None:
    """Have a provider check the parameters of a disk."""
    host.run(host.find(disk.provider), Action.VERIFY, disk.volume, access=disk.access)


def _script(
    host: ProviderHost,
    disk: Disk,
    action: Action,
    name: str,
    *,
    inverse: str = "",
    one_way: bool = False,
    cancel: Cancel | None = None,
    **values: Any,
) -> list[Act]:
    """Return the act that runs one script; none for one that the provider may lack, and does."""
    provider = host.find(disk.provider)
    if not host.check(provider, action, disk.volume, access=disk.access, **values):
        return []

    def run() -> object:
        return host.run(provider, action, disk.volume, cancel=cancel, access=disk.access, **values)

    return [Act(name=name, do=run, inverse=inverse, one_way=one_way)]


def _do(acts: Sequence[Act]) -> bool:
    """Do acts; False when there is none. Those of a command are told as steps, these are part of one."""
    for act in acts:
        act.do()
    return bool(acts)


def _words(disk: Disk) -> str:
    return f"{disk.provider}/{disk.volume.name}"


def _running() -> dict[str, VmRecord]:
    """Return the records of the VMs of this host that run."""
    return {name: record for name, record in read_records(JournalFolder()).items() if runs(record)}
