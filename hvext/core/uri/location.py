"""What every kind of storage location can do.

XML is imported where it is made: most of the time it is not, and the library's takes half as long to load as Python.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

from hvext.core.secret import Secret
from hvext.core.value import replace, value_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar, Self
    from xml.etree.ElementTree import Element

#: Drivers whose client library has a cache for each image that it opens. QEMU switches it on without
#: ``cache.direct``, and off with it (QEMU, block/rbd.c, ``rbd_cache``). It is no page cache: it goes with the node.
CACHING_DRIVERS = frozenset(("rbd",))
#: Where private files are when nothing else is said; the host layer knows the real folder.
PRIVATE_FOLDER = "/run/hvext"


@value_object
class Companions:
    """The names of what one block node needs beside it: objects in QEMU and private files on the host.

    ``node`` is the node-name, from which all names are made, so that they go when the node goes; ``folder`` is where
    the private files are.
    """

    node: str = "hvext"
    folder: str = PRIVATE_FOLDER

    def object_id(self, role: str) -> str:
        """The id of the object that plays ``role`` (``password``, ``tls``, …) for the node."""
        return f"{self.node}-{role}"

    def path(self, role: str) -> str:
        """The path of the private file that plays ``role`` for the node."""
        return f"{self.folder}/{self.node}-{role}"


@value_object
class PrivateFile:
    """A file with mode 0600 that the node needs.

    It holds ``text``, behind the contents of the file ``after`` where that is named (one that is missing is an error
    unless ``optional``). With ``link`` it is a symbolic link to that path instead.
    """

    path: str
    text: Secret | None = None
    after: str | None = None
    optional: bool = False
    link: str | None = None


@value_object
class Needs:
    """What must be there before a node is made.

    ``objects`` are ``object-add`` arguments; a secret in them is a Secret.
    """

    objects: tuple[dict[str, object], ...] = ()
    files: tuple[PrivateFile, ...] = ()


def secret_object(beside: Companions, role: str, secret: Secret, *, base64: bool = False) -> dict[str, object]:
    """Return the ``object-add`` arguments of a secret; ``base64`` when its text is written in that way."""
    form = {"format": "base64"} if base64 else {}
    return {"qom-type": "secret", "id": beside.object_id(role), "data": secret, **form}


@value_object
class LibvirtSource:
    """How libvirt's disk XML names a location: the disk's ``type`` and its ``<source>`` element."""

    disk_type: str
    element: Element


class Location(ABC):
    """Where a volume is, in the terms of one QEMU block driver. Subclasses are value objects.

    ``SECRETS`` names the fields that hold a Secret or None; each is also the role of the object that carries it.
    """

    __slots__ = ()

    SECRETS: ClassVar[tuple[str, ...]] = ()
    #: The field without which a secret means nothing: a password is only for a location that names a user.
    SECRET_OF: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @property
    @abstractmethod
    def driver(self) -> str:
        """The name of QEMU's block driver, a value of ``BlockdevDriver``."""

    @abstractmethod
    def blockdev(self, beside: Companions = Companions()) -> dict[str, object]:
        """Return the driver's own ``blockdev-add`` options, without ``driver`` and the options all drivers share.

        Objects and files of ``needs`` are named in it by their ids and paths.
        """

    def needs(self, beside: Companions) -> Needs:
        """Return the objects and files that ``blockdev`` names."""
        return Needs()

    @abstractmethod
    def uri(self, *, reveal: bool = False) -> str:
        """Return the canonical URI, ``json:`` where no other can say it all; secrets in it only with ``reveal``.

        ``parse_uri`` of the revealed one gives an equal location.
        """

    @abstractmethod
    def libvirt_source(self, beside: Companions = Companions()) -> LibvirtSource:
        """Return the location as libvirt's disk XML says it; raises RenderError where it cannot.

        Secrets are references to libvirt secrets, whose usage is the id of the object that would carry them.
        """

    @property
    def words(self) -> str:
        """The location for people, without secrets."""
        return self.uri()

    @property
    def reported(self) -> Location:
        """The location as far as QEMU reports it of an open node: what ``parse_filename`` can tell."""
        return self.without_secrets()

    @property
    def local_aio(self) -> bool:
        """Whether the driver does file I/O on this host and takes the ``aio`` option."""
        return False

    @property
    def read_only(self) -> bool:
        """Whether the driver can only read."""
        return False

    @property
    def direct_only(self) -> bool:
        """Whether QEMU opens it with ``cache.direct`` only."""
        return False

    @property
    def buffered_only(self) -> bool:
        """Whether it cannot be opened with ``cache.direct=on`` (QEMU 10.0 crashes on the attempt)."""
        return False

    @property
    def own_cache(self) -> bool:
        """Whether what ``cache.direct=off`` switches on is a cache of the driver's client, and not the page cache.

        A flush empties it. What the guest has not flushed is lost when the client is left without one.
        """
        return self.driver in CACHING_DRIVERS

    @property
    def needs_shared_memory(self) -> bool:
        """Whether somebody outside QEMU reads and writes the guest's memory, which then has to be shared."""
        return False

    @property
    def block_node(self) -> bool:
        """Whether QEMU opens it as a block node (a vhost-user device has none)."""
        return True

    def chardev(self, chardev_id: str) -> dict[str, object]:
        """Return the ``chardev-add`` arguments of the connection to a server, for what is no ``block_node``."""
        raise TypeError(f"{self.driver} is opened as a block node")

    def without_secrets(self) -> Self:
        """Return the location with all secrets left out."""
        return self._replaced(dict.fromkeys(self.SECRETS))

    def with_secrets(self, secrets: Mapping[str, Secret]) -> Self:
        """Return the location with those of ``secrets`` (by role) that it can have and lacks."""
        lacking = {
            name: secrets[name]
            for name in self.SECRETS
            if name in secrets and getattr(self, name) is None and getattr(self, self.SECRET_OF.get(name, "driver"))
        }
        return self._replaced(dict(lacking))

    def _replaced(self, values: Mapping[str, object]) -> Self:
        if not values:
            return self
        return replace(self, **values)


def props(location: Location, beside: Companions) -> Mapping[str, object]:
    """Return ``driver`` and the driver's own options, in the order in which they are written."""
    return {"driver": location.driver, **location.blockdev(beside)}
