"""Opening storage in a process of its own first, so that a server that does not answer cannot hold up a guest.

QEMU opens most network storage in its main loop, and everything else of it waits meanwhile: with no Ceph monitor
there, for five minutes; with an NBD server that refuses a TLS client's certificate, now and then for ever. So a
qemu-storage-daemon opens it first, for reading only and with a time limit, in QEMU's network.

A guest may have taken QEMU over: nothing else of what QEMU's process says of itself is followed, but for the place of
its ssh agent. Storage that looks at who asks (NFS, Gluster, ssh) is rehearsed only when the same user runs both. NBD
without TLS is not rehearsed: such a server may be there for one connection only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from functools import partial
from pathlib import Path
from shutil import which
from typing import Protocol

from hvext.core.uri.location import Location, Needs
from hvext.core.uri.nbd import NbdLocation
from hvext.errors import CommandRefused, CommandTimeout, MonitorError, ProgramError, QemuError
from hvext.host.machine import StorageDaemon, start_storage_daemon
from hvext.host.qmp import connect
from hvext.operations.threads import in_thread

#: Long enough for a login over a slow line; far less than what QEMU's own client libraries wait.
LIMIT_S = 10.0
_PROGRAM = "qemu-storage-daemon"
_DRIVERS = ("rbd", "iscsi", "gluster", "ssh", "nfs")
#: Drivers whose servers look at the user.
_BY_USER = ("gluster", "ssh", "nfs")
#: Gluster's client library takes up to ten seconds for it.
_SLOW_TO_CLOSE = ("gluster",)
#: What is taken from QEMU's environment.
_VARIABLES = ("SSH_AUTH_SOCK",)


class Client(Protocol):
    """Whose storage it is to become: the process of a QEMU, and the id of the user that runs it, where it is known."""

    @property
    def pid(self) -> int | None:
        """The number of the process."""

    @property
    def owner(self) -> int | None:
        """The user's id."""


async def rehearse(monitor: Client, location: Location, needs: Needs, node: dict[str, object]) -> None:
    """Open a protocol node beside the running QEMU, and close it again; nothing for drivers that need no care.

    ``needs`` and ``node`` are what the running QEMU will be given; the private files are there already. Raises
    CommandRefused with the words of the storage daemon, and QemuError when it did not open it in time. A daemon that
    cannot be started, or lacks the driver, is no obstacle: QEMU is asked at once then.
    """
    # In this order: to look through PATH takes longer than all else that is done for most disks here.
    if not _wants_care(location, monitor) or (program := which(_PROGRAM)) is None:
        return
    limit_s = LIMIT_S + (location.open_timeout_s if isinstance(location, NbdLocation) else 0)
    running: list[StorageDaemon] = []
    with tempfile.TemporaryDirectory(prefix="hvext-") as folder:
        try:
            await in_thread(partial(_start, running, program, folder, monitor))
            await _opened(f"{folder}/qmp", location, needs, node, limit_s)
        except ProgramError:
            return
        except CommandRefused as error:
            # The daemon's packages may lack a driver that QEMU has.
            if "Unknown driver" not in error.description:
                raise
        except (CommandTimeout, MonitorError, TimeoutError) as error:
            raise QemuError(
                f"a process of its own did not open it within {limit_s:g} s, so QEMU was not asked to",
                hint="does every server that the URI or its configuration names answer, and accept the key or "
                "certificate?",
            ) from error
        finally:
            for daemon in running:
                await in_thread(partial(_stop, daemon))


async def _opened(socket: str, location: Location, needs: Needs, node: dict[str, object], limit_s: float) -> None:
    async with asyncio.timeout(limit_s * 2), connect(socket, timeout_s=limit_s) as daemon:
        for item in needs.objects:
            await daemon.execute("object-add", item)
        # Only for a look: nothing is locked, and nothing is written.
        await daemon.execute("blockdev-add", node | {"read-only": True, "discard": "ignore"})
        if location.driver not in _SLOW_TO_CLOSE:
            # A client that only vanished would be waited for: Ceph asks it before it lets the next one write.
            await daemon.execute("blockdev-del", {"node-name": node["node-name"]})


def _wants_care(location: Location, monitor: Client) -> bool:
    if location.driver in _BY_USER and monitor.owner != os.geteuid():
        return False
    return location.driver in _DRIVERS or (isinstance(location, NbdLocation) and location.tls is not None)


def _start(running: list[StorageDaemon], program: str, folder: str, monitor: Client, _cancel: object) -> None:
    """Start the daemon and put it into ``running``, so that it is ended whatever happens to who waits for it."""
    words = ["--chardev", f"socket,id=qmp,path={folder}/qmp,server=on,wait=off", "--monitor", "chardev=qmp"]
    running.append(
        start_storage_daemon(
            words, Path(folder), program=program, env=environment_of(monitor.pid), prefix=network_of(monitor.pid)
        )
    )


def _stop(daemon: StorageDaemon, _cancel: object) -> None:
    daemon.stop(grace_s=0)


def network_of(pid: int | None) -> tuple[str, ...]:
    """Return an argv that runs what is put behind it in the network of a process, and ends it when hvext ends."""
    setpriv = which("setpriv")
    tied = (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()
    nsenter = which("nsenter")
    with contextlib.suppress(OSError):
        if nsenter and Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink():
            return (*tied, nsenter, f"--net=/proc/{pid}/ns/net", "--")
    return tied


def environment_of(pid: int | None) -> dict[str, str]:
    """Return what a program that opens storage for a process has to have of that process's environment."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        known = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        return {name: known[name] for name in _VARIABLES if name in known}
    return {}
