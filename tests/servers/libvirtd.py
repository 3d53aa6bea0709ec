"""A libvirtd as hosts have it, privileged and with the QEMU driver, that changes nothing of the host's own libvirt.

It runs in a mount namespace where libvirt's folders and the list of accounts are in the test's folder. Its QEMUs run
as root there, so that they can use whatever a test has made. `far_away` has it on a host of another name, `session` is
the one of an ordinary user.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import need
from tests.host.oracle import short_folder
from tests.servers.namespaces import namespaces
from tests.servers.program import (
    ServerError,
    Service,
    descendants,
    environment,
    free_port,
    listens,
    running,
    tool,
    wait_until,
)
from tests.servers.ssh import SSHD_CONF

_DRIVERS = "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver"
_QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = [ ]
cgroup_controllers = [ ]
stdio_handler = "file"
"""
_LIBVIRTD_CONF = """\
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_group = "root"
"""
#: What the host of a libvirtd ``far_away`` is called, and what the host of the tests is called there.
FAR_AWAY, STORAGE = "far-away", "storage"
SESSION_URI = "qemu:///session"
#: sshd insists on a folder /run/sshd of root's. What is first in "$@" holds libvirt's folder meanwhile.
_WITH_OWN_RUN = """\
mkdir "$1"
mount --bind /run/libvirt "$1"
mount -t tmpfs -o mode=755 hvext-test /run
mkdir -m 755 /run/sshd /run/libvirt
mount --bind "$1" /run/libvirt
shift
exec "$@"
"""
#: The least that libvirt wants of a netcat: one with the option -U, and without -q.
_NETCAT = """\
import os, select, socket, sys
if sys.argv[1] != "-U":
    sys.exit("there is only -U")
there = socket.socket(socket.AF_UNIX)
there.connect(sys.argv[2])
while True:
    ready = select.select([0, there], [], [])[0]
    for source in ready:
        data = os.read(0, 65536) if source == 0 else there.recv(65536)
        if not data:
            sys.exit()
        there.sendall(data) if source == 0 else os.write(1, data)
"""
#: libvirt's own folders, and where they are instead.
_FOLDERS = {"etc": "/etc/libvirt", "run": "/run/libvirt", "var": "/var/lib/libvirt", "log": "/var/log/libvirt"}
_ACCOUNTS = {"passwd": "libvirt-qemu:x:64055:64055::/nonexistent:/bin/false", "group": "libvirt-qemu:x:64055:"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Libvirtd:
    """A running libvirtd. Its domains are ended with it."""

    service: Service
    folder: Path

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.folder / "run" / "libvirt-sock"

    @property
    def uri(self) -> str:
        """The connection's URI."""
        return f"qemu+unix:///system?socket={self.socket}"

    def virsh(self, *words: str) -> str:
        """Run virsh to its end and return what it printed; raises ServerError."""
        return tool([need("virsh", "libvirt-clients"), "-q", "-c", self.uri, *words], environment(self.folder))

    def define(self, xml: str) -> None:
        """Have a domain kept, from its XML; it is not started."""
        file = self.folder / "domain.xml"
        file.write_text(xml, encoding="utf-8")
        self.virsh("define", str(file))

    def create(self, xml: str, *options: str) -> None:
        """Start a domain from its XML, of which nothing is kept once it has ended."""
        file = self.folder / "domain.xml"
        file.write_text(xml, encoding="utf-8")
        self.virsh("create", str(file), *options)

    def log_of(self, domain: str) -> str:
        """What the QEMU of a domain printed, with its command line."""
        path = self.folder / "log" / "qemu" / f"{domain}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def pid_of(self, domain: str) -> int:
        """The process of a domain's QEMU."""
        return int((self.folder / "run" / "qemu" / f"{domain}.pid").read_text())

    def end(self, domain: str) -> None:
        """End a domain at once, and return when libvirt has seen it; it is quicker than to ask libvirt to."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid_of(domain), signal.SIGKILL)
        wait_until(f"the end of {domain}", lambda: domain not in self.virsh("list", "--name").split())

    def end_qemus(self) -> None:
        """End the QEMUs that are left: libvirtd leaves them running when it ends."""
        for file in (self.folder / "run" / "qemu").glob("*.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)

    def clear(self) -> None:
        """End and forget all domains and secrets."""
        for name in self.virsh("list", "--name").split():
            self.end(name)
        for name in self.virsh("list", "--all", "--name").split():
            self.virsh("undefine", name)
        for line in self.virsh("secret-list").splitlines():
            self.virsh("secret-undefine", line.split()[0])


@contextlib.contextmanager
def libvirtd(*, far_away: bool = False, conf: str = "") -> Iterator[Libvirtd]:
    """A libvirtd inside the block; ready after about a second. Skips the test where it cannot be (it needs root).

    With ``far_away`` it is on a host that is called FAR_AWAY, where STORAGE is the name of this one. ``conf`` are more
    lines of its qemu.conf.
    """
    program = _program()
    with short_folder() as folder:
        script = _script(folder, program, conf)
        if far_away:
            (folder / "hosts").write_text(f"127.0.0.1 localhost {STORAGE}\n")
            script = f"hostname {FAR_AWAY}\nmount --bind {folder}/hosts /etc/hosts\n{script}"
        argv = [*namespaces("--mount", *(["--uts"] if far_away else [])), "sh", "-ec", script]
        socket = folder / "run" / "libvirt-sock"
        service = Service(argv, folder=folder, name="libvirtd", marks=[socket])
        with running(service):
            made = Libvirtd(service=service, folder=folder)
            try:
                # The socket is there before the drivers are.
                made.virsh("list")
                yield made
            finally:
                with contextlib.suppress(ServerError):
                    made.clear()
                made.end_qemus()


def _program() -> str:
    need(f"{_DRIVERS}/libvirt_driver_qemu.so", "libvirt-daemon-driver-qemu")
    need("qemu-system-x86_64", "qemu-system-x86")
    return need("/usr/sbin/libvirtd", "libvirt-daemon")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The libvirtd of an ordinary user, with a home and a runtime folder in ``folder``, which ends with the block."""

    service: Service
    folder: Path
    enter: tuple[str, ...]

    @property
    def home(self) -> Path:
        """The user's home."""
        return self.folder / "home"

    @property
    def runtime(self) -> Path:
        """The user's XDG_RUNTIME_DIR."""
        return self.folder / "runtime"

    @property
    def env(self) -> dict[str, str]:
        """What the user has in the environment."""
        return environment(self.home, XDG_RUNTIME_DIR=str(self.runtime))

    def argv(self, *words: str) -> list[str]:
        """The arguments that run a program as the user."""
        return [*self.enter, *words]

    def hvext(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run hvext as the user, from the folders that `_readable` shows to everybody."""
        python = f"{self.folder}/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
        own = {
            "PYTHONPATH": f"{self.folder}/tree:{self.folder}/site",
            "LD_LIBRARY_PATH": f"{self.folder}/python/lib",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        argv = self.argv(python, "-m", "hvext", *words)
        return subprocess.run(
            argv, env={**self.env, **own, **env}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
            check=False, cwd="/",
        )  # fmt: skip

    def virsh(self, *words: str) -> str:
        """Run virsh as the user and return what it printed; raises ServerError."""
        return tool(self.argv(need("virsh", "libvirt-clients"), "-q", "-c", SESSION_URI, *words), self.env)

    def start(self, name: str, xml: str) -> None:
        """Define a domain, and start it paused."""
        file = self.home / "domain.xml"
        file.write_text(xml)
        self.virsh("define", str(file))
        self.virsh("start", name, "--paused")


@contextlib.contextmanager
def session() -> Iterator[Session]:
    """The libvirtd of the user nobody inside the block. Skips the test where it cannot be (it needs root)."""
    program = _program()
    setpriv = need("setpriv", "util-linux")
    with short_folder() as folder:
        # Everybody passes through to the home.
        folder.chmod(0o755)
        user = pwd.getpwnam("nobody")
        for name in ("home", "runtime", "home/.config", "home/.config/libvirt"):
            (folder / name).mkdir(mode=0o700)
            os.chown(folder / name, user.pw_uid, user.pw_gid)
        (folder / "home" / ".config" / "libvirt" / "qemu.conf").write_text('stdio_handler = "file"\n')
        become = (setpriv, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--no-new-privs")
        lines = [*_readable(folder), 'exec "$@"']
        socket = folder / "runtime" / "libvirt" / "libvirt-sock"
        argv = [*namespaces("--mount"), "sh", "-ec", "\n".join(lines), "sh", *become, program]
        argv += ["-p", f"{folder}/runtime/libvirtd.pid"]
        env = {"HOME": str(folder / "home"), "XDG_RUNTIME_DIR": str(folder / "runtime")}
        with running(Service(argv, folder=folder, name="libvirtd", marks=[socket], env=env)) as service:
            enter = (need("nsenter", "util-linux"), f"--mount=/proc/{service.pid}/ns/mnt", *become)
            made = Session(service=service, folder=folder, enter=enter)
            try:
                made.virsh("list")
                yield made
            finally:
                for file in (folder / "runtime" / "libvirt" / "qemu" / "run").glob("*.pid"):
                    with contextlib.suppress(ProcessLookupError, ValueError):
                        if file.name != "driver.pid":
                            os.kill(int(file.read_text()), signal.SIGKILL)


def _readable(folder: Path) -> Iterator[str]:
    """Yield the commands that show this Python, its libraries and hvext to everybody, wherever they are."""
    shown = {
        "python": sys.base_prefix,
        "site": sysconfig.get_path("purelib"),
        "tree": str(Path(__file__).parents[2]),
    }
    for name, place in shown.items():
        (folder / name).mkdir()
        yield f"mount --bind {shlex.quote(place)} {folder}/{name}"


@contextlib.contextmanager
def ssh_to(daemon: Libvirtd) -> Iterator[SshWay]:
    """An sshd where a libvirtd runs, for root with a key; ready after 0.1 s."""
    sshd, ssh_keygen = need("/usr/sbin/sshd", "openssh-server"), need("ssh-keygen", "openssh-client")
    need("ssh", "openssh-client")
    need("virt-ssh-helper", "libvirt-clients")
    with short_folder() as folder:
        for name in ("host", "user"):
            words = [ssh_keygen, "-q", "-t", "ed25519", "-N", "", "-C", "hvext test", "-f", str(folder / name)]
            tool(words, environment(folder))
        port = free_port()
        (folder / "sshd_config").write_text(SSHD_CONF.format(folder=folder, port=port))
        # In its folders, and on its host.
        inside = [need("nsenter", "util-linux"), "--target", str(daemon.service.pid), "--mount", "--uts"]
        argv = [*inside, "unshare", "--mount", "sh", "-ec", _WITH_OWN_RUN, "sh", str(folder / "libvirt")]
        argv += [sshd, "-D", "-e", "-f", str(folder / "sshd_config")]
        service = Service(argv, folder=folder, name="sshd", ready=lambda: listens(port))
        with running(service):
            yield SshWay(service=service, folder=folder, port=port)


@dataclass(frozen=True, slots=True, kw_only=True)
class SshWay:
    """An sshd beside a libvirtd."""

    service: Service
    folder: Path
    port: int

    @property
    def uri(self) -> str:
        """The connection's URI."""
        return (
            f"qemu+ssh://root@127.0.0.1:{self.port}/system?keyfile={self.folder}/user&no_verify=1"
            f"&known_hosts={self.folder}/known"
        )

    def uri_of(self, socket: Path) -> str:
        """The URI of the libvirtd at a socket there, which takes a netcat."""
        netcat = self.folder / "netcat"
        netcat.write_text(f"#!{sys.executable}\n{_NETCAT}")
        netcat.chmod(0o755)
        return f"{self.uri}&socket={socket}&proxy=netcat&netcat={netcat}"

    def cut(self) -> None:
        """End all connections at once."""
        for pid in descendants(self.service.pid)[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _script(folder: Path, program: str, conf: str) -> str:
    """Write its configuration and return what starts it: a shell script, for a mount namespace of its own."""
    lines = []
    for name, place in _FOLDERS.items():
        (folder / name).mkdir()
        lines += [f"mkdir -p {place}", f"mount --bind {folder}/{name} {place}"]
    lines += ["mkdir -p /var/cache/libvirt", "mount -t tmpfs cache /var/cache/libvirt"]
    (folder / "etc" / "qemu.conf").write_text(_QEMU_CONF + conf)
    (folder / "etc" / "libvirtd.conf").write_text(_LIBVIRTD_CONF)
    for name, account in _ACCOUNTS.items():
        # libvirt looks its account up before it reads which one it is to use.
        known = Path("/etc", name).read_text()
        more = [account] if not known.startswith("libvirt-qemu:") and "\nlibvirt-qemu:" not in known else []
        (folder / name).write_text("\n".join([known.rstrip("\n"), *more]) + "\n")
        lines.append(f"mount --bind {folder}/{name} /etc/{name}")
    return "\n".join([*lines, f"exec {program} -p {folder}/run/libvirtd.pid"])
