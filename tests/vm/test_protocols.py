"""Every protocol on a real server: attached by a provider, plugged into a running guest, written, unplugged, read back.

All of it in one guest, whose memory is shared (vhost-user), whose QEMU finds an ssh agent and trusts the web server.
NFS has a network of its own, and so a guest of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hvext.core.disk import Disk
from hvext.host.guest import Console
from hvext.host.machine import GuestImage, Machine, MachineOptions, start_machine
from hvext.host.provider import ProviderHost
from hvext.operations.unplug import UnplugState
from hvext.operations.vm import open_vm
from tests.providers import write_provider
from tests.secrecy import SECRET_FOLDER, remember, secrets_in
from tests.servers.ceph import NAMESPACE, CephCluster, ceph_cluster
from tests.servers.certificates import Certificates, certificates
from tests.servers.gluster import gluster_server
from tests.servers.https import Place, WebServer, web_server
from tests.servers.iscsi import IscsiTarget, iscsi_target
from tests.servers.nbd import PSK_USER, nbd_server
from tests.servers.nfs import nfs_server
from tests.servers.ssh import SshServer, ssh_server
from tests.servers.vhost_user import vhost_user_server
from tests.vm.conftest import BOOT_LIMIT_S
from tests.vm.state import state_of
from tests.vm.volume import guest_disks, wait_for_disk

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

MIB = 1 << 20
SIZE = 16 * MIB
LENGTH = 64 * 1024


@pytest.fixture(scope="module")
def authority() -> Iterator[Certificates]:
    with certificates() as made:
        yield made


@pytest.fixture(scope="module")
def ssh() -> Iterator[SshServer]:
    with ssh_server() as server:
        yield server


@pytest.fixture(scope="module")
def web(authority: Certificates) -> Iterator[WebServer]:
    with web_server(authority) as server:
        yield server


@pytest.fixture(scope="module")
def ceph() -> Iterator[CephCluster]:
    with ceph_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def iscsi() -> Iterator[IscsiTarget]:
    with iscsi_target() as target:
        yield target


@contextlib.contextmanager
def booted(image: GuestImage, logs: Path, **options: Any) -> Iterator[tuple[Machine, Console]]:
    with start_machine(MachineOptions(name="protocols", root_ports=4, **options), image, logs) as machine:
        console = Console(machine.command_path, machine.console_log, alive=lambda: machine.alive)
        console.wait_ready(BOOT_LIMIT_S)
        yield machine, console


@pytest.fixture(scope="module")
def guest(
    guest_image: GuestImage, accel: str, ssh: SshServer, web: WebServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Machine, Console]]:
    logs = tmp_path_factory.mktemp("protocols")
    with booted(guest_image, logs, accel=accel, shared_memory=True, prefix=web.prefix, env=ssh.env) as found:
        yield found


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A provider whose attach prints one URI, and the disk on it."""

    host: ProviderHost
    disk: Disk


@pytest.fixture
def offer(tmp_path: Path) -> Callable[..., Offer]:
    """A function that makes a provider which prints a URI with all its secrets, and a disk of it."""

    def make(uri: str, *, parameters: dict[str, str] | None = None, **more: Any) -> Offer:
        name = f"p{uuid.uuid4().hex}"
        attach = f"printf '\\n%s\\n' {shlex.quote('kvm:' + uri)}; echo attaching {shlex.quote(uri)} >&2"
        write_provider(tmp_path / SECRET_FOLDER, name, {"attach": attach})
        host = ProviderHost(search_path=[str(tmp_path / SECRET_FOLDER)], log_directory=str(tmp_path / "provider-logs"))
        values: dict[str, object] = {"provider": name, "volume": "vol", "parameters": parameters or {}, **more}
        return Offer(host=host, disk=Disk.from_mapping(values))

    return make


def private_files() -> list[str]:
    folder = Path(os.environ["HVEXT_RUNTIME_DIR"])
    return sorted(str(path) for path in folder.rglob("*")) if folder.exists() else []


