"""Everything that does not fit together is found, each kind of it, and what fits is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hvext.core.audit import (
    Finding,
    Kind,
    audit_broken,
    audit_ended,
    audit_files,
    audit_stopped,
    audit_unseen,
    audit_vm,
    left_files,
    left_objects,
)
from hvext.core.disk import Disk
from hvext.core.record import DiskRecord, Intent, Operation, ProcessId, Unfinished, VmRecord
from hvext.core.running import RunningDisk, parse_running
from hvext.core.value import replace
from hvext.errors import JournalError
from tests.secrecy import new_secret

PROCESS = ProcessId(pid=7, ticks=1, boot="b")
DISK = Disk.from_mapping({"provider": "p", "volume": "v"})
NAMES = DISK.names
PROTOCOL, OLD = f"{NAMES.root}-00", f"{NAMES.root}-01"
WORK = Unfinished(operation=Operation.PLUG, since=1.0, by=PROCESS, step="open it")


def record(intent: Intent = Intent.PRESENT, work: Unfinished | None = None, **values: Any) -> VmRecord:
    disk = DiskRecord.of(DISK, intent=intent, unfinished=work)
    return VmRecord(**{"name": "vm", "process": PROCESS, **values}).with_disk(disk)


def node(name: str) -> dict[str, Any]:
    return {
        "node-name": name,
        "drv": "nbd",
        "file": "nbd://h:1/x",
        "image": {"virtual-size": 1024},
        "ro": False,
        "cache": {"direct": True, "no-flush": False},
        "detect_zeroes": "off",
    }


def running(
    *nodes: str, device: bool = True, objects: tuple[str, ...] = (), chardevs: tuple[str, ...] = ()
) -> dict[Any, RunningDisk]:
    """What QEMU has: the disk on its raw and protocol node, and more nodes, objects and character devices."""
    own = (NAMES.root, PROTOCOL) if device else ()
    statistics = [{"qdev": NAMES.device, "node-name": NAMES.root, "parent": {"node-name": PROTOCOL}}] if device else []
    return parse_running(
        [node(name) for name in (*own, *nodes)],
        {NAMES.device: "virtio-blk-pci"} if device else {},
        objects,
        dict.fromkeys(chardevs, "/s"),
        statistics,
    )


def kinds(findings: Any) -> list[Kind]:
    return [finding.kind for finding in findings]


BUSY: dict[str, Any] = {"under_way": [NAMES.uuid]}
FOUND: dict[Kind, Callable[[], Any]] = {
    Kind.UNDER_WAY: lambda: audit_vm(record(work=WORK), running(OLD, objects=("x",)), **BUSY),
    Kind.UNFINISHED: lambda: audit_vm(record(work=WORK), running()),
    Kind.PENDING: lambda: audit_vm(record(Intent.ABSENT), running()),
    Kind.MIGRATING: lambda: audit_vm(record(work=replace(WORK, operation=Operation.MIGRATE, by=None)), running()),
    Kind.UNUSED: lambda: audit_vm(record(), {}),
    Kind.STARTING: lambda: audit_unseen(record(process=None), under_way=(), why="no monitor"),
    Kind.ENDED: lambda: audit_ended(record()),
    Kind.STOPPED: lambda: audit_stopped(record(), {NAMES.uuid}, ()),
    Kind.UNREACHABLE: lambda: audit_unseen(record(), under_way=(), why="it is busy"),
    Kind.UNKNOWN: lambda: audit_vm(VmRecord(name="vm"), running()),
    Kind.NODE: lambda: audit_vm(record(), running(OLD)),
    Kind.OBJECT: lambda: audit_vm(record(), running(objects=(NAMES.throttle_group,))),
    Kind.CHARDEV: lambda: audit_vm(VmRecord(name="vm"), running(device=False, chardevs=(NAMES.chardev,))),
    Kind.FDSET: lambda: audit_vm(record(), running(), fdsets=[f"{NAMES.device}-x", "somebody's"]),
    Kind.FILE: lambda: audit_files([f"{NAMES.device}-parameters", f"{PROTOCOL}-key", "probe-1"], []),
    Kind.BROKEN: lambda: audit_broken([JournalError("/x cannot be read", hint="somebody changed it")]),
}


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_of_what_does_not_fit_is_found_and_nothing_else_with_it(kind: Kind) -> None:
    found: list[Finding] = list(FOUND[kind]())
    assert set(kinds(found)) == {kind}
    harmless = kind in (Kind.UNDER_WAY, Kind.STARTING, Kind.MIGRATING)
    assert {finding.harmless for finding in found} == {harmless}
    assert {finding.recovers for finding in found} == {not harmless and kind is not Kind.STOPPED}
    json = found[0].to_json()
    assert json["kind"] == str(kind)
    assert json["disk"] == (None if kind is Kind.BROKEN else str(NAMES.uuid))


def test_a_qemu_that_was_seen_over_tcp_only_is_not_taken_for_one_that_has_yet_to_start() -> None:
    assert kinds(audit_unseen(record(process=None, monitors=("h:1",)), under_way=(), why="")) == [Kind.UNREACHABLE]


def test_a_disk_that_is_as_it_is_meant_to_be_is_no_finding() -> None:
    used = (NAMES.iothread, f"{PROTOCOL}-key", "somebody's")
    assert (
        list(audit_vm(record(), running(objects=used), files=[f"{PROTOCOL}-key", f"{NAMES.device}-parameters"])) == []
    )
    assert list(audit_files([f"{PROTOCOL}-key"], [NAMES.uuid])) == []
    assert list(audit_unseen(record(work=WORK), **BUSY, why="")) == list(audit_vm(record(work=WORK), {}, **BUSY))


def test_a_private_file_of_a_node_that_is_gone_is_found_while_the_disk_is_there() -> None:
    files = [f"{PROTOCOL}-key", f"{OLD}-key", f"{NAMES.device}-parameters", "x"]
    (disk,) = running().values()
    assert left_files(files, disk) == (f"{OLD}-key",)
    assert kinds(audit_vm(record(), running(), files=files)) == [Kind.FILE]


def test_no_object_is_taken_for_left_where_it_is_not_known_what_the_disk_uses() -> None:
    # One that QEMU shows no statistics of, with two protocol nodes: either could be in use, with its secret.
    (disk,) = parse_running(
        [node(NAMES.root), {**node(PROTOCOL), "file": "a"}, {**node(OLD), "file": "b"}],
        {NAMES.device: "scsi-hd"},
        [f"{PROTOCOL}-key", NAMES.throttle_group],
        {},
    ).values()
    assert left_objects(disk) == ()
    assert set(left_objects(replace(disk, device=None))) == {f"{PROTOCOL}-key", NAMES.throttle_group}


def test_a_guest_that_its_storage_has_stopped_is_said_with_the_cure_and_leaves_nothing_to_recover() -> None:
    vm = record(monitors=("/run/vm.qmp", "/run/other"))
    uuid = DISK.volume.uuid
    (full,) = audit_stopped(vm, (), {uuid})
    assert (full.kind, full.uuid, full.harmless) == (Kind.STOPPED, uuid, False)
    assert "p/v is full; make room, then hvext resume --qmp /run/vm.qmp" in full.words
    (failed,) = audit_stopped(vm, {uuid}, ())
    watch = "hvext watch --once --qmp /run/vm.qmp has its provider serve it again, and fails it over"
    assert failed.words.endswith(f"p/v has failed; {watch}")
    (domain,) = audit_stopped(vm, {uuid}, (), again="virsh resume g", watched=False)
    back = "bring it back (hvext attach p v asks its provider to), then (twice, should it stop again) virsh resume g"
    assert domain.words.endswith(f"p/v has failed; {back}")
    (other,) = audit_stopped(record(), (), ())
    assert (other.uuid, "hvext resume" in other.words) == (None, True)
    unknown = NAMES.uuid.__class__(int=7)
    assert str(unknown) in next(audit_stopped(vm, {unknown}, ())).words


def test_the_command_that_asks_a_provider_to_serve_a_dead_disk_again_names_the_same_disk() -> None:
    own = "7a2f1d5e-6a8b-4d7b-9d0d-3f4f0e1c2b3a"
    mapping = {"provider": "p", "volume": "a b", "uuid": own, "parameters": {"dir": "/a b", "password": new_secret()}}
    known = DiskRecord.of(Disk.from_mapping(mapping))
    vm = VmRecord(name="vm").with_disk(known)
    (found,) = audit_stopped(vm, {known.disk.volume.uuid}, (), again="virsh resume g", watched=False)
    command = f"hvext attach p 'a b' -p 'dir=/a b' --parameter-file password=FILE --disk-uuid {own}"
    assert f"({command} asks its provider to), then " in found.words
