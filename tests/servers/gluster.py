"""A GlusterFS server: glusterd and a volume of one brick.

glusterd is always at port 24007, so each server has a loopback address of its own, and namespaces for its processes and
for /run (bricks are daemons, with sockets there). Closing a volume takes QEMU up to 10 s: its library waits for a timer
that ticks every 10 s from the moment of opening. Killing QEMU does not.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from tests.conftest import need
from tests.host.oracle import absent, short_folder
from tests.servers.namespaces import namespaces
from tests.servers.program import ServerError, Service, environment, free_address, running, tool, wait_until
from tests.servers.server import FileServer

VOLUME = "store"
PORT = 24007

_OWN_RUN = """\
set -e
for folder in /run /var/lib/glusterd /var/log/glusterfs; do
    if [ -d $folder ]; then mount -t tmpfs -o mode=755 hvext-test $folder; fi
done
mkdir /run/gluster
for module in /usr/lib/*/glusterfs/gsyncd /usr/libexec/glusterfs/gsyncd; do
    if [ -e "$module" ]; then mount --bind "$1" "$module"; fi
done
shift
exec "$@"
"""
#: In place of the geo-replication module: "No such file", which glusterd takes for not installed. Else it runs the
#: module a dozen times before it answers, for 2.5 s.
_NO_MODULE = "#!/nonexistent\n"
_CONF = """\
volume management
    type mgmt/glusterd
    option working-directory {folder}/state
    option run-directory /run/gluster
    option glusterd-sockfile {folder}/control
    option logging-directory {folder}/log
    option transport-type socket
    option transport.socket.listen-port {port}
    option transport.socket.bind-address {host}
    option transport.address-family inet
    option transport.socket.read-fail-log off
    option ping-timeout 0
    option event-threads 1
    option base-port 49152
    option max-port 60999
    option rpc-auth-allow-insecure on
end-volume
"""
#: Nothing that keeps data from the brick: tests read it there.
_OPTIONS = ("write-behind", "read-ahead", "io-cache", "quick-read", "stat-prefetch")


@dataclass(frozen=True, slots=True, kw_only=True)
class GlusterServer(FileServer):
    """A running GlusterFS with the volume ``VOLUME``; tests read and write its files in the brick."""

    host: str
    port: int = PORT

    def uri(self, name: str) -> str:
        """The URI of a file in the volume."""
        return f"gluster://{self.host}:{self.port}/{VOLUME}/{name}"

    def restart(self) -> None:
        """Start it again at the same address; the volume is online when this returns."""
        self.service.restart()
        self.wait_online()

    def wait_online(self) -> None:
        """Wait until the brick serves the volume."""
        wait_until("the volume", lambda: "<status>1</status>" in self.admin(f"--xml volume status {VOLUME}"))

    def admin(self, words: str, *more: str, timeout_s: float = 60.0) -> str:
        """Run the gluster tool on this glusterd; returns what it printed."""
        argv = [need("/usr/sbin/gluster", "glusterfs-cli"), "--mode=script", f"--glusterd-sock={self.folder}/control"]
        argv += [f"--log-file={self.folder}/cli.log"]
        return tool([*argv, *words.split(), *more], environment(self.folder), timeout_s=timeout_s)


@contextlib.contextmanager
def gluster_server() -> Iterator[GlusterServer]:
    """A GlusterFS server; ready after 3 s."""
    glusterd = need("/usr/sbin/glusterd", "glusterfs-server")
    inside = namespaces("--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    with short_folder() as folder:
        for name in ("volumes", "log", "state"):
            (folder / name).mkdir()
        try:
            os.setxattr(folder / "volumes", "trusted.hvext", b"test")
            os.removexattr(folder / "volumes", "trusted.hvext")
        except OSError as error:
            absent(f"no trusted extended attributes in {tempfile.gettempdir()}: {error}")
        # Bricks may not be at 127.0.0.1.
        host = free_address(PORT)
        conf, no_module = folder / "glusterd.vol", folder / "gsyncd"
        no_module.write_text(_NO_MODULE)
        no_module.chmod(0o755)
        conf.write_text(_CONF.format(folder=folder, port=PORT, host=host))
        argv = [*inside, "sh", "-c", _OWN_RUN, "sh", str(no_module), glusterd, "-N", "-f", str(conf), "-L", "WARNING"]
        argv += ["-l", str(folder / "log" / "glusterd.log"), "-p", "/run/gluster/glusterd.pid"]

        def answers() -> bool:
            # A tool that comes too early waits for ever.
            with contextlib.suppress(ServerError):
                return bool(server.admin("pool list", timeout_s=0.5))
            return False

        service = Service(argv, folder=folder, name="glusterd", marks=[folder / "control"], ready=answers)
        server = GlusterServer(service=service, folder=folder, host=host)
        with running(service):
            server.admin(f"volume create {VOLUME} transport tcp {host}:{folder}/volumes force")
            options = [word for name in _OPTIONS for word in (f"performance.{name}", "off")]
            server.admin(f"volume set {VOLUME}", *options)
            server.admin(f"volume start {VOLUME}")
            server.wait_online()
            yield server
