"""An SSH server: sshd for the user who runs the tests, who comes with a key from an agent."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass

from tests.conftest import need
from tests.host.oracle import short_folder
from tests.servers.namespaces import namespaces
from tests.servers.program import Service, environment, free_port, listens, running, tool
from tests.servers.server import FileServer

#: An sshd for the user who runs it, whose key is in ``user.pub``.
SSHD_CONF = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
PidFile none
AuthorizedKeysFile {folder}/user.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
UseDNS no
MaxStartups 100
Subsystem sftp internal-sftp
"""
#: sshd insists on a folder /run/sshd of root's.
_OWN_RUN = 'mount -t tmpfs -o mode=755 hvext-test /run && mkdir -m 755 /run/sshd && exec "$@"'


@dataclass(frozen=True, slots=True, kw_only=True)
class SshServer(FileServer):
    """A running sshd.

    QEMU gets ``env`` to find the agent that holds the ``user``'s key: without it, it has no key. ``md5`` and ``sha256``
    are the fingerprints of the host's key as QEMU's ``host-key-check`` wants them (hexadecimal).
    """

    agent: Service
    port: int
    user: str
    md5: str
    sha256: str
    host: str = "127.0.0.1"

    @property
    def env(self) -> dict[str, str]:
        """The environment in which QEMU finds the key."""
        return {"SSH_AUTH_SOCK": str(self.folder / "agent")}

    def uri(self, name: str, *, check: str | None = None) -> str:
        """The URI of a volume. ``check`` is how the host is checked, without it by its sha256 fingerprint."""
        check = check or f"sha256:{self.sha256}"
        return f"ssh://{self.user}@{self.host}:{self.port}{self.path(name)}?host_key_check={check}"


@contextlib.contextmanager
def ssh_server() -> Iterator[SshServer]:
    """An SSH server; ready after 0.1 s."""
    sshd, ssh_agent = need("/usr/sbin/sshd", "openssh-server"), need("ssh-agent", "openssh-client")
    ssh_keygen, ssh_add = need("ssh-keygen", "openssh-client"), need("ssh-add", "openssh-client")
    with short_folder() as folder:
        (folder / "volumes").mkdir()
        env = environment(folder, SSH_AUTH_SOCK=str(folder / "agent"))
        for name in ("host", "user"):
            tool([ssh_keygen, "-q", "-t", "ed25519", "-N", "", "-C", "hvext test", "-f", str(folder / name)], env)
        port = free_port()
        conf = folder / "sshd_config"
        conf.write_text(SSHD_CONF.format(folder=folder, port=port))
        argv = [sshd, "-D", "-e", "-f", str(conf)]
        if os.geteuid() == 0:
            argv = [*namespaces("--mount"), "sh", "-c", _OWN_RUN, "sh", *argv]
        service = Service(argv, folder=folder, name="sshd", ready=lambda: listens(port))
        agent = Service(
            [ssh_agent, "-D", "-a", str(folder / "agent")], folder=folder, name="ssh-agent", marks=[folder / "agent"]
        )
        with running(service), running(agent):
            tool([ssh_add, "-q", str(folder / "user")], env)
            host_key = base64.b64decode((folder / "host.pub").read_text().split()[1])
            yield SshServer(
                service=service,
                folder=folder,
                agent=agent,
                port=port,
                user=pwd.getpwuid(os.geteuid()).pw_name,
                md5=hashlib.md5(host_key, usedforsecurity=False).hexdigest(),
                sha256=hashlib.sha256(host_key).hexdigest(),
            )
