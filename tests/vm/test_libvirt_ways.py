"""Other ways to a libvirtd: an ordinary user's own, one behind SSH, one on another host, and connections that break."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hvext.core.disk import Disk
from hvext.core.domain import parse_domain
from hvext.core.uri import parse_uri
from hvext.errors import DomainError, HvextError, MonitorError, OperationFailed, RepointRefused
from hvext.host.domain import DomainHandle
from hvext.host.journal import JournalFolder
from hvext.host.provider import ProviderHost
from hvext.operations import volumes
from hvext.operations.domains.vm import open_domain
from hvext.operations.journal import read_records
from tests.providers import read_calls, write_provider
from tests.secrecy import new_secret
from tests.servers.libvirtd import FAR_AWAY, SESSION_URI, STORAGE, Libvirtd, Session, SshWay, libvirtd, session, ssh_to
from tests.servers.nbd import nbd_server
from tests.vm.libvirt_guests import domain_xml
from tests.vm.state import loops

if TYPE_CHECKING:
    from tests.vm.conftest import Storage

pytestmark = [pytest.mark.vm, pytest.mark.nightly]
MIB = 1 << 20
FAKE = Disk.from_mapping({"provider": "fake", "volume": "v", "device": "scsi-hd"})


@pytest.fixture(scope="module")
def user() -> Iterator[Session]:
    with session() as running:
        running.start("g", domain_xml("g"))
        yield running


def provider(user: Session, answer: str) -> str:
    """A provider ``fake`` of the user's, whose attach prints this; returns the folder to look in."""
    place = user.home / "providers"
    if not place.exists():
        write_provider(place, "fake")
    (place / "fake" / "attach").write_text(f"#!/bin/sh\nprintf '\\n{answer}\\n'\n")
    grow = 'truncate -s "${VOL_NEW_SIZE}M" "$HOME/v.raw"' if answer.startswith("kvm:file:") else "exit 0"
    (place / "fake" / "grow").write_text(f"#!/bin/sh\nHOME={user.home}; {grow}\n")
    return str(place)


def test_a_user_plugs_grows_and_unplugs_disks_of_guests_of_their_own(user: Session) -> None:
    volume = user.home / "v.raw"
    volume.write_bytes(bytes(32 * MIB))
    os.chown(volume, user.home.stat().st_uid, -1)
    where = ["--connect", SESSION_URI, "--domain", "g"]
    fake = ["fake", "v", "--search-path", provider(user, f"kvm:file:{volume}")]
    done = user.hvext("plug", *fake, *where, "-o", "device=scsi-hd")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(user.hvext("disks", *where, "--json").stdout)
    assert (row["size_bytes"], row["access"], row["live"], row["persistent"]) == (32 * MIB, "userspace", True, True)
    assert str(volume) in user.virsh("dumpxml", "g")
    top = json.loads(user.hvext("top", "--once", "--interval", "0.1", "--json").stdout)
    assert [(each["vm"], each["state"]) for each in top["disks"]] == [("g", "paused")]
    done = user.hvext("resize", *fake, *where, "--new-size", "48")
    assert done.returncode == 0, done.stderr
    assert "48 MiB" in done.stdout
    assert user.hvext("audit").returncode == 0
    done = user.hvext("unplug", *fake, *where)
    assert done.returncode == 0, done.stderr
    assert "volume detached" in done.stdout
    assert "ua-hv-" not in user.virsh("dumpxml", "g") + user.virsh("dumpxml", "g", "--inactive")
    # All that hvext wrote is the user's, in the user's own folders.
    assert (user.home / ".local" / "state" / "hvext").stat().st_uid == user.home.stat().st_uid


