"""Failovers that are refused, that fail, that are interrupted; and what can be done with a disk afterwards."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import pytest

from hvext.core.uri import parse_uri
from hvext.errors import DiskNotFound, FailoverFailed, FailoverRefused
from hvext.host import process
from hvext.host.qmp import Monitor
from hvext.operations.failover import fail_over
from hvext.operations.inspect import running_disk
from hvext.operations.resize import show_size
from hvext.operations.vm import open_vm
from tests.servers.ceph import ceph_cluster
from tests.servers.certificates import certificates
from tests.servers.nbd import nbd_server
from tests.vm.conftest import MachineFactory
from tests.vm.failing import MIB, Setting, SettingFactory, check_verdict, die
from tests.vm.state import on_debug_monitor, state_of
from tests.vm.volume import wait_for_bytes

pytestmark = pytest.mark.vm

#: Runs a failover and kills itself at the beginning of a step.
KILLED_AT = """
import asyncio, os, signal, sys
from hvext.core.disk import parse_uuid
from hvext.core.identity import DiskNames
from hvext.core.uri import parse_uri
from hvext.host.files import opened_as
from hvext.host.qmp import connect
from hvext.operations.failover import fail_over

qmp, uuid, target, number = sys.argv[1:]
steps = []

def report(step):
    if len(steps) == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    steps.append(step)

async def work():
    async with connect(qmp) as monitor:
        await fail_over(monitor, DiskNames(parse_uuid(uuid)), [parse_uri(target, look=opened_as)], report=report)

