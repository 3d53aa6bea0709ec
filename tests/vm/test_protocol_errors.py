"""What a user is told when storage cannot be opened: the cause by name, on both QEMUs, with real servers.

The guest is paused: it is QEMU that opens the storage. Whatever failed, nothing of the disk is left.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from hvext.core.disk import Disk
from hvext.errors import OperationFailed
from hvext.host.machine import GuestImage, Machine, MachineOptions, start_machine
from hvext.host.provider import ProviderHost
from hvext.operations.vm import open_vm
from tests.providers import write_provider
from tests.secrecy import SECRET_FOLDER, new_secret, remember
from tests.servers.ceph import CephCluster, ceph_cluster
from tests.servers.certificates import Certificates, certificates
from tests.servers.gluster import gluster_server
from tests.servers.https import Place, WebServer, web_server
from tests.servers.iscsi import IscsiTarget, iscsi_target
from tests.servers.nbd import PSK_USER, NbdServer, nbd_server
from tests.servers.nfs import nfs_server
from tests.servers.program import descendants
from tests.servers.ssh import SshServer, ssh_server
from tests.servers.vhost_user import vhost_user_server
from tests.vm.state import state_of

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

MIB = 1 << 20
WRONG = new_secret()


@pytest.fixture(scope="module")
def authority() -> Iterator[Certificates]:
    with certificates() as made:
        yield made


@pytest.fixture(scope="module")
def ssh() -> Iterator[SshServer]:
    with ssh_server() as server:
        server.create("vol", MIB)
        yield server


@pytest.fixture(scope="module")
def web(authority: Certificates) -> Iterator[WebServer]:
    with web_server(authority) as server:
        server.create("vol", MIB)
        yield server


@pytest.fixture(scope="module")
def iscsi() -> Iterator[IscsiTarget]:
    with iscsi_target() as target:
        target.create("vol", MIB)
        yield target


@pytest.fixture(scope="module")
def plain() -> Iterator[NbdServer]:
    with nbd_server(tcp=True) as server:
        server.create("vol", MIB)
        yield server


@pytest.fixture(scope="module")
def x509(authority: Certificates) -> Iterator[NbdServer]:
    with nbd_server(tcp=True, certificates=authority) as server:
        server.create("vol", MIB)
        yield server


@pytest.fixture(scope="module")
def psk() -> Iterator[NbdServer]:
    with nbd_server(tcp=True, psk=True) as server:
        server.create("vol", MIB)
        remember(str(server.key))
        yield server


@pytest.fixture(scope="module", params=["installed", "second"])
def machine(
    request: pytest.FixtureRequest,
    guest_image: GuestImage,
    ssh: SshServer,
    web: WebServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Machine]:
    """A paused machine of either QEMU, which finds the ssh agent and trusts the web server."""
    qemu = "qemu-system-x86_64"
    if request.param == "second":
        qemu = str(request.getfixturevalue("second_qemu") / "bin" / qemu)
    options = MachineOptions(
        name="errors", start_paused=True, shared_memory=True, qemu=qemu, prefix=web.prefix, env=ssh.env
    )
    with start_machine(options, guest_image, tmp_path_factory.mktemp("errors")) as started:
        yield started


def private_files() -> list[Path]:
    folder = Path(os.environ["HVEXT_RUNTIME_DIR"])
    return list(folder.iterdir()) if folder.exists() else []


def refusal(machine: Machine, uri: str, folder: Path, **more: str) -> OperationFailed:
    """Why a disk cannot be plugged whose provider offers this URI alone; nothing may be left of the attempt."""
    name = f"p{uuid.uuid4().hex}"
    write_provider(folder / SECRET_FOLDER, name, {"attach": f"printf '\\n%s\\n' {shlex.quote('kvm:' + uri)}"})
    host = ProviderHost(search_path=[str(folder / SECRET_FOLDER)], log_directory=str(folder / "provider-logs"))
    disk = Disk.from_mapping({"provider": name, "volume": "vol", **more})
    before = state_of(machine)
    with open_vm(str(machine.qmp_path), host=host) as vm, pytest.raises(OperationFailed) as caught:
        vm.plug(disk)
    assert state_of(machine) == before
    assert private_files() == []
    assert not caught.value.left
    return caught.value


def tls(uri: str, folder: Path | str, more: str = "") -> str:
    return uri.replace("nbd", "nbds", 1) + f"?tls-certificates={folder}{more}"


def with_psk(server: NbdServer, file: Path | str, user: str = PSK_USER) -> str:
    return server.uri("vol").replace("nbd://", f"nbds://{user}@", 1) + f"?tls-psk-file={file}"


Places = dict[str, object]
#: What is wrong, the URI that has it, words of the message (QEMU's own) and of the hint.
NBD: dict[str, tuple[Callable[[NbdServer, NbdServer, NbdServer, Certificates], str], str, str]] = {
    "wrong-export": (lambda plain, _x, _p, _c: plain.uri("other"), "export not available", "no volume of that name"),
    "no-socket": (lambda *_: "nbd+unix:///a?socket=/nonexistent/s", "No such file", "is the server running"),
    "nobody-listens": (lambda *_: "nbd://127.0.0.1:1/a", "Connection refused", "is the server running"),
    "unknown-host": (lambda *_: "nbd://no-such-host.invalid/a", "resolution failed", "is the host's name right"),
    "clear-to-tls": (lambda _n, x509, _p, _c: x509.uri("vol"), "TLS negotiation required", "write nbds://"),
    "tls-to-clear": (lambda plain, _x, _p, c: tls(plain.uri("vol"), c.client), "Denied by server", "write nbd://"),
    "wrong-authority": (lambda _n, x, _p, c: tls(x.uri("vol"), c.wrong_ca), "known issuer", "ca-cert.pem"),
    "refused-client": (lambda _n, x, _p, c: tls(x.uri("vol"), c.stranger), "", "did not accept the client's"),
    "no-client-certificate": (lambda _n, x, _p, c: tls(x.uri("vol"), c.anonymous), "", "did not accept the client's"),
    "no-certificates": (
        lambda _n, x, _p, _c: tls(x.uri("vol"), "/nonexistent"),
        "/nonexistent/ca-cert.pem",
        "found no",
    ),
    "other-host": (
        lambda _n, x, _p, c: tls(x.uri("vol"), c.client, "&tls-hostname=other.example"),
        "other.example",
        "tls-hostname=NAME",
    ),
    "unknown-psk-user": (lambda _n, _x, psk, _c: with_psk(psk, psk.psk / "keys.psk", "x"), "PSK file", "USER:KEY"),
    "no-psk-file": (lambda _n, _x, psk, _c: with_psk(psk, "/nonexistent/keys"), "keys.psk", "found no certificate or"),
}


@pytest.mark.parametrize("what", NBD)
def test_an_nbd_server_that_cannot_be_used_is_explained(
    machine: Machine,
    plain: NbdServer,
    x509: NbdServer,
    psk: NbdServer,
    authority: Certificates,
    tmp_path: Path,
    what: str,
) -> None:
    make, words, hint = NBD[what]
    error = refusal(machine, make(plain, x509, psk, authority), tmp_path)
    assert words in error.message
    assert hint in error.hint


def test_a_wrong_pre_shared_key_is_explained(machine: Machine, psk: NbdServer, tmp_path: Path) -> None:
    keys = tmp_path / SECRET_FOLDER / "keys.psk"
    keys.parent.mkdir()
    keys.write_text(f"{PSK_USER}:{'00' * 32}\n")
    error = refusal(machine, with_psk(psk, keys), tmp_path)
    assert "TLS handshake failed" in error.message
    assert "did not accept the client's certificate or key" in error.hint


ISCSI: dict[str, tuple[Callable[[IscsiTarget], str], str, str]] = {
    "wrong-password": (
        lambda it: it.uri_with_password("vol", password=WRONG),
        "Authentication failure",
        "refused user",
    ),
    "no-password": (lambda it: it.uri("vol").replace("://", "://somebody@"), "no password was given", "user alone"),
    "wrong-target": (lambda it: it.uri_with_password("vol").replace("/iqn", "/iqnx"), "not found", "no target of that"),
    "wrong-unit": (
        lambda it: it.uri_with_password("vol") + "9",
        "LOGICAL_UNIT_NOT_SUPPORTED",
        "no unit of that number",
    ),
    "nobody-listens": (lambda _: "iscsi://127.0.0.1:1/iqn.2001-04.org.example:x/1", "", "is the server running"),
}


@pytest.mark.parametrize("what", ISCSI)
def test_an_iscsi_unit_that_cannot_be_used_is_explained(
    machine: Machine, iscsi: IscsiTarget, tmp_path: Path, what: str
) -> None:
    make, words, hint = ISCSI[what]
    error = refusal(machine, make(iscsi), tmp_path)
    assert words in error.message
    assert hint in error.hint
    assert WRONG not in str(error)
    assert iscsi.password not in str(error)


def test_ctrl_c_while_a_server_does_not_answer_leaves_nothing(machine: Machine, tmp_path: Path) -> None:
    with iscsi_target() as target:
        target.create("vol", MIB)
        uri = target.uri_with_password("vol")
        write_provider(tmp_path / SECRET_FOLDER, "p", {"attach": f"printf '\\n%s\\n' {shlex.quote('kvm:' + uri)}"})
        target.freeze()
        before = state_of(machine)
        argv = [sys.executable, "-m", "hvext", "plug", "--qmp", str(machine.qmp_path), "p", "vol"]
        argv += ["--search-path", str(tmp_path / SECRET_FOLDER), "--log-dir", str(tmp_path / "logs")]
        asked = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            wait_until(lambda: rehearsing(descendants(asked.pid)))
            started = rehearsing(descendants(asked.pid))
            # The guest's QEMU answers meanwhile.
            assert state_of(machine).nodes == before.nodes
            asked.send_signal(signal.SIGINT)
            printed, _ = asked.communicate(timeout=30)
        finally:
            asked.kill()
            target.thaw()
    assert asked.returncode != 0
    assert target.password not in printed
    assert rehearsing(started) == []
    assert state_of(machine) == before
    assert private_files() == []


def rehearsing(pids: Iterable[int]) -> list[int]:
    """Those of the processes that open storage beside QEMU."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if b"qemu-storage-daemon" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def wait_until(holds: Callable[[], object], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


