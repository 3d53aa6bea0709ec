"""Local paths: ``file:PATH``, ``host_device:PATH`` and bare absolute paths.

QEMU takes the text behind the prefix as it is: nothing is percent-decoded.
Source: QEMU, block/file-posix.c, ``raw_parse_filename``; qemu-storage-daemon-qmp-ref(7), BlockdevOptionsFile.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from hvext.core.text import checked, quoted
from hvext.core.uri.location import Companions, LibvirtSource, Location
from hvext.core.value import value_object
from hvext.errors import LocationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hvext.core.uri.fields import Fields


class Opened(StrEnum):
    """The block driver for a local path: ``file`` for regular files, ``host_device`` for block devices."""

    FILE = "file"
    HOST_DEVICE = "host_device"


def by_name(path: str) -> Opened:
    """Return the driver that the name of a path suggests, without looking at the file system."""
    return Opened.HOST_DEVICE if path.startswith("/dev/") else Opened.FILE


@value_object
class FileLocation(Location):
    """An absolute path on this host."""

    path: str
    opened: Opened

    def __post_init__(self) -> None:
        checked(self.path, "path", error=LocationError)
        if not self.path.startswith("/"):
            raise LocationError(
                f"path {quoted(self.path)} is not absolute",
                hint="a relative path depends on QEMU's working directory, and QEMU would look for a protocol in it",
            )

    @property
    def driver(self) -> str:
        return str(self.opened)

    def blockdev(self, beside: Companions = Companions()) -> dict[str, object]:
        return {"filename": self.path}

    def uri(self, *, reveal: bool = False) -> str:
        return f"{self.opened}:{self.path}"

    @property
    def words(self) -> str:
        return self.path

    def libvirt_source(self, beside: Companions = Companions()) -> LibvirtSource:
        from xml.etree.ElementTree import Element

        from hvext.core.xml import checked_xml

        kind, attribute = ("block", "dev") if self.opened is Opened.HOST_DEVICE else ("file", "file")
        return LibvirtSource(
            disk_type=kind, element=Element("source", {attribute: checked_xml(self.path, "the disk's path")})
        )

    @property
    def local_aio(self) -> bool:
        return True


def parse(scheme: str, rest: str, look: Callable[[str], Opened]) -> FileLocation:
    """Return the location of ``scheme:rest``; ``look`` tells what a ``file:`` path is."""
    if not rest:
        raise LocationError(f"{scheme}: has no path behind it")
    return FileLocation(path=rest, opened=Opened.HOST_DEVICE if scheme == "host_device" else look(rest))


def from_options(driver: str, fields: Fields) -> FileLocation:
    """Return the location of a ``json:`` description."""
    return FileLocation(path=fields.needed("filename"), opened=Opened(driver))


def parse_filename(driver: str, filename: str) -> FileLocation:
    """Return the location that QEMU reports by its path."""
    return FileLocation(path=filename, opened=Opened(driver))
