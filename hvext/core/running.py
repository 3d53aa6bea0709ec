"""The disks of a running QEMU, from what it reports about its nodes, devices and objects.

Which nodes a device uses is told by ``query-blockstats``: a failover gives a disk other nodes, and one that was
interrupted leaves nodes that nobody uses.

Source: qemu-qmp-ref(7): query-named-block-nodes, query-blockstats, qom-list.
"""

from __future__ import annotations

import uuid as uuid_module
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hvext.core.device import VHOST_USER_DEVICE
from hvext.core.identity import (
    GENERATIONS,
    DiskNames,
    ProtocolName,
    disk_of_device,
    disk_of_node,
    owner_of_object,
    parse_protocol_name,
)
from hvext.core.options import DetectZeroes
from hvext.core.uri import Location, masked, parse_filename
from hvext.core.uri.location import CACHING_DRIVERS
from hvext.core.value import replace, value_object


@value_object
class Node:
    """One block node; ``filename`` is what QEMU shows of its storage, ``size_bytes`` the size it has now."""

    name: str
    driver: str
    filename: str
    size_bytes: int
    read_only: bool
    direct: bool
    no_flush: bool
    detect_zeroes: DetectZeroes

    @property
    def location(self) -> Location | None:
        """Where the storage is; None when QEMU does not tell it all."""
        return parse_filename(self.driver, self.filename)

    @property
    def where(self) -> str:
        """Where the storage is, for people and as ``vm.repoint`` takes it: a URI, or what QEMU shows of it."""
        location = self.location
        return location.uri() if location and not location.local_aio else masked(self.filename)

    @property
    def cached_by_client(self) -> bool:
        """Whether a cache of the driver's client is in use, which goes with this node."""
        return not self.direct and self.driver in CACHING_DRIVERS

    @property
    def grows_in_place(self) -> bool:
        """Whether the open node can see that its storage has grown; an NBD connection keeps the size it began with."""
        return self.driver != "nbd"

    @property
    def by_name(self) -> ProtocolName | None:
        """What the name of a protocol node says of it; None for any other node."""
        return parse_protocol_name(self.name)


@value_object
class RunningDisk:
    """What QEMU has of one disk.

    Whole disks have a device, a root and one protocol node; those behind vhost-user a device and a ``chardev``.
    ``root`` and ``throttle`` are the nodes that the device uses, ``spares`` filters and raw nodes that it does not
    use. ``chain`` are the names of all nodes that the device uses, from its own down; empty where that is not known.
    ``socket`` is the path of the server's socket.
    """

    names: DiskNames
    device: str | None
    model: str | None
    root: Node | None
    throttle: Node | None
    protocols: tuple[Node, ...]
    objects: tuple[str, ...]
    chardev: str | None = None
    socket: str = ""
    spares: tuple[Node, ...] = ()
    chain: tuple[str, ...] = ()

    @classmethod
    def nothing(cls, names: DiskNames) -> RunningDisk:
        """Return what a QEMU has of a disk that it has nothing of."""
        return cls(names=names, device=None, model=None, root=None, throttle=None, protocols=(), objects=())

    @property
    def behind_vhost_user(self) -> bool:
        """Whether a server serves the guest directly: such a disk has no block nodes."""
        return self.model == VHOST_USER_DEVICE

    @property
    def has_remains(self) -> bool:
        """Whether there is anything beside the device."""
        return bool(self.node_names or self.objects or self.chardev)

    @property
    def node_names(self) -> tuple[str, ...]:
        """All nodes, in the order in which they can be deleted."""
        used = (self.throttle, self.root)
        return tuple(node.name for node in (*self.spares, *used, *self.protocols) if node is not None)

    @property
    def leftovers(self) -> tuple[str, ...]:
        """The nodes beside those in use, in the order in which they can be deleted: what an interruption left."""
        if not self.chain:
            return ()
        return tuple(name for name in self.node_names if name not in self.chain)

    @property
    def top(self) -> Node | None:
        """The node that the device uses, whose size the guest sees: the throttle filter where there is one."""
        return self.throttle or self.root

    @property
    def protocol(self) -> Node | None:
        """The protocol node in use: the one below the root."""
        if self.chain:
            return next((node for node in self.protocols if node.name in self.chain), None)
        same = [node for node in self.protocols if self.root is not None and node.filename == self.root.filename]
        for nodes in (list(self.protocols), same):
            if len(nodes) == 1:
                return nodes[0]
        return None

    @property
    def free_generation(self) -> int:
        """A generation that no protocol node of the disk has."""
        taken = {node.by_name.generation for node in self.protocols if node.by_name}
        return next(generation for generation in range(GENERATIONS) if generation not in taken)

    def seen_again(self, chain: tuple[str, ...], nodes: Iterable[str], objects: Iterable[str]) -> RunningDisk | None:
        """Return the disk with the nodes and objects of these names that it has now; None when it uses unknown nodes.

        For a disk whose storage does not answer: QEMU reads from it when it is asked more. What is told of nodes that
        were not there before, which nobody uses, is made up.
        """
        before = {node.name: node for node in (self.root, self.throttle, *self.protocols, *self.spares) if node}
        if self.root is None or not chain or not set(chain) <= before.keys():
            return None
        own = [name for name in nodes if disk_of_node(name) == self.names]
        present = [before.get(name) or replace(self.root, name=name) for name in own]
        kinds = {str(self.device): str(self.model)}
        return _disk(self.names, self.device, chain, kinds, present, set(objects), {})

    def to_json(self) -> dict[str, object]:
        """Return the disk for people and machines; sizes in bytes."""
        node = self.protocol
        top = self.root or node
        location = node.location if node else None
        uri = location.uri() if location else None
        if self.behind_vhost_user:
            uri = f"vhost-user:{self.socket}" if self.socket else None
        return {
            "uuid": str(self.names.uuid),
            "device": self.device,
            "model": self.model,
            "size_bytes": self.root.size_bytes if self.root else None,
            "driver": node.driver if node else None,
            "uri": uri,
            "filename": masked(node.filename) if node else None,
            "read_only": top.read_only if top else None,
            "cache_direct": node.direct if node else None,
            "nodes": list(self.node_names),
            "objects": list(self.objects),
            "chardev": self.chardev,
        }


