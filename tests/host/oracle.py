"""Real QEMU, real NBD servers and real libvirt, asked what they make of hvext's renderings."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import select
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from xml.sax.saxutils import escape

import pytest
from lxml import etree

from tests.conftest import need

MIB = 1 << 20
_READY_S = 30.0
#: Starting libvirt's driver includes asking QEMU for everything it can do.
_LIBVIRT_S = 120.0
_DRIVERS = "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver"
_SCHEMA = "/usr/share/libvirt/schemas/domain.rng"


class Refused(Exception):
    """QEMU answered a command with an error, or did not start."""


def absent(message: str) -> NoReturn:
    """Skip the test because this machine lacks something; with HVEXT_REQUIRE_ALL=1 let it fail."""
    if os.environ.get("HVEXT_REQUIRE_ALL") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


class Qmp:
    """A monitor over a bare socket: one command, one answer; events are passed over."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_READY_S)
        deadline = time.monotonic() + 1.0
        while True:
            try:
                self._socket.connect(str(path))
                break
            except ConnectionRefusedError:
                # It is bound, and does not listen yet; one whose QEMU has ended is refused for good.
                if time.monotonic() > deadline or not path.exists():
                    raise
                time.sleep(0.01)
        self._lines = self._socket.makefile("rb")
        if not self._lines.readline():
            self.close()
            raise Refused("QEMU ended")
        self._send("qmp_capabilities", {})
        # See hvext.host.qmp: a QEMU that starts may wait for another client.
        while not select.select([self._socket], [], [], 1.0)[0] and time.monotonic() < deadline + _READY_S:
            with socket.socket(socket.AF_UNIX) as other, contextlib.suppress(OSError):
                other.settimeout(1.0)
                other.connect(str(path))
        self._answer()

    def _send(self, command: str, arguments: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")

    def execute(self, command: str, **arguments: Any) -> Any:
        self._send(command, arguments)
        return self._answer()

    def _answer(self) -> Any:
        while True:
            answer = json.loads(self._lines.readline())
            if "error" in answer:
                raise Refused(answer["error"]["desc"])
            if "return" in answer:
                return answer["return"]

    def get(self, path: str, name: str) -> Any:
        return self.execute("qom-get", path=path, property=name)

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder for sockets and images, on a file system that has O_DIRECT."""
    path = Path(tempfile.mkdtemp(prefix="o-", dir="/var/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextlib.contextmanager
def program(
    argv: Sequence[str],
    ready: Callable[[], bool],
    *,
    keep: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    account: Mapping[str, Any] | None = None,
) -> Iterator[Callable[[], str]]:
    """A program that runs inside the block, as a function that returns what it has printed.

    Raises Refused with its last words when it does not get ready. ``keep`` are file descriptors that it inherits,
    ``account`` says as whom it runs in the terms of ``subprocess``.
    """
    with tempfile.TemporaryFile() as output:

        def printed() -> str:
            output.seek(0)
            return output.read().decode(errors="replace")

        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=keep,
            env=env,
            **(account or {}),
        )
        try:
            deadline = time.monotonic() + _READY_S
            while not ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Refused(printed())
                time.sleep(0.01)
            yield printed
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def qemu(*argv: str, machine: str = "q35") -> Iterator[Qmp]:
    """A QEMU with these arguments that runs no guest, as its monitor."""
    binary = need("qemu-system-x86_64", "qemu-system-x86")
    with short_folder() as folder:
        path = folder / "qmp"
        base = [binary, "-machine", machine, "-nodefaults", "-no-user-config", "-display", "none", "-S"]
        base += ["-qmp", f"unix:{path},server=on,wait=off"]
        with program([*base, *argv], path.exists) as printed:
            try:
                # The socket is there early; it answers once every disk is open and every device made.
                monitor = Qmp(path)
            except (Refused, OSError) as error:
                raise Refused(printed()) from error
            try:
                yield monitor
            finally:
                monitor.close()


@contextlib.contextmanager
def nbd_server(at: Path | socket.socket, exports: dict[str, int], *, writable: bool = True) -> Iterator[None]:
    """A qemu-storage-daemon behind a unix socket (or one that listens); ``exports`` are names and sizes in bytes."""
    argv = [need("qemu-storage-daemon", "qemu-system-common")]
    for number, (name, size) in enumerate(exports.items()):
        node = {"driver": "null-co", "node-name": f"n{number}", "size": size, "read-zeroes": True}
        export = {"type": "nbd", "id": f"e{number}", "node-name": f"n{number}", "name": name, "writable": writable}
        argv += ["--blockdev", json.dumps(node), "--export", json.dumps(export)]
    fd = at.fileno() if isinstance(at, socket.socket) else None
    address = {"type": "unix", "path": str(at)} if fd is None else {"type": "fd", "str": str(fd)}
    server = json.dumps({"addr": address, "max-connections": 0})
    with short_folder() as folder:
        pid = folder / "pid"
        # Options are carried out in order: the server has to be there before its exports.
        with program(
            [argv[0], "--nbd-server", server, *argv[1:], "--pidfile", str(pid)],
            pid.exists,
            keep=[] if fd is None else [fd],
        ):
            yield


class Libvirt:
    """libvirt without a daemon, in a folder of its own.

    As root it is run as ``nobody``: libvirt's driver then needs no account of its own.
    """

    def __init__(self, folder: Path) -> None:
        self._virsh = need("virsh", "libvirt-clients")
        self._emulator = need("qemu-system-x86_64", "qemu-system-x86")
        need(f"{_DRIVERS}/libvirt_driver_qemu.so", "libvirt-daemon-driver-qemu")
        self._folder = folder
        self._uri = f"qemu:///embed?root={folder}"
        self._env = {"PATH": os.environ["PATH"]}
        for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
            self._env[name] = str(folder)
        self._account: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            self._account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def argv(self, disks: Sequence[str]) -> list[str]:
        """The command line that libvirt would start for a domain with these disks."""
        file = self._write(disks)
        return shlex.split(self._run("domxml-to-native", "qemu-argv", "--xml", str(file)))

    @contextlib.contextmanager
    def daemon(self) -> Iterator[None]:
        """A libvirtd inside the block, which is asked instead.

        Without one, libvirt 9.0 cannot look up secrets ("No current identity to elevate").
        """
        libvirtd = need("/usr/sbin/libvirtd", "libvirt-daemon")
        socket_path = self._folder / "libvirt" / "libvirt-sock"
        with program([libvirtd], socket_path.exists, env=self._env, account=self._account):
            before, self._uri = self._uri, f"qemu+unix:///session?socket={socket_path}"
            try:
                yield
            finally:
                self._uri = before

    @contextlib.contextmanager
    def secrets(self, texts: Mapping[str, tuple[str, str]]) -> Iterator[None]:
        """libvirt secrets inside the block; kind (``iscsi``, or ``ceph`` in base64) and text of each by its usage.

        libvirt encrypts them with a key of its own: command lines have an object for each, but not its text.
        """
        with contextlib.ExitStack() as made:
            for usage, (kind, text) in texts.items():
                made.enter_context(self._secret(usage, kind, text))
            yield

    @contextlib.contextmanager
    def _secret(self, usage: str, kind: str, text: str) -> Iterator[None]:
        element = {"iscsi": "target", "ceph": "name"}[kind]
        number = str(uuid.uuid4())
        described, value = self._folder / "secret.xml", self._folder / "secret.text"
        described.write_text(
            f"<secret ephemeral='yes'><uuid>{number}</uuid>"
            f"<usage type='{kind}'><{element}>{escape(usage)}</{element}></usage></secret>",
            encoding="utf-8",
        )
        value.write_text(text, encoding="utf-8")
        self._run("secret-define", str(described))
        try:
            self._run("secret-set-value", number, "--file", str(value), *(["--plain"] if kind == "iscsi" else []))
            value.unlink()
            yield
        finally:
            self._run("secret-undefine", number)

    def understood(self, disks: Sequence[str]) -> etree._Element:
        """The domain as libvirt prints it after it has read it: what it does not know is gone."""
        self._run("define", str(self._write(disks)))
        try:
            return etree.fromstring(self._run("dumpxml", "oracle"))
        finally:
            self._run("undefine", "oracle")

    def _write(self, disks: Sequence[str]) -> Path:
        file = self._folder / "domain.xml"
        file.write_text(domain(disks, self._emulator), encoding="utf-8")
        return file

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            [self._virsh, "-q", "-c", self._uri, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIBVIRT_S,
            check=False,
            env=self._env,
            **self._account,
        )
        if done.returncode:
            raise Refused(done.stderr)
        return done.stdout


@contextlib.contextmanager
def libvirt() -> Iterator[Libvirt]:
    """libvirt inside the block."""
    with short_folder() as folder:
        yield Libvirt(folder)


@contextlib.contextmanager
def libvirt_daemon() -> Iterator[Libvirt]:
    """libvirt with a daemon inside the block, for disks with secrets."""
    with libvirt() as asked, asked.daemon():
        yield asked


def domain(disks: Sequence[str], emulator: str = "/usr/bin/qemu-system-x86_64") -> str:
    """A domain with these ``<disk>`` elements, two iothreads, a virtio-scsi controller and memory that is shared."""
    return f"""<domain type='qemu'><name>oracle</name><memory unit='MiB'>64</memory>
<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking><iothreads>2</iothreads>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><emulator>{emulator}</emulator>
<controller type='scsi' index='0' model='virtio-scsi'/>{"".join(disks)}</devices></domain>"""


def schema() -> etree.RelaxNG:
    """libvirt's own description of what domain XML may look like."""
    return etree.RelaxNG(etree.parse(need(_SCHEMA, "libvirt0")))
