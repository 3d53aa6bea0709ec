from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hvext.cli import main
from hvext.core.disk import Disk
from hvext.core.health import HealthState
from hvext.core.observation import ObservedDisk, Oddity
from hvext.core.record import Operation
from hvext.core.statistics import Kind
from hvext.host.guest import Writer
from hvext.operations import attachments
from hvext.operations.observe import observe
from hvext.operations.vm import open_vm, open_vm_async
from tests.conftest import need
from tests.providers import write_provider
from tests.vm.state import on_debug_monitor
from tests.vm.volume import kill_servers, pids_of_servers, wait_for_disk
from tests.watching import watching

if TYPE_CHECKING:
    from hvext.host.machine import Machine
    from tests.vm.conftest import Guest, GuestFactory, MachineFactory, Storage

pytestmark = pytest.mark.vm
#: What dd writes: a thousand blocks.
BLOCKS, BLOCK_BYTES = 1000, 4096


def seen(guest: Guest, storage: Storage, *, places: bool = False) -> dict[str, ObservedDisk]:
    """Return what is observed of each disk, by its volume."""

    async def look() -> dict[str, ObservedDisk]:
        async with open_vm_async(str(guest.machine.qmp_path), host=storage.host) as vm:
            return {disk.volume: disk for disk in (await observe(vm, places=places)).disks}

    return asyncio.run(look())


def oddities(disk: ObservedDisk) -> set[Oddity]:
    return {each.oddity for each in disk.warnings}


def dd(guest: Guest, device: str, *words: str) -> None:
    status, text = guest.console.run(f"dd {' '.join(words)} && true", 60)
    assert status == 0, text


@pytest.mark.parametrize("device", ["virtio-blk-pci", "scsi-hd"])
def test_the_counters_agree_with_what_the_guest_did(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk], device: str
) -> None:
    guest = share()
    disk = create(device=device, **({"iops_total": 100000} if device == "scsi-hd" else {}))
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        began = time.time()
        vm.plug(disk)
    name = wait_for_disk(guest.console)
    before = seen(guest, storage)["sample/vol"]
    dd(guest, name, "if=/dev/zero", f"of={name}", f"bs={BLOCK_BYTES}", f"count={BLOCKS}", "oflag=direct")
    dd(guest, name, f"if={name}", "of=/dev/null", f"bs={BLOCK_BYTES * 2}", f"count={BLOCKS // 2}", "iflag=direct")
    after = seen(guest, storage)["sample/vol"]
    assert before.counts is not None
    assert after.counts is not None
    writes, reads = (
        (new.completed - old.completed, new.bytes - old.bytes)
        for kind in (Kind.WRITE, Kind.READ)
        for old, new in [(before.counts.kinds[kind], after.counts.kinds[kind])]
    )
    assert writes == (BLOCKS, BLOCKS * BLOCK_BYTES)
    assert reads == (BLOCKS // 2, BLOCKS * BLOCK_BYTES)
    assert 0 < (after.counts.kinds[Kind.WRITE].latency_s or 0) < 1
    assert after.counts.failed == 0
    assert after.access == "userspace"
    assert after.record is not None
    assert began <= (after.record.since or 0) <= time.time()
    assert (after.pending, after.in_flight, oddities(after)) == (None, 0, set())
    if device == "scsi-hd":
        assert after.to_json()["throttle"] == {"iops_total": 100000}
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        moved = time.time()
        candidates = attachments.offer(storage.host, disk).choice.candidates
        vm.repoint_to_first(disk.volume.uuid, [each.location for each in candidates[1:]])
    there = seen(guest, storage)["sample/vol"]
    assert there.access == "kernelspace"
    assert there.record is not None
    assert (there.record.since or 0) >= moved
    # A move goes on with the same counts.
    assert there.counts is not None
    assert there.counts.kinds[Kind.WRITE] == after.counts.kinds[Kind.WRITE]
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        assert vm.unplug(disk).finished


def test_a_block_path_in_use_beside_the_uri_is_told_with_what_uses_it(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    need("mke2fs", "e2fsprogs")
    guest, disk = share(), create()
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
    path, uri = storage.paths(disk)
    assert oddities(seen(guest, storage)["sample/vol"]) == set(), "the provider was asked though nobody wished it"
    subprocess.run(["mke2fs", "-q", "-F", path], check=True)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "-o", "ro", path, mounted], check=True)
    try:
        found = seen(guest, storage, places=True)["sample/vol"]
    finally:
        subprocess.run(["umount", mounted], check=True)
    assert found.offered is not None
    assert [(each.access, each.where) for each in found.offered.places] == [("userspace", uri), ("kernelspace", path)]
    assert all(each.health and each.health.state is HealthState.HEALTHY for each in found.offered.places)
    assert [each.oddity for each in found.warnings] == [Oddity.MAPPED]
    assert f"mounted at {mounted}" in found.warnings[0].words
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.repoint(disk.volume.uuid, path)
    assert oddities(seen(guest, storage, places=True)["sample/vol"]) == set(), "it is the path that is in use"
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        assert vm.unplug(disk).finished


