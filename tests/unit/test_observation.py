from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from hvext.core.activity import activity
from hvext.core.disk import Disk
from hvext.core.health import Health, HealthState
from hvext.core.metrics import vm_families
from hvext.core.observation import (
    DiskWarning,
    ObservedDisk,
    ObservedVm,
    Oddity,
    Offered,
    Pending,
    Place,
    Writers,
    pending_of,
    warnings_of,
)
from hvext.core.options import Throttle
from hvext.core.record import DiskRecord, Intent, Operation, ProcessId, Unfinished, VmRecord
from hvext.core.running import RunningDisk, parse_running
from hvext.core.statistics import DiskCounts, Kind, Requests
from hvext.core.value import replace

UUID = uuid.UUID("0d1b4b5e-6d8a-4d3b-9a57-0c5f2f6f7a10")
BY = ProcessId(pid=1, ticks=2, boot="b")
PATH = Place(access="kernelspace", where="/dev/x", health=None)
URI = Place(access="userspace", where="nbd://h", health=Health(state=HealthState.HEALTHY))


def disk(**values: Any) -> Disk:
    return Disk.from_mapping({"provider": "p", "volume": "v", "uuid": str(UUID), **values})


def running(driver: str = "nbd", *, direct: bool = True) -> RunningDisk:
    names = disk().names
    chain = [names.root, f"{names.root}-00"]
    nodes = [
        {
            "node-name": name,
            "drv": kind,
            "file": "nbd://h",
            "image": {"virtual-size": 1 << 20},
            "ro": False,
            "cache": {"direct": direct, "no-flush": False},
            "detect_zeroes": "off",
        }
        for name, kind in zip(chain, ("raw", driver), strict=True)
    ]
    entry = {"qdev": names.device, "node-name": chain[0], "parent": {"node-name": chain[1]}}
    return parse_running(nodes, {names.device: "scsi-hd"}, (), {}, [entry])[UUID]


def observed(**values: Any) -> ObservedDisk:
    return ObservedDisk(uuid=UUID, **{"record": DiskRecord.of(disk()), "running": running(), **values})


def oddities(seen: ObservedDisk, *, writers: tuple[str, ...] = (), stuck: bool = False) -> set[Oddity]:
    return {each.oddity for each in warnings_of(seen, writers, stuck=stuck)}


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        (observed(), set()),
        (observed(record=None), {Oddity.UNKNOWN}),
        (observed(running=running(direct=False)), {Oddity.BUFFERED}),
        (observed(running=running(direct=False), offered=Offered(places=(URI,))), set()),
        (observed(running=running(direct=False), offered=Offered(error="it failed")), {Oddity.BUFFERED}),
        (observed(running=running("rbd", direct=False)), set()),
        (observed(running=running("rbd", direct=False), offered=Offered(places=(URI, PATH))), {Oddity.BUFFERED}),
        (observed(offered=Offered(places=(URI, PATH), block_path="/dev/x")), {Oddity.MAPPED}),
        (observed(running=running("host_device"), offered=Offered(places=(PATH,), block_path="/dev/x")), set()),
        (observed(running=None), set()),
    ],
)
def test_what_is_odd_about_a_disk_is_told_and_nothing_else(seen: ObservedDisk, found: set[Oddity]) -> None:
    assert oddities(seen) == found


@pytest.mark.parametrize(
    ("oddity", "state"), [(Oddity.FULL, "io-error, storage full"), (Oddity.FAILED, "io-error, storage failed")]
)
def test_storage_that_has_stopped_the_guest_is_told_before_all_else(oddity: Oddity, state: str) -> None:
    stopped = DiskWarning(oddity=oddity, words="make room")
    warnings = warnings_of(observed(), ("other",), stuck=False, stopped=stopped)
    assert [each.oddity for each in warnings] == [oddity, Oddity.SECOND_WRITER]
    now = ObservedVm(name="a", state="io-error", taken_s=1.0, disks=(observed(warnings=warnings),))
    (row,) = activity([], [now])
    assert row.state == state
    assert str(oddity) in row.to_json()["warnings"]  # type: ignore[operator]


def test_a_path_that_no_access_needs_is_told_apart_from_a_place_for_a_failover() -> None:
    needed = warnings_of(observed(offered=Offered(places=(URI, PATH), block_path="/dev/x")), (), stuck=False)
    alone = warnings_of(observed(offered=Offered(places=(URI,), block_path="/dev/x")), (), stuck=False)
    used = Offered(places=(URI, PATH), block_path="/dev/x", used_by=("mounted at /mnt",))
    written = warnings_of(observed(offered=used), (), stuck=False)
    assert "the disk's other place" in needed[0].words
    assert "no access of this disk needs it" in alone[0].words
    assert "in use: mounted at /mnt" in written[0].words
    # What has to be there for a failover needs nobody.
    assert [each.note for each in (*needed, *alone, *written)] == [True, False, False]


def vm(name: str, *disks: Disk, **values: Any) -> VmRecord:
    record = VmRecord(name=name)
    for each in disks:
        record = record.with_disk(DiskRecord.of(each, **values))
    return record


