"""How a disk is presented to the guest and how its storage is opened.

The names are QEMU's where QEMU has one (see qemu(1), ``-drive`` and ``-device``), so that they can be looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum

from hvext.core.text import checked, quoted
from hvext.core.value import MISSING, field, fields, replace, value_object
from hvext.errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class DeviceModel(StrEnum):
    """The guest device."""

    VIRTIO_BLK = "virtio-blk-pci"
    SCSI_HD = "scsi-hd"


class Cache(StrEnum):
    """QEMU's cache modes; only ``none`` and ``directsync`` bypass the host's page cache."""

    NONE = "none"
    WRITEBACK = "writeback"
    WRITETHROUGH = "writethrough"
    DIRECTSYNC = "directsync"
    UNSAFE = "unsafe"

    @property
    def direct(self) -> bool:
        """``cache.direct``: whether the host's page cache is bypassed, and a cache that the storage's client has."""
        return self in (Cache.NONE, Cache.DIRECTSYNC)

    @property
    def no_flush(self) -> bool:
        """``cache.no-flush``: whether the guest's flushes are ignored."""
        return self is Cache.UNSAFE

    @property
    def write_cache(self) -> bool:
        """``write-cache`` of the device: whether the guest is told to flush."""
        return self not in (Cache.WRITETHROUGH, Cache.DIRECTSYNC)


class Aio(StrEnum):
    """How QEMU does file I/O on this host; network drivers do not have it."""

    THREADS = "threads"
    NATIVE = "native"
    IO_URING = "io_uring"


class Discard(StrEnum):
    """Whether the guest's discards reach the storage."""

    IGNORE = "ignore"
    UNMAP = "unmap"


class DetectZeroes(StrEnum):
    """Whether zeroes written by the guest become efficient zero writes."""

    OFF = "off"
    ON = "on"
    UNMAP = "unmap"


class ErrorPolicy(StrEnum):
    """What happens on an I/O error; ``enospc`` is for writes only."""

    REPORT = "report"
    STOP = "stop"
    ENOSPC = "enospc"
    IGNORE = "ignore"


#: THROTTLE_VALUE_MAX of QEMU.
_LIMIT_MAX = 10**15
_UINT32_MAX = 2**32 - 1


@value_object
class Throttle:
    """Limits of one disk: bytes or operations per second, bursts (``*_max``) and their lengths in seconds.

    A limit of 0 is none. Source: qemu-qmp-ref(7), ThrottleLimits; QEMU, util/throttle.c, ``throttle_is_valid``.
    """

    bps_total: int = 0
    bps_read: int = 0
    bps_write: int = 0
    iops_total: int = 0
    iops_read: int = 0
    iops_write: int = 0
    bps_total_max: int = 0
    bps_read_max: int = 0
    bps_write_max: int = 0
    iops_total_max: int = 0
    iops_read_max: int = 0
    iops_write_max: int = 0
    bps_total_max_length: int = 1
    bps_read_max_length: int = 1
    bps_write_max_length: int = 1
    iops_total_max_length: int = 1
    iops_read_max_length: int = 1
    iops_write_max_length: int = 1
    iops_size: int = 0

    def __post_init__(self) -> None:
        # Most disks have no limits, and disks are made again and again.
        if all(getattr(self, name) is value for name, value in _UNLIMITED):
            return
        for name in self.names():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LIMIT_MAX:
                raise InputError(
                    f"throttle limit {name} must be a whole number between 0 and {_LIMIT_MAX}; got {value!r}"
                )
        for unit in ("bps", "iops"):
            if getattr(self, f"{unit}_total") and (getattr(self, f"{unit}_read") or getattr(self, f"{unit}_write")):
                raise InputError(f"throttle limit {unit}_total cannot stand beside {unit}_read or {unit}_write")
            for kind in ("total", "read", "write"):
                self._check_burst(f"{unit}_{kind}")
        if self.iops_size and not (self.iops_total or self.iops_read or self.iops_write):
            raise InputError("throttle limit iops_size needs an iops limit")

    def _check_burst(self, name: str) -> None:
        base, burst, length = (getattr(self, name + suffix) for suffix in ("", "_max", "_max_length"))
        if burst and burst < base:
            raise InputError(f"throttle limit {name}_max must not be below {name}")
        if burst and not base:
            raise InputError(f"throttle limit {name}_max needs {name}")
        if length < 1 or (length > 1 and not burst):
            raise InputError(f"throttle limit {name}_max_length must be at least 1 and needs {name}_max")
        if length > _UINT32_MAX or burst * length > _LIMIT_MAX:
            raise InputError(
                f"throttle limit {name}_max_length is too long: at most {_UINT32_MAX}, and at most {_LIMIT_MAX} "
                f"together with {name}_max; got {length}"
            )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all limits."""
        return tuple(name for name, _value in _UNLIMITED)

    @property
    def limits(self) -> dict[str, int]:
        """The limits that are set, under QEMU's names (``bps-total`` …)."""
        given = ((name, getattr(self, name), unset) for name, unset in _UNLIMITED)
        return {name.replace("_", "-"): value for name, value, unset in given if value != unset}


