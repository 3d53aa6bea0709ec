"""``vhost-user:PATH``: the unix socket of a vhost-user-blk server, which serves the guest's own queues.

QEMU has no URI and no block node for it: the guest gets a ``vhost-user-blk-pci`` device over a character device, and
the server reads and writes the guest's memory, which therefore has to be shared. The path stands as it is; nothing is
percent-decoded. ``vhost-user:unix:PATH`` is the same.
Source: QEMU, docs/interop/vhost-user.rst; libvirt, "Domain XML format", disk type ``vhostuser``.
"""

from __future__ import annotations

from hvext.core.uri.location import Companions, LibvirtSource, Location
from hvext.core.uri.syntax import check_socket_path
from hvext.core.value import value_object
from hvext.core.xml import checked_xml
from hvext.errors import LocationError, UnsupportedLocation

#: After how many seconds QEMU tries again to reach a server that has gone.
RECONNECT_S = 1


@value_object
class VhostUserLocation(Location):
    """The socket of a vhost-user-blk server."""

    path: str

    def __post_init__(self) -> None:
        check_socket_path(self.path)

    @property
    def driver(self) -> str:
        return "vhost-user-blk-pci"

    @property
    def block_node(self) -> bool:
        return False

    @property
    def needs_shared_memory(self) -> bool:
        return True

    def blockdev(self, beside: Companions = Companions()) -> dict[str, object]:
        raise UnsupportedLocation(f"{self.uri()} is served to the guest directly: it is no block node")

    def chardev(self, chardev_id: str) -> dict[str, object]:
        """Return the ``chardev-add`` arguments of the connection to the server."""
        address = {"type": "unix", "data": {"path": self.path}}
        backend = {"type": "socket", "data": {"addr": address, "server": False, "reconnect": RECONNECT_S}}
        return {"id": chardev_id, "backend": backend}

    def uri(self, *, reveal: bool = False) -> str:
        return f"vhost-user:{self.path}"

    def libvirt_source(self, beside: Companions = Companions()) -> LibvirtSource:
        from xml.etree.ElementTree import Element, SubElement

        path = checked_xml(self.path, "the vhost-user socket's path")
        source = Element("source", {"type": "unix", "path": path})
        SubElement(source, "reconnect", {"enabled": "yes", "timeout": str(RECONNECT_S)})
        return LibvirtSource(disk_type="vhostuser", element=source)


def parse(scheme: str, rest: str) -> VhostUserLocation:
    """Return the location of ``vhost-user:rest``; raises LocationError."""
    path = rest.removeprefix("unix:")
    if not path.startswith("/") or path.startswith("//"):
        raise LocationError(
            f"{scheme}: needs the absolute path of a unix socket behind it", hint="write vhost-user:/run/server.sock"
        )
    return VhostUserLocation(path=path)
