"""Plug, unplug, resize and list through a real libvirtd, with the same results and errors as over QMP."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from hvext.core.disk import Disk
from hvext.core.domain import parse_domain
from hvext.core.observation import Oddity
from hvext.core.uri import parse_uri
from hvext.core.value import replace
from hvext.errors import (
    DiskNotFound,
    DomainError,
    InputError,
    MonitorError,
    OperationFailed,
    PlugError,
    RenderError,
    RepointRefused,
)
from hvext.host.domain import Removal
from hvext.host.files import opened_as
from hvext.host.journal import JournalFolder
from hvext.host.machine import GuestImage
from hvext.host.provider import ProviderHost
from hvext.operations import attachments, audit, recover
from hvext.operations.domains.vm import LibvirtVm, open_domain
from hvext.operations.journal import read_records
from hvext.operations.observe_host import HostObserver
from tests.providers import read_calls, write_provider
from tests.secrecy import new_secret
from tests.servers.iscsi import USER, IscsiTarget, iscsi_target
from tests.servers.libvirtd import Libvirtd, libvirtd
from tests.vm.libvirt_guests import booted, domain_xml
from tests.vm.state import loops
from tests.vm.volume import kill_servers, wait_for_disk

if TYPE_CHECKING:
    from tests.vm.conftest import Storage

pytestmark = pytest.mark.vm
MIB = 1 << 20


@pytest.fixture(scope="module")
def daemon() -> Iterator[Libvirtd]:
    with libvirtd() as running:
        yield running


@pytest.fixture
def paused(daemon: Libvirtd, storage: Storage) -> Iterator[Libvirtd]:
    """A libvirtd with the persistent domain ``g``, which runs paused, without a guest in it."""
    if "g" not in daemon.virsh("list", "--name").split():
        daemon.clear()
        daemon.define(domain_xml("g"))
        daemon.virsh("start", "g", "--paused")
    yield daemon
    if "ua-hv-" in daemon.virsh("dumpxml", "g") + daemon.virsh("dumpxml", "g", "--inactive"):
        # The test has failed, or its domain is to have the disk.
        daemon.clear()


@pytest.fixture
def vm(paused: Libvirtd, storage: Storage) -> Iterator[LibvirtVm]:
    with open_domain(paused.uri, "g", host=storage.host) as domain:
        yield domain


def xml(daemon: Libvirtd, *, live: bool = True, name: str = "g") -> str:
    return daemon.virsh("dumpxml", name, *([] if live else ["--inactive"]))


def has(daemon: Libvirtd, disk: Disk) -> tuple[bool, bool]:
    """Whether what runs has a disk, and the persistent configuration."""
    views = (parse_domain(xml(daemon, live=live)) for live in (True, False))
    live, config = (disk.volume.uuid in view.disks for view in views)
    return live, config


def secrets(daemon: Libvirtd) -> str:
    return daemon.virsh("secret-list").strip()


def records() -> dict[str, Any]:
    return {name: sorted(map(str, record.disks)) for name, record in read_records(JournalFolder()).items()}


def nodes(daemon: Libvirtd, name: str = "g") -> set[str]:
    """The block nodes of a domain's QEMU."""
    asked = '{"execute": "query-named-block-nodes", "arguments": {"flat": true}}'
    answer = daemon.virsh("qemu-monitor-command", name, asked)
    return {node["node-name"] for node in json.loads(answer)["return"]}


def offering(folder: Path, *lines: str) -> ProviderHost:
    """A provider ``fake`` whose attach prints these lines."""
    answer = "\\n".join(lines)
    write_provider(folder, "fake", {"attach": f"printf '{answer}\\n'"}, record=folder / "calls")
    return ProviderHost(search_path=(str(folder),))


def actions(folder: Path) -> list[str]:
    return [call.action for call in read_calls(folder / "calls")]


FAKE = Disk.from_mapping({"provider": "fake", "volume": "v"})