_UNLIMITED = tuple((each.name, each.default) for each in fields(Throttle))
_BUS = r"[A-Za-z][A-Za-z0-9._-]*\Z"
_BOOTINDEX_MAX = 2**31 - 1
#: VIRTIO_QUEUE_MAX of QEMU.
_QUEUES_MAX = 1024
_SERIAL_BYTES = {DeviceModel.VIRTIO_BLK: 20, DeviceModel.SCSI_HD: 36}


_WORDS = {str: "text", int: "a whole number", bool: "True or False"}
_PLACEMENT_KINDS: tuple[tuple[str, type], ...] = (("bus", str), ("addr", str), ("scsi_id", int), ("lun", int))


def _check_kinds(value: object, kinds: Iterable[tuple[str, type]]) -> None:
    """Raise InputError for a field that is none of its kind; text that is the value of a word becomes the word.

    What is None by default may be None.
    """
    own = value.__dict__
    for name, kind in kinds:
        given = own[name]
        # Disks are made again and again, and nearly always of the very types.
        if type(given) is not kind and (given is not None or getattr(type(value), name, MISSING) is not None):
            object.__setattr__(value, name, of_kind(name, given, kind))


def of_kind(name: str, given: object, kind: type) -> Any:
    """Return the value of a field when it is of its kind, or text for one of its words; raises InputError."""
    if isinstance(given, kind) and not (kind is int and isinstance(given, bool)):
        return given
    if issubclass(kind, StrEnum):
        return _one_of(kind)(name, given)
    raise InputError(f"{name} must be {_WORDS.get(kind, f'a value of hvext.{kind.__name__}')}; got {given!r}")


@value_object
class Placement:
    """Where in the guest the device sits; what is None is left to QEMU or chosen from what it reports.

    ``bus`` is the id of a root port (q35), of a PCI bus (pc) or of a virtio-scsi controller; ``addr`` a slot
    (``"05"`` or ``"05.0"``) for virtio-blk-pci; ``scsi_id`` and ``lun`` are for scsi-hd.
    """

    bus: str | None = None
    addr: str | None = None
    scsi_id: int | None = None
    lun: int | None = None

    def __post_init__(self) -> None:
        _check_kinds(self, _PLACEMENT_KINDS)
        if self.bus is not None and not re.match(_BUS, self.bus):
            raise InputError(f"bus {quoted(self.bus)} cannot be the id of a bus in QEMU")
        if self.addr is not None and not re.match(r"(0x)?[01]?[0-9a-f](\.[0-7])?\Z", self.addr):
            raise InputError(f"addr {quoted(self.addr)} is not a PCI slot such as 5 or 1f.0")
        for name, limit in (("scsi_id", 255), ("lun", 16383)):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= limit:
                raise InputError(f"{name} must be between 0 and {limit}; got {value}")


_OPTION_KINDS: tuple[tuple[str, type], ...] = (
    ("device", DeviceModel),
    ("cache", Cache),
    ("aio", Aio),
    ("discard", Discard),
    ("detect_zeroes", DetectZeroes),
    ("werror", ErrorPolicy),
    ("rerror", ErrorPolicy),
    ("read_only", bool),
    ("serial", str),
    ("bootindex", int),
    ("iothread", str),
    ("queues", int),
    ("throttle", Throttle),
    ("placement", Placement),
)


