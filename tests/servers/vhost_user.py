"""A vhost-user-blk server: qemu-storage-daemon, which also offers each volume through NBD."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import need
from tests.host.oracle import Qmp, short_folder
from tests.servers.program import Service, running
from tests.servers.server import FileServer


@dataclass(frozen=True, slots=True, kw_only=True)
class VhostUserServer(FileServer):
    """A running server with a socket for each volume.

    The guest's memory has to be shared with it. The ``nbd_uri`` of a volume is onto the same node of the daemon.
    """

    monitor: Path
    nbd: Path
    volumes: list[str] = field(default_factory=list)

    def socket(self, name: str) -> Path:
        """The vhost-user socket of a volume."""
        return self.folder / f"{name}.sock"

    def uri(self, name: str) -> str:
        """The URI of a volume."""
        return f"vhost-user:{self.socket(name)}"

    def nbd_uri(self, name: str) -> str:
        """The URI of the same volume over NBD."""
        return f"nbd+unix:///{name}?socket={self.nbd}"

    def create(self, name: str, size_bytes: int) -> None:
        """Make a volume of zeros; a letter begins its name."""
        FileServer.create(self, name, size_bytes)
        self._offer(name)
        self.volumes.append(name)

    def restart(self) -> None:
        """Start the server again with the same volumes."""
        self.kill()
        for name in self.volumes:
            self.socket(name).unlink(missing_ok=True)
        self.service.start()
        for name in self.volumes:
            self._offer(name)

    def _offer(self, name: str) -> None:
        file = {"driver": "file", "filename": str(self.path(name)), "cache": {"direct": True}}
        address = {"type": "unix", "path": str(self.socket(name))}
        export = {"node-name": name, "writable": True}
        with contextlib.closing(Qmp(self.monitor)) as monitor:
            monitor.execute("blockdev-add", **{"driver": "raw", "node-name": name, "file": file})
            monitor.execute("block-export-add", type="vhost-user-blk", id=f"vhost-{name}", addr=address, **export)
            monitor.execute("block-export-add", type="nbd", id=f"nbd-{name}", name=name, **export)


@contextlib.contextmanager
def vhost_user_server() -> Iterator[VhostUserServer]:
    """A vhost-user-blk server without volumes yet; ready after 0.02 s."""
    daemon = need("qemu-storage-daemon", "qemu-system-common")
    with short_folder() as folder:
        (folder / "volumes").mkdir()
        monitor, nbd, pid = folder / "qmp.sock", folder / "nbd.sock", folder / "pid"
        nbd_server = {"addr": {"type": "unix", "path": str(nbd)}, "max-connections": 0}
        argv = [daemon, "--nbd-server", json.dumps(nbd_server), "--pidfile", str(pid)]
        argv += ["--chardev", f"socket,id=qmp,path={monitor},server=on,wait=off", "--monitor", "chardev=qmp"]
        with running(Service(argv, folder=folder, name="daemon", marks=[monitor, nbd, pid])) as service:
            yield VhostUserServer(service=service, folder=folder, monitor=monitor, nbd=nbd)
