"""A disk of Ganeti's as block device parameters and as QEMU's command line.

The shape is Ganeti's: a raw node under the device's id, and the storage as a node without a name in its ``file``.
Source: Ganeti 3.1, lib/hypervisor/hv_kvm/kvm_utils.py, and ``_GenerateKVMBlockDevice`` and
``_GenerateKVMBlockDevicesOptions`` in ``__init__.py``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps

from hvext.core.command_line import option_text
from hvext.core.options import Cache
from hvext.core.secret import Secret
from hvext.core.text import quoted
from hvext.core.uri import Location, parse_uri
from hvext.core.uri.location import PRIVATE_FOLDER, Companions, Needs, PrivateFile, props
from hvext.errors import HvextError, InputError, UnsupportedLocation
from hvext.host.private import private_folder, write_private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ParamSpec, Protocol, TypeVar

    _P = ParamSpec("_P")
    _T = TypeVar("_T")

    class Disk(Protocol):
        """What is used of Ganeti's ``objects.Disk``."""

        dev_type: str
        mode: str
        params: Mapping[str, str]
        hvinfo: Mapping[str, Any]


#: The values of Ganeti's constants; Source: lib/_constants.py of 3.0 and 3.1, the same in both.
USERSPACE = "userspace"
KERNELSPACE = "kernelspace"
_READ_WRITE = "rw"
#: DTS_EXT_MIRROR without DT_RBD: storage that two nodes have at once during a migration.
_SHARED = frozenset(("blockdev", "diskless", "ext", "gluster", "sharedfile"))
#: DTS_FILEBASED.
_FILES = frozenset(("file", "gluster", "sharedfile"))
_CACHES = {
    "default": Cache.WRITEBACK,
    "none": Cache.NONE,
    "writeback": Cache.WRITEBACK,
    "writethrough": Cache.WRITETHROUGH,
}
_DRIVERS = {"paravirtual": "virtio-blk-pci", "ide": "ide-hd"}
#: The guest talks to the real device about its cache: QEMU has no such option there.
_PASSED_THROUGH = ("scsi-block", "scsi-generic")
_AUTO_READ_ONLY = re.compile(r"^-blockdev\s([^-]|(?<!^)-)*,auto-read-only=on\|off", re.MULTILINE | re.DOTALL)


class BlockDevice(dict[str, object]):
    """Block device parameters, a plain dict for Ganeti; ``needs`` are the objects and private files that they name.

    A copy of the dict loses them: what is to be plugged is handed on as it is.
    """

    def __init__(self, values: Mapping[str, object], needs: Needs | None = None) -> None:
        super().__init__(values)
        self.needs = Needs() if needs is None else needs


