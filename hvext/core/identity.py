"""A disk's uuid, and the names that the disk has in QEMU, all derived from it.

Two disks can never collide, and every name tells which disk it belongs to. QEMU's node names have at most 31
characters and start with a letter; a uuid in hexadecimal has 32, so it is written in base 32 (26 characters)::

    hv<uuid in base 32>        28   the raw node, which the device uses
    hv<uuid in base 32>-r      30   its second name: a failover puts a new raw node in the old one's place, and each
                                    takes the name that the other has not
    hv<uuid in base 32>-FG     31   protocol nodes; G is the generation: a re-point makes another one. F says how the
                                    storage was opened (aio, discard), which QEMU does not report
    hv<uuid in base 32>-t      30   the throttle filter, where the disk has limits; ``-u`` is its second name
    hv-<uuid>                  39   the device (libvirt: ua-hv-<uuid>)
    hv-<uuid>-iothread, -throttle, -chardev   what exists for this disk alone
    <protocol node>-<role>     the objects and private files that a protocol node needs (secrets, TLS credentials, …)

Source: QEMU, block.c, ``bdrv_assign_node_name``; util/id.c, ``id_wellformed``.
"""

from __future__ import annotations

import json
import re
import uuid as uuid_module
from collections.abc import Mapping
from functools import lru_cache

from hvext.core.options import Aio, Discard
from hvext.core.secret import is_secret_name
from hvext.core.text import checked, quoted
from hvext.core.value import value_object
from hvext.errors import InputError

try:
    # As the library's random has it: hashlib loads all of OpenSSL.
    from _sha1 import sha1  # type: ignore[import-not-found]
except ImportError:
    from hashlib import sha1

#: Namespace of the uuids that are derived from provider and volume name.
_NAMESPACE = uuid_module.UUID("6a8e7d6c-93b5-5b0e-8f6f-0a5f2d1c7e41")
NODE_NAME_LIMIT = 31
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
#: Of RFC 4648, section 6, and those that ``int`` knows. By hand, because base64 loads as much as all of this module.
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_OF_INT = str.maketrans(_BASE32, _DIGITS[:32])
GENERATIONS = len(_DIGITS)
_AIO: tuple[Aio | None, ...] = (None, Aio.THREADS, Aio.NATIVE, Aio.IO_URING)
_DISCARD = (Discard.IGNORE, Discard.UNMAP)
_NODE = r"(?P<root>hv[a-z2-7]{26})(?:-(?:(?P<other>[rtu])|(?P<opened>[0-7])(?P<generation>[0-9a-z])))?\Z"
_DEVICE = r"hv-(?P<uuid>[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\Z"


@value_object
class ProtocolName:
    """What the name of a protocol node says: its generation, and how its storage was opened."""

    generation: int = 0
    aio: Aio | None = None
    discard: Discard = Discard.IGNORE

    def __post_init__(self) -> None:
        if not 0 <= self.generation < GENERATIONS:
            raise ValueError(f"generation {self.generation} is not between 0 and {GENERATIONS - 1}")


@value_object
class DiskNames:
    """The names of one disk."""

    uuid: uuid_module.UUID

    def __init__(self, uuid: uuid_module.UUID) -> None:
        object.__setattr__(self, "uuid", uuid)

    @property
    def root(self) -> str:
        """The raw node of a disk that was never failed over; all names of nodes begin with it."""
        return _root(self.uuid.bytes)

    @property
    def roots(self) -> tuple[str, str]:
        """The two names that the raw node has in turn."""
        return self.root, f"{self.root}-r"

    @property
    def throttle_nodes(self) -> tuple[str, str]:
        """The two names that the throttle filter has in turn."""
        return self.throttle_node, f"{self.root}-u"

    def protocol(self, opened: ProtocolName) -> str:
        """The protocol node of a generation, opened with these options."""
        flags = _AIO.index(opened.aio) * len(_DISCARD) + _DISCARD.index(opened.discard)
        return f"{self.root}-{flags}{_DIGITS[opened.generation]}"

    @property
    def throttle_node(self) -> str:
        """The throttle filter above the raw node, of a disk that was never failed over."""
        return f"{self.root}-t"

    @property
    def device(self) -> str:
        """The guest device."""
        return f"hv-{self.uuid}"

    @property
    def alias(self) -> str:
        """The guest device, where libvirt made it with an alias of the user's."""
        return f"ua-{self.device}"

    @property
    def drive(self) -> str:
        """The id of a legacy ``-drive``."""
        return f"{self.device}-drive"

    @property
    def throttle_group(self) -> str:
        """The throttle group object."""
        return f"{self.device}-throttle"

    @property
    def iothread(self) -> str:
        """The iothread object of a disk that has one of its own."""
        return f"{self.device}-iothread"

    @property
    def chardev(self) -> str:
        """The character device of a disk behind vhost-user."""
        return f"{self.device}-chardev"

    def owns_object(self, object_id: str) -> bool:
        """Whether an object exists for this disk alone: its throttle group, its iothread, or beside a protocol node."""
        return object_id in (self.throttle_group, self.iothread) or owner_of_object(object_id) == self


