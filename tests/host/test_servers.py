"""The storage servers of the test suite are real: QEMU's own tools write to them, and they can be read without QEMU."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from hvext.host import process
from tests.conftest import need
from tests.host.oracle import MIB, Refused, short_folder
from tests.servers.ceph import NAMESPACE, POOL, CephCluster, ceph_cluster
from tests.servers.ceph import USER as CEPH_USER
from tests.servers.certificates import Certificates, certificates
from tests.servers.gluster import gluster_server
from tests.servers.https import USER as WEB_USER
from tests.servers.https import Place, WebServer, web_server
from tests.servers.iscsi import TARGET, iscsi_target
from tests.servers.iscsi import USER as ISCSI_USER
from tests.servers.nbd import PSK_USER, NbdServer, nbd_server
from tests.servers.nfs import nfs_server
from tests.servers.program import ServerError, Service, descendants, listens
from tests.servers.ssh import ssh_server
from tests.servers.vhost_user import vhost_user_server

SIZE = 16 * MIB
PATTERN = random.Random(1).randbytes(64 * 1024)  # noqa: S311
#: Longer than anything here takes when it works.
_TOOL_S = 30.0

Object = Mapping[str, object]


class _Server(Protocol):
    @property
    def folder(self) -> Path: ...
    def create(self, name: str, size_bytes: int) -> None: ...
    def read(self, name: str, offset: int, length: int) -> bytes: ...
    def write(self, name: str, offset: int, data: bytes) -> None: ...


S = TypeVar("S", bound=_Server)


@pytest.fixture(scope="module")
def authority() -> Iterator[Certificates]:
    with certificates() as made:
        yield made


@contextlib.contextmanager
def leaving_nothing(starting: AbstractContextManager[S], what: str) -> Iterator[S]:
    """A server inside the block, of which nothing is left afterwards; prints how long it took to get ready."""
    before = set(descendants(os.getpid()))
    began = time.monotonic()
    with starting as server:
        print(f"\n{what} is ready after {time.monotonic() - began:.3f} s")
        yield server
        ours = {pid: _process(pid) for pid in set(descendants(os.getpid())) - before}
        ours |= {pid: _process(pid) for pid in _marked(server.folder)}
        foreign = {each for pid in ours for each in _namespaces(pid)} - _namespaces(os.getpid())
        began = time.monotonic()
    print(f"{what} is gone after {time.monotonic() - began:.3f} s")
    assert not server.folder.exists()
    assert str(server.folder) not in Path("/proc/self/mountinfo").read_text()
    assert not _marked(server.folder)
    assert not [pid for pid, known in ours.items() if known is not None and _process(pid) == known]
    assert not foreign & {each for pid in _pids() for each in _namespaces(pid)}


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _process(pid: int) -> str | None:
    """What tells a process from a later one of the same number: when it started."""
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    return None


def _marked(folder: Path) -> list[int]:
    """The processes that name the folder in their arguments or have it in their environment."""
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            text = (Path("/proc") / str(pid) / "cmdline").read_bytes()
            text += (Path("/proc") / str(pid) / "environ").read_bytes()
            if str(folder).encode() in text:
                found.append(pid)
    return found


def _namespaces(pid: int) -> set[str]:
    found = set()
    for kind in ("mnt", "net", "pid"):
        with contextlib.suppress(OSError):
            found.add(str(Path(f"/proc/{pid}/ns/{kind}").readlink()))
    return found


def qemu_io(
    image: str | Object,
    *commands: str,
    objects: Sequence[Object] = (),
    prefix: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    readonly: bool = False,
    kill_after: str | None = None,
) -> str:
    """Run qemu-io's commands on an image, a URI or a protocol node; returns what was printed.

    It is killed as soon as it prints ``kill_after``. Raises Refused with QEMU's words.
    """
    argv = [*prefix, need("qemu-io", "qemu-utils")]
    for each in objects:
        argv += ["--object", json.dumps(each)]
    lines = list(commands)
    if isinstance(image, str):
        # On its standard input: everybody can read a command line, and a URI may hold a password.
        lines.insert(0, f"open {'-r ' if readonly else ''}-o driver=raw {image}")
    else:
        argv += [*(["-r"] if readonly else []), "json:" + json.dumps({"driver": "raw", "file": image})]
    cancel = process.Cancel()
    printed = bytearray()

    def look(_name: str, chunk: bytes) -> None:
        printed.extend(chunk)
        if kill_after is not None and kill_after.encode() in printed:
            cancel.set()

    path = os.environ.get("PATH", "/usr/bin:/bin")
    with tempfile.NamedTemporaryFile("w", prefix="hvext-") as script:
        script.write("".join(f"{line}\n" for line in lines))
        script.flush()
        done = process.run(
            ["sh", "-c", 'exec "$@" <"$0"', script.name, *argv],
            env={"PATH": path, **(env or {})},
            timeout_s=_TOOL_S,
            on_output=look,
            cancel=cancel,
        )
    text = printed.decode(errors="replace")
    failed = bool(done.status) and not done.cancelled
    if failed or done.timed_out or "failed" in text or "can't open" in text:
        raise Refused(text)
    return text


Io = Callable[..., str]


def exchange(server: _Server, image: Callable[[str], str | Object], io: Io = qemu_io) -> None:
    """What QEMU writes is in the storage, and what is written there QEMU reads."""
    server.create("vol", SIZE)
    with short_folder() as folder:
        source = folder / "pattern"
        source.write_bytes(PATTERN)
        io(image("vol"), f"write -s {source} 4096 {len(PATTERN)}", "flush", "length")
    assert server.read("vol", 4096, len(PATTERN)) == PATTERN
    assert server.read("vol", 0, 4096) == bytes(4096)
    server.write("vol", MIB, b"\x5a" * 4096)
    io(image("vol"), "read -P 0x5a 1M 4k", "length")


def secret(identity: str, data: str, folder: Path, **more: str) -> Object:
    """A QEMU secret that is read from a file."""
    file = folder / f"secret-{identity}"
    file.write_text(data)
    return {"qom-type": "secret", "id": identity, "file": str(file), **more}


def bind(**how: object) -> Io:
    """Return `qemu_io` with these arguments."""
    return lambda image, *commands: qemu_io(image, *commands, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_nbd_server_stores_what_qemu_writes_and_comes_back_after_a_crash(tcp: bool) -> None:
    with leaving_nothing(nbd_server(tcp=tcp), "nbd") as server:
        exchange(server, server.uri)
        server.kill()
        with pytest.raises(Refused):
            qemu_io(server.uri("vol"), "length")
        server.restart()
        server.create("vol", 2 * SIZE)
        assert "32 MiB" in qemu_io(server.uri("vol"), "read -P 0x5a 1M 4k", "length")


def _nbd_node(server: NbdServer, name: str) -> Object:
    node: dict[str, object] = {"driver": "nbd", "export": name, "tls-creds": "creds"}
    if server.socket is None:
        return node | {"server": {"type": "inet", "host": server.host, "port": str(server.port)}}
    node["server"] = {"type": "unix", "path": str(server.socket)}
    return node | ({} if server.certificates is None else {"tls-hostname": "localhost"})


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_nbd_server_with_certificates_admits_only_a_client_that_it_and_that_trusts_it(
    tcp: bool, authority: Certificates
) -> None:
    def creds(folder: Path) -> Object:
        return {"qom-type": "tls-creds-x509", "id": "creds", "endpoint": "client", "dir": str(folder)}

    with leaving_nothing(nbd_server(tcp=tcp, certificates=authority), "nbd with certificates") as server:
        exchange(server, lambda name: _nbd_node(server, name), bind(objects=[creds(authority.client)]))
        with pytest.raises(Refused, match="hasn't got a known issuer"):
            qemu_io(_nbd_node(server, "vol"), "length", objects=[creds(authority.wrong_ca)])
        for folder in (authority.stranger, authority.anonymous):
            with pytest.raises(Refused):
                qemu_io(_nbd_node(server, "vol"), "length", objects=[creds(folder)])
        with pytest.raises(Refused):
            qemu_io(server.uri("vol"), "length")


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_nbd_server_with_a_shared_key_admits_only_who_has_it(tcp: bool) -> None:
    with leaving_nothing(nbd_server(tcp=tcp, psk=True), "nbd with a shared key") as server, short_folder() as other:

        def creds(folder: Path) -> Object:
            kind = {"qom-type": "tls-creds-psk", "id": "creds", "endpoint": "client"}
            return {**kind, "dir": str(folder), "username": PSK_USER}

        exchange(server, lambda name: _nbd_node(server, name), bind(objects=[creds(server.psk)]))
        (other / "keys.psk").write_text(f"{PSK_USER}:{'00' * 32}\n")
        with pytest.raises(Refused):
            qemu_io(_nbd_node(server, "vol"), "length", objects=[creds(other)])


def _rbd_node(cluster: CephCluster, image: str, namespace: str = "") -> Object:
    server = [{"host": cluster.host, "port": str(cluster.port)}]
    node = {"driver": "rbd", "pool": POOL, "image": image, "user": CEPH_USER, "key-secret": "key", "server": server}
    return node | ({"namespace": namespace} if namespace else {})


def test_ceph_stores_what_qemu_writes_and_goes_on_after_a_pause_of_its_osd() -> None:
    with leaving_nothing(ceph_cluster(), "ceph") as cluster, short_folder() as folder:
        key = secret("key", cluster.key, folder, format="base64")
        exchange(cluster, lambda name: _rbd_node(cluster, name), bind(objects=[key]))
        for uri in (cluster.uri("vol"), cluster.uri_with_key("vol")):
            qemu_io(uri, "read -P 0x5a 1M 4k")
        bits = bytearray(base64.b64decode(cluster.key))
        bits[-1] ^= 1
        wrong = secret("key", base64.b64encode(bits).decode(), folder, format="base64")
        with pytest.raises(Refused, match="Permission denied"):
            qemu_io(_rbd_node(cluster, "vol"), "length", objects=[wrong])

        cluster.create("vol", SIZE, namespace=NAMESPACE)
        qemu_io(cluster.uri("vol", namespace=NAMESPACE), "write -P 0x77 0 4k")
        assert cluster.read("vol", 0, 4096, namespace=NAMESPACE) == b"\x77" * 4096
        assert cluster.read("vol", 0, 4096) == bytes(4096)

        cluster.stop_osd()
        cluster.start_osd()
        cluster.resize("vol", 2 * SIZE)
        assert "32 MiB" in qemu_io(cluster.uri("vol"), "read -P 0x5a 1M 4k", "length")
        cluster.kill()
        assert not listens(cluster.port, cluster.host)


def test_iscsi_target_stores_what_qemu_writes_and_comes_back_with_its_units() -> None:
    with leaving_nothing(iscsi_target(), "iscsi") as target, short_folder() as folder:
        password = secret("password", target.password, folder)

        def node(name: str) -> Object:
            unit = {"driver": "iscsi", "transport": "tcp", "portal": target.portal, "target": TARGET}
            return {**unit, "lun": target.units[name], "user": ISCSI_USER, "password-secret": "password"}

        target.create("first", SIZE)
        exchange(target, node, bind(objects=[password]))
        assert target.units == {"first": 1, "vol": 2}
        assert target.read("first", 0, SIZE) == bytes(SIZE)
        wrong = target.password[::-1]
        for uri in (target.uri("vol"), target.uri_with_password("vol", password=wrong)):
            with pytest.raises(Refused, match="Authentication failure"):
                qemu_io(uri, "length")
        target.kill()
        with pytest.raises(Refused):
            qemu_io(target.uri_with_password("vol"), "length")
        target.restart()
        qemu_io(target.uri_with_password("vol"), "read -P 0x5a 1M 4k")


def test_ssh_server_stores_what_qemu_writes_for_the_key_of_the_agent_only() -> None:
    with leaving_nothing(ssh_server(), "ssh") as server:
        exchange(server, server.uri, bind(env=server.env))
        qemu_io(server.uri("vol", check=f"md5:{server.md5}"), "read -P 0x5a 1M 4k", env=server.env)
        with pytest.raises(Refused, match="does not match"):
            qemu_io(server.uri("vol", check=f"sha256:{server.sha256[::-1]}"), "length", env=server.env)
        with pytest.raises(Refused, match="failed to authenticate"):
            qemu_io(server.uri("vol"), "length")
        server.kill()
        with pytest.raises(Refused):
            qemu_io(server.uri("vol"), "length", env=server.env)
        server.restart()
        qemu_io(server.uri("vol"), "read -P 0x5a 1M 4k", env=server.env)


def _web_node(server: WebServer, place: Place) -> Object:
    node: dict[str, object] = {"driver": "https", "url": server.uri("vol", place)}
    if place is Place.PASSWORD:
        node |= {"username": WEB_USER, "password-secret": "secret"}
    if place is Place.COOKIE:
        node["cookie-secret"] = "secret"
    return node


def test_web_server_gives_qemu_what_is_put_there_and_only_with_the_right_secret(authority: Certificates) -> None:
    read = f"read -P 0x5a {MIB} 4k"
    with leaving_nothing(web_server(authority), "https") as server, short_folder() as folder:
        server.create("vol", SIZE)
        server.write("vol", MIB, b"\x5a" * 4096)
        qemu_io(server.uri("vol", tls=False), read, readonly=True)
        qemu_io(server.uri_with_password("vol", tls=False), read, readonly=True)
        with pytest.raises(Refused, match="certificate verification failed"):
            qemu_io(server.uri("vol"), read, readonly=True)
        for place, right in ((Place.OPEN, ""), (Place.PASSWORD, server.password), (Place.COOKIE, server.cookie)):
            trusting = bind(objects=[secret("secret", right, folder)], prefix=server.prefix, readonly=True)
            trusting(_web_node(server, place), read)
        wrong = bind(objects=[secret("secret", "token=wrong", folder)], prefix=server.prefix, readonly=True)
        for place, answer in ((Place.PASSWORD, "401"), (Place.COOKIE, "403")):
            with pytest.raises(Refused, match=answer):
                wrong(_web_node(server, place), read)
        server.kill()
        with pytest.raises(Refused):
            qemu_io(server.uri("vol", tls=False), read, readonly=True)
        server.restart()
        qemu_io(server.uri("vol", tls=False), read, readonly=True)


#: Boots from sector 0, writes what it is to sector 1, and ends QEMU with status 1, or 3 when the BIOS reports an error.
_BOOT_SECTOR = bytes.fromhex(
    "31c0 8ec0"  # xor ax, ax; mov es, ax
    "bb007c b80103 b90200 b600 cd13"  # write 1 sector from 0:7c00, as cylinder 0, head 0, sector 2
    "0f92c0 ba0105 ee"  # setc al; out 501h, al
    "f4 ebfd"  # hlt for ever
)


def test_vhost_user_server_stores_what_a_machine_writes_through_its_queues() -> None:
    with leaving_nothing(vhost_user_server(), "vhost-user") as server:
        exchange(server, server.nbd_uri)
        server.restart()
        sector = (_BOOT_SECTOR + PATTERN)[:510] + b"\x55\xaa"
        server.write("vol", 0, sector)
        socket = re.sub("^vhost-user:", "", server.uri("vol"))
        argv = [need("qemu-system-x86_64", "qemu-system-x86"), "-nodefaults", "-no-user-config", "-display", "none"]
        argv += ["-machine", "q35,memory-backend=mem", "-m", "64M"]
        argv += ["-object", "memory-backend-memfd,id=mem,size=64M,share=on"]
        argv += ["-chardev", f"socket,id=c,path={socket}", "-device", "vhost-user-blk-pci,chardev=c,bootindex=1"]
        argv += ["-device", "isa-debug-exit,iobase=0x501,iosize=1"]
        ended = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TOOL_S)
        assert ended.returncode == 1, ended
        assert server.read("vol", 512, 512) == sector


def test_nfs_server_stores_what_qemu_writes_from_inside_its_network() -> None:
    with leaving_nothing(nfs_server(), "nfs") as server:
        exchange(server, server.uri, bind(prefix=server.prefix))
        server.kill()
        with pytest.raises(Refused):
            qemu_io(server.uri("vol"), "length", prefix=server.prefix)
        server.restart()
        qemu_io(server.uri("vol"), "read -P 0x5a 1M 4k", prefix=server.prefix)


def test_gluster_server_stores_what_qemu_writes_and_comes_back_after_a_crash() -> None:
    # By itself QEMU ends only 10 s later.
    quick = bind(kill_after="16 MiB\n", prefix=[need("stdbuf", "coreutils"), "-oL"])
    with leaving_nothing(gluster_server(), "gluster") as server:
        exchange(server, server.uri, quick)
        server.kill()
        assert not listens(server.port, server.host)
        server.restart()
        quick(server.uri("vol"), "read -P 0x5a 1M 4k", "length")


def test_a_server_that_does_not_start_says_why_and_leaves_nothing() -> None:
    with short_folder() as folder:
        argv = ["sh", "-c", "sleep 60 & echo no disk; exit 3"]
        service = Service(argv, folder=folder, name="server", ready=lambda: False)
        with pytest.raises(ServerError, match=r"server ended(?s:.*)no disk"):
            service.start()
        assert not service.alive
        assert not _marked(folder)


def test_a_frozen_server_keeps_its_connections_and_answers_when_it_is_thawed() -> None:
    with nbd_server() as server:
        server.create("vol", SIZE)
        server.freeze()
        argv = [need("qemu-io", "qemu-utils"), "-f", "raw", "-c", "length", server.uri("vol")]
        asked = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                asked.wait(0.3)
            server.thaw()
            assert asked.communicate(timeout=_TOOL_S)[0].strip() == "16 MiB"
        finally:
            asked.kill()
            asked.communicate()