def ganeti_errors(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return the function with hvext's errors as Ganeti's HypervisorError, where Ganeti is loaded: it catches those."""

    @wraps(function)
    def translated(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except HvextError as error:
            loaded = sys.modules.get("ganeti.errors")
            if loaded is None:
                raise
            raise loaded.HypervisorError(str(error)) from error

    return translated


@ganeti_errors
def ParseStorageUriToBlockdevParam(uri: str, kvm_devid: str = "") -> BlockDevice:
    """Return the parameters of the block driver that opens ``uri``: every URI that hvext reads.

    ``kvm_devid`` is the device they are for; it is needed for URIs that need objects or files beside them (a password,
    TLS, a Ceph keyring), whose names begin with it. Raises HypervisorError.
    """
    return _opened(parse_uri(uri), kvm_devid)


def DictToQemuStringNotation(data: Mapping[str, object]) -> str:
    """Return parameters as the text of ``-blockdev``: commas in values doubled, lists as ``server.0.host``."""
    return option_text(data)


@ganeti_errors
def GetCacheSettings(cache_type: str, dev_type: str) -> tuple[bool, bool, bool]:
    """Return write cache, ``cache.direct`` and ``cache.no-flush`` for Ganeti's cache setting and disk template.

    Storage that two nodes have at once is opened past the page cache, whatever the setting. Raises HypervisorError.
    """
    if cache_type not in _CACHES:
        raise InputError(f"disk_cache must be one of {', '.join(_CACHES)}; got {quoted(cache_type)}")
    cache = Cache.NONE if dev_type in _SHARED else _CACHES[cache_type]
    return cache.write_cache, cache.direct, cache.no_flush


def GetDriveURI(disk: Disk, link: str, uri: str | None) -> str:
    """Return what a disk is opened by: with userspace access its URI, where there is one, else its link."""
    return uri if uri and disk.params.get("access", KERNELSPACE) == USERSPACE else link


@ganeti_errors
def GenerateKVMBlockDevice(target: str, disk_info: Disk, hvp: Mapping[str, Any], kvm_devid: str) -> BlockDevice:
    """Return the block device parameters of a disk that is opened by ``target``, a URI or a path.

    A disk or a protocol that can only be read gives a node that can only be read. ``disk_aio=native`` goes past the
    page cache whatever ``disk_cache`` says, as it can do nothing else. Raises HypervisorError.
    """
    userspace = disk_info.params.get("access", KERNELSPACE) == USERSPACE
    _, direct, no_flush = GetCacheSettings(hvp["disk_cache"], disk_info.dev_type)
    read_only = disk_info.mode != _READ_WRITE
    if userspace and not target.startswith("/"):
        location = parse_uri(target)
        opened = _opened(location, kvm_devid)
        local = location.local_aio
        direct = (direct or location.direct_only) and not location.buffered_only
        read_only = read_only or location.read_only
    else:
        opened = BlockDevice({"driver": "file" if disk_info.dev_type in _FILES else "host_device", "filename": target})
        local = True
    if local:
        opened["aio"] = hvp["disk_aio"] or "threads"
        direct = direct or opened["aio"] == "native"
    node: dict[str, object] = {"driver": "raw", "node-name": kvm_devid, "discard": hvp["disk_discard"]}
    if node["discard"] == "default":
        del node["discard"]
    node["cache"] = {"direct": direct, "no-flush": no_flush}
    if read_only:
        node["read-only"] = True
    return BlockDevice(node | {"file": dict(opened)}, opened.needs)


@ganeti_errors
def GenerateKVMBlockDevicesOptions(
    up_hvp: Mapping[str, Any],
    kvm_disks: Sequence[tuple[Disk, str, str | None]],
    kvmhelp: str,
    devlist: str,
    *,
    owner: int | None = None,
) -> list[str]:
    """Return the command line of an instance's disks, and write the private files that it names.

    ``kvm_disks`` are disk, link and URI (or None); ``kvmhelp`` and ``devlist`` what QEMU prints for ``-help`` and
    ``-device help``; ``owner`` the user id that QEMU runs as, where it is another. May be repeated. Raises
    HypervisorError.
    """
    kind = up_hvp["disk_type"]
    driver = _DRIVERS.get(kind, kind)
    if not re.search(rf'^name "{re.escape(driver)}"', devlist, re.MULTILINE):
        raise InputError(f"this QEMU has no disk driver {quoted(driver)}")
    boot = not up_hvp["kernel_path"] and up_hvp["boot_order"] == "disk"
    argv: list[str] = []
    for number, (disk, link, uri) in enumerate(kvm_disks):
        node = GenerateKVMBlockDevice(GetDriveURI(disk, link, uri), disk, up_hvp, disk.hvinfo["id"])
        if node.get("read-only") and kind == "ide":
            raise InputError(f"disk {disk.hvinfo['id']} can only be read, which an IDE disk cannot be")
        if _AUTO_READ_ONLY.search(kvmhelp):
            node["auto-read-only"] = False
        write_private(node.needs.files, owner=owner)
        for item in node.needs.objects:
            argv += ["-object", option_text(item)]
        argv += ["-device", _device_text(kind, disk, up_hvp, boot=boot and number == 0)]
        argv += ["-blockdev", DictToQemuStringNotation(node)]
    return argv


def device_arguments(hvinfo: Mapping[str, object], node: str, *, write_cache: bool) -> dict[str, object]:
    """Return the arguments of a guest device: driver, id and place of Ganeti's ``hvinfo``, over a node."""
    device = {**hvinfo, "drive": node}
    if hvinfo["driver"] not in _PASSED_THROUGH:
        device["write-cache"] = "on" if write_cache else "off"
    return device


def _device_text(kind: str, disk: Disk, hvp: Mapping[str, Any], *, boot: bool) -> str:
    write_cache, _, _ = GetCacheSettings(hvp["disk_cache"], disk.dev_type)
    # Ganeti's hvinfo has no place on an IDE bus: QEMU chooses it.
    hvinfo = {"driver": "ide-hd"} if kind == "ide" else disk.hvinfo
    device = device_arguments(hvinfo, disk.hvinfo["id"], write_cache=write_cache)
    if boot:
        device["bootindex"] = 1
    driver = device.pop("driver")
    return f"{driver},{option_text(device)}"


def _opened(location: Location, kvm_devid: str) -> BlockDevice:
    if not location.block_node:
        raise UnsupportedLocation(f"{location.words} is no block device for QEMU: Ganeti has no place for it")
    companions = Companions(node=kvm_devid, folder=private_folder() if kvm_devid else PRIVATE_FOLDER)
    needs = location.needs(companions)
    if not kvm_devid and (needs.objects or needs.files):
        raise InputError(f"{location.words} needs objects or files beside it: say for which kvm_devid")
    return BlockDevice(props(location, companions), _stored(needs, companions))


def _stored(needs: Needs, companions: Companions) -> Needs:
    """Return what is needed with every secret in a private file: Ganeti logs its commands."""
    files = list(needs.files)
    objects = []
    for item in needs.objects:
        data = item.get("data")
        if isinstance(data, Secret):
            path = f"{companions.folder}/{item['id']}"
            files.append(PrivateFile(path=path, text=data))
            item = {name: value for name, value in item.items() if name != "data"} | {"file": path}
        objects.append(item)
    return Needs(objects=tuple(objects), files=tuple(files))