@value_object
class DiskOptions:
    """Everything about a disk that is not its storage.

    ``serial`` has at most 20 bytes on virtio-blk-pci and 36 on scsi-hd; ``bootindex`` counts from 1; ``iothread`` is
    the id of an iothread that exists, or ``"auto"`` for one of this disk's own; ``queues`` is the number of virtqueues
    of a virtio-blk-pci, which without it has one for each virtual processor. ``None`` leaves QEMU's default; for
    ``read_only`` what the storage can do: writing, but for protocols that can only be read; for ``cache`` it leaves
    the choice to ``Choice.options_at``, which knows the storage.
    """

    device: DeviceModel = DeviceModel.VIRTIO_BLK
    cache: Cache | None = None
    aio: Aio | None = None
    discard: Discard = Discard.IGNORE
    detect_zeroes: DetectZeroes = DetectZeroes.OFF
    werror: ErrorPolicy | None = None
    rerror: ErrorPolicy | None = None
    read_only: bool | None = None
    serial: str | None = None
    bootindex: int | None = None
    iothread: str | None = None
    queues: int | None = None
    throttle: Throttle = field(default_factory=Throttle)
    placement: Placement = field(default_factory=Placement)

    def __post_init__(self) -> None:
        _check_kinds(self, _OPTION_KINDS)
        if self.aio is Aio.NATIVE and not self.cache_mode.direct:
            raise InputError(f"aio=native needs cache=none or directsync, not {self.cache}")
        if self.detect_zeroes is DetectZeroes.UNMAP and self.discard is not Discard.UNMAP:
            raise InputError("detect_zeroes=unmap needs discard=unmap")
        if self.rerror is ErrorPolicy.ENOSPC:
            raise InputError("rerror=enospc does not exist: reads need no space")
        if self.bootindex is not None and not 1 <= self.bootindex <= _BOOTINDEX_MAX:
            raise InputError(f"bootindex counts from 1 to {_BOOTINDEX_MAX}; got {self.bootindex}")
        if self.serial is not None:
            self._check_serial(self.serial)
        if self.iothread is not None and not re.match(_BUS, self.iothread):
            raise InputError(f"iothread {quoted(self.iothread)} cannot be the id of an object in QEMU")
        if self.queues is not None:
            self._check_queues(self.queues)
        self._check_placement()

    @property
    def cache_mode(self) -> Cache:
        """The cache mode that these options come to by themselves: ``none``, unless another was chosen."""
        return self.cache or Cache.NONE

    def _check_serial(self, serial: str) -> None:
        checked(serial, "serial")
        limit = _SERIAL_BYTES[self.device]
        if not serial or len(serial.encode()) > limit:
            raise InputError(f"serial {quoted(serial)} must have 1 to {limit} bytes on {self.device}")
        if not serial.isprintable() or not serial.isascii():
            raise InputError(f"serial {quoted(serial)} must consist of printable ASCII characters")

    def _check_queues(self, queues: int) -> None:
        if not 1 <= queues <= _QUEUES_MAX:
            raise InputError(f"queues must be between 1 and {_QUEUES_MAX}; got {queues}")
        if self.device is DeviceModel.SCSI_HD:
            raise InputError(
                "queues is for virtio-blk-pci: a scsi-hd has those of its controller",
                hint="num_queues of the virtio-scsi-pci",
            )

    def _check_placement(self) -> None:
        scsi = self.device is DeviceModel.SCSI_HD
        if scsi and self.placement.addr is not None:
            raise InputError("addr is for virtio-blk-pci; a scsi-hd has scsi_id and lun")
        if not scsi and (self.placement.scsi_id is not None or self.placement.lun is not None):
            raise InputError("scsi_id and lun are for scsi-hd")

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> DiskOptions:
        """Return the options that a JSON object or ``key=value`` pairs name; strings are converted.

        Keys are the fields' names (``-`` or ``_``), with those of Throttle and Placement beside them. Raises
        InputError for a key that does not exist, or a value that does not fit.
        """
        plain: dict[str, Any] = {}
        throttle: dict[str, Any] = {}
        placement: dict[str, Any] = {}
        for key, value in values.items():
            name = key.replace("-", "_")
            if name in Throttle.names():
                throttle[name] = _whole(name, value)
            elif name in ("bus", "addr"):
                placement[name] = _word(name, value)
            elif name in ("scsi_id", "lun"):
                placement[name] = _whole(name, value)
            elif name in _CONVERTERS:
                plain[name] = _CONVERTERS[name](name, value)
            else:
                raise InputError(
                    f"there is no disk option {quoted(key)}",
                    hint=f"a provider's parameter is given with -p (in --disk: param.{key}); disk options are "
                    + ", ".join(option_names()),
                )
        return cls(**plain, throttle=Throttle(**throttle), placement=Placement(**placement))

    def to_mapping(self) -> dict[str, object]:
        """Return the options that are not the default, as ``from_mapping`` takes them and JSON can hold them."""
        flat: dict[str, object] = {}
        parts: tuple[DiskOptions | Throttle | Placement, ...] = (self, self.throttle, self.placement)
        for part, default in zip(parts, _DEFAULTS, strict=True):
            if part == default:
                continue
            for each in fields(part):
                value = getattr(part, each.name)
                if value != getattr(default, each.name) and not isinstance(value, Throttle | Placement):
                    flat[each.name] = str(value) if isinstance(value, StrEnum) else value
        return flat

    def stopping(self) -> DiskOptions:
        """Return the options with the error policy ``stop``, where none was chosen.

        For a disk that has another place to go to: the guest waits until it is there, and no write is lost.
        """
        return replace(self, werror=self.werror or ErrorPolicy.STOP, rerror=self.rerror or ErrorPolicy.STOP)

    def caching(self) -> DiskOptions:
        """Return the options with ``cache=writeback``, where no cache mode was chosen, nor an ``aio`` that excludes it.

        For a disk whose storage's client has a cache of its own, and which has no other place to go to.
        """
        return self if self.cache or self.aio is Aio.NATIVE else replace(self, cache=Cache.WRITEBACK)


