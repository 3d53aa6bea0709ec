"""What the two sides of a migration tell each other, and what QEMU tells about one that is under way.

A description has all that the target has to know of the source's guest and of its disks, so that it can make the same
devices in the same places. How the storage is reached is no part of it: that is the target's own attach answer.
Node names are none either: QEMU sends the state of devices, each under its place in the machine
(``0000:00:02.0/00.0/virtio-blk``), and nothing of block nodes.

Source: qemu-qmp-ref(7): query-migrate, MigrationStatus; QEMU, docs/devel/migration; hw/core/qdev.c, qdev_get_dev_path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

from hvext.core.disk import Disk
from hvext.core.options import Cache
from hvext.core.secret import is_secret_name
from hvext.core.uri.mask import masked
from hvext.core.value import replace, value_object
from hvext.errors import InputError

#: States of query-migrate in which nothing is under way.
_ENDED = frozenset(("none", "completed", "failed", "cancelled"))
_FORMAT = 1
_OTHERS = ("exec", "fd", "file", "rdma", "vsock")
_ADDRESSES = ("tcp", "unix", *_OTHERS)
_MAX_PORT = 65535


@value_object
class Transfer:
    """How a migration stands: bytes of the guest's memory sent, still to send and in all, times in milliseconds.

    ``status`` is QEMU's word; ``problem`` what QEMU says of one that failed, empty where it says nothing.
    """

    status: str
    transferred_bytes: int = 0
    remaining_bytes: int = 0
    total_bytes: int = 0
    elapsed_ms: int = 0
    downtime_ms: int | None = None
    problem: str = ""

    @classmethod
    def from_qmp(cls, answer: Mapping[str, Any]) -> Self:
        """Read the answer of ``query-migrate``."""
        ram = answer.get("ram", {})
        return cls(
            status=str(answer.get("status", "none")),
            transferred_bytes=int(ram.get("transferred", 0)),
            remaining_bytes=int(ram.get("remaining", 0)),
            total_bytes=int(ram.get("total", 0)),
            elapsed_ms=int(answer.get("total-time", 0)),
            downtime_ms=answer.get("downtime"),
            problem=masked(str(answer.get("error-desc", ""))),
        )

    @property
    def under_way(self) -> bool:
        """Whether QEMU is still at it."""
        return self.status not in _ENDED

    @property
    def words(self) -> str:
        """The progress for people."""
        sent, rest, total = (
            number >> 20 for number in (self.transferred_bytes, self.remaining_bytes, self.total_bytes)
        )
        return f"{self.status}: {sent} MiB sent, {rest} of {total} MiB left"


@value_object
class MovedDisk:
    """A disk as the source's guest has it: its options and place are QEMU's, whatever the caller asked for once.

    ``address`` is the device's place in the machine as the migration stream names it; ``withheld`` are the names of
    provider parameters that are secrets and were left out.
    """

    disk: Disk
    size_bytes: int
    address: str
    withheld: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The volume, for people."""
        return f"{self.disk.provider}/{self.disk.volume.name}"