@pytest.mark.parametrize("options", [{"device": "scsi-hd"}, {"device": "scsi-hd", "access": "kernelspace"}])
def test_a_disk_comes_into_both_views_of_a_domain_and_leaves_both(
    vm: LibvirtVm, paused: Libvirtd, storage: Storage, create: Callable[..., Disk], options: dict[str, Any]
) -> None:
    before = xml(paused, live=False), nodes(paused), loops(storage.folder)
    disk = create(**options)
    plugged = vm.plug(disk)
    assert plugged.changed
    assert plugged.device == disk.names.alias
    assert (plugged.live, plugged.persistent) == (True, True)
    assert has(paused, disk) == (True, True)
    live, config = (parse_domain(xml(paused, live=live)).disks[disk.volume.uuid] for live in (True, False))
    assert live.location == config.location
    assert live.target == config.target == plugged.target
    listed = vm.disks()[disk.volume.uuid].to_json()
    assert listed["size_bytes"] == 64 * MIB
    assert (listed["live"], listed["persistent"]) == (True, True)
    again = vm.plug(disk)
    assert not again.changed
    assert again.location
    assert records() == {"g": [str(disk.volume.uuid)]}
    gone = vm.unplug(disk)
    assert gone.state == "unplugged"
    assert gone.detached
    assert (xml(paused, live=False), nodes(paused), loops(storage.folder)) == before
    assert vm.disks() == {}
    assert records() == {}
    assert vm.unplug(disk).state == "absent"


def test_each_view_can_be_changed_alone_and_the_volume_stays_for_the_other(
    vm: LibvirtVm, paused: Libvirtd, storage: Storage, create: Callable[..., Disk]
) -> None:
    disk = create(device="scsi-hd", access="kernelspace")
    assert vm.plug(disk, live=True).changed
    assert has(paused, disk) == (True, False)
    target = parse_domain(xml(paused)).disks[disk.volume.uuid].target
    completed = vm.plug(disk)
    assert completed.changed
    assert completed.target == target
    assert has(paused, disk) == (True, True)
    first = vm.unplug(disk, config=True)
    assert (first.state, first.detached) == ("unplugged", False)
    assert has(paused, disk) == (True, False)
    assert loops(storage.folder)
    assert vm.plug(disk, config=True).changed
    second = vm.unplug(disk, live=True)
    assert (second.state, second.detached) == ("unplugged", False)
    assert has(paused, disk) == (False, True)
    assert loops(storage.folder)
    assert records() == {"g": [str(disk.volume.uuid)]}
    assert vm.unplug(disk).detached
    assert not loops(storage.folder)
    assert records() == {}


def test_an_unplug_that_the_guest_answers_late_is_finished_by_whoever_comes_next(
    vm: LibvirtVm, paused: Libvirtd, storage: Storage, create: Callable[..., Disk]
) -> None:
    disk = create(access="kernelspace")
    before = nodes(paused)
    vm.plug(disk)
    # Nobody in there answers.
    pending = vm.unplug(disk, timeout_s=0.3)
    assert (pending.state, pending.detached) == ("pending", False)
    # At its next start, the domain does not have it.
    assert has(paused, disk) == (True, False)
    assert loops(storage.folder)
    with pytest.raises(PlugError, match="pending"):
        vm.plug(disk)
    assert vm.unplug(disk, timeout_s=0.3).state == "pending"
    paused.virsh("reset", "g")
    deadline = time.monotonic() + 10
    while has(paused, disk)[0]:
        assert time.monotonic() < deadline, "libvirt has not heard that the device went"
        time.sleep(0.05)
    # libvirt has removed the nodes by itself.
    assert nodes(paused) == before
    (finished,) = vm.finish_unplugs()
    assert finished.detached
    assert not loops(storage.folder)
    assert records() == {}


def test_libvirts_event_tells_of_a_device_that_went(
    vm: LibvirtVm, paused: Libvirtd, create: Callable[..., Disk]
) -> None:
    disk = create()
    vm.plug(disk, live=True)
    with vm.handle.removals(disk.names.alias) as told:
        vm.handle.detach(disk.names.alias, live=True)
        paused.virsh("reset", "g")
        assert told.get(timeout=30) is Removal.REMOVED
    assert vm.unplug(disk).detached