#: All that an option can be part of, as it is when nothing is said.
_DEFAULTS: tuple[DiskOptions, Throttle, Placement] = (DiskOptions(), Throttle(), Placement())


def option_names() -> tuple[str, ...]:
    """The names of all disk options, as ``from_mapping`` takes them."""
    return (*_CONVERTERS, "bus", "addr", "scsi_id", "lun", *Throttle.names())


def _word(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name} must be text; got {value!r}")
    return value


def _whole(name: str, value: object) -> int:
    # Whether it may be below 0 is said where its bounds are.
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    unit = _unit(name)
    raise InputError(f"{name} must be a whole number{f' of {unit}, without a unit' if unit else ''}; got {value!r}")


def _unit(name: str) -> str:
    """Return what a limit counts; empty for what is no limit."""
    if name.endswith("_length"):
        return "seconds"
    if name == "iops_size":
        return "bytes"
    return {"bps": "bytes a second", "iops": "operations a second"}.get(name.partition("_")[0], "")


def _yes(name: str, value: object) -> bool:
    words = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in words:
        return words[value]
    raise InputError(f"{name} must be on or off; got {value!r}")


def _one_of(kind: type[StrEnum]) -> Any:
    def convert(name: str, value: object) -> StrEnum:
        if isinstance(value, str) and value in tuple(kind):
            return kind(value)
        raise InputError(f"{name} must be one of {', '.join(kind)}; got {value!r}")

    return convert


_CONVERTERS: dict[str, Any] = {
    "device": _one_of(DeviceModel),
    "cache": _one_of(Cache),
    "aio": _one_of(Aio),
    "discard": _one_of(Discard),
    "detect_zeroes": _one_of(DetectZeroes),
    "werror": _one_of(ErrorPolicy),
    "rerror": _one_of(ErrorPolicy),
    "read_only": _yes,
    "serial": _word,
    "bootindex": _whole,
    "iothread": _word,
    "queues": _whole,
}
