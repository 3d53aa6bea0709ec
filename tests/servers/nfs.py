"""An NFS server: nfs-ganesha, with rpcbind, in a network of its own.

QEMU speaks NFS 3 and asks the port mapper, which is always at port 111. So both run in a network namespace, and so does
a QEMU that is to reach them: it starts with ``prefix``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import need
from tests.host.oracle import short_folder
from tests.servers.namespaces import namespaces
from tests.servers.program import ServerError, Service, environment, running, tool
from tests.servers.server import FileServer

#: /run and the folders for state are private too: both programs write there.
_HOLDER = """\
set -e
ip link set lo up
mount -t tmpfs -o mode=755 hvext-test /run
mkdir /run/rpcbind /run/ganesha
if [ -d /var/lib/nfs ]; then mount -t tmpfs -o mode=755 hvext-test /var/lib/nfs; mkdir /var/lib/nfs/ganesha; fi
touch "$1"
exec sleep infinity
"""
_CONF = """\
NFS_CORE_PARAM {{
  Protocols = 3;
  NFS_Port = 2049;
  MNT_Port = 20048;
  Enable_NLM = false;
  Enable_RQUOTA = false;
  mount_path_pseudo = false;
}}
NFSV4 {{ Graceless = true; RecoveryRoot = {folder}/recovery; }}
EXPORT_DEFAULTS {{ SecType = sys; }}
EXPORT {{
  Export_Id = 1;
  Path = {folder}/volumes;
  Pseudo = /volumes;
  Access_Type = RW;
  Squash = None;
  Transports = TCP;
  Protocols = 3;
  PrivilegedPort = false;
  FSAL {{ Name = VFS; }}
}}
LOG {{ Default_Log_Level = EVENT; }}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NfsServer(FileServer):
    """A running NFS server, at ``host`` in the network that ``prefix`` enters."""

    holder: Service
    host: str = "127.0.0.1"

    @property
    def prefix(self) -> tuple[str, ...]:
        """An argv that runs what is put behind it in the server's network; files and /run are everybody's."""
        return (need("nsenter", "util-linux"), f"--net=/proc/{self.holder.pid}/ns/net", "--")

    def uri(self, name: str) -> str:
        """The URI of a volume."""
        return f"nfs://{self.host}{self.path(name)}"


@contextlib.contextmanager
def nfs_server() -> Iterator[NfsServer]:
    """An NFS server; ready after 0.2 s."""
    ganesha, rpcbind = need("/usr/bin/ganesha.nfsd", "nfs-ganesha"), need("/usr/sbin/rpcbind", "rpcbind")
    need("/usr/share/doc/nfs-ganesha-vfs", "nfs-ganesha-vfs")
    rpcinfo, nsenter = need("/usr/sbin/rpcinfo", "rpcbind"), need("nsenter", "util-linux")
    need("ip", "iproute2")
    with short_folder() as folder, contextlib.ExitStack() as stack:
        (folder / "volumes").mkdir()
        (folder / "recovery").mkdir()
        conf, mark = folder / "ganesha.conf", folder / "network"
        conf.write_text(_CONF.format(folder=folder))
        hold = [*namespaces("--net", "--mount"), "sh", "-c", _HOLDER, "sh", str(mark)]
        holder = stack.enter_context(running(Service(hold, folder=folder, name="network", marks=[mark])))
        inside = [nsenter, "--target", str(holder.pid), "--net", "--mount", "--"]

        def answers(*words: str) -> bool:
            return _succeeds([*inside, rpcinfo, *words], folder)

        def start(name: str, argv: Sequence[str], *asked: Sequence[str]) -> Service:
            def ready() -> bool:
                return all(answers(*words) for words in asked)

            return stack.enter_context(running(Service([*inside, *argv], folder=folder, name=name, ready=ready)))

        start("rpcbind", [rpcbind, "-f"], ["-p", "127.0.0.1"])
        service = start(
            "ganesha",
            [ganesha, "-F", "-f", str(conf), "-L", f"{folder}/nfs.log", "-p", f"{folder}/ganesha.pid"],
            ["-t", "127.0.0.1", "nfs", "3"],
            ["-t", "127.0.0.1", "mountd", "3"],
        )
        yield NfsServer(service=service, folder=folder, holder=holder)


def _succeeds(argv: Sequence[str], folder: Path) -> bool:
    try:
        tool(argv, environment(folder))
    except ServerError:
        return False
    return True