def test_an_unplug_that_waits_ends_when_the_guest_lets_go(
    vm: LibvirtVm, paused: Libvirtd, create: Callable[..., Disk]
) -> None:
    disk = create()
    vm.plug(disk)
    with subprocess.Popen(
        ["sh", "-c", f"sleep 0.7; virsh -q -c '{paused.uri}' reset g"], stdin=subprocess.DEVNULL
    ) as later:
        gone = vm.unplug(disk, timeout_s=30)
        later.wait()
    assert (gone.state, gone.detached) == ("unplugged", True)


@pytest.fixture(scope="module")
def target() -> Iterator[IscsiTarget]:
    with iscsi_target() as running:
        running.create("v", 32 * MIB)
        yield running


def chap(folder: Path, target: IscsiTarget, password: str) -> tuple[ProviderHost, Disk]:
    """A disk whose provider names the user, and whose password is in a file."""
    host = offering(folder, "", f"kvm:{target.uri('v').replace('//', f'//{USER}@')}")
    file = target.folder / "password"
    file.write_text(password)
    file.chmod(0o600)
    return host, Disk.from_mapping({"provider": "fake", "volume": "v", "secret.password": str(file)})


def test_a_password_is_a_libvirt_secret_that_goes_with_the_disk(
    paused: Libvirtd, target: IscsiTarget, tmp_path: Path
) -> None:
    host, disk = chap(tmp_path / "p", target, target.password)
    with open_domain(paused.uri, "g", host=host) as vm:
        vm.plug(disk)
        assert has(paused, disk) == (True, True)
        (line,) = secrets(paused).splitlines()
        assert disk.names.root in line
        assert target.password not in xml(paused) + xml(paused, live=False)
        assert USER in xml(paused)
        # The other view still needs it.
        assert vm.unplug(disk, config=True).removed == ()
        assert secrets(paused)
        assert vm.unplug(disk, timeout_s=0.3).state == "pending"
        paused.virsh("reset", "g")
        gone = vm.unplug(disk, timeout_s=10)
        assert gone.finished
        assert gone.detached
    assert secrets(paused) == ""
    assert actions(tmp_path / "p") == ["attach", "detach"]


def test_a_wrong_password_leaves_nothing_anywhere(paused: Libvirtd, target: IscsiTarget, tmp_path: Path) -> None:
    password = new_secret()
    host, disk = chap(tmp_path / "p", target, password)
    before = xml(paused, live=False), nodes(paused)
    with open_domain(paused.uri, "g", host=host) as vm, pytest.raises(OperationFailed) as failure:
        vm.plug(disk)
    assert password not in str(failure.value)
    assert "undone: attach fake/v" in failure.value.message
    assert failure.value.hint
    assert not failure.value.left
    assert secrets(paused) == ""
    assert (xml(paused, live=False), nodes(paused)) == before
    assert actions(tmp_path / "p") == ["attach", "detach"]
    assert records() == {}


def test_a_disk_that_libvirt_refuses_leaves_no_secret(paused: Libvirtd, target: IscsiTarget, tmp_path: Path) -> None:
    host, disk = chap(tmp_path / "p", target, target.password)
    # The domain has <boot dev='hd'/>.
    disk = replace(disk, options=replace(disk.options, bootindex=1))
    with (
        open_domain(paused.uri, "g", host=host) as vm,
        pytest.raises(OperationFailed, match=r"per-device boot elements.*undone: attach fake/v"),
    ):
        vm.plug(disk)
    assert secrets(paused) == ""
    assert has(paused, disk) == (False, False)
    assert actions(tmp_path / "p") == ["attach", "detach"]


def test_storage_that_libvirt_cannot_open_leaves_the_configuration_as_it_was(paused: Libvirtd, tmp_path: Path) -> None:
    host = offering(tmp_path / "p", "", "kvm:nbd+unix:///e?socket=/tmp/hvext-no-such.sock")
    before = xml(paused, live=False), xml(paused), nodes(paused)
    with (
        open_domain(paused.uri, "g", host=host) as vm,
        pytest.raises(OperationFailed, match=r"open the storage: .*Failed to connect.*undone: attach fake/v"),
    ):
        vm.plug(FAKE)
    assert (xml(paused, live=False), xml(paused), nodes(paused)) == before
    assert actions(tmp_path / "p") == ["attach", "detach"]