def test_a_second_writer_and_a_buffered_disk_are_told_and_a_reader_is_no_writer(
    machine: MachineFactory, storage: Storage, create: Callable[..., Disk], capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = machine(start_paused=True), machine(start_paused=True)
    own = [create("read"), create("written"), create("buffered", cache="writeback")]
    own.append(create("only", access="kernelspace", cache="writeback"))
    with open_vm(str(one.qmp_path), host=storage.host) as vm:
        for disk in own:
            vm.plug(disk)
    with open_vm(str(other.qmp_path), host=storage.host) as vm:
        vm.plug(storage.disk("read", read_only="on"), exclusive=False)
        vm.plug(storage.disk("written"), exclusive=False)

    def warned(*words: str) -> dict[str, set[str]]:
        assert main(["disks", "--qmp", str(one.qmp_path), "--log-dir", "none", "--json", *words]) == 0
        disks = json.loads(capsys.readouterr().out)
        return {disk["volume"]: {each["kind"] for each in disk["warnings"]} for disk in disks}

    plain = {"read": set(), "written": {"second-writer"}, "buffered": {"buffered"}, "only": {"buffered"}}
    assert warned() == plain
    # A disk with one place can be nowhere else, and the others' block paths are mapped.
    both = {name: kinds | {"mapped"} for name, kinds in plain.items()} | {"only": set()}
    assert warned("--places") == both
    assert main(["disks", "--qmp", str(one.qmp_path), "--log-dir", "none", "--stats"]) == 0
    assert f"written by VM {other.name} of this host" in capsys.readouterr().out


def test_an_unplug_that_the_guest_has_not_answered_is_told(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    guest, disk = share(), create()
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
        wait_for_disk(guest.console)
        on_debug_monitor(guest.machine, "stop")
        assert not vm.unplug(disk, timeout_s=0.1).finished
    pending = seen(guest, storage)["sample/vol"].pending
    assert pending is not None
    assert (pending.operation, pending.state) == (Operation.UNPLUG, "waits for the guest to let it go")
    on_debug_monitor(guest.machine, "cont")
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        assert vm.unplug(disk).finished
    assert seen(guest, storage) == {}


def test_storage_that_does_not_answer_is_told_and_qemu_goes_on(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk]
) -> None:
    guest, disk = share(), create()
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
    name = wait_for_disk(guest.console)
    (server,) = pids_of_servers(storage)
    os.kill(server, signal.SIGSTOP)
    try:
        guest.console.run(f"dd if=/dev/zero of={name} bs=4096 count=1 oflag=direct >/dev/null 2>&1 &")
        deadline = time.monotonic() + 30
        while not (found := seen(guest, storage)["sample/vol"]).in_flight:
            assert time.monotonic() < deadline, "the write does not begin"
        assert oddities(found) == {Oddity.STUCK}
        # All else is told without the storage.
        assert found.access == "userspace"
        assert on_debug_monitor(guest.machine, "query-status")["status"] == "running"
    finally:
        os.kill(server, signal.SIGCONT)
    while seen(guest, storage)["sample/vol"].in_flight:
        assert time.monotonic() < deadline, "the write does not end"
    assert oddities(seen(guest, storage)["sample/vol"]) == set()
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        assert vm.unplug(disk).finished


@pytest.mark.nightly
def test_a_guest_that_dead_storage_has_stopped_is_told_everywhere_with_a_cure_that_works(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk], capsys: pytest.CaptureFixture[str]
) -> None:
    guest, disk = share(), create()
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
    name = wait_for_disk(guest.console)
    kill_servers(storage)
    # Later: a guest that is stopped answers nothing.
    guest.console.run(f"(sleep 1; dd if=/dev/zero of={name} bs=4k count=1 oflag=direct) >/dev/null 2>&1 &")
    deadline = time.monotonic() + 30
    while on_debug_monitor(guest.machine, "query-status")["status"] != "io-error":
        assert time.monotonic() < deadline, "the guest does not stop"

    def said(monitor: Path) -> str:
        cure = f"hvext watch --once --qmp {monitor} has its provider serve it again, and fails it over"
        return f"the storage of sample/vol has failed; {cure}"

    # Another program may have the monitor that the journal knows: the one that answers is named.
    for monitor in (guest.machine.qmp_path, guest.machine.debug_qmp_path):
        assert main(["audit", "--qmp", str(monitor)]) == 0
        assert said(monitor) in capsys.readouterr().out
        assert main(["disks", "--qmp", str(monitor)]) == 0
        listed = capsys.readouterr()
        assert listed.out.splitlines()[1].startswith(f"sample/vol  {disk.volume.uuid}  virtio-blk-pci")
        assert said(monitor) in listed.err
        assert main(["disks", "--stats", "--qmp", str(monitor), "--log-dir", "none"]) == 0
        assert said(monitor) in capsys.readouterr().out
    assert main(["top", "--once", "--interval", "0.2", "--vm", guest.machine.name]) == 0
    assert "io-error, storage failed" in capsys.readouterr().out
    where = ["--search-path", ":".join(storage.host.search_path), "--log-dir", "none"]
    assert main(["watch", "--once", "--qmp", str(guest.machine.debug_qmp_path), *where]) == 0
    assert f" {guest.machine.name} disk sample/vol ({disk.volume.uuid}): failed-over: " in capsys.readouterr().err
    dd(guest, name, "if=/dev/zero", f"of={name}", "bs=4096", "count=1", "oflag=direct", "2>/dev/null")
    assert oddities(seen(guest, storage)["sample/vol"]) == set()
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        assert vm.unplug(disk).finished


