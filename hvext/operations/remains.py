"""What is left of a disk and has to be seen to: for ``hvext recover``, and for who asks what it would do."""

from __future__ import annotations

import uuid as uuid_module
from collections.abc import Iterator, Mapping
from enum import StrEnum

from hvext.core.audit import left_objects, owner_of_file
from hvext.core.disk import Disk
from hvext.core.record import DiskRecord, Intent, Operation, VmRecord
from hvext.core.running import RunningDisk
from hvext.host.private import private_files
from hvext.host.qmp import Monitor
from hvext.operations.nodes import delete_object, remove_remains
from hvext.operations.records import users_of
from hvext.operations.repoint import without_leftovers
from hvext.operations.steps import Step


class Way(StrEnum):
    """What is done about a disk of a VM whose QEMU runs."""

    CLEAN = "remove what nobody uses"
    UNPLUG = "finish its unplug"
    TAKE_BACK = "take it back"
    FAIL_OVER = "fail it over again"
    RESIZE = "resize it again"
    WHOLE = "write down that it is whole"


def way_of(known: DiskRecord | None, *, in_guest: bool) -> Way:
    """Return what is done about a disk, from what is written down and whether the guest has it."""
    if known is None:
        return Way.CLEAN
    if known.intent is Intent.ABSENT:
        return Way.UNPLUG
    if not in_guest:
        return Way.TAKE_BACK
    if known.unfinished is None:
        return Way.CLEAN
    ways = {Operation.FAIL_OVER: Way.FAIL_OVER, Operation.RESIZE: Way.RESIZE}
    return ways.get(known.unfinished.operation, Way.WHOLE)


def unused_of(running: RunningDisk) -> tuple[str, ...]:
    """Return the nodes and objects of a disk that nothing uses: all of them when the guest has not its device."""
    if running.device is None:
        return running.node_names + running.objects + ((running.chardev,) if running.chardev else ())
    return running.leftovers + left_objects(running)


def clean_steps(monitor: Monitor, running: RunningDisk) -> list[Step]:
    """Return the step that removes what nothing uses of a disk; none where there is nothing."""

    async def remove_unused() -> None:
        cleaned = await without_leftovers(monitor, running) if running.leftovers else running
        for name in left_objects(cleaned):
            await delete_object(monitor, name)

    if running.device is None:
        name = "remove its nodes and objects"
        return [Step(name=name, do=lambda: remove_remains(monitor, running), one_way=True)]
    if not unused_of(running):
        return []
    return [Step(name="remove its unused nodes and objects", do=remove_unused, one_way=True)]


def stays_attached(known: DiskRecord | None, disk: Disk, records: Mapping[str, VmRecord], name: str) -> bool:
    """Whether a volume stays attached: because the caller wished it, or for other VMs than the one called ``name``."""
    return bool(users_of(disk, records, but=name)) or (known is not None and known.stays_attached)


def files_of_nobody(known: set[uuid_module.UUID]) -> Iterator[tuple[str, uuid_module.UUID]]:
    """Yield private files of disks other than those known, each with its disk."""
    for name in private_files():
        owner = owner_of_file(name)
        if owner is not None and owner.uuid not in known:
            yield name, owner.uuid
