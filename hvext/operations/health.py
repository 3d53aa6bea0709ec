"""Whether storage could be used now: opened and read in a process of its own, beside QEMU.

QEMU is sent nothing. A server that does not answer holds up that process only, and for a limited time.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from hvext.core.health import Health, HealthState
from hvext.core.secret import Secret
from hvext.core.uri import Location
from hvext.core.uri.location import Companions, PrivateFile, props
from hvext.core.uri.nbd import NbdLocation
from hvext.errors import InputError
from hvext.host.private import private_folder, remove_private, write_private
from hvext.host.probe import Probed, read_block
from hvext.host.process import Cancel
from hvext.host.qmp import Monitor
from hvext.operations.rehearsal import environment_of, network_of
from hvext.operations.threads import in_thread

#: A server on the same network answers in milliseconds; one that takes this long is no place for a guest.
LIMIT_S = 3.0


async def check_health(
    monitor: Monitor | None, location: Location, *, limit_s: float = LIMIT_S, size_bytes: int = 0
) -> Health:
    """Return whether a block can be read from ``location``, from where the QEMU behind ``monitor`` would open it.

    Takes ``limit_s`` at most, and a second more for ending a process. Reads one block past the page cache, and writes
    and locks nothing; with ``size_bytes`` the storage must be at least as large, and its last block is read as well.
    Secrets reach the process in private files, which are gone afterwards. Raises ProgramError when
    nobody could look (no qemu-io, or one without the driver): that says nothing about the storage.
    """
    if not location.block_node:
        raise InputError(f"{location.words} is no block node: it cannot be read beside the guest")
    if isinstance(location, NbdLocation):
        # A process that is to find out whether the server answers now does not wait for it to come back.
        limit_s += location.open_timeout_s
    pid = monitor.pid if monitor else None
    probed = await in_thread(lambda cancel: _probe(location, pid, limit_s, size_bytes, cancel))
    if not probed.answered:
        return Health(state=HealthState.SILENT, words=probed.words)
    return Health(state=HealthState.REFUSED if probed.words else HealthState.HEALTHY, words=probed.words)


def _probe(location: Location, pid: int | None, limit_s: float, size_bytes: int, cancel: Cancel) -> Probed:
    name = f"probe-{secrets.token_hex(6)}"
    folder = f"{private_folder()}/{name}"
    beside = Companions(node="probe", folder=folder)
    needs = location.needs(beside)
    objects, files = [], list(needs.files)
    for item in needs.objects:
        shown, file = _without_secret(item, beside)
        objects.append(shown)
        files += [file] if file else []
    node = {
        **props(location, beside),
        "read-only": True,
        "cache": {"direct": not location.buffered_only, "no-flush": False},
    }
    try:
        write_private(files)
        return read_block(
            node,
            objects,
            limit_s=limit_s,
            size_bytes=size_bytes,
            prefix=network_of(pid),
            env=environment_of(pid),
            cancel=cancel,
        )
    finally:
        remove_private(name)


def _without_secret(item: Mapping[str, object], beside: Companions) -> tuple[dict[str, object], PrivateFile | None]:
    """Return an object whose secret is in a file, and that file: a command line can be read by everybody."""
    shown = dict(item)
    data = shown.pop("data", None)
    if not isinstance(data, Secret):
        return dict(item), None
    path = f"{beside.folder}/{item['id']}"
    return {**shown, "file": path}, PrivateFile(path=path, text=data)