def parse_running(
    nodes: Sequence[Mapping[str, Any]],
    peripherals: Mapping[str, str],
    objects: Iterable[str],
    chardevs: Mapping[str, str],
    statistics: Sequence[Mapping[str, Any]] = (),
) -> dict[uuid_module.UUID, RunningDisk]:
    """Return hvext's disks by uuid.

    ``nodes`` is the answer of ``query-named-block-nodes``, ``peripherals`` the devices under ``/machine/peripheral``
    with their types, ``objects`` the names under ``/objects``, ``chardevs`` those of character devices with the
    paths of the sockets that they connect to, ``statistics`` the answer of ``query-blockstats``. What belongs to
    nobody known is left out.
    """
    parsed: dict[uuid_module.UUID, list[Node]] = {}
    for node in nodes:
        owner = disk_of_node(node["node-name"])
        if owner is not None:
            parsed.setdefault(owner.uuid, []).append(_node(node))
    devices: dict[uuid_module.UUID, str] = {}
    for device in peripherals:
        owner = disk_of_device(device)
        if owner is not None:
            devices[owner.uuid] = device
    chains = parse_chains(statistics)
    present = set(objects)
    owners = {disk_of_device(name[: len("hv-") + 36]) for name in (*present, *chardevs)}
    owners |= {owner_of_object(name) for name in present}
    uuids = dict.fromkeys([*devices, *parsed, *(owner.uuid for owner in owners if owner is not None)])
    return {
        uuid: _disk(
            DiskNames(uuid),
            devices.get(uuid),
            chains.get(devices.get(uuid, ""), ()),
            peripherals,
            parsed.get(uuid, []),
            present,
            chardevs,
        )
        for uuid in uuids
    }


def device_in_statistics(entry: Mapping[str, Any]) -> str:
    """Return the id of the device that an entry of ``query-blockstats`` is about; empty when it has none.

    QEMU shows a virtio-blk device by the path of its inner device, and a SCSI disk by its id.
    """
    qdev = str(entry.get("qdev", ""))
    return qdev.split("/")[3] if qdev.startswith("/machine/peripheral/") else qdev


def parse_chains(statistics: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Return the names of the nodes that each device uses, from its own down to the storage, by the device's id."""
    chains = {}
    for entry in statistics:
        names: list[str] = []
        node: Mapping[str, Any] | None = entry
        while node is not None and "node-name" in node:
            names.append(node["node-name"])
            node = node.get("parent")
        chains[device_in_statistics(entry)] = tuple(names)
    return chains


def _disk(
    names: DiskNames,
    device: str | None,
    chain: tuple[str, ...],
    peripherals: Mapping[str, str],
    nodes: list[Node],
    objects: set[str],
    chardevs: Mapping[str, str],
) -> RunningDisk:
    throttles = _in_use_first(names.throttle_nodes, nodes, chain)
    roots = _in_use_first(names.roots, nodes, chain)
    # A device without the disk's own nodes is one that somebody else made: nothing of it is a root.
    foreign = bool(chain) and not any(name in names.roots for name in chain)
    throttle = next((node for node in throttles if not chain or node.name in chain), None)
    root = None if foreign else next(iter(roots), None)
    return RunningDisk(
        names=names,
        device=device,
        model=peripherals[device] if device is not None else None,
        root=root,
        throttle=throttle,
        protocols=tuple(node for node in nodes if node.by_name is not None),
        objects=tuple(sorted(name for name in objects if names.owns_object(name))),
        chardev=names.chardev if names.chardev in chardevs else None,
        socket=chardevs.get(names.chardev, ""),
        spares=tuple(node for node in (*throttles, *roots) if node not in (root, throttle)),
        chain=() if foreign else chain,
    )


def _in_use_first(names: Sequence[str], nodes: Sequence[Node], chain: Sequence[str]) -> list[Node]:
    return sorted((node for node in nodes if node.name in names), key=lambda node: node.name not in chain)


def _node(node: Mapping[str, Any]) -> Node:
    return Node(
        name=node["node-name"],
        driver=node["drv"],
        filename=node["file"],
        size_bytes=node["image"]["virtual-size"],
        read_only=node["ro"],
        direct=node["cache"]["direct"],
        no_flush=node["cache"]["no-flush"],
        detect_zeroes=DetectZeroes(node["detect_zeroes"]),
    )
