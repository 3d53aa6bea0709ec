"""One volume that can be had in two ways: over NBD, and as a block device; either can be made to die.

::

    image file  <-  loop device  <-  NBD server (qemu-storage-daemon)
                <-  [file over FUSE (another qemu-storage-daemon)]  <-  loop device

The server writes through a loop device of its own, which can be made read-only: then it can write no more, whatever it
has received. The block device is over the image itself, or, to die, over a file that a second daemon serves.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import need
from tests.host.oracle import absent, short_folder
from tests.servers.program import Service, environment, free_port, tool, wait_until
from tests.servers.server import FileServer

_NAME = "vol"


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoWays(FileServer):
    """A volume with both ways to it; ``service`` is the NBD server.

    ``address``, a URI, and ``block_path`` are what a provider would print. ``server_device`` is the loop device that
    the server writes through.
    """

    address: str
    block_path: str
    server_device: str
    socket: Path | None
    daemon: Service | None

    def remove_socket(self) -> None:
        """Take the server and its socket away: nobody can connect any more."""
        self.kill()
        assert self.socket is not None
        self.socket.unlink(missing_ok=True)

    def kill_path(self) -> None:
        """Let the block device die: all that is read from or written to it fails from now on."""
        assert self.daemon is not None
        self.daemon.kill()

    def grow(self, size_bytes: int) -> None:
        """Make the volume larger, on all ways to it."""
        self.create(_NAME, size_bytes)
        for device in (self.server_device, self.block_path):
            tool(["losetup", "--set-capacity", device], environment(self.folder))

    def fence(self) -> tuple[str, ...]:
        """A command that takes the server's storage away, and looks whether it did."""
        script = 'blockdev --setro "$1" && [ "$(blockdev --getro "$1")" = 1 ]'
        return ("sh", "-c", script, "fence", self.server_device)

    def let_in(self) -> None:
        """Give the server its storage back."""
        tool(["blockdev", "--setrw", self.server_device], environment(self.folder))


@contextlib.contextmanager
def two_ways(
    size_bytes: int, *, tcp: bool = False, mortal_path: bool = False, volatile: bool = False
) -> Iterator[TwoWays]:
    """A volume of zeros, with its server running; needs root.

    With ``mortal_path`` the block device can be made to die. A ``volatile`` server says that it has written what is in
    its memory only, until it is told to flush.
    """
    need("losetup", "mount")
    program = need("qemu-storage-daemon", "qemu-system-common")
    with short_folder() as folder, contextlib.ExitStack() as stack:
        (folder / "volumes").mkdir()
        image = folder / "volumes" / _NAME
        with image.open("xb") as file:
            file.truncate(size_bytes)
        server_device = stack.enter_context(_loop(folder, image))
        daemon = stack.enter_context(_over_fuse(program, folder, image)) if mortal_path else None
        block_path = stack.enter_context(_loop(folder, folder / "served" if daemon else image, direct=daemon is None))
        socket = None if tcp else folder / "nbd.sock"
        port = free_port()
        where = f"addr.type=inet,addr.host=127.0.0.1,addr.port={port}" if tcp else f"addr.type=unix,addr.path={socket}"
        pid = folder / "pid"
        node = f"driver=host_device,node-name=n,filename={server_device},cache.direct=on,locking=off"
        argv = [program, "--blockdev", node, "--nbd-server", f"{where},max-connections=0"]
        argv += ["--export", f"type=nbd,id=e,node-name=n,name={_NAME},writable=on", "--pidfile", str(pid)]
        if volatile:
            argv = [need("nbdkit", "nbdkit"), "--foreground", "--pidfile", str(pid), "--unix", str(socket)]
            argv += ["--filter=cache", "file", server_device, "cache=writeback"]
        service = Service(argv, folder=folder, name="nbd", marks=[pid] if tcp else [pid, folder / "nbd.sock"])
        stack.callback(service.kill)
        service.start()
        yield TwoWays(
            service=service,
            folder=folder,
            address=f"nbd://127.0.0.1:{port}/{_NAME}" if tcp else f"nbd+unix:///{_NAME}?socket={socket}",
            block_path=block_path,
            server_device=server_device,
            socket=socket,
            daemon=daemon,
        )


@contextlib.contextmanager
def _loop(folder: Path, file: Path, *, direct: bool = True) -> Iterator[str]:
    words = ["losetup", "--find", "--show", f"--direct-io={'on' if direct else 'off'}", str(file)]
    device = tool(words, environment(folder)).strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)
        # Linux keeps what a fence has put on the device, and its next user would find it read-only.
        subprocess.run(["blockdev", "--setrw", device], check=False, capture_output=True)


@contextlib.contextmanager
def _over_fuse(program: str, folder: Path, image: Path) -> Iterator[Service]:
    """A file that a storage daemon serves through FUSE: when the daemon dies, every access to it is an error."""
    if not Path("/dev/fuse").exists():
        absent("no /dev/fuse")
    served = folder / "served"
    served.touch()
    pid = folder / "fuse.pid"
    node = f"driver=file,node-name=n,filename={image},cache.direct=on,locking=off"
    export = f"type=fuse,id=e,node-name=n,mountpoint={served},writable=on,growable=off"
    argv = [program, "--blockdev", node, "--export", export, "--pidfile", str(pid)]
    service = Service(argv, folder=folder, name="fuse", marks=[pid])
    try:
        service.start()
        wait_until("the file over FUSE", lambda: served.stat().st_size == image.stat().st_size)
        yield service
    finally:
        service.kill()
        subprocess.run(["umount", "--lazy", str(served)], check=False, capture_output=True)
