"""Opening storage in a process of its own first, so that a server that does not answer cannot hold up a guest.

QEMU opens most network storage in its main loop, and everything else of it waits meanwhile: with no Ceph monitor
there, for five minutes; with an NBD server that refuses a TLS client's certificate, now and then for ever. So a
qemu-storage-daemon opens it first, for reading only and with a time limit, where QEMU is: in its network, its mounts
and its environment. NBD without TLS is not rehearsed: such a server may be there for one connection only, and QEMU
does not wait in its main loop for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from shutil import which

from hvext.core.uri.location import Location, Needs
from hvext.core.uri.nbd import NbdLocation
from hvext.errors import CommandRefused, CommandTimeout, MonitorError, ProgramError, QemuError
from hvext.host.machine import StorageDaemon, start_storage_daemon
from hvext.host.qmp import Monitor, connect
from hvext.operations.threads import in_thread

#: Long enough for a login over a slow line; far less than what QEMU's own client libraries wait.
LIMIT_S = 10.0
_PROGRAM = "qemu-storage-daemon"
_DRIVERS = ("rbd", "iscsi", "gluster", "ssh", "nfs")
#: Gluster's client library takes up to ten seconds for it.
_SLOW_TO_CLOSE = ("gluster",)
_NAMESPACES = ("net", "mnt")
#: Variables that are right for QEMU's program alone.
_OF_ANOTHER_BUILD = ("LD_", "QEMU_MODULE_DIR=")


async def rehearse(monitor: Monitor, location: Location, needs: Needs, node: dict[str, object]) -> None:
    """Open a protocol node beside the running QEMU, and close it again; nothing for drivers that need no care.

    ``needs`` and ``node`` are what the running QEMU will be given; the private files are there already. Raises
    CommandRefused with the words of the storage daemon, and QemuError when it did not open it in time.
    """
    if not _wants_care(location) or which(_PROGRAM) is None:
        return
    try:
        async with _daemon(monitor) as other:
            for item in needs.objects:
                await other.execute("object-add", item)
            # Only for a look: nothing is locked, and nothing is written.
            await other.execute("blockdev-add", node | {"read-only": True, "discard": "ignore"})
            if location.driver not in _SLOW_TO_CLOSE:
                # A client that only vanished would be waited for: Ceph asks it before it lets the next one write.
                await other.execute("blockdev-del", {"node-name": node["node-name"]})
    except CommandRefused as error:
        # The daemon's packages may lack a driver that QEMU has.
        if "Unknown driver" not in error.description:
            raise
    except (CommandTimeout, MonitorError, ProgramError) as error:
        raise QemuError(
            f"a process of its own did not open it within {LIMIT_S:g} s ({error.message}), so QEMU was not asked to",
            hint="does every server that the URI or its configuration names answer, and accept the key or certificate?",
        ) from error


def _wants_care(location: Location) -> bool:
    return location.driver in _DRIVERS or (isinstance(location, NbdLocation) and location.tls is not None)


@contextlib.asynccontextmanager
async def _daemon(monitor: Monitor) -> AsyncIterator[Monitor]:
    """A storage daemon in QEMU's surroundings, killed at the end: a server that does not answer cannot delay that."""
    with tempfile.TemporaryDirectory(prefix="hvext-") as folder:
        socket = f"{folder}/qmp"
        words = ["--chardev", f"socket,id=qmp,path={socket},server=on,wait=off", "--monitor", "chardev=qmp"]

        def start(_cancel: object) -> StorageDaemon:
            return start_storage_daemon(
                words, Path(folder), env=_environment(monitor.pid), prefix=_surroundings(monitor.pid)
            )

        daemon = await in_thread(start)
        try:
            async with asyncio.timeout(LIMIT_S * 2), connect(socket, timeout_s=LIMIT_S) as other:
                yield other
        finally:
            await in_thread(lambda _cancel: daemon.stop(grace_s=0))


def _surroundings(pid: int | None) -> tuple[str, ...]:
    """Return an argv that runs what is put behind it in the network and with the mounts of a process."""
    other = []
    for name in _NAMESPACES if pid is not None else ():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/ns/{name}").readlink() != Path(f"/proc/self/ns/{name}").readlink():
                other.append({"net": "--net", "mnt": "--mount"}[name])
    return ("nsenter", f"--target={pid}", *other, "--") if other else ()


def _environment(pid: int | None) -> dict[str, str]:
    """Return the environment of a process: where it finds an ssh agent, and Ceph its configuration."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair and not pair.startswith(_OF_ANOTHER_BUILD))
    return {}