def test_a_dead_first_candidate_gives_way_to_the_next_and_both_views_have_that(
    paused: Libvirtd, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    offer = attachments.attach(storage.host, create()).attachment
    uri = offer.uris_for("kvm")[0]
    host = offering(
        tmp_path / "p", str(offer.block_path), "kvm:nbd+unix:///e?socket=/tmp/hvext-no-such.sock", f"kvm:{uri}"
    )
    with open_domain(paused.uri, "g", host=host) as vm:
        plugged = vm.plug(FAKE)
        assert plugged.location == uri
        assert "hvext-no-such.sock" in plugged.reason
        for live in (True, False):
            view = parse_domain(xml(paused, live=live)).disks[FAKE.volume.uuid]
            assert view.location is not None
            assert view.location.uri() == uri
            # It has another place to go to.
            assert view.driver["error_policy"] == "stop"
        paused.end("g")
        assert vm.unplug(FAKE).detached


def test_what_libvirt_cannot_say_is_passed_over_with_its_reason(paused: Libvirtd, tmp_path: Path) -> None:
    host = offering(tmp_path / "p", "", "kvm:ssh://host/path")
    with (
        open_domain(paused.uri, "g", host=host) as vm,
        pytest.raises(OperationFailed, match="libvirt XML cannot say a disk behind SSH"),
    ):
        vm.plug(FAKE)
    assert actions(tmp_path / "p") == ["attach", "detach"]


def test_a_disk_that_no_xml_can_say_is_refused_before_anything_is_attached(vm: LibvirtVm, storage: Storage) -> None:
    for options, error in (
        ({"iothread": "auto"}, RenderError),
        ({"bus": "rp0"}, InputError),
        ({"device": "scsi-hd", "bus": "scsi7"}, PlugError),
    ):
        with pytest.raises(error):
            vm.plug(storage.disk(**options))
    assert records() == {}


def test_a_guest_without_a_free_port_is_told_so_before_anything_is_attached(daemon: Libvirtd, storage: Storage) -> None:
    daemon.create(domain_xml("full", ports=0), "--paused")
    (storage.folder / "other.raw").write_bytes(bytes(MIB))
    daemon.virsh("attach-disk", "full", f"{storage.folder}/other.raw", "vdz", "--targetbus", "virtio")
    try:
        with (
            open_domain(daemon.uri, "full", host=storage.host) as vm,
            pytest.raises(PlugError, match="no free slot"),
        ):
            vm.plug(storage.disk())
    finally:
        daemon.end("full")


def test_a_domain_that_does_not_run_gets_the_disk_for_its_next_start(
    daemon: Libvirtd, storage: Storage, create: Callable[..., Disk]
) -> None:
    daemon.clear()
    daemon.define(domain_xml("g"))
    disk = create()
    with open_domain(daemon.uri, "g", host=storage.host) as vm:
        with pytest.raises(DomainError, match="does not run"):
            vm.plug(disk, live=True)
        assert vm.plug(disk).persistent
        with pytest.raises(DomainError, match="does not run"):
            vm.resize(disk, 128)
        daemon.virsh("start", "g", "--paused")
        listed = vm.disks()[disk.volume.uuid]
        assert listed.live is not None
        assert listed.size_bytes == 64 * MIB
        daemon.end("g")
        assert vm.unplug(disk).detached
        assert "ua-hv-" not in xml(daemon, live=False)
    daemon.clear()


@pytest.mark.nightly
def test_a_transient_domain_has_what_runs_alone(
    daemon: Libvirtd, storage: Storage, create: Callable[..., Disk]
) -> None:
    daemon.create(domain_xml("t"), "--paused")
    disk = create(device="scsi-hd")
    try:
        with open_domain(daemon.uri, "t", host=storage.host) as vm:
            with pytest.raises(DomainError, match="transient"):
                vm.plug(disk, config=True)
            plugged = vm.plug(disk)
            assert (plugged.live, plugged.persistent) == (True, False)
            assert vm.unplug(disk).detached
    finally:
        daemon.end("t")


def test_a_grown_volume_is_seen_and_what_libvirt_cannot_grow_is_refused_before(
    vm: LibvirtVm, storage: Storage, create: Callable[..., Disk]
) -> None:
    path, uri = create("path", device="scsi-hd", access="kernelspace"), create("uri", device="scsi-hd")
    vm.plug(path)
    grown = vm.resize(path, 96)
    assert (grown.before_bytes, grown.after_bytes, grown.volume_grown) == (64 * MIB, 96 * MIB, True)
    assert not vm.resize(path, 96).changed
    with pytest.raises(InputError, match="shrink"):
        vm.resize(path, 64)
    vm.plug(uri)
    with pytest.raises(RepointRefused, match="NBD connection keeps the size") as refused:
        vm.resize(uri, 96)
    assert vm.disks()[uri.volume.uuid].size_bytes == 64 * MIB
    # What the hint says.
    assert "repoint --access kernelspace --through-monitor" in refused.value.hint
    block = str(attachments.attach(storage.host, uri).attachment.block_path)
    vm.repoint(uri.volume.uuid, [parse_uri(block, look=opened_as)], through_monitor=True)
    assert vm.resize(uri, 96).after_bytes == 96 * MIB
    with pytest.raises(DiskNotFound):
        vm.resize(create("other"), 96)
    vm.unplug(path)
    vm.unplug(uri)


def test_a_move_is_refused_with_its_reason_and_done_past_libvirt_when_asked_for(
    vm: LibvirtVm, paused: Libvirtd, storage: Storage, create: Callable[..., Disk]
) -> None:
    before = nodes(paused)
    disk = create(device="scsi-hd")
    vm.plug(disk)
    path, uri = (parse_uri(text, look=opened_as) for text in storage.paths(disk))
    with pytest.raises(RepointRefused, match="no call that changes the source") as refused:
        vm.repoint(disk.volume.uuid, [path])
    assert "--through-monitor" in refused.value.hint
    there = nodes(paused)
    was = uri
    for place in (path, uri, path):
        moved = vm.repoint(disk.volume.uuid, [place], through_monitor=True)
        assert moved.changed
        assert (moved.before, moved.after) == (was.words, place.words), "a path, or a URI"
        assert f" at {was.words} until" in moved.warnings[0]
        assert "dumpxml" in moved.warnings[0]
        was = place
        assert nodes(paused) == there
        listed = vm.disks()[disk.volume.uuid]
        assert listed.live is not None
        assert listed.config is not None
        assert listed.live.location == listed.config.location == place
    assert not vm.repoint(disk.volume.uuid, [path], through_monitor=True).changed
    # libvirt grows and removes it as its own.
    assert vm.resize(disk, 96).after_bytes == 96 * MIB
    assert vm.unplug(disk).detached
    assert nodes(paused) == before
    # Plugged again, it is where libvirt opened it, whatever was written down about its moves.
    vm.plug(disk)
    listed = vm.disks()[disk.volume.uuid]
    assert listed.live is not None
    assert listed.live.location == uri
    vm.unplug(disk)


def test_a_move_to_another_size_leaves_the_disk_where_it_was(
    vm: LibvirtVm, paused: Libvirtd, storage: Storage, create: Callable[..., Disk]
) -> None:
    disk, other = create(device="scsi-hd"), create("other", size_mib=32)
    vm.plug(disk)
    there = nodes(paused)
    path = str(attachments.attach(storage.host, other).attachment.block_path)
    with pytest.raises(OperationFailed, match="has 33554432 bytes"):
        vm.repoint(disk.volume.uuid, [parse_uri(path, look=opened_as)], through_monitor=True)
    assert nodes(paused) == there
    vm.unplug(disk)


def test_a_move_to_a_socket_that_qemu_may_not_open_says_who_has_to_be_let_in(
    daemon: Libvirtd, storage: Storage, create: Callable[..., Disk]
) -> None:
    # root without its power over the files of other users stands for libvirt-qemu.
    emulator = daemon.folder / "qemu-without-power"
    weak = "setpriv --bounding-set=-dac_override,-dac_read_search"
    emulator.write_text(f'#!/bin/sh\nexec {weak} /usr/bin/qemu-system-x86_64 "$@"\n')
    emulator.chmod(0o755)
    daemon.define(domain_xml("weak").replace("/usr/bin/qemu-system-x86_64", str(emulator)))
    daemon.virsh("start", "weak", "--paused")
    disk = create(device="scsi-hd", access="kernelspace")
    try:
        with open_domain(daemon.uri, "weak", host=storage.host) as vm:
            vm.plug(disk)
            _path, uri = storage.paths(disk)
            folder = Path(parse_qs(urlsplit(uri).query)["socket"][0]).parent
            os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
            try:
                with pytest.raises(OperationFailed, match="Permission denied") as refused:
                    vm.repoint(disk.volume.uuid, [parse_uri(uri)], through_monitor=True)
            finally:
                os.chown(folder, 0, -1)
            assert "this QEMU, which runs as root, has to have the right to write to the socket" in refused.value.hint
            assert vm.unplug(disk).detached
    finally:
        daemon.clear()


def hvext(daemon: Libvirtd, command: str, *words: str, domain: str = "g") -> subprocess.CompletedProcess[str]:
    where = ["--connect", daemon.uri, "--domain", domain] if domain else []
    return subprocess.run(
        [sys.executable, "-m", "hvext", command, *where, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_commands_take_a_domain_in_the_place_of_a_monitor(
    paused: Libvirtd, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    disk = create(device="scsi-hd", access="kernelspace")
    parameters = [word for name, value in disk.volume.parameters.items() for word in ("-p", f"{name}={value}")]
    named = ["sample", disk.volume.name, *parameters, "--access", "kernelspace", "--log-dir", "none"]
    log = tmp_path / "log"
    done = hvext(paused, "plug", *named, "-o", "device=scsi-hd", "--log-file", str(log))
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in log.read_text().splitlines()]
    operations = [(each["vm"], each["disk"], each["outcome"]) for each in told if each["event"] == "operation"]
    assert operations == [("g", str(disk.volume.uuid), "begun"), ("g", str(disk.volume.uuid), "done")]
    assert f"plugged as {disk.names.alias}" in done.stdout
    (row,) = json.loads(hvext(paused, "disks", "--json").stdout)
    assert (row["uuid"], row["size_bytes"], row["live"]) == (str(disk.volume.uuid), 64 * MIB, True)
    assert "live,config" in hvext(paused, "disks").stdout
    top = [sys.executable, "-m", "hvext", "top", "--once", "--interval", "0.1", "--json"]
    seen = json.loads(subprocess.run(top, capture_output=True, text=True, timeout=60, check=True).stdout)
    assert [(each["volume"], each["state"]) for each in seen["disks"]] == [(f"sample/{named[1]}", "paused")]
    done = hvext(paused, "resize", *named, "--new-size", "80")
    assert done.returncode == 0, done.stderr
    done = hvext(paused, "repoint", *named[:2], *parameters, "--access", "userspace", "--log-dir", "none")
    assert done.returncode == 1
    assert "no call that changes the source" in done.stderr
    done = hvext(paused, "unplug", *named, "--json")
    assert json.loads(done.stdout)["detached"] is True
    assert hvext(paused, "disks").stdout == "the domain has no disks of hvext\n"


def test_the_commands_say_which_view_alone_has_a_disk(
    daemon: Libvirtd, storage: Storage, create: Callable[..., Disk]
) -> None:
    daemon.clear()
    daemon.define(domain_xml("g"))
    disk = create(device="scsi-hd", access="kernelspace")
    parameters = [word for name, value in disk.volume.parameters.items() for word in ("-p", f"{name}={value}")]
    named = ["sample", disk.volume.name, *parameters, "--log-dir", "none"]
    done = hvext(daemon, "plug", *named, "--access", "kernelspace", "-o", "device=scsi-hd")
    assert done.returncode == 0, done.stderr
    assert "note: the persistent configuration alone has it: a guest sees it when" in done.stderr
    shown = hvext(daemon, "disks", "--stats").stdout
    assert "VM g: shut off" in shown
    assert f"sample/{named[1]}  scsi-hd  -\n" in shown
    assert "  target    sda, in config\n" in shown
    assert "  location  /dev/loop" in shown
    daemon.virsh("start", "g", "--paused")
    assert "  target    sda, in live,config\n" in hvext(daemon, "disks", "--stats").stdout
    assert "note" not in hvext(daemon, "plug", *named, "--access", "kernelspace").stderr
    done = hvext(daemon, "unplug", *named, "--live")
    assert done.returncode == 0, done.stderr
    assert "note: the persistent configuration keeps the disk, and its volume stays attached" in done.stderr
    assert loops(storage.folder)
    done = hvext(daemon, "unplug", *named, "--json")
    assert json.loads(done.stdout)["detached"] is True
    assert (json.loads(done.stdout)["live"], json.loads(done.stdout)["persistent"]) == (False, False)
    assert "note" not in done.stderr
    daemon.clear()


def test_a_domain_starts_with_the_disks_that_args_prints_and_their_secrets(
    daemon: Libvirtd, storage: Storage, create: Callable[..., Disk], target: IscsiTarget, tmp_path: Path
) -> None:
    daemon.clear()
    secret = chap(tmp_path / "p", target, target.password)[1]
    plain = create(device="scsi-hd", access="kernelspace")
    path = f"{tmp_path / 'p'}:{Path(attachments.__file__).parents[1] / 'providers'}"
    disks = tmp_path / "disks.json"
    disks.write_text(json.dumps([secret.to_mapping(), plain.to_mapping()]))
    words = ["args", "--disks", str(disks), "--format", "xml", "--search-path", path, "--log-dir", "none"]
    done = subprocess.run(
        [sys.executable, "-m", "hvext", *words, "--connect", daemon.uri],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    daemon.define(domain_xml("g", scsi=False, more=done.stdout))
    daemon.virsh("start", "g", "--paused")
    host = ProviderHost(search_path=tuple(path.split(":")))
    with open_domain(daemon.uri, "g", host=host) as vm:
        assert {disk.names for disk in (secret, plain)} == {
            each.live.names for each in vm.disks().values() if each.live is not None
        }
        # They were written down before there was a domain.
        assert records() == {"g": sorted(str(disk.volume.uuid) for disk in (secret, plain))}
        daemon.end("g")
        for disk in (secret, plain):
            assert vm.unplug(disk).detached
    assert secrets(daemon) == ""
    assert "ua-hv" not in xml(daemon, live=False)
    daemon.clear()


def findings() -> list[str]:
    return [str(each.kind) for each in asyncio.run(audit.audit(folder=JournalFolder()))]


def recovered(host: ProviderHost) -> list[str]:
    return [str(each.outcome) for each in asyncio.run(recover.recover(host, folder=JournalFolder()))]


def test_audit_and_recover_know_what_libvirt_has(
    paused: Libvirtd, storage: Storage, create: Callable[..., Disk]
) -> None:
    both = create("both", device="scsi-hd", access="kernelspace")
    passing = create("passing", device="scsi-hd", access="kernelspace")
    late = create("late", access="kernelspace")
    with open_domain(paused.uri, "g", host=storage.host, name="other-name") as vm:
        vm.plug(both)
        vm.plug(passing, live=True)
        vm.plug(late)
        assert findings() == []
        assert recovered(storage.host) == []
        assert vm.unplug(late, timeout_s=0.1).state == "pending"
    assert findings() == ["pending unplug"]
    paused.end("g")
    assert sorted(findings()) == ["unused volume", "unused volume"]
    assert len(loops(storage.folder)) == 3
    assert sorted(recovered(storage.host)) == ["finished", "undone"]
    assert len(loops(storage.folder)) == 1
    assert findings() == []
    paused.virsh("undefine", "g")
    assert findings() == ["unused volume"]
    assert recovered(storage.host) == ["undone"]
    assert not loops(storage.folder)
    assert records() == {}
    paused.define(domain_xml("g"))


def test_audit_tells_of_a_domain_that_its_storage_has_stopped_and_how_it_runs_again(
    daemon: Libvirtd, storage: Storage, create: Callable[..., Disk], guest_image: GuestImage
) -> None:
    daemon.clear()
    disk = create("died")
    with (
        booted(daemon, guest_image, "stops") as console,
        open_domain(daemon.uri, "stops", host=storage.host) as vm,
    ):
        vm.plug(disk)
        device = wait_for_disk(console)
        assert findings() == []
        kill_servers(storage)
        # Later: a guest that is stopped answers nothing.
        console.run(f"(sleep 1; dd if=/dev/zero of={device} bs=4k count=1 oflag=direct) >/dev/null 2>&1 &")
        deadline = time.monotonic() + 30
        while "I/O error" not in daemon.virsh("domstate", "stops", "--reason"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (found,) = asyncio.run(audit.audit(folder=JournalFolder()))
        assert (str(found.kind), found.uuid) == ("stopped by an I/O error", disk.volume.uuid)
        assert found.words.startswith(
            "the guest is stopped: the storage of sample/died has failed; bring it back (hvext attach "
        )
        assert found.words.endswith(f"virsh -c '{daemon.uri}' resume stops")
        (seen,) = asyncio.run(HostObserver(names=["stops"]).observe())
        (warning,) = seen.disks[0].warnings
        assert (warning.oddity, warning.words) == (Oddity.FAILED, found.words)
        daemon.end("stops")
        assert vm.unplug(disk).detached


def test_a_plug_whose_hvext_is_killed_is_finished_in_both_views(
    paused: Libvirtd, storage: Storage, create: Callable[..., Disk]
) -> None:
    disk = create(device="scsi-hd", access="kernelspace")
    code = (
        "import os, sys, json\n"
        "from hvext.core.disk import Disk\n"
        "from hvext.host.provider import ProviderHost\n"
        "from hvext.operations.domains.vm import open_domain\n"
        "from hvext.host.domain import DomainHandle\n"
        "attach = DomainHandle.attach\n"
        "def dying(self, xml, *, live):\n"
        "    attach(self, xml, live=live) if not live else os._exit(9)\n"
        "DomainHandle.attach = dying\n"
        "with open_domain(sys.argv[1], 'g', host=ProviderHost(log_directory=None)) as vm:\n"
        "    vm.plug(Disk.from_mapping(json.loads(sys.argv[2])))\n"
    )
    dead = subprocess.run(
        [sys.executable, "-c", code, paused.uri, json.dumps(disk.to_mapping())], timeout=60, check=False
    )
    assert dead.returncode == 9
    assert has(paused, disk) == (False, True)
    assert findings() == ["unfinished"]
    assert recovered(storage.host) == ["finished"]
    assert has(paused, disk) == (True, True)
    assert findings() == []
    with open_domain(paused.uri, "g", host=storage.host) as vm:
        assert vm.unplug(disk).detached


def test_a_wrong_connection_or_domain_is_told_with_its_cure(paused: Libvirtd) -> None:
    done = hvext(paused, "disks", domain="nobody")
    assert (done.returncode, "no domain 'nobody'" in done.stderr, "it has: g" in done.stderr) == (1, True, True)
    for words, status, text in (
        (["--connect", "qemu+unix:///system?socket=/nowhere", "--domain", "g"], 1, "cannot connect to libvirt"),
        (["--connect", paused.uri], 2, "add --domain"),
        (["--connect", paused.uri, "--domain", "g", "--places"], 2, "name it with --qmp"),
        (["--qmp", "/nowhere", "--domain", "g"], 2, "go with --connect"),
        (["--qmp", "/nowhere", "--connect", paused.uri], 2, "not allowed with"),
        ([], 2, "--qmp SOCKET, or --connect URI"),
    ):
        done = hvext(paused, "disks", *words, domain="")
        assert done.returncode == status, words
        assert text in done.stderr, words
        assert "Traceback" not in done.stderr


def test_without_libvirts_library_the_error_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['libvirt'] = None; from hvext.cli import main; "
        "sys.exit(main(['disks', '--connect', 'qemu:///system', '--domain', 'g']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "hvext[libvirt]" in done.stderr


@pytest.mark.nightly
def test_a_libvirtd_that_ends_under_an_open_connection_is_an_error_and_no_hang(storage: Storage) -> None:
    with libvirtd() as own:
        own.define(domain_xml("g"))
        with open_domain(own.uri, "g", host=storage.host) as vm:
            own.service.kill()
            with pytest.raises(MonitorError, match="broke"):
                vm.plug(storage.disk())
    assert records() == {}