SSH: dict[str, tuple[Callable[[SshServer], str], str, str]] = {
    "wrong-host-key": (lambda it: it.uri("vol", check="sha256:" + "0" * 64), "does not match", "another server"),
    "wrong-name": (lambda it: it.uri("other", check="no"), "No such file", "no volume of that name"),
    "wrong-user": (
        lambda it: it.uri("vol", check="no").replace(f"//{it.user}@", "//nobody@"),
        "authenticate",
        "SSH_AUTH_SOCK",
    ),
    "nobody-listens": (lambda _: "ssh://nobody@127.0.0.1:1/x", "Connection refused", "is the server running"),
}


@pytest.mark.parametrize("what", SSH)
def test_an_ssh_server_that_cannot_be_used_is_explained(
    machine: Machine, ssh: SshServer, tmp_path: Path, what: str
) -> None:
    make, words, hint = SSH[what]
    error = refusal(machine, make(ssh), tmp_path)
    assert words in error.message
    assert hint in error.hint


WEB: dict[str, tuple[Callable[[WebServer], str], dict[str, str], str, str]] = {
    "wrong-name": (lambda it: it.uri("other"), {}, "404", "no volume of that name"),
    "wrong-password": (lambda it: it.uri_with_password("vol", password=WRONG), {}, "401", "refused the login"),
    "no-password": (lambda it: it.uri("vol", Place.PASSWORD), {}, "401", "refused the login"),
    "no-cookie": (lambda it: it.uri("vol", Place.COOKIE), {}, "403", "refused the login"),
    "nobody-listens": (lambda _: "http://127.0.0.1:1/x", {}, "connect", "is the server running"),
    "writing": (lambda it: it.uri("vol"), {"read_only": "off"}, "can only be read", ""),
}