def test_a_user_has_the_shipped_provider_serve_volumes_without_block_devices(user: Session) -> None:
    volumes, run = user.home / "volumes", user.home / "run"
    where = ["--connect", SESSION_URI, "--domain", "g"]
    sample = ["sample", "vol", "-p", f"dir={volumes}", "-p", f"run={run}"]
    assert user.hvext("create", *sample, "--size", "16").returncode == 0
    refused = user.hvext("plug", *sample, *where)
    assert refused.returncode == 1
    # What it needs root for, and what to do.
    assert "be root, or set path=no" in refused.stderr
    done = user.hvext("plug", *sample, "-p", "path=no", *where, "-o", "device=scsi-hd")
    assert done.returncode == 0, done.stderr
    assert "userspace nbd+unix:" in done.stdout
    done = user.hvext("unplug", *sample, "-p", "path=no", *where)
    assert "volume detached" in done.stdout, done.stderr
    assert user.hvext("remove", *sample, "-p", "path=no").returncode == 0


def test_a_users_state_is_where_xdg_has_it(user: Session) -> None:
    fake = ["fake", "v", "--search-path", provider(user, "kvm:nbd://127.0.0.1:1/v")]
    other = user.home / "other-state"
    done = user.hvext("plug", *fake, "--connect", SESSION_URI, "--domain", "g", XDG_STATE_HOME=str(other))
    assert done.returncode == 1
    assert "Connection refused" in done.stderr
    assert {"log"} <= {each.name for each in (other / "hvext").iterdir()}
    # A relative one is none, says the specification.
    assert user.hvext("audit", XDG_STATE_HOME="relative").returncode == 0


def test_what_a_user_may_not_do_is_told_with_its_cure(user: Session, tmp_path: Path) -> None:
    done = user.hvext("disks", "--connect", "qemu:///session", "--domain", "nobody")
    assert "no domain 'nobody'" in done.stderr
    done = user.hvext("disks", "--connect", "qemu:///session", "--domain", "g", XDG_RUNTIME_DIR="/proc", HOME="/proc")
    assert done.returncode == 1
    assert "XDG_RUNTIME_DIR" in done.stderr
    done = user.hvext("audit", HVEXT_STATE_DIR="/root/hvext")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    fake = ["fake", "v", "--search-path", provider(user, "kvm:nbd://127.0.0.1:1/v")]
    done = user.hvext("plug", *fake, "--connect", SESSION_URI, "--domain", "g", HVEXT_STATE_DIR="/proc/hvext")
    assert done.returncode == 1
    assert "HVEXT_STATE_DIR" in done.stderr


def test_a_users_password_is_a_secret_of_the_users_libvirtd(user: Session, tmp_path: Path) -> None:
    secret = new_secret()
    file = user.home / "password"
    file.write_text(secret)
    os.chown(file, user.home.stat().st_uid, -1)
    file.chmod(0o600)
    fake = ["fake", "v", "--search-path", provider(user, "kvm:iscsi://me@127.0.0.1:1/iqn.2026-01.org.example:v/1")]
    named = [*fake, "--connect", SESSION_URI, "--domain", "g"]
    done = user.hvext("plug", *named, "--secret", f"password={file}", "--config")
    assert done.returncode == 0, done.stderr
    assert "hv" in user.virsh("secret-list")
    kept = list((user.home / ".config" / "libvirt" / "secrets").glob("*.base64"))
    assert [path.stat().st_mode & 0o777 for path in kept] == [0o600]
    assert secret not in user.virsh("dumpxml", "g", "--inactive")
    done = user.hvext("unplug", *named, "--secret", f"password={file}")
    assert done.returncode == 0, done.stderr
    assert user.virsh("secret-list").strip() == ""
    assert not list((user.home / ".config" / "libvirt" / "secrets").iterdir())


@pytest.fixture(scope="module")
def near() -> Iterator[Libvirtd]:
    with libvirtd() as running:
        running.define(domain_xml("g"))
        running.virsh("start", "g", "--paused")
        yield running


@pytest.fixture(scope="module")
def way(near: Libvirtd) -> Iterator[SshWay]:
    with ssh_to(near) as running:
        yield running


def records() -> dict[str, Any]:
    return {name: sorted(map(str, record.disks)) for name, record in read_records(JournalFolder()).items()}