def test_only_who_writes_the_same_volume_is_a_second_writer() -> None:
    own = vm("a", disk())
    others = {
        "same": vm("same", disk(uuid=str(uuid.uuid4()))),
        "reads": vm("reads", disk(read_only="on")),
        "elsewhere": vm("elsewhere", disk(parameters={"pool": "x"})),
        "moving": vm("moving", disk(), unfinished=Unfinished(operation=Operation.MIGRATE, since=0)),
    }
    writers = Writers([own, *others.values()])
    assert writers.beside("a", own.disks[UUID]) == ("same",)
    assert writers.beside("reads", others["reads"].disks[UUID]) == ()
    assert oddities(observed(), writers=("same",), stuck=True) == {Oddity.SECOND_WRITER, Oddity.STUCK}


@pytest.mark.parametrize(
    ("work", "intent", "under_way", "state"),
    [
        (Unfinished(operation=Operation.PLUG, since=1, by=BY), Intent.PRESENT, True, "under way"),
        (Unfinished(operation=Operation.PLUG, since=1, by=BY), Intent.PRESENT, False, "interrupted"),
        (Unfinished(operation=Operation.MIGRATE, since=1), Intent.PRESENT, False, "waits for the next command"),
        (None, Intent.ABSENT, False, "waits for the guest"),
    ],
)
def test_who_goes_on_with_what_is_pending_is_told(
    work: Unfinished | None, intent: Intent, under_way: bool, state: str
) -> None:
    record = DiskRecord.of(disk(), intent=intent, unfinished=work)
    pending = pending_of(record, under_way=under_way, in_guest=True)
    assert pending is not None
    assert pending.state.startswith(state)
    assert pending_of(DiskRecord.of(disk()), under_way=False, in_guest=True) is None


@pytest.mark.parametrize(
    ("operation", "since"),
    [(None, 5.0), (Operation.RESIZE, 5.0), (Operation.REPOINT, None), (Operation.FAIL_OVER, None)],
)
def test_nobody_knows_since_when_a_disk_is_there_while_its_move_is_not_finished(
    operation: Operation | None, since: float | None
) -> None:
    record = replace(DiskRecord.of(disk()), since=5.0)
    pending = Pending(operation=operation, state="interrupted") if operation else None
    seen = observed(record=record, pending=pending)
    assert seen.since == since
    assert (seen.to_json()["since"] is None) == (since is None)


def test_a_disk_is_at_its_storage_since_its_plug_began_and_the_journal_keeps_that() -> None:
    plugged = DiskRecord.of(disk(), unfinished=Unfinished(operation=Operation.PLUG, since=17.5))
    unplugged = DiskRecord.of(disk(), unfinished=Unfinished(operation=Operation.UNPLUG, since=17.5))
    assert (plugged.since, unplugged.since) == (17.5, None)
    record = VmRecord(name="a").with_disk(replace(plugged, unfinished=None))
    assert VmRecord.from_json(record.to_json()) == record
    before = json.loads(record.to_json())
    del before["disks"][0]["since"]
    assert VmRecord.from_json(json.dumps(before)).disks[UUID].since is None


def counted(number: int) -> DiskCounts:
    kinds = {kind: Requests(completed=number, timed=number, bytes=number * 4096, time_ns=number) for kind in Kind}
    return DiskCounts(kinds=kinds)


def look(taken_s: float, *disks: ObservedDisk, **values: Any) -> ObservedVm:
    return ObservedVm(**{"name": "a", "state": "running", "taken_s": taken_s, "disks": disks, **values})


def test_rates_are_shown_for_disks_that_both_looks_counted_alone() -> None:
    seen = observed(counts=counted(10), in_flight=3)
    (row,) = activity([look(0, seen)], [look(2, replace(seen, counts=counted(30)))])
    assert row.cells() == ("a", "p/v", "userspace", "10", "10", "0.0", "0.0", "0.00", "0.00", "3", "running")
    for before in ([], [look(0)], [look(0, observed(), state="busy", asked=False)]):
        (row,) = activity(before, [look(2, seen)])
        assert row.rates is None
    (row,) = activity([look(0, seen)], [look(2, seen)])
    assert row.state == "running, stuck"
    (row,) = activity([], [look(2, state="busy", asked=False)])
    assert row.cells()[0::10] == ("a", "busy")


def test_labels_of_measures_hold_no_place_and_no_parameter() -> None:
    secret = disk(parameters={"password": "hush-hush-0815", "pool": "swimming"})
    seen = observed(record=DiskRecord.of(secret, since=5.0), counts=counted(1), throttle=Throttle(iops_total=5))
    told = repr(vm_families([look(0, replace(seen, offered=Offered(places=(URI,), error="nbd://h")))]))
    for word in ("hush", "swimming", "nbd://"):
        assert word not in told


def test_times_in_json_are_texts_in_utc() -> None:
    told = Pending(operation=Operation.PLUG, state="interrupted", since=0.25).to_json()
    assert told["since"] == "1970-01-01T00:00:00.250+00:00"
    assert Pending(operation=Operation.PLUG, state="interrupted").to_json()["since"] is None