@value_object
class Description:
    """A guest and its disks, as its source describes it to its target. ``running`` is False for one that is paused."""

    machine: str
    memory_bytes: int
    cpus: int
    running: bool
    moved: tuple[MovedDisk, ...]

    @property
    def disks(self) -> tuple[Disk, ...]:
        """The disks."""
        return tuple(item.disk for item in self.moved)

    def completed(self, parameters: Mapping[str, str]) -> Description:
        """Return this with the secret parameters that it leaves out; raises InputError when one is not given."""
        return replace(self, moved=tuple(_completed(item, parameters) for item in self.moved))

    def to_json(self) -> dict[str, object]:
        """Return the description without any secret; `from_json` reads it, and ``hvext args --disks``."""
        return {
            "format": _FORMAT,
            "machine": self.machine,
            "memory_bytes": self.memory_bytes,
            "cpus": self.cpus,
            "running": self.running,
            "disks": [_without_secrets(item.disk).to_mapping() for item in self.moved],
            "found": {
                str(item.disk.volume.uuid): {
                    "size_bytes": item.size_bytes,
                    "address": item.address,
                    "withheld": sorted({*item.withheld, *_secret_parameters(item.disk)}),
                }
                for item in self.moved
            },
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what `to_json` wrote; raises InputError when this is something else."""
        try:
            fields = cast("Mapping[str, Any]", value)
            if fields["format"] != _FORMAT:
                raise InputError(
                    f"this description has format {fields['format']!r}, and {_FORMAT} is the one that is known",
                    hint="both sides need the same version of hvext",
                )
            disks = [Disk.from_mapping(values) for values in fields["disks"]]
            return cls(
                machine=str(fields["machine"]),
                memory_bytes=int(fields["memory_bytes"]),
                cpus=int(fields["cpus"]),
                running=bool(fields["running"]),
                moved=tuple(_moved(disk, fields["found"][str(disk.volume.uuid)]) for disk in disks),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(
                f"this does not describe a guest that is to be migrated: {why}",
                hint="hvext migrate-begin prints it on the source",
            ) from error

    def differences(self, other: Description) -> tuple[str, ...]:
        """Return in words why the guest cannot be sent to ``other``; what other has beside it is no difference."""
        found = [
            f"{what}: {own} on the source, {theirs} on the target"
            for what, own, theirs in (
                ("machine type", self.machine, other.machine),
                ("memory in bytes", self.memory_bytes, other.memory_bytes),
                ("virtual CPUs", self.cpus, other.cpus),
            )
            if own != theirs
        ]
        theirs_by_uuid = {item.disk.volume.uuid: item for item in other.moved}
        for item in self.moved:
            theirs_item = theirs_by_uuid.get(item.disk.volume.uuid)
            if theirs_item is None:
                found.append(f"disk {item.words}: missing on the target")
            else:
                found += [f"disk {item.words}: {words}" for words in _item_differences(item, theirs_item)]
        return tuple(found)


def check_address(address: str) -> str:
    """Return the address of a migration, as QEMU takes it; raises InputError for what is none."""
    kind, colon, rest = address.partition(":")
    if not colon or kind not in _ADDRESSES:
        raise InputError(
            f"{address!r} is no address for a migration", hint=f"tcp:HOST:PORT or unix:PATH (or {', '.join(_OTHERS)})"
        )
    if kind == "tcp":
        host, _, port = rest.partition(",")[0].rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or int(port) > _MAX_PORT:
            raise InputError(f"{address!r} is no address for a migration", hint="it is tcp:HOST:PORT")
    elif not rest:
        raise InputError(f"{address!r} is no address for a migration: nothing is behind {kind}:")
    return address


def cache_mode(*, direct: bool, no_flush: bool, write_cache: bool) -> Cache:
    """Return the cache mode that opens nodes and makes a device this way."""
    modes = [
        mode for mode in Cache if (mode.direct, mode.no_flush, mode.write_cache) == (direct, no_flush, write_cache)
    ]
    # Ignored flushes are one mode, whatever else is said.
    return modes[0] if modes else Cache.UNSAFE


def _item_differences(own: MovedDisk, other: MovedDisk) -> list[str]:
    pairs: Sequence[tuple[str, object, object]] = (
        ("place in the machine", own.address, other.address),
        ("device", own.disk.options.device, other.disk.options.device),
        ("size in bytes", own.size_bytes, other.size_bytes),
        *_options(own.disk, other.disk),
    )
    return [f"{what} {one} on the source, {two} on the target" for what, one, two in pairs if one != two]


def _options(own: Disk, other: Disk) -> tuple[tuple[str, object, object], ...]:
    """What a guest or its owner would notice: error policies, limits, queues, write cache; and what keeps data safe."""
    names = ("read_only", "werror", "rerror", "serial", "detect_zeroes", "queues")
    return (
        *((name, getattr(own.options, name), getattr(other.options, name)) for name in names),
        ("cache.direct", own.options.cache_mode.direct, other.options.cache_mode.direct),
        ("write cache", own.options.cache_mode.write_cache, other.options.cache_mode.write_cache),
        ("limits", own.options.throttle.limits, other.options.throttle.limits),
    )


def _moved(disk: Disk, found: Mapping[str, Any]) -> MovedDisk:
    return MovedDisk(
        disk=disk,
        size_bytes=int(found["size_bytes"]),
        address=str(found["address"]),
        withheld=tuple(str(name) for name in found["withheld"]),
    )


def _completed(item: MovedDisk, parameters: Mapping[str, str]) -> MovedDisk:
    volume = item.disk.volume
    missing = [name for name in item.withheld if name not in volume.parameters and name not in parameters]
    if missing:
        raise InputError(
            f"disk {item.words}: the description leaves out what is secret, and the provider needs it here as well: "
            + ", ".join(missing),
            hint="--parameter-file NAME=FILE gives it",
        )
    own = {name: parameters[name] for name in item.withheld if name not in volume.parameters}
    return replace(item, disk=replace(item.disk, volume=replace(volume, parameters={**volume.parameters, **own})))


def _secret_parameters(disk: Disk) -> tuple[str, ...]:
    return tuple(name for name in disk.volume.parameters if is_secret_name(name))


def _without_secrets(disk: Disk) -> Disk:
    secret = _secret_parameters(disk)
    parameters = {name: value for name, value in disk.volume.parameters.items() if name not in secret}
    return replace(disk, volume=replace(disk.volume, parameters=parameters))
