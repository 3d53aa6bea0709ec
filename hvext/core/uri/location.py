"""What every kind of storage location can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element


@dataclass(frozen=True, slots=True, kw_only=True)
class LibvirtSource:
    """How libvirt's disk XML names a location: the disk's ``type`` and its ``<source>`` element."""

    disk_type: str
    element: Element


class Location(ABC):
    """Where a volume is, in the terms of one QEMU block driver. Subclasses are frozen dataclasses."""

    __slots__ = ()

    @property
    @abstractmethod
    def driver(self) -> str:
        """The name of QEMU's block driver, a value of ``BlockdevDriver``."""

    @abstractmethod
    def blockdev(self) -> dict[str, object]:
        """Return the driver's own ``blockdev-add`` options, without ``driver`` and the options all drivers share."""

    @abstractmethod
    def uri(self) -> str:
        """Return the canonical URI; ``parse_uri`` of it gives an equal location."""

    @property
    @abstractmethod
    def filename(self) -> str:
        """What ``query-named-block-nodes`` shows as ``file`` of a node opened at this location."""

    @abstractmethod
    def libvirt_source(self) -> LibvirtSource:
        """Return the location as libvirt's disk XML says it; raises RenderError where it cannot."""

    @property
    def local_aio(self) -> bool:
        """Whether the driver does file I/O on this host and takes the ``aio`` option."""
        return False


def props(location: Location) -> Mapping[str, object]:
    """Return ``driver`` and the driver's own options, in the order in which they are written."""
    return {"driver": location.driver, **location.blockdev()}