@lru_cache(maxsize=4096)
def _root(uuid: bytes) -> str:
    # 26 digits are two bits more than a uuid has: zeros at the end.
    number = int.from_bytes(uuid, "big") << 2
    return "hv" + "".join(_BASE32[number >> shift & 31] for shift in range(125, -1, -5))


def disk_of_node(node_name: str) -> DiskNames | None:
    """Return whose node this is, or None for a node that is not hvext's."""
    match = re.match(_NODE, node_name)
    if match is None:
        return None
    names = DiskNames(uuid_module.UUID(int=int(match["root"][2:].translate(_OF_INT), 32) >> 2))
    # The last digit has two bits that belong to no uuid: a name with them set is somebody else's.
    return names if names.root == match["root"] else None


def owner_of_chardev(chardev_id: str) -> DiskNames | None:
    """Return for which disk a character device is there, or None for any other."""
    device, dash, kind = chardev_id.rpartition("-")
    return disk_of_device(device) if (dash, kind) == ("-", "chardev") else None


def owner_of_object(object_id: str) -> DiskNames | None:
    """Return for whose protocol node an object is there (``<node-name>-<role>``), or None for any other object."""
    node, dash = object_id[:NODE_NAME_LIMIT], object_id[NODE_NAME_LIMIT : NODE_NAME_LIMIT + 1]
    return disk_of_node(node) if dash == "-" and parse_protocol_name(node) else None


def parse_protocol_name(node_name: str) -> ProtocolName | None:
    """Return what the name of a protocol node says, or None for any other node."""
    match = re.match(_NODE, node_name)
    if match is None or match["generation"] is None:
        return None
    aio, discard = divmod(int(match["opened"]), len(_DISCARD))
    return ProtocolName(generation=_DIGITS.index(match["generation"]), aio=_AIO[aio], discard=_DISCARD[discard])


def disk_of_device(device_id: str) -> DiskNames | None:
    """Return whose device this is (with or without libvirt's ``ua-``), or None for one that is not hvext's."""
    match = re.match(_DEVICE, device_id.removeprefix("ua-"))
    return DiskNames(uuid_module.UUID(match["uuid"])) if match else None


def derived_uuid(provider: str, volume: str, parameters: Mapping[str, str] | None = None) -> uuid_module.UUID:
    """Return the uuid of a disk that was given none: always the same for one provider, volume name and parameters.

    The parameters count because they say which pool or folder the name is in; secrets among them do not, so that the
    disk stays the same when a password changes. It is a uuid of version 5. Raises InputError for text that cannot be
    written as UTF-8.
    """
    name = f"{provider}/{volume}"
    open_ones = sorted((key.upper(), value) for key, value in (parameters or {}).items() if not is_secret_name(key))
    if open_ones:
        name += json.dumps(open_ones, ensure_ascii=False)
    digest = sha1(_NAMESPACE.bytes + checked(name, "volume").encode(), usedforsecurity=False).digest()
    return uuid_module.UUID(bytes=digest[:16], version=5)


def short_hash(data: bytes) -> str:
    """Return 32 hexadecimal digits that tell some data from all other; not for secrets."""
    return str(sha1(data, usedforsecurity=False).hexdigest()[:32])


def parse_uuid(text: str) -> uuid_module.UUID:
    """Return the uuid that ``text`` writes; raises InputError."""
    try:
        return uuid_module.UUID(text)
    except ValueError as error:
        raise InputError(f"{quoted(text)} is not a uuid") from error