@pytest.mark.parametrize("what", WEB)
def test_a_web_server_that_cannot_be_used_is_explained(
    machine: Machine, web: WebServer, tmp_path: Path, what: str
) -> None:
    make, options, words, hint = WEB[what]
    error = refusal(machine, make(web), tmp_path, **options)
    assert words in error.message
    assert hint in error.hint
    assert WRONG not in str(error)


def test_an_unknown_authority_of_a_web_server_is_explained(
    guest_image: GuestImage, web: WebServer, tmp_path: Path
) -> None:
    options = MachineOptions(name="distrust", start_paused=True)
    with start_machine(options, guest_image, tmp_path / "logs") as distrusting:
        error = refusal(distrusting, web.uri("vol"), tmp_path)
    assert "certificate" in error.message
    assert "who signed the server's certificate" in error.hint


def test_a_vhost_user_server_that_is_gone_does_not_stop_the_guest(machine: Machine, tmp_path: Path) -> None:
    with vhost_user_server() as server:
        server.create("vol", MIB)
        socket = server.socket("vol")
        server.kill()
        error = refusal(machine, f"vhost-user:{socket}", tmp_path)
    assert str(socket) in error.message
    assert "is the server running" in error.hint


def test_a_vhost_user_server_that_does_not_answer_does_not_stop_the_guest(machine: Machine, tmp_path: Path) -> None:
    with vhost_user_server() as server, nbd_server() as other:
        server.create("vol", MIB)
        other.create("vol", MIB)
        server.freeze()
        error = refusal(machine, f"vhost-user:{server.socket('vol')}", tmp_path / "frozen")
        server.thaw()
        assert "serves another guest already" in error.hint
        error = refusal(machine, f"vhost-user:{other.socket}", tmp_path / "protocol")
        assert "no vhost-user server" in error.message


