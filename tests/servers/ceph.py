"""A Ceph cluster: one monitor and one osd that keeps its objects in memory, with cephx, a pool and a user of its own.

No manager: pools, images, snapshots and namespaces do without. Two settings make it quick: the monitor's
``paxos propose interval`` (6 s without it), and no ``osd fast shutdown``, which would leave an osd that is
started again without its placement groups.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import need
from tests.host.oracle import short_folder
from tests.secrecy import remember
from tests.servers.program import Service, environment, free_address, running, tool
from tests.servers.server import read_file

#: The port that stands for the newer protocol. At any other, a client that knows only the address tries both protocols,
#: and with a wrong key it goes on trying for 300 s instead of being refused.
PORT = 3300
POOL = "volumes"
NAMESPACE = "tenant"
#: The user whose key is good for the pool and nothing else.
USER = "vm"

_PACKAGES = {"ceph-mon": "ceph-mon", "ceph-osd": "ceph-osd"}
_CONF = """\
[global]
fsid = {fsid}
mon host = [v2:{host}:{port}]
mon initial members = a
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
keyring = {folder}/admin.keyring
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
log to stderr = false
public addr = {host}
cluster addr = {host}
public network = 127.0.0.0/8
ms bind ipv6 = false
ms bind msgr1 = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon cluster log to file = false
mon data avail warn = 1
mon data avail crit = 1
mon client hunt interval = 0.5
mon subscribe interval = 5
osd mon heartbeat interval = 1
paxos propose interval = 0.05
paxos min wait = 0.01
osd fast shutdown = false
osd mclock skip benchmark = true
osd op queue = wpq
osd max pg log entries = 100

[mon.a]
mon data = {folder}/mon

