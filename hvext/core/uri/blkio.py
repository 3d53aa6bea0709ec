"""Storage through libblkio, which QEMU has no URIs for: ``json:{"driver":"io_uring","filename":PATH}`` and others.

``io_uring`` opens a local file or device, ``nvme-io_uring`` the character device of an NVMe namespace (``/dev/ng0n1``),
``virtio-blk-vhost-user`` the socket of a vhost-user-blk server, ``virtio-blk-vhost-vdpa`` a vDPA device
(``/dev/vhost-vdpa-0``) and ``virtio-blk-vfio-pci`` a PCI device (its folder in sysfs); all but the first call it
``path``. Which of them a QEMU has, its schema tells.

Stricter than QEMU where the name would depend on QEMU's working directory: paths must be absolute.
Source: QEMU, block/blkio.c; qemu-storage-daemon-qmp-ref(7), BlockdevOptionsIoUring and its neighbours; libblkio,
docs/blkio.rst.
"""

from __future__ import annotations

from enum import StrEnum

from hvext.core.text import checked, quoted
from hvext.core.uri import description
from hvext.core.uri.disk_source import unsayable
from hvext.core.uri.location import Companions, LibvirtSource, Location
from hvext.core.uri.syntax import check_socket_path
from hvext.core.value import value_object
from hvext.errors import LocationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hvext.core.uri.fields import Fields


class BlkioDriver(StrEnum):
    """QEMU's block drivers over libblkio."""

    IO_URING = "io_uring"
    NVME_IO_URING = "nvme-io_uring"
    VFIO_PCI = "virtio-blk-vfio-pci"
    VHOST_USER = "virtio-blk-vhost-user"
    VHOST_VDPA = "virtio-blk-vhost-vdpa"

    @property
    def member(self) -> str:
        """What the driver calls the path."""
        return "filename" if self is BlkioDriver.IO_URING else "path"


@value_object
class BlkioLocation(Location):
    """A file, device or socket on this host that libblkio opens."""

    kind: BlkioDriver
    path: str

    def __post_init__(self) -> None:
        if self.kind is BlkioDriver.VHOST_USER:
            check_socket_path(self.path)
        if not checked(self.path, "path", error=LocationError).startswith("/"):
            raise LocationError(f"path {quoted(self.path)} for {self.kind} is not absolute")

    @property
    def driver(self) -> str:
        return str(self.kind)

    @property
    def direct_only(self) -> bool:
        return self.kind is not BlkioDriver.IO_URING

    @property
    def needs_shared_memory(self) -> bool:
        return self.kind is BlkioDriver.VHOST_USER

    def blockdev(self, beside: Companions = Companions()) -> dict[str, object]:
        return {self.kind.member: self.path}

    def uri(self, *, reveal: bool = False) -> str:
        return description.write(self.driver, self.blockdev())

    def libvirt_source(self, beside: Companions = Companions()) -> LibvirtSource:
        raise unsayable(f"the block driver {self.kind}")


def parse_filename(driver: str, filename: str) -> BlkioLocation | None:
    """Return the location that QEMU reports by its path, which it does for ``io_uring`` only."""
    return BlkioLocation(kind=BlkioDriver.IO_URING, path=filename) if driver == BlkioDriver.IO_URING else None


def from_options(driver: str, fields: Fields) -> BlkioLocation:
    """Return the location of a ``json:`` description; raises LocationError."""
    kind = BlkioDriver(driver)
    return BlkioLocation(kind=kind, path=fields.needed(kind.member))
