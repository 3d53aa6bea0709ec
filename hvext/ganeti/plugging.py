"""Plugging, unplugging and resizing over Ganeti's own QMP connection.

A plug that fails leaves nothing behind, an unplug may be repeated until the guest has let the disk go, and what a guest
has is asked by the id of the device, wherever it sits.

Source: Ganeti 3.1, lib/hypervisor/hv_kvm/monitor.py; qemu-qmp-ref(7): device_del, blockdev-del, block_resize.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping

from hvext.core.text import quoted
from hvext.core.uri.location import Needs
from hvext.errors import HvextError, PlugError
from hvext.ganeti.options import KERNELSPACE, BlockDevice, device_arguments, ganeti_errors
from hvext.host.private import remove_private, write_private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from hvext.ganeti.options import Disk

    class QmpConnection(Protocol):
        """What is used of Ganeti's ``QmpConnection``; in 3.0, ``execute_qmp`` is ``Execute``."""

        def is_connected(self) -> bool:
            """Whether it is connected."""

        def connect(self) -> None:
            """Connect to QEMU."""

        def close(self) -> None:
            """Disconnect."""

        def execute_qmp(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
            """Send a command and return what it returned."""

        def _AddFd(self, fd: int) -> int:
            """Hand a descriptor over and return the number of its fdset."""

        def _RemoveFdset(self, fdset: int) -> None:
            """Give it up."""


#: The guest is asked again after 1, 3, 7, … s: one that boots loses a request.
_ASK_AGAIN_S = 1.0
_LOOK_S = 0.1
_RELEASED_S = 2.0
_UNDER_WAY = ("already in the process of unplug", "unplug pending")


@ganeti_errors
def HasDevice(qmp: QmpConnection, devid: str) -> bool:
    """Return whether the guest has a device with this id, on whichever bus."""
    with _connected(qmp):
        return _has_device(qmp, devid)


@ganeti_errors
def VerifyHotplugCommand(qmp: QmpConnection, kvm_devid: str, should_exist: bool, timeout_s: float = 5.0) -> None:
    """Wait until a device is there, or is not; raises HypervisorError after ``timeout_s`` seconds."""
    deadline = time.monotonic() + timeout_s
    with _connected(qmp):
        while _has_device(qmp, kvm_devid) != should_exist:
            if time.monotonic() >= deadline:
                what = "added but is missing" if should_exist else "removed but is still there"
                raise PlugError(f"device {kvm_devid} should have been {what}")
            time.sleep(_LOOK_S)


@ganeti_errors
def HotAddDisk(
    qmp: QmpConnection,
    disk: Disk,
    access_mode: str,
    cache_writeback: bool,
    direct: bool,
    blockdevice: Mapping[str, Any],
    *,
    owner: int | None = None,
) -> None:
    """Plug a disk whose block device parameters are ``blockdevice``; a failure leaves the guest as it was.

    With kernelspace access the path is opened here, and handed over to QEMU, which may see no devices; past the page
    cache when ``direct`` or the parameters say so. ``owner`` is the user id that QEMU runs as, where it is another. A
    node that an earlier plug left is removed first. Raises HypervisorError.
    """
    node = dict(blockdevice)
    devid = str(node["node-name"])
    needs = blockdevice.needs if isinstance(blockdevice, BlockDevice) else Needs()
    device = device_arguments(disk.hvinfo, devid, write_cache=cache_writeback)
    with _connected(qmp):
        if _has_device(qmp, devid):
            raise PlugError(f"the guest has a device {quoted(devid)} already")
        _forget(qmp, devid)
        try:
            with _handed_over(qmp, node, direct=direct) if access_mode == KERNELSPACE else contextlib.nullcontext():
                write_private(needs.files, owner=owner)
                for item in needs.objects:
                    _execute(qmp, "object-add", item)
                _execute(qmp, "blockdev-add", node)
                _execute(qmp, "device_add", device)
        except BaseException:
            # The first error is what the caller has to see.
            with contextlib.suppress(Exception):
                _forget(qmp, devid)
            raise


@ganeti_errors
def HotDelDisk(qmp: QmpConnection, devid: str, timeout_s: float = 30.0) -> None:
    """Unplug a disk, and remove what was made for it once the guest has let it go.

    Raises HypervisorError when the guest has not done so in ``timeout_s`` seconds: then nothing was removed, and a
    later call finishes it. A disk that is gone already is no error.
    """
    begin = time.monotonic()
    ask_at, pause_s = begin, _ASK_AGAIN_S
    with _connected(qmp):
        while _has_device(qmp, devid):
            now = time.monotonic()
            if now >= ask_at:
                _ask_to_let_go(qmp, devid)
                ask_at, pause_s = now + pause_s, pause_s * 2
            if now >= begin + timeout_s:
                raise PlugError(
                    f"the guest has not let device {devid} go in {timeout_s:g} s; its block node stays",
                    hint="repeat this: it finishes what the guest does later",
                )
            time.sleep(_LOOK_S)
        _forget(qmp, devid)


@ganeti_errors
def ForgetDisk(devid: str) -> None:
    """Remove the private files of a disk whose QEMU has ended; none is no error, and it may be repeated."""
    remove_private(f"{devid}-")


@ganeti_errors
def ResizeBlockDevice(qmp: QmpConnection, disk_id: str, new_size: int) -> None:
    """Tell the guest that a disk has ``new_size`` bytes, and check that it has; may be repeated.

    Raises HypervisorError where it has not: a block device that has not grown, an NBD disk.
    """
    with _connected(qmp):
        _execute(qmp, "block_resize", {"node-name": disk_id, "size": new_size})
        sizes = [node["image"]["virtual-size"] for node in _nodes(qmp) if node["node-name"] == disk_id]
    if not sizes or sizes[0] < new_size:
        raise HvextError(f"disk {disk_id} was to have {new_size} bytes and has {sizes[0] if sizes else 'no node'}")


@contextlib.contextmanager
def _connected(qmp: QmpConnection) -> Iterator[None]:
    """Have the connection open in the block, as Ganeti's own methods do; descriptors live no longer than it."""
    before = qmp.is_connected()
    if not before:
        qmp.connect()
    try:
        yield
    finally:
        if not before:
            qmp.close()


def _forget(qmp: QmpConnection, devid: str) -> None:
    """Remove what exists for a device that the guest does not have; an error for a node that something uses."""
    if any(node["node-name"] == devid for node in _nodes(qmp)):
        _delete_node(qmp, devid)
    for name in _listed(qmp, "/objects"):
        if name.startswith(f"{devid}-"):
            _execute(qmp, "object-del", {"id": name})
    remove_private(f"{devid}-")


def _delete_node(qmp: QmpConnection, name: str) -> None:
    """Delete a block node; a device that has just gone may use it for a moment."""
    deadline = time.monotonic() + _RELEASED_S
    while True:
        try:
            _execute(qmp, "blockdev-del", {"node-name": name})
        except Exception as error:
            # Ganeti's connection tells QEMU's errors apart by their words alone.
            if "in use" not in str(error) or time.monotonic() >= deadline:
                raise
            time.sleep(_LOOK_S)
        else:
            return


def _has_device(qmp: QmpConnection, devid: str) -> bool:
    return devid in _listed(qmp, "/machine/peripheral")


def _execute(qmp: Any, command: str, arguments: Mapping[str, Any]) -> Any:
    execute = qmp.execute_qmp if hasattr(qmp, "execute_qmp") else qmp.Execute
    return execute(command, dict(arguments))


def _listed(qmp: QmpConnection, path: str) -> list[str]:
    return [str(entry["name"]) for entry in _execute(qmp, "qom-list", {"path": path})]


def _nodes(qmp: QmpConnection) -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = _execute(qmp, "query-named-block-nodes", {"flat": True})
    return nodes


def _ask_to_let_go(qmp: QmpConnection, devid: str) -> None:
    try:
        _execute(qmp, "device_del", {"id": devid})
    except Exception as error:
        if _has_device(qmp, devid) and not any(words in str(error) for words in _UNDER_WAY):
            raise


@contextlib.contextmanager
def _handed_over(qmp: QmpConnection, node: dict[str, Any], *, direct: bool) -> Iterator[None]:
    """Open the path of a node and have QEMU open it by the descriptor, in the block."""
    flags = os.O_RDONLY if node.get("read-only") else os.O_RDWR
    if direct or node["cache"]["direct"]:
        flags |= os.O_DIRECT
    path = node["file"]["filename"]
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise PlugError(f"cannot open {path}: {error.strerror}") from error
    try:
        fdset = qmp._AddFd(descriptor)
    finally:
        os.close(descriptor)
    node["file"] = {**node["file"], "filename": f"/dev/fdset/{fdset}"}
    try:
        yield
    finally:
        # QEMU has a descriptor of its own by now.
        qmp._RemoveFdset(fdset)