@pytest.mark.parametrize("named", ["by its host", "by its socket there"])
def test_over_ssh_to_this_host_disks_come_grow_and_go_with_their_block_devices(
    way: SshWay, near: Libvirtd, storage: Storage, create: Callable[..., Disk], named: str
) -> None:
    disk = create(device="scsi-hd", access="kernelspace")
    uri = way.uri if named == "by its host" else way.uri_of(near.socket)
    with open_domain(uri, "g", host=storage.host) as vm:
        plugged = vm.plug(disk)
        assert (plugged.access, plugged.live, plugged.persistent) == ("kernelspace", True, True)
        assert vm.disks()[disk.volume.uuid].size_bytes == 64 * MIB
        grown = vm.resize(disk, 80)
        assert (grown.before_bytes, grown.after_bytes) == (64 * MIB, 80 * MIB)
        top = [sys.executable, "-m", "hvext", "top", "--once", "--interval", "0.1", "--json"]
        seen = json.loads(subprocess.run(top, capture_output=True, text=True, timeout=60, check=True).stdout)
        assert [(each["access"], each["state"]) for each in seen["disks"]] == [("kernelspace", "paused")]
        assert vm.unplug(disk).detached
    assert not loops(storage.folder)
    assert records() == {}


@pytest.mark.parametrize("when", ["before", "between", "waiting"])
def test_a_connection_that_breaks_is_told_and_a_repeat_finishes(
    way: SshWay,
    near: Libvirtd,
    storage: Storage,
    create: Callable[..., Disk],
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    disk = create(access="kernelspace", **({} if when == "waiting" else {"device": "scsi-hd"}))
    attach = DomainHandle.attach

    def cutting(self: DomainHandle, xml: str, *, live: bool) -> None:
        if live == (when == "between"):
            way.cut()
        attach(self, xml, live=live)

    with open_domain(way.uri, "g", host=storage.host) as vm:
        if when == "waiting":
            vm.plug(disk)
            later = threading.Timer(0.7, way.cut)
            later.start()
            with pytest.raises(HvextError, match=r"the connection to libvirt at .* broke"):
                vm.unplug(disk, timeout_s=60)
            later.join()
        else:
            monkeypatch.setattr(DomainHandle, "attach", cutting)
            with pytest.raises(HvextError, match=r"the connection to libvirt at .* broke") as failure:
                vm.plug(disk)
            monkeypatch.undo()
            if when == "before":
                # Whatever could not be asked back from libvirt is said.
                assert isinstance(failure.value, OperationFailed | MonitorError)
    with open_domain(way.uri, "g", host=storage.host) as vm:
        if when == "waiting":
            assert vm.unplug(disk, timeout_s=0.3).state == "pending"
            near.virsh("reset", "g")
            assert vm.unplug(disk, timeout_s=20).detached
        else:
            assert vm.plug(disk).changed
            assert vm.disks()[disk.volume.uuid].live is not None
            assert vm.disks()[disk.volume.uuid].config is not None
            assert vm.unplug(disk).detached
    assert not loops(storage.folder)
    assert records() == {}


def test_nobody_behind_ssh_is_told_with_its_cure(way: SshWay, tmp_path: Path) -> None:
    with ssh_without_key(way, tmp_path) as uri:
        done = subprocess.run(
            [sys.executable, "-m", "hvext", "disks", "--connect", uri, "--domain", "g"],
            capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    assert done.returncode == 1
    assert "Permission denied" in done.stderr
    assert "does ssh to that host work" in done.stderr


@contextlib.contextmanager
def ssh_without_key(way: SshWay, folder: Path) -> Iterator[str]:
    key = folder / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    yield way.uri.replace(f"keyfile={way.folder}/user", f"keyfile={key}") + "&no_tty=1"


@pytest.fixture(scope="module")
def far() -> Iterator[tuple[Libvirtd, SshWay]]:
    with libvirtd(far_away=True) as running, ssh_to(running) as way:
        running.define(domain_xml("g"))
        running.virsh("start", "g", "--paused")
        yield running, way


def offering(folder: Path, *lines: str) -> ProviderHost:
    """A provider ``fake`` whose attach prints these lines."""
    answer = "\\n".join(lines)
    write_provider(folder, "fake", {"attach": f"printf '{answer}\\n'"}, record=folder / "calls")
    return ProviderHost(search_path=(str(folder),))


def test_another_host_gets_disks_that_both_reach_and_no_path_of_this_one(
    far: tuple[Libvirtd, SshWay], storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    daemon, way = far
    here = create("here")
    loop, unix = storage.paths(here)
    with nbd_server(tcp=True) as server:
        server.create("v", 32 * MIB)
        loopback = server.uri("v")
        uri = loopback.replace("127.0.0.1", STORAGE)
        with open_domain(way.uri, "g", host=storage.host) as vm, pytest.raises(HvextError) as refused:
            vm.plug(here)
        # Which place is not there, whose it is, and what helps.
        for words in (loop, FAR_AWAY, "run hvext on"):
            assert words in str(refused.value), words
        host = offering(tmp_path / "p", loop, f"kvm:{unix}", f"kvm:{loopback}", f"kvm:{uri}")
        with open_domain(way.uri, "g", host=host) as vm:
            plugged = vm.plug(FAKE)
            assert plugged.location == uri
            assert loopback in plugged.reason
            live = parse_domain(daemon.virsh("dumpxml", "g")).disks[FAKE.volume.uuid]
            assert live.location is not None
            assert live.location.uri() == uri
            assert vm.disks()[FAKE.volume.uuid].size_bytes == 32 * MIB
            with pytest.raises(RepointRefused, match=FAR_AWAY):
                vm.repoint(FAKE.volume.uuid, [parse_uri(loopback)], through_monitor=True)
            assert vm.unplug(FAKE).detached
    assert [call.action for call in read_calls(tmp_path / "p" / "calls")] == ["attach", "detach"]
    assert "ua-hv-" not in daemon.virsh("dumpxml", "g")
    assert records() == {}


def test_a_volume_that_was_attached_on_the_other_host_is_left_to_it(
    far: tuple[Libvirtd, SshWay], storage: Storage, create: Callable[..., Disk]
) -> None:
    daemon, way = far
    disk = create(device="scsi-hd", access="kernelspace")
    # As hvext over there did.
    with open_domain(daemon.uri, "g", host=storage.host) as vm:
        vm.plug(disk)
    with open_domain(way.uri, "g", host=storage.host, state=str(storage.folder / "elsewhere")) as vm:
        with pytest.raises(DomainError, match="attached there") as refused:
            vm.unplug(disk)
        assert FAR_AWAY in str(refused.value)
        with pytest.raises(DomainError, match="attached there"):
            vm.resize(disk, 80)
        assert loops(storage.folder)
        # Taking the device away needs no script.
        gone = vm.unplug_only(disk.volume.uuid)
        assert (gone.state, gone.detached) == ("unplugged", False)
    with open_domain(daemon.uri, "g", host=storage.host) as vm:
        assert vm.unplug(disk).detached
    assert not loops(storage.folder)


def test_another_host_is_not_sent_xml_with_paths_of_this_one(
    far: tuple[Libvirtd, SshWay], storage: Storage, tmp_path: Path
) -> None:
    _daemon, way = far
    disk = storage.disk("started", access="kernelspace")
    volumes.create_volume(storage.host, disk, 64)
    disks = tmp_path / "disks.json"
    disks.write_text(json.dumps([disk.to_mapping()]))
    words = ["args", "--disks", str(disks), "--format", "xml", "--connect", way.uri, "--log-dir", "none"]
    done = subprocess.run(
        [sys.executable, "-m", "hvext", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert FAR_AWAY in done.stderr
    assert not loops(storage.folder)