def test_vhost_user_into_memory_that_is_not_shared_is_refused(guest_image: GuestImage, tmp_path: Path) -> None:
    options = MachineOptions(name="private", start_paused=True)
    with start_machine(options, guest_image, tmp_path / "logs") as private:
        error = refusal(private, "vhost-user:/nonexistent/socket", tmp_path)
    assert "memory is not shared" in error.message


def test_a_gluster_volume_that_cannot_be_used_is_explained(
    machine: Machine, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if "second" in request.node.name:
        pytest.skip("one QEMU is enough: each attempt holds it for up to 10 s")
    with gluster_server() as server:
        volume = server.uri("vol").rpartition("/")[0]
        wrong = refusal(machine, f"{volume}x/vol", tmp_path / "volume")
        assert "failed to connect" in wrong.message
        assert "has it a volume of that name" in wrong.hint
        server.kill()
        gone = refusal(machine, server.uri("vol"), tmp_path / "gone")
        assert "is the server running" in gone.hint


def test_an_nfs_export_that_cannot_be_used_is_explained(guest_image: GuestImage, tmp_path: Path) -> None:
    with nfs_server() as server:
        options = MachineOptions(name="nfs", start_paused=True, prefix=server.prefix)
        with start_machine(options, guest_image, tmp_path / "logs") as inside:
            wrong = refusal(inside, server.uri("other"), tmp_path / "name")
            assert "no volume of that name" in wrong.hint
            folder, _slash, name = server.uri("vol").rpartition("/")
            unknown = refusal(inside, f"{folder}x/{name}", tmp_path / "export")
            assert "does it export that directory" in unknown.hint


CEPH: dict[str, tuple[Callable[[CephCluster], str], str, str]] = {
    "wrong-image": (lambda it: it.uri_with_key("other"), "error reading header", "no image of that name"),
    "wrong-pool": (lambda it: it.uri_with_key("vol").replace("rbd:", "rbd:x"), "error opening pool", "no pool of that"),
    "wrong-user": (lambda it: it.uri_with_key("vol").replace(":id=", ":id=x"), "Permission denied", "are id and key"),
    "no-keyring": (lambda it: it.uri("vol").replace(".keyring", ".other"), "error connecting", "is the keyring there"),
    "no-conf": (lambda it: it.uri("vol").replace("conf=/", "conf=/nonexistent/"), "/nonexistent/", ""),
}


def test_a_ceph_image_that_cannot_be_used_is_explained_and_a_dead_cluster_does_not_hold_the_guest(
    machine: Machine, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with ceph_cluster() as ceph:
        ceph.create("vol", MIB)
        remember(ceph.key)
        for what, (make, words, hint) in CEPH.items():
            error = refusal(machine, make(ceph), tmp_path / what)
            assert words in error.message, what
            assert hint in error.hint, what
            assert ceph.key not in str(error)
        if "installed" in request.node.name:
            ceph.kill()
            gone = refusal(machine, ceph.uri_with_key("vol"), tmp_path / "gone")
            assert "did not open it within 10 s" in gone.message
            assert "does every server" in gone.hint