[osd]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
osd class load list = *
osd class default list = *
"""
#: For the user's clients: no path of the administrator's keyring, no log and no socket for QEMU to make.
_CLIENT_CONF = """\
[global]
fsid = {fsid}
mon host = [v2:{host}:{port}]
auth client required = cephx
admin socket =
log file =
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CephCluster:
    """A running cluster with the pool ``POOL``, in it the namespace ``NAMESPACE``, and the user ``USER``.

    ``conf`` is the configuration file for clients, ``keyring`` the file with the user's key, ``key`` that key
    (base64: as a QEMU secret it wants ``format=base64``). An image is in the pool itself or in a namespace of it.
    """

    mon: Service
    osd: Service
    folder: Path
    conf: Path
    keyring: Path
    key: str = field(repr=False)
    host: str
    port: int = PORT

    def uri(self, image: str, *, namespace: str = "") -> str:
        """The URI that names the configuration file and the keyring, but no secret."""
        return f"rbd:{self._spec(image, namespace)}:id={USER}:conf={self.conf}:keyring={self.keyring}"

    def uri_with_key(self, image: str, *, namespace: str = "") -> str:
        """The URI that needs no file: it holds the monitor's address and the key itself."""
        monitor = f"{self.host}\\:{self.port}"
        name = self._spec(image, namespace)
        return f"rbd:{name}:id={USER}:key={self.key}:auth_supported=cephx:mon_host={monitor}"

    def create(self, image: str, size_bytes: int, *, namespace: str = "") -> None:
        """Make an image of zeros."""
        self.rbd("create", "--size", f"{size_bytes}B", self._spec(image, namespace))

    def resize(self, image: str, size_bytes: int, *, namespace: str = "") -> None:
        """Give an image another size."""
        self.rbd("resize", "--no-progress", "--allow-shrink", "--size", f"{size_bytes}B", self._spec(image, namespace))

    def read(self, image: str, offset: int, length: int, *, namespace: str = "") -> bytes:
        """Read what the storage holds: exports the whole image."""
        out = self.folder / f"{uuid.uuid4()}.export"
        try:
            self.rbd("export", "--no-progress", self._spec(image, namespace), str(out))
            return read_file(out, offset, length)
        finally:
            out.unlink(missing_ok=True)

    def write(self, image: str, offset: int, data: bytes, *, namespace: str = "") -> None:
        """Change what the storage holds, by importing a difference that is these bytes."""
        difference = self.folder / f"{uuid.uuid4()}.diff"
        difference.write_bytes(b"rbd diff v1\nw" + struct.pack("<QQ", offset, len(data)) + data + b"e")
        try:
            self.rbd("import-diff", "--no-progress", str(difference), self._spec(image, namespace))
        finally:
            difference.unlink()

    def rbd(self, *words: str) -> str:
        """Run the rbd tool as the user of the pool; returns what it printed."""
        argv = [need("rbd", "ceph-common"), "--conf", str(self.conf), "--id", USER, "--keyring", str(self.keyring)]
        return tool([*argv, *words], environment(self.folder))

    def stop_osd(self) -> None:
        """Let the osd end in good order. I/O hangs from now on; `start_osd` lets it go on, nothing is lost."""
        self.osd.stop()

    def start_osd(self) -> None:
        """Start an osd that `stop_osd` stopped; 0.2 s."""
        self.osd.start()

    def freeze(self) -> None:
        """Stop osd and monitor where they are: connections stay open and nothing answers."""
        self.osd.freeze()
        self.mon.freeze()

    def thaw(self) -> None:
        """Let a frozen cluster go on."""
        self.mon.thaw()
        self.osd.thaw()

    def kill(self) -> None:
        """Kill osd and monitor at once. What was stored is lost."""
        self.osd.kill()
        self.mon.kill()

    @staticmethod
    def _spec(image: str, namespace: str) -> str:
        return f"{POOL}/{namespace}/{image}" if namespace else f"{POOL}/{image}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Making:
    """The steps that make a cluster in an empty folder."""

    folder: Path
    host: str
    fsid: str

    @property
    def conf(self) -> Path:
        """The configuration of the daemons and the administrator."""
        return self.folder / "server.conf"

    def run(self, program: str, words: str, *more: str) -> str:
        """Run one of Ceph's tools as the administrator; returns what it printed."""
        argv = [need(program, _PACKAGES.get(program, "ceph-common")), "--conf", str(self.conf)]
        return tool([*argv, *words.split(), *more], environment(self.folder))

    def mon(self) -> Service:
        """Make the administrator's key and a monitor, and return how that is started."""
        admin, monmap = self.folder / "admin.keyring", self.folder / "monmap"
        (self.folder / "mon").mkdir()
        self.conf.write_text(_CONF.format(folder=self.folder, fsid=self.fsid, host=self.host, port=PORT))
        allow = ("--cap", "mon", "allow *")
        self.run("ceph-authtool", f"--create-keyring {admin} --gen-key -n mon.", *allow)
        self.run("ceph-authtool", f"{admin} --gen-key -n client.admin", *allow, "--cap", "osd", "allow *")
        self.run("monmaptool", f"--create --fsid {self.fsid} --addv a [v2:{self.host}:{PORT}] {monmap}")
        self.run("ceph-mon", f"--mkfs -i a --monmap {monmap} --keyring {admin}")
        argv = [need("ceph-mon", "ceph-mon"), "--conf", str(self.conf), "-f", "-i", "a"]
        return Service(argv, folder=self.folder, name="mon")

    def osd(self) -> Service:
        """Make an osd, known to the monitor, and return how that is started."""
        number, key = str(uuid.uuid4()), self.run("ceph-authtool", "--gen-print-key").strip()
        keyring, secret = self.folder / "osd" / "keyring", self.folder / "osd.json"
        keyring.parent.mkdir()
        keyring.write_text(f"[osd.0]\n\tkey = {key}\n")
        secret.write_text(json.dumps({"cephx_secret": key}))
        self.run("ceph", f"--connect-timeout 30 osd new {number} -i {secret}")
        self.run("ceph-osd", f"-i 0 --mkfs --osd-uuid {number} --keyring {keyring}")
        argv = [need("ceph-osd", "ceph-osd"), "--conf", str(self.conf), "-f", "-i", "0", "--keyring", str(keyring)]
        # A client that comes before the monitor knows of the osd waits 5 s for the next map.
        ready = self.folder / "osd.0.asok"
        return Service(argv, folder=self.folder, name="osd", ready=lambda: _state(ready) == "active")

    def user(self) -> tuple[Path, str]:
        """Make the pool and the user; returns the keyring and the key."""
        self.run("ceph", f"osd pool create {POOL} 8 8")
        self.run("ceph", f"osd pool application enable {POOL} rbd")
        keyring = self.folder / "client.keyring"
        caps = ("mon", "profile rbd", "osd", f"profile rbd pool={POOL}")
        self.run("ceph", f"auth get-or-create client.{USER} -o {keyring}", *caps)
        return keyring, remember(self.run("ceph-authtool", f"-p -n client.{USER} {keyring}").strip())


def _state(admin_socket: Path) -> str:
    """What a daemon says about itself on its admin socket, empty while it does not answer that yet."""
    with socket.socket(socket.AF_UNIX) as asked:
        try:
            asked.connect(str(admin_socket))
        except OSError:
            return ""
        asked.sendall(b'{"prefix": "status"}\0')
        with asked.makefile("rb") as answer:
            length = int.from_bytes(answer.read(4), "big")
            with contextlib.suppress(json.JSONDecodeError):
                return str(json.loads(answer.read(length)).get("state", ""))
    return ""


@contextlib.contextmanager
def ceph_cluster() -> Iterator[CephCluster]:
    """A cluster that stores images; ready after 2 s."""
    for program in ("ceph-mon", "ceph-osd", "ceph", "rbd"):
        need(program, _PACKAGES.get(program, "ceph-common"))
    with short_folder() as folder, contextlib.ExitStack() as stack:
        making = _Making(folder=folder, host=free_address(PORT), fsid=str(uuid.uuid4()))
        mon = stack.enter_context(running(making.mon()))
        osd = stack.enter_context(running(making.osd()))
        keyring, key = making.user()
        conf = folder / "ceph.conf"
        conf.write_text(_CLIENT_CONF.format(fsid=making.fsid, host=making.host, port=PORT))
        cluster = CephCluster(mon=mon, osd=osd, folder=folder, conf=conf, keyring=keyring, key=key, host=making.host)
        # The first image waits until the placement groups are there.
        cluster.rbd("namespace", "create", "--pool", POOL, "--namespace", NAMESPACE)
        yield cluster