asyncio.run(work())
"""


def nodes(setting: Setting) -> dict[str, Any]:
    listed = on_debug_monitor(setting.guest.machine, "query-named-block-nodes", flat=True)
    return {node["node-name"]: node for node in listed}


def test_a_failover_killed_at_any_step_is_completed_by_the_next(setting: SettingFactory) -> None:
    made = setting(options={"iops_total": "100000"})
    before = state_of(made.guest.machine)
    made.plug()
    whole = nodes(made).keys()
    writer = made.started_writer()
    names: list[str] = []
    made.ways.kill()
    made.wait_stopped()
    made.fail_over(made.path, report=names.append)
    assert made.resume()
    assert len(names) >= 6
    for number in range(len(names)):
        made.ways.restart()
        made.move(made.uri)
        made.ways.kill()
        made.wait_stopped()
        words = [str(made.guest.machine.qmp_path), str(made.disk.volume.uuid), made.ways.block_path, str(number)]
        killed = process.run(
            [sys.executable, "-c", KILLED_AT, *words],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(sys.path)},
            timeout_s=60,
        )
        assert killed.status == -9, killed.stderr.decode()
        # Other steps may be needed now: what is left is removed first.
        made.fail_over(made.path)
        assert len(nodes(made)) == len(whole), f"killed before {names[number]!r}"
        assert made.resume()
    verdict = writer.stop()
    check_verdict(made, verdict)
    made.unplug()
    assert state_of(made.guest.machine) == before


def test_a_failover_that_fails_at_any_step_is_undone(setting: SettingFactory) -> None:
    class Stop(Exception):
        pass

    made = setting(options={"iops_total": "100000"})
    made.plug()
    writer = made.started_writer()
    made.ways.kill()
    made.wait_stopped()
    before = state_of(made.guest.machine)
    for number in range(20):
        steps: list[str] = []

        def report(step: str, number: int = number, steps: list[str] = steps) -> None:
            steps.append(step)
            if len(steps) > number:
                raise Stop

        try:
            made.fail_over(made.path, report=report)
        except Stop:
            if steps[-1].startswith("close "):
                # The disk is on its new storage, and only the old nodes are left.
                break
            assert state_of(made.guest.machine) == before
            assert made.status() == "io-error"
    else:
        raise AssertionError("no failover came to its end")
    made.fail_over(made.path)
    assert len(state_of(made.guest.machine).nodes) == len(before.nodes)
    assert made.resume()
    check_verdict(made, writer.stop())
    made.unplug()


def test_dead_candidates_leave_the_guest_paused_until_one_is_back(setting: SettingFactory) -> None:
    made = setting()
    made.plug()
    writer = made.started_writer()
    made.ways.kill()
    made.wait_stopped()
    before = state_of(made.guest.machine)
    gone = parse_uri("host_device:/dev/hvext-none")
    with pytest.raises(FailoverFailed, match=r"paused by the I/O error.*Connection refused") as failure:
        made.fail_over(gone, made.uri)
    assert len(failure.value.passed_over) == 2
    assert made.status() == "io-error"
    assert state_of(made.guest.machine) == before
    # The server comes back where it was: a fresh connection to the same place, as often as one likes.
    made.ways.restart()
    for _time in range(3):
        assert made.fail_over(gone, made.uri).after == made.ways.address
    assert made.resume()
    assert not made.resume()
    check_verdict(made, writer.stop())
    made.unplug()


def test_a_guest_that_somebody_else_paused_is_not_resumed(setting: SettingFactory) -> None:
    made = setting()
    made.plug()
    writer = made.started_writer()
    on_debug_monitor(made.guest.machine, "stop")
    made.ways.kill()
    made.fail_over(made.path)
    assert not made.resume()
    assert made.status() == "paused"
    on_debug_monitor(made.guest.machine, "cont")
    check_verdict(made, writer.stop())
    made.unplug()


@pytest.mark.parametrize("iothread", [False, True], ids=["main-loop", "iothread"])
@pytest.mark.parametrize("device", ["virtio-blk-pci", "scsi-hd"])
def test_a_running_guest_is_failed_over_as_well(setting: SettingFactory, device: str, iothread: bool) -> None:
    # Its storage is not even dead: the device is in its iothread, and has requests under way.
    made = setting(device=device, iothread=iothread)
    made.plug()
    writer = made.started_writer()
    for candidate in (made.path, made.uri, made.uri, made.path):
        made.fail_over(candidate)
        assert made.status() == "running"
    check_verdict(made, writer.stop())
    made.unplug()


@pytest.mark.parametrize(
    "options",
    [
        {"discard": "unmap", "detect_zeroes": "unmap", "aio": "native"},
        {"read_only": True},
        {"cache": "directsync", "aio": "threads", "iops_total": "50000"},
    ],
    ids=["discard", "read-only", "directsync-throttled"],
)
def test_a_disk_is_opened_as_before_and_all_can_be_done_with_it(
    setting: SettingFactory, options: dict[str, Any]
) -> None:
    made = setting(options=options)
    before = state_of(made.guest.machine)
    made.plug()
    was = nodes(made)
    # Its names come in turn: the second time they are those of the beginning.
    for number in range(3):
        made.fail_over(made.path if number % 2 else made.uri)
        now = nodes(made)
        assert {node["drv"] for node in now.values()} - {"nbd", "host_device"} == {
            node["drv"] for node in was.values()
        } - {"nbd", "host_device"}
        assert all(node["ro"] is bool(options.get("read_only")) for node in now.values())
        assert {str(node["cache"]) for node in now.values()} == {str(node["cache"]) for node in was.values()}
        assert {node["detect_zeroes"] for node in now.values()} == {node["detect_zeroes"] for node in was.values()}
        assert [name[-2] for name in now if name[-2] in "01234567" and name[-3] == "-"] == [
            name[-2] for name in was if name[-2] in "01234567" and name[-3] == "-"
        ]
    running = made.run(lambda monitor: running_disk(monitor, made.disk.names))
    assert running.root is not None
    assert running.root.name == made.disk.names.roots[1]
    assert not running.leftovers
    with open_vm(str(made.guest.machine.qmp_path), host=made.host) as vm:
        assert not vm.plug(made.disk).changed
        for target in (made.ways.block_path, made.ways.address):
            assert vm.repoint(made.disk.volume.uuid, target).changed
        assert vm.unplug(made.disk).finished
    assert state_of(made.guest.machine) == before


def test_a_disk_grows_after_a_failover(setting: SettingFactory) -> None:
    made = setting(options={"iops_total": "100000"})
    made.plug()
    writer = made.started_writer()
    die(made, [made.path], made.ways.kill)
    made.ways.grow(96 * MIB)
    made.run(lambda monitor: show_size(monitor, made.disk.names, 96 * MIB))
    wait_for_bytes(made.guest.console, writer.device, 96 * MIB)
    check_verdict(made, writer.stop())
    made.unplug()


def test_credentials_come_and_go_with_the_storage(setting: SettingFactory) -> None:
    made = setting(options={"read_only": True})
    before = state_of(made.guest.machine)
    made.plug()
    with certificates() as authority, nbd_server(tcp=True, certificates=authority) as server:
        server.create("vol", 64 * MIB)
        secured = f"nbds://127.0.0.1:{server.port}/vol?tls-certificates={authority.client}"
        made.fail_over(parse_uri(secured))
        running = made.run(lambda monitor: running_disk(monitor, made.disk.names))
        assert len(running.objects) == 1
        made.fail_over(parse_uri(secured))
        made.fail_over(made.path)
    assert not made.run(lambda monitor: running_disk(monitor, made.disk.names)).objects
    made.unplug()
    assert state_of(made.guest.machine) == before


@pytest.mark.parametrize("cache", ["none", "directsync"])
def test_a_server_that_loses_its_cache_loses_nothing_of_a_disk_without_a_write_cache(
    setting: SettingFactory, capsys: pytest.CaptureFixture[str], cache: str
) -> None:
    """What such a server acknowledges is on no storage yet; cache=directsync has QEMU ask for that with each write."""
    made = setting(volatile=True, options={"cache": cache})
    made.plug()
    writer = made.started_writer()
    time.sleep(0.5)
    die(made, [made.path], made.ways.kill)
    verdict = writer.stop()
    with capsys.disabled():
        print(f"\ncache={cache}, a server with a volatile cache killed: {verdict.bad} of {verdict.blocks} blocks wrong")
    assert verdict.status.errors == 0
    if cache == "none":
        assert verdict.bad, "the test proves nothing: the server lost no write"
    else:
        check_verdict(made, verdict)
    made.unplug()


def test_a_disk_is_led_away_from_dead_ceph_by_whoever_knew_it(setting: SettingFactory) -> None:
    """QEMU reads from an image before it tells of any node: when Ceph is dead, it tells nothing."""
    made = setting()
    before = state_of(made.guest.machine)
    made.plug()
    with ceph_cluster() as ceph:
        ceph.create("vol", 64 * MIB)
        made.move(parse_uri(f"{ceph.uri_with_key('vol')}:rados_osd_op_timeout=1:rados_mon_op_timeout=1"))
        known = made.run(lambda monitor: running_disk(monitor, made.disk.names))
        writer = made.started_writer()
        ceph.kill()
        made.wait_stopped()
        with pytest.raises(FailoverRefused, match="does not tell"):
            made.fail_over(made.path)
        # Not the same volume: that it is taken, and that the guest goes on, is all that is looked at here.
        made.run(lambda monitor: fail_over(monitor, made.disk.names, [made.path], known=known))
    assert made.resume()
    assert writer.status().errors == 0
    writer.stop()
    assert not made.run(lambda monitor: running_disk(monitor, made.disk.names)).objects
    made.unplug()
    assert state_of(made.guest.machine) == before


def test_a_failover_that_cannot_be_right_is_refused(setting: SettingFactory) -> None:
    made = setting(options={"cache": "writeback"})
    with pytest.raises(DiskNotFound):
        made.fail_over(made.path)
    made.plug()
    with pytest.raises(FailoverRefused, match=r"cache\.direct=on.*stale data"):
        made.fail_over(made.path)
    made.unplug()


def test_candidates_that_the_disk_cannot_be_at_are_passed_over(setting: SettingFactory) -> None:
    made = setting()
    made.plug()
    before = state_of(made.guest.machine)
    with nbd_server() as smaller:
        smaller.create("small", 63 * MIB)
        places = [
            smaller.uri("small"),
            made.ways.address.replace("/vol", "/none"),
            "vhost-user:/nowhere",
            "https://127.0.0.1:1/image",
        ]
        with pytest.raises(FailoverFailed) as failure:
            made.fail_over(*(parse_uri(place) for place in places))
    reasons = zip(
        failure.value.passed_over, ("has less than 67108864", "available", "directly", "only be read"), strict=True
    )
    assert all(words in reason for reason, words in reasons), failure.value.passed_over
    assert state_of(made.guest.machine) == before
    made.unplug()


def test_a_guest_that_is_the_target_of_a_migration_is_left_alone(
    machine: MachineFactory, setting: SettingFactory
) -> None:
    made = setting()
    incoming = machine(extra_args=("-incoming", "defer"))
    target = Setting(
        guest=type(made.guest)(machine=incoming, console=made.guest.console),
        ways=made.ways,
        host=made.host,
        disk=made.disk,
    )
    target.plug()

    async def refused(monitor: Monitor) -> None:
        with pytest.raises(FailoverRefused, match="inmigrate"):
            await fail_over(monitor, made.disk.names, [made.path])

    target.run(refused)
    incoming.stop()


def test_a_disk_made_by_the_drive_option_is_failed_over(machine: MachineFactory, setting: SettingFactory) -> None:
    made = setting()
    names = made.disk.names
    nbd = f"file.driver=nbd,file.server.type=unix,file.server.path={made.ways.socket},file.export=vol"
    legacy = (
        f"if=none,id={names.drive},node-name={names.root},format=raw,cache=none,{nbd},file.node-name={names.root}-00",
        f"virtio-blk-pci,id={names.device},drive={names.drive},bus=rp0",
    )
    started = machine(start_paused=True, extra_args=("-drive", legacy[0], "-device", legacy[1]))
    disk = Setting(
        guest=type(made.guest)(machine=started, console=made.guest.console),
        ways=made.ways,
        host=made.host,
        disk=made.disk,
    )
    for candidate in (disk.path, disk.uri, disk.path):
        disk.fail_over(candidate)
        running = disk.run(lambda monitor: running_disk(monitor, names))
        assert running.root is not None
        assert len(running.node_names) == 2
        assert running.protocol is not None
        assert running.protocol.location == candidate
    started.stop()