def parsed(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the samples of a page by name, each by the values of its labels; what promtool would refuse fails."""
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "a family comes twice"
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in families:
        assert family.documentation
        assert family.type != "unknown", family.name
        assert family.name.startswith("hvext_")
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total"), sample.name
            own = found.setdefault(sample.name, {})
            labels = tuple(sample.labels.values())
            assert labels not in own, sample
            own[labels] = sample.value
    return found


def fetched(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return str(answer.read().decode())


def total(page: Mapping[str, Mapping[tuple[str, ...], float]], name: str, *labels: str) -> float:
    """Return the sum of the samples that have these labels."""
    return sum(value for own, value in page[name].items() if set(labels) <= set(own))


def test_a_watch_serves_what_it_does_and_what_the_guests_do(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    guest, disk = share(), create(werror="stop", rerror="stop")
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        vm.plug(disk)
    name, uuid = wait_for_disk(guest.console), str(disk.volume.uuid)
    quick = ("--sample", "0.5", "--hold", "1", "--checks", "2", "--metrics", "127.0.0.1:0")
    with watching(tmp_path, "--qmp", guest.machine.qmp_path, *quick) as watch:
        watch.wait_for("watching")
        address = watch.log.read_text().partition("metrics are served at ")[2].split()[0]
        before = parsed(fetched(address))
        vm_name = guest.machine.name
        assert before["hvext_vm_up"] == {(vm_name,): 1}
        assert before["hvext_watch_failovers_total"] == {(vm_name,): 0}
        assert total(before, "hvext_disk_info", uuid, "sample", "vol", "userspace", "nbd") == 1
        dd(guest, name, "if=/dev/zero", f"of={name}", "bs=4096", "count=500", "oflag=direct")
        time.sleep(1.1)
        after = parsed(fetched(address))
        for metric, number in (("hvext_disk_requests_total", 500), ("hvext_disk_bytes_total", 500 * 4096)):
            assert total(after, metric, uuid, "write") - total(before, metric, uuid, "write") == number
        assert total(after, "hvext_disk_request_seconds_total", uuid, "write") > 0
        kill_servers(storage)
        guest.console.run(f"dd if=/dev/zero of={name} bs=4096 count=1 oflag=direct")
        watch.wait_for("moved-back")
        time.sleep(1.1)

        end = parsed(fetched(address))
        assert end["hvext_watch_failovers_total"] == {(vm_name,): 1}
        assert end["hvext_watch_repoints_total"] == {(vm_name,): 1}
        assert end["hvext_watch_failover_seconds_count"] == {(vm_name,): 1}
        assert 0 < end["hvext_watch_failover_seconds_sum"][vm_name,] < 60
        assert end["hvext_watch_stopped_seconds_total"][vm_name,] > 0
        assert total(end, "hvext_provider_script_seconds_count", "sample", "attach", "done") >= 2
        assert total(end, "hvext_provider_script_seconds_sum", "sample", "attach", "done") > 0
        # A move and a failover go on with the same counts.
        assert total(end, "hvext_disk_requests_total", uuid, "write") > total(
            after, "hvext_disk_requests_total", uuid, "write"
        )
        assert watch.end() == 0
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        assert vm.unplug(disk).finished


@pytest.fixture
def two_vms(
    share: GuestFactory, machine: MachineFactory, storage: Storage, create: Callable[..., Disk]
) -> Iterator[tuple[Guest, Machine, Writer]]:
    """A guest that writes 50 blocks of 4 KiB a second, and a QEMU whose monitor another program has; a disk each."""
    guest, other = share(), machine(start_paused=True)
    written, held = create("written"), create("held")
    for each, disk in ((guest.machine, written), (other, held)):
        with open_vm(str(each.qmp_path), host=storage.host) as vm:
            vm.plug(disk)
    writer = Writer(guest.console, wait_for_disk(guest.console))
    writer.start(threads=1, rate=50, blocks=64)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(other.qmp_path))
        yield guest, other, writer
    assert writer.stop().ok
    with open_vm(str(guest.machine.qmp_path), host=storage.host) as vm:
        assert vm.unplug(written).finished


def test_top_shows_rates_and_a_vm_whose_monitor_is_taken_as_busy(
    two_vms: tuple[Guest, Machine, Writer], capsys: pytest.CaptureFixture[str]
) -> None:
    guest, other, _writer = two_vms
    assert main(["top", "--json", "--count", "2", "--interval", "1.5", "--wait", "0.5"]) == 0
    looks = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(looks) == 2
    rows = {row["vm"]: row for row in looks[1]["disks"]}
    busy, row = rows[other.name], rows[guest.machine.name]
    assert (busy["state"], busy["volume"], busy["rates"]) == ("busy", "sample/held", None)
    assert (row["state"], row["volume"], row["access"]) == ("running", "sample/written", "userspace")
    write = row["rates"]["write"]
    assert write["per_s"] > 0
    assert write["bytes_per_s"] == pytest.approx(write["per_s"] * 4096, rel=0.01)
    assert 0 < write["latency_s"] < 1
    assert main(["top", "--once", "--interval", "0.5", "--wait", "0.5", "--vm", guest.machine.name]) == 0
    _when, header, line = capsys.readouterr().out.strip().splitlines()
    assert header.split()[:3] == ["VM", "DISK", "ACCESS"]
    assert line.split()[:3] == [guest.machine.name, "sample/written", "userspace"]
    assert main(["metrics", "--wait", "0.5"]) == 0
    page = parsed(capsys.readouterr().out)
    assert page["hvext_vm_up"] == {(guest.machine.name,): 1, (other.name,): 0}
    assert page["hvext_vm_disks"] == {(guest.machine.name,): 1, (other.name,): 1}


def test_top_changes_in_its_place_in_a_terminal_and_ends_with_ctrl_c(two_vms: tuple[Guest, Machine, Writer]) -> None:
    guest, other, _writer = two_vms
    # Others that this host has had could leave no room on the screen.
    only = ["--vm", guest.machine.name, "--vm", other.name]
    # What another terminal has is not asked for: this one is as wide as is set here.
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment["TERM"] = "xterm"
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 160))
    running = subprocess.Popen(
        [sys.executable, "-m", "hvext", "top", "--interval", "0.5", "--wait", "0.3", *only],
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + 60
    try:
        while shown.count(b"sample/written") < 3:
            assert time.monotonic() < deadline, shown
            if select.select([ours], [], [], 1)[0]:
                shown += os.read(ours, 65536)
        running.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):
            while rest := os.read(ours, 65536):
                shown += rest
        assert running.wait(20) == 0
    finally:
        running.kill()
        running.wait()
        os.close(ours)
    text = shown.decode()
    assert "\x1b[?1049h" in text, "it does not use the terminal's other screen"
    assert text.rindex("\x1b[?1049l") > text.rindex("sample/written"), "the terminal is not as it was"
    assert "busy" in text
    assert "Traceback" not in text
    assert guest.machine.name in text
    assert other.name in text


def logged(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_log_names_vm_disk_operation_and_step_and_says_how_each_ended(
    machine: MachineFactory, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "hush-hush-0815"
    (tmp_path / "key").write_text(secret)
    path = tmp_path / "device"
    path.write_bytes(bytes(1 << 20))
    attach = f'printf "\\nkvm:file:{path}\\nkvm:nbd+unix:///x?socket={tmp_path}/none\\n"'
    write_provider(tmp_path / "providers", "mine", {"attach": attach}, "password of the storage\n")
    qemu, log = machine(start_paused=True), tmp_path / "log"
    how = [f"--search-path={tmp_path}/providers", "--log-dir=none", f"--qmp={qemu.qmp_path}"]
    how += ["--parameter-file", f"password={tmp_path}/key"]
    assert main(["plug", "mine", "v1", *how, "--log-file", str(log)]) == 0
    lines = logged(log)
    uuid = next(line["disk"] for line in lines if line["event"] == "operation")
    own = [line for line in lines if line["event"] in ("operation", "step")]
    assert {(line["vm"], line["disk"], line["operation"]) for line in own} == {(qemu.name, uuid, "plug")}
    assert [line["outcome"] for line in lines if line["event"] == "operation"] == ["begun", "done"]
    steps = [line for line in own if line["event"] == "step"]
    assert {line["outcome"] for line in steps} == {"done"}
    assert any("device" in line["step"] for line in steps)
    scripts = [(line["action"], line["volume"], line["outcome"]) for line in lines if line["event"] == "script"]
    assert ("attach", "mine/v1", "done") in scripts
    assert (lines[-1]["event"], lines[-1]["command"], lines[-1]["outcome"]) == ("command", "plug", "done")
    assert all(datetime.fromisoformat(line["time"]) and line.get("took_ms", 0) >= 0 for line in lines)
    # One that fails, behind what the file holds, and to standard error.
    moved = ["repoint", "mine", "v1", *how, f"--to=nbd+unix:///x?socket={tmp_path}/none"]
    assert main([*moved, "--log-file", str(log)]) == 1
    more = logged(log)[len(lines) :]
    failed = {line["event"]: line for line in more if line["outcome"] == "failed"}
    assert failed["step"]["disk"] == failed["operation"]["disk"] == uuid
    assert failed["operation"]["error"]["type"] == "OperationFailed"
    assert failed["command"]["command"] == "repoint"
    capfd.readouterr()
    assert main([*moved, "--log", "json"]) == 1
    err = capfd.readouterr().err
    assert [json.loads(line)["event"] for line in err.splitlines() if line.startswith("{")][-1] == "command"
    assert main(["plug", "mine", "v1", *how, "--log-file", str(tmp_path / "none" / "log")]) == 1
    assert main(["unplug", "mine", "v1", *how, "--wait", "0.1", "--log-file", str(log)]) == 1
    assert logged(log)[-1]["outcome"] == "done"
    assert secret not in log.read_text() + err
    qemu.stop()
    assert main(["recover", *how[:2], "--log-file", str(log)]) == 0
    assert [line["outcome"] for line in logged(log) if line.get("command") == "recover"][-1] == "done"
