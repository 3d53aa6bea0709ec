"""Block nodes: a protocol node that opens the storage, and the raw node above it, which stays when the storage moves.

::

    device  ->  [throttle]  ->  raw  hv…  ->  nbd | host_device | file | rbd  hv…-FG

Only a failover, which cannot move the raw node off dead storage, puts others in the place of all of them.

Nothing is ever probed: the format is always raw. A guest can write any image header into its own disk.

The raw node passes discards on in every case; whether they reach the storage is decided at the protocol node. So the
raw node's options can be told again at a re-point from what QEMU reports (it does not report ``discard``).
Source: qemu-qmp-ref(7), BlockdevOptions.
"""

from __future__ import annotations

from hvext.core.identity import DiskNames, ProtocolName
from hvext.core.options import DetectZeroes, DiskOptions
from hvext.core.uri.location import PRIVATE_FOLDER, Companions, Location, props


def protocol_node(
    location: Location, options: DiskOptions, names: DiskNames, generation: int, folder: str = PRIVATE_FOLDER
) -> dict[str, object]:
    """Return the ``blockdev-add`` arguments of the node that opens ``location``."""
    return protocol_node_of(
        location,
        names,
        ProtocolName(generation=generation, aio=options.aio, discard=options.discard),
        read_only=bool(options.read_only),
        direct=options.cache_mode.direct,
        no_flush=options.cache_mode.no_flush,
        folder=folder,
    )


def protocol_node_of(
    location: Location,
    names: DiskNames,
    opened: ProtocolName,
    *,
    read_only: bool,
    direct: bool,
    no_flush: bool,
    folder: str = PRIVATE_FOLDER,
) -> dict[str, object]:
    """Return all options of a protocol node; ``opened`` holds those that its name tells.

    ``folder`` is where the private files are that it needs.
    """
    node = {
        **props(location, Companions(node=names.protocol(opened), folder=folder)),
        "node-name": names.protocol(opened),
        "read-only": read_only,
        "cache": {"direct": direct, "no-flush": no_flush},
    }
    if location.local_aio and opened.aio is not None:
        node["aio"] = str(opened.aio)
    return {**node, "discard": str(opened.discard)}


def raw_node(options: DiskOptions, names: DiskNames, protocol: str) -> dict[str, object]:
    """Return the ``blockdev-add`` arguments of the disk's raw node over the node called ``protocol``."""
    return raw_node_of(
        names.root,
        protocol,
        read_only=bool(options.read_only),
        direct=options.cache_mode.direct,
        no_flush=options.cache_mode.no_flush,
        detect_zeroes=options.detect_zeroes,
    )


def raw_node_of(
    name: str, protocol: str, *, read_only: bool, direct: bool, no_flush: bool, detect_zeroes: DetectZeroes
) -> dict[str, object]:
    """Return all options of the raw node ``name``, as ``blockdev-add`` and ``blockdev-reopen`` take them."""
    return {
        "driver": "raw",
        "node-name": name,
        "read-only": read_only,
        "cache": {"direct": direct, "no-flush": no_flush},
        "discard": "unmap",
        "detect-zeroes": str(detect_zeroes),
        "file": protocol,
    }


def throttle_node(options: DiskOptions, names: DiskNames) -> dict[str, object]:
    """Return the ``blockdev-add`` arguments of the filter that enforces the disk's limits."""
    return throttle_node_of(
        names.throttle_node,
        names.root,
        names.throttle_group,
        read_only=bool(options.read_only),
        direct=options.cache_mode.direct,
        no_flush=options.cache_mode.no_flush,
    )


def throttle_node_of(
    name: str, root: str, group: str, *, read_only: bool, direct: bool, no_flush: bool
) -> dict[str, object]:
    """Return all options of the throttle filter ``name`` over the raw node ``root``."""
    return {
        "driver": "throttle",
        "node-name": name,
        "throttle-group": group,
        "read-only": read_only,
        "cache": {"direct": direct, "no-flush": no_flush},
        "discard": "unmap",
        "file": root,
    }