def pattern(name: str) -> bytes:
    line = f"{name}-{uuid.uuid4()}\n".encode()
    return (line * (LENGTH // len(line) + 1))[:LENGTH]


def in_guest(console: Console, command: str) -> str:
    status, printed = console.run(command)
    assert status == 0, printed
    return printed.strip()


def use(
    guest: tuple[Machine, Console],
    offered: Offer,
    work: Callable[[Console, str], None],
    *,
    secrets: tuple[str, ...] = (),
) -> None:
    """Plug, work on the disk in the guest, unplug; everything is as before afterwards, and no secret is to be seen."""
    machine, console = guest
    before, files = state_of(machine), private_files()
    with open_vm(str(machine.qmp_path), host=offered.host) as vm:
        plugged = vm.plug(offered.disk)
        assert (plugged.changed, plugged.access) == (True, "userspace")
        work(console, wait_for_disk(console))
        seen = [json.dumps(plugged.to_json()), repr(plugged), repr(vm.disks()), repr(offered.disk)]
        seen += [json.dumps(running.to_json()) for running in vm.disks().values()]
        assert not vm.plug(offered.disk).changed
        assert vm.unplug(offered.disk).state is UnplugState.UNPLUGGED
        assert vm.disks() == {}
    command_line = Path(f"/proc/{machine.pid}/cmdline").read_bytes().decode()
    for secret in secrets:
        assert not secrets_in("\n".join([*seen, command_line, *machine.argv]).encode(), [secret])
    assert state_of(machine) == before
    assert private_files() == files
    assert guest_disks(console) == []


def write_and_read_back(
    guest: tuple[Machine, Console],
    offered: Offer,
    read: Callable[[int, int], bytes],
    *,
    secrets: tuple[str, ...] = (),
) -> None:
    """What the guest writes is what the server has when the disk is unplugged."""
    data = pattern("guest")
    line = data.partition(b"\n")[0].decode()

    def write(console: Console, device: str) -> None:
        in_guest(
            console, f"yes {line} | dd of={device} bs=4096 count={LENGTH // 4096} seek=1 iflag=fullblock conv=fsync"
        )

    use(guest, offered, write, secrets=secrets)
    assert read(4096, LENGTH) == data
    assert read(0, 4096) == bytes(4096)


# NBD


@pytest.mark.parametrize("form", ["unix", "tcp", "x509", "x509-unix", "psk"])
def test_a_guest_writes_to_an_nbd_server(
    guest: tuple[Machine, Console], offer: Callable[..., Offer], authority: Certificates, form: str
) -> None:
    tls = authority if form.startswith("x509") else None
    with nbd_server(tcp=form in ("tcp", "x509", "psk"), certificates=tls, psk=form == "psk") as server:
        server.create("vol one", SIZE)
        uri = server.uri("vol one")
        if tls:
            more = f"tls-certificates={tls.client}" + ("&tls-hostname=localhost" if form == "x509-unix" else "")
            uri = uri.replace("nbd", "nbds", 1) + ("&" if "?" in uri else "?") + more
        if form == "psk":
            uri = uri.replace("nbd://", f"nbds://{PSK_USER}@", 1) + f"?tls-psk-file={server.psk}/keys.psk"
        secrets = (remember(server.key),) if server.key else ()
        read = lambda offset, length: server.read("vol one", offset, length)  # noqa: E731
        write_and_read_back(guest, offer(uri), read, secrets=secrets)


# Ceph


def test_a_guest_writes_to_a_ceph_image_with_a_key_in_the_uri(
    guest: tuple[Machine, Console], offer: Callable[..., Offer], ceph: CephCluster
) -> None:
    ceph.create("one", SIZE)
    uri = ceph.uri_with_key("one")
    secrets = (remember(ceph.key),)
    write_and_read_back(guest, offer(uri), lambda offset, length: ceph.read("one", offset, length), secrets=secrets)


def test_a_guest_writes_to_a_ceph_image_in_a_namespace_with_options_that_qemu_has_no_field_for(
    guest: tuple[Machine, Console], offer: Callable[..., Offer], ceph: CephCluster
) -> None:
    ceph.create("two", SIZE, namespace=NAMESPACE)
    uri = ceph.uri("two", namespace=NAMESPACE) + ":rbd_cache=true:rados_osd_op_timeout=20"
    read = lambda offset, length: ceph.read("two", offset, length, namespace=NAMESPACE)  # noqa: E731
    write_and_read_back(guest, offer(uri), read)


# iSCSI


@pytest.mark.parametrize("where", ["uri", "parameter", "file"])
def test_a_guest_writes_to_an_iscsi_unit_with_chap(
    guest: tuple[Machine, Console], offer: Callable[..., Offer], iscsi: IscsiTarget, tmp_path: Path, where: str
) -> None:
    name = f"unit-{where}"
    iscsi.create(name, SIZE)
    with_password = iscsi.uri_with_password(name)
    password = remember(iscsi.password)
    without = with_password.replace(f"%{password}", "")
    assert without != with_password
    if where == "uri":
        offered = offer(with_password)
    elif where == "parameter":
        offered = offer(without, parameters={"password": password})
    else:
        (tmp_path / SECRET_FOLDER).mkdir()
        (tmp_path / SECRET_FOLDER / "chap").write_text(password + "\n")
        offered = offer(without, **{"secret.password": str(tmp_path / SECRET_FOLDER / "chap")})
    write_and_read_back(guest, offered, lambda offset, length: iscsi.read(name, offset, length), secrets=(password,))


# SSH, vhost-user, Gluster


def test_a_guest_writes_to_a_file_over_ssh(
    guest: tuple[Machine, Console], offer: Callable[..., Offer], ssh: SshServer
) -> None:
    ssh.create("vol", SIZE)
    uri = ssh.uri("vol", check=f"sha256:{ssh.sha256}")
    write_and_read_back(guest, offer(uri), lambda offset, length: ssh.read("vol", offset, length))


def test_a_guest_writes_to_a_vhost_user_server(guest: tuple[Machine, Console], offer: Callable[..., Offer]) -> None:
    with vhost_user_server() as server:
        server.create("vol", SIZE)
        uri = f"vhost-user:{server.socket('vol')}"
        write_and_read_back(guest, offer(uri), lambda offset, length: server.read("vol", offset, length))


def test_a_guest_writes_to_a_gluster_volume(guest: tuple[Machine, Console], offer: Callable[..., Offer]) -> None:
    with gluster_server() as server:
        server.create("vol", SIZE)
        write_and_read_back(guest, offer(server.uri("vol")), lambda at, length: server.read("vol", at, length))


# HTTPS


@pytest.mark.parametrize("place", ["open", "password", "cookie"])
def test_a_guest_reads_what_a_web_server_has(
    guest: tuple[Machine, Console], offer: Callable[..., Offer], web: WebServer, place: str
) -> None:
    web.create(place, SIZE)
    data = pattern("server")
    web.write(place, 4096, data)
    secrets: tuple[str, ...] = ()
    if place == "open":
        offered = offer(web.uri(place))
    elif place == "password":
        secrets = (remember(web.password),)
        offered = offer(web.uri_with_password(place))
    else:
        secrets = (remember(web.token),)
        offered = offer(web.uri(place, Place.COOKIE), parameters={"cookie": web.cookie})

    def read(console: Console, device: str) -> None:
        command = f"dd if={device} bs=4096 skip=1 count={LENGTH // 4096} 2>/dev/null | sha256sum"
        assert in_guest(console, command).split()[0] == hashlib.sha256(data).hexdigest()
        assert in_guest(console, f"cat /sys/block/{device.removeprefix('/dev/')}/ro") == "1"

    use(guest, offered, read, secrets=secrets)


# NFS


def test_a_guest_writes_to_an_nfs_export(
    guest_image: GuestImage, accel: str, offer: Callable[..., Offer], tmp_path: Path
) -> None:
    with nfs_server() as server:
        server.create("vol", SIZE)
        with booted(guest_image, tmp_path / "logs", accel=accel, prefix=server.prefix) as guest:
            write_and_read_back(guest, offer(server.uri("vol")), lambda at, length: server.read("vol", at, length))
