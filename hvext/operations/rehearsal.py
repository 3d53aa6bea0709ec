"""Opening storage in a process of its own first, so that a server that does not answer cannot hold up a guest.

QEMU opens most network storage in its main loop, and everything else of it waits meanwhile: with no Ceph monitor
there, for five minutes; with an NBD server that refuses a TLS client's certificate, now and then for ever. So a
qemu-storage-daemon opens it first, for reading only and with a time limit, where QEMU is: in its network and, where
the same user runs both, with its mounts and its environment (a program of more rights takes nothing from it). NBD
without TLS is not rehearsed: such a server may be there for one connection only, and QEMU does not wait in its main
loop for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator
from functools import partial
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
#: Variables that are right for QEMU's program alone.
_OF_ANOTHER_BUILD = ("LD_", "QEMU_MODULE_DIR=")


async def rehearse(monitor: Monitor, location: Location, needs: Needs, node: dict[str, object]) -> None:
    """Open a protocol node beside the running QEMU, and close it again; nothing for drivers that need no care.

    ``needs`` and ``node`` are what the running QEMU will be given; the private files are there already. Raises
    CommandRefused with the words of the storage daemon, and QemuError when it did not open it in time.
    """
    if not _wants_care(location) or which(_PROGRAM) is None or (location.driver == "ssh" and not _same_user(monitor)):
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

        running: list[StorageDaemon] = []

        def start(_cancel: object) -> None:
            running.append(
                start_storage_daemon(words, Path(folder), env=_environment(monitor), prefix=_surroundings(monitor))
            )

        try:
            await in_thread(start)
            async with asyncio.timeout(LIMIT_S * 2), connect(socket, timeout_s=LIMIT_S) as other:
                yield other
        finally:
            for daemon in running:
                await in_thread(partial(_stop, daemon))


def _stop(daemon: StorageDaemon, _cancel: object) -> None:
    daemon.stop(grace_s=0)


def _same_user(monitor: Monitor) -> bool:
    """Whether QEMU runs as the user who asks. What another user's process says of its surroundings is not followed."""
    return monitor.owner == os.geteuid()


def _surroundings(monitor: Monitor) -> tuple[str, ...]:
    """Return an argv that runs what is put behind it in QEMU's network and, for the same user, with its mounts."""
    options = {"net": "--net", **({"mnt": "--mount"} if _same_user(monitor) else {})}
    other = []
    for name, option in options.items():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{monitor.pid}/ns/{name}").readlink() != Path(f"/proc/self/ns/{name}").readlink():
                other.append(option)
    return ("nsenter", f"--target={monitor.pid}", *other, "--") if other else ()


def _environment(monitor: Monitor) -> dict[str, str]:
    """Return QEMU's environment, for the same user: where it finds an ssh agent, and Ceph its configuration."""
    if _same_user(monitor):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            pairs = Path(f"/proc/{monitor.pid}/environ").read_bytes().decode().split("\0")
            return dict(pair.split("=", 1) for pair in pairs if "=" in pair and not pair.startswith(_OF_ANOTHER_BUILD))
    return {}
