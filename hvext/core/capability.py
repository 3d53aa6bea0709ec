"""What a QEMU can open and plug, known before anything is sent to it.

Three things have to be true of a block driver: QEMU's schema lists it, its options are among those that the driver
takes, and the module with its code can be loaded. The schema lists drivers whose module is not installed, so the last
one takes a trial: a ``blockdev-add`` with a node name that is never allowed. QEMU loads the driver before it looks at
the name, and looks at the name before the driver opens or connects to anything (strace of 7.2 and 10.0: only the module
and its libraries is opened).

Source: qemu-qmp-ref(7): query-qmp-schema, device-list-properties; block_modules in QEMU's block/meson.build.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hvext.core.schema import Schema
from hvext.core.value import replace, value_object
from hvext.errors import CapabilityError, InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

#: The device types whose properties are asked for: ``device_add`` is not described by the schema.
DEVICE_TYPES = ("virtio-blk-pci", "scsi-hd", "virtio-scsi-pci", "vhost-user-blk-pci")
#: The commands that make a disk, beside ``device_add``.
_DISK_COMMANDS = ("blockdev-add", "object-add", "chardev-add")
#: What ``device_add`` takes itself, for every device.
_OF_EVERY_DEVICE = frozenset(("driver", "id", "bus"))
#: Not a node name: those begin with a letter.
_NO_NODE_NAME = "1"
#: The package with the modules of all drivers in `_TRIALS`.
_PACKAGE = "qemu-block-extra"
#: The drivers that may be modules, each with the options it cannot do without.
_TRIALS: Mapping[str, Mapping[str, object]] = {
    "rbd": {"pool": "p", "image": "i"},
    "iscsi": {"transport": "tcp", "portal": "h", "target": "t"},
    "gluster": {"volume": "v", "path": "p", "server": [{"type": "unix", "path": "/s"}]},
    "nfs": {"server": {"type": "inet", "host": "h"}, "path": "/p"},
    "ssh": {"server": {"host": "h", "port": "22"}, "path": "/p"},
    "http": {"url": "http://h/p"},
    "https": {"url": "https://h/p"},
    "ftp": {"url": "ftp://h/p"},
    "ftps": {"url": "ftps://h/p"},
    "io_uring": {"filename": "/p"},
    "nvme-io_uring": {"path": "/p"},
    "virtio-blk-vfio-pci": {"path": "/p"},
    "virtio-blk-vhost-user": {"path": "/p"},
    "virtio-blk-vhost-vdpa": {"path": "/p"},
}
#: The drivers that open storage, those first that are part of every QEMU.
STORAGE_DRIVERS = ("file", "host_device", "nbd", "nvme", *_TRIALS)


@value_object
class Capabilities:
    """What one QEMU can do.

    ``devices`` are the property names of those `DEVICE_TYPES` that it has, ``unloadable`` the drivers that its schema
    lists but whose module was tried and did not load. ``binary`` and ``version`` are for people only: nothing is
    decided by them.
    """

    schema: Schema
    devices: Mapping[str, frozenset[str]]
    unloadable: frozenset[str] = frozenset()
    binary: str = ""
    version: str = ""

    def about_disks(self) -> Self:
        """Return as much of it as the ``check_`` methods and ``obstacle`` need: a quarter of the whole."""
        return replace(self, schema=self.schema.only(_DISK_COMMANDS))

    def obstacle(self, driver: str) -> str | None:
        """Return why this QEMU cannot use a block driver, or None when it can."""
        if driver not in self.schema.drivers:
            return f"it has no block driver {driver!r}"
        if driver in self.unloadable:
            return f"the module with its block driver {driver!r} cannot be loaded: Debian package {_PACKAGE}"
        return None

    def check_node(self, node: Mapping[str, object]) -> None:
        """Raise CapabilityError when ``blockdev-add`` would not take a node, or its driver cannot be loaded."""
        self.schema.check("blockdev-add", node)
        for driver in _drivers_in(node):
            if (why := self.obstacle(driver)) is not None:
                raise CapabilityError(f"blockdev-add: this QEMU cannot open the node: {why}")

    def check_object(self, item: Mapping[str, object]) -> None:
        """Raise CapabilityError when ``object-add`` would not take an object."""
        self.schema.check("object-add", item)

    def check_chardev(self, arguments: Mapping[str, object]) -> None:
        """Raise CapabilityError when ``chardev-add`` would not take these arguments."""
        self.schema.check("chardev-add", arguments)

    def check_device(self, device: Mapping[str, object]) -> None:
        """Raise CapabilityError when ``device_add`` would not take a device.

        Its type and the names of its properties are looked at, not their values. Of types that are not among
        `DEVICE_TYPES` nothing is known, and they pass.
        """
        kind = str(device.get("driver", ""))
        if kind not in self.devices:
            if kind in DEVICE_TYPES:
                raise CapabilityError(f"device_add: this QEMU has no device {kind!r}")
            return
        properties = self.devices[kind]
        for name in device:
            if name not in properties and name not in _OF_EVERY_DEVICE:
                raise CapabilityError(f"device_add: this QEMU's {kind} device has no property {name!r}")

    def to_json(self) -> dict[str, object]:
        """Return all of it as JSON; `from_json` reads it back."""
        return {
            "binary": self.binary,
            "version": self.version,
            "unloadable": sorted(self.unloadable),
            "devices": {kind: sorted(names) for kind, names in self.devices.items()},
            "schema": self.schema.to_json(),
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Return the capabilities that `to_json` wrote; raises InputError when this is something else."""
        try:
            fields: Any = value
            return cls(
                schema=Schema.from_json(fields["schema"]),
                devices={str(kind): frozenset(names) for kind, names in fields["devices"].items()},
                unloadable=frozenset(fields["unloadable"]),
                binary=str(fields["binary"]),
                version=str(fields["version"]),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"these are not the capabilities of a QEMU: {error!r}") from error


def module_drivers(schema: Schema) -> tuple[str, ...]:
    """Return the drivers that a schema lists and that may need a module which is not there."""
    known = schema.drivers
    return tuple(driver for driver in _TRIALS if driver in known)


def trial_node(driver: str) -> dict[str, object]:
    """Return ``blockdev-add`` arguments that QEMU always refuses: see `lacks_module` for what the refusal tells.

    The driver is one of `module_drivers`.
    """
    return {"driver": driver, "node-name": _NO_NODE_NAME, **_TRIALS[driver]}


def lacks_module(driver: str, refusal: str) -> bool:
    """Return whether QEMU's refusal of a `trial_node` says that the driver could not be loaded."""
    return refusal == f"Unknown driver '{driver}'"


def _drivers_in(node: Mapping[str, object]) -> Iterator[str]:
    """The drivers of a node and of those written out inside it."""
    if isinstance(node.get("driver"), str):
        yield str(node["driver"])
    for value in node.values():
        for inner in value if isinstance(value, list | tuple) else (value,):
            if isinstance(inner, Mapping):
                yield from _drivers_in(inner)
