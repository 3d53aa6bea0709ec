"""What is written down about a VM comes back as it was, and no secret is in it."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.disk import Disk
from hvext.core.options import Throttle, option_names
from hvext.core.record import (
    DiskRecord,
    Intent,
    Operation,
    ProcessId,
    Unfinished,
    VmRecord,
    is_whole,
    namesakes,
    parameters_there,
    same_volume,
)
from hvext.core.value import replace
from hvext.errors import JournalError

PROCESS = ProcessId(pid=7, ticks=123456, boot="e1b0")
OPTIONS: list[dict[str, object]] = [
    {},
    {"device": "scsi-hd", "bus": "scsi0", "scsi_id": 3, "lun": 1, "serial": "a b"},
    {"cache": "directsync", "aio": "native", "discard": "unmap", "detect_zeroes": "unmap", "read_only": True},
    {"werror": "stop", "rerror": "report", "iothread": "auto", "queues": 2, "bootindex": 2, "bus": "rp0", "addr": "0"},
    {"iops_total": 100, "bps_write_max": 5000, "bps_write": 1000, "bps_write_max_length": 3, "read_only": False},
]


def disk(**values: object) -> Disk:
    return Disk.from_mapping({"provider": "p", "volume": "v", **values})


@pytest.mark.parametrize("options", OPTIONS)
def test_a_disk_comes_back_with_all_its_options(options: dict[str, object]) -> None:
    whole = disk(cname="name", access="userspace", parameters={"POOL": "a,b"}, **{"secret.key": "/k"}, **options)
    assert Disk.from_mapping(json.loads(json.dumps(whole.to_mapping()))) == whole


def test_every_option_of_a_disk_is_written_down() -> None:
    # One that to_mapping forgets would be lost at the next restart.
    given = {name for options in OPTIONS for name in options}
    assert set(option_names()) - set(Throttle.names()) <= given
    assert {"iops_total", "bps_write_max_length"} <= given


@given(
    st.text(min_size=1, max_size=20),
    st.lists(st.text(min_size=1, max_size=9), max_size=3),
    st.none() | st.just(PROCESS),
    st.sampled_from(Operation),
    st.sampled_from(Intent),
    st.booleans(),
    st.text(max_size=9),
)
def test_a_record_comes_back_as_it_was(
    name: str,
    monitors: list[str],
    process: ProcessId | None,
    operation: Operation,
    intent: Intent,
    moved: bool,
    step: str,
) -> None:
    work = Unfinished(operation=operation, since=1.5, by=process, step=step, details={"new_size_mib": 7})
    one = DiskRecord.of(disk(), intent=intent, failed_over=moved, unfinished=work)
    two = DiskRecord.of(disk(volume="w"))
    record = VmRecord(name=name, monitors=tuple(monitors), process=process).with_disk(one).with_disk(two)
    assert VmRecord.from_json(record.to_json()) == record


def test_no_secret_is_written_down_and_all_come_back_with_it() -> None:
    whole = disk(parameters={"pool": "x", "password": "hunter2", "api_key": "k3y"})
    record = VmRecord(name="a").with_disk(DiskRecord.of(whole))
    text = record.to_json()
    assert "hunter2" not in text
    assert "k3y" not in text
    (kept,) = VmRecord.from_json(text).disks.values()
    assert kept.withheld == ("api_key", "password")
    assert kept.whole({"password": "hunter2", "api_key": "k3y"}) == whole
    with pytest.raises(JournalError, match="api_key"):
        kept.whole({"password": "hunter2"})


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"format": 1}', '{"format": 1, "name": "a", "monitors": [], "process": 3}', "[" * 9999],
)
def test_a_file_that_somebody_else_wrote_is_no_record(text: str) -> None:
    with pytest.raises(JournalError, match="cannot be read"):
        VmRecord.from_json(text, "/x")


def test_a_record_of_a_newer_hvext_is_left_to_it() -> None:
    with pytest.raises(JournalError, match="format 2"):
        VmRecord.from_json('{"format": 2}')


def test_volumes_are_told_apart_by_all_that_names_them() -> None:
    one = disk(parameters={"pool": "a", "password": "x"})
    assert same_volume(one, disk(parameters={"POOL": "a", "password": "y"}, uuid=str(UUID(int=5)), device="scsi-hd"))
    assert not same_volume(one, disk(parameters={"pool": "b", "password": "x"}))
    assert not same_volume(one, disk(volume="w", parameters={"pool": "a"}))
    assert not same_volume(one, Disk.from_mapping({"provider": "q", "volume": "v", "parameters": {"pool": "a"}}))


def test_another_volume_of_the_name_is_told_with_what_names_it() -> None:
    wished = disk(parameters={"pool": "b"})

    def said(**values: object) -> str:
        known = DiskRecord.of(disk(**values))
        (words,) = namesakes(wished, VmRecord(name="a").with_disk(known))
        return words

    assert said(parameters={"pool": "a", "password": "x"}) == (
        "VM a has p/v with other parameters (pool=a): if that is the one, name it with those"
    )
    assert said() == "VM a has p/v without parameters: if that is the one, name it without parameters"
    assert "with no parameters but password: if that" in said(parameters={"password": "x"})
    assert parameters_there(wished) == "its parameters there: pool=b"
    assert parameters_there(disk()) == "there it has no parameters, or secret ones alone"


def test_changes_behind_a_record_make_the_new_one_of_it() -> None:
    one, two = DiskRecord.of(disk()), DiskRecord.of(disk(volume="w"))
    begun = VmRecord(name="a").with_disk(one)
    work = Unfinished(operation=Operation.REPOINT, since=1.5)
    text, record = begun.to_json(), begun
    for after, lasts in (
        (begun.with_disk(replace(one, unfinished=work)), False),
        (begun.with_disk(replace(one, unfinished=replace(work, step="open it"))), False),
        (begun.with_disk(replace(one, failed_over=True)), False),
        (begun.with_disk(one).with_disk(two), True),
        (begun.with_disk(two).without_disk(one.disk.volume.uuid), True),
        (begun.without_disk(one.disk.volume.uuid), True),
    ):
        changes = after.changes_since(record)
        assert changes is not None
        # What is attached has to outlive the host; how far an operation is, only the process.
        assert changes.matters is lasts
        text, record = text + changes.text, after
        assert VmRecord.from_json(text) == record
        assert is_whole(text)


def test_a_migration_is_remembered_by_the_host() -> None:
    one = DiskRecord.of(disk())
    record = VmRecord(name="a").with_disk(one)
    moving = record.with_disk(replace(one, unfinished=Unfinished(operation=Operation.MIGRATE, since=1.5)))
    for before, after in ((record, moving), (moving, record)):
        for among in (None, {one.disk.volume.uuid}):
            changes = after.changes_since(before, among)
            assert changes is not None
            # Before anything else is done: another host goes on from there.
            assert (changes.matters, changes.first) == (True, True)


def test_a_record_of_another_process_is_written_whole() -> None:
    record = VmRecord(name="a").with_disk(DiskRecord.of(disk()))
    assert record.seen("/qmp", PROCESS).changes_since(record) is None


@pytest.mark.parametrize("torn", ["{", '{"disk": {"di', '{"disk": 3', "\0\0\0\0", '{"gone": "', '{"disk"\n'])
def test_a_change_that_was_torn_never_happened(torn: str) -> None:
    record = VmRecord(name="a").with_disk(DiskRecord.of(disk()))
    changes = record.with_disk(DiskRecord.of(disk(volume="w"))).changes_since(record)
    assert changes is not None
    whole = record.to_json() + changes.text
    assert VmRecord.from_json(whole + torn) == VmRecord.from_json(whole)
    # Nothing may be put behind it.
    assert not is_whole(whole + torn)
    with pytest.raises(JournalError, match="cannot be read"):
        VmRecord.from_json(whole + torn + "\n" + changes.text)


def test_a_change_without_its_line_end_never_happened() -> None:
    record = VmRecord(name="a").with_disk(DiskRecord.of(disk()))
    gone = record.to_json() + json.dumps({"gone": str(disk().volume.uuid)})
    assert VmRecord.from_json(gone) == record
    # Another line behind it would make it happen after all.
    assert not is_whole(gone)


def test_a_line_torn_in_the_middle_of_a_character_can_still_be_read() -> None:
    disk = Disk.from_mapping({"provider": "p", "volume": "vol\u00fcme-\u20ac"})
    before = VmRecord(name="v")
    after = before.with_disk(DiskRecord.of(disk))
    changes = after.changes_since(before)
    assert changes is not None
    line = changes.text.encode()
    for end in range(len(line)):
        line[:end].decode("utf-8")
    assert VmRecord.from_json(before.to_json() + changes.text) == after
