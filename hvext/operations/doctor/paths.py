"""Which files and sockets of this host a location or a disk needs, and who opens them."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from hvext.core.record import DiskRecord
from hvext.core.secret import is_secret_name
from hvext.core.uri import Location
from hvext.core.uri.blkio import BlkioLocation
from hvext.core.uri.ceph import DEFAULT_CONF
from hvext.core.uri.curl import CurlLocation
from hvext.core.uri.file import FileLocation
from hvext.core.uri.gluster import GlusterHost, GlusterLocation, GlusterSocket
from hvext.core.uri.iscsi import IscsiLocation
from hvext.core.uri.nbd import NbdLocation, TcpServer, UnixServer
from hvext.core.uri.nbd_tls import Certificates, PresharedKey
from hvext.core.uri.nfs import NfsLocation
from hvext.core.uri.rbd import RbdLocation
from hvext.core.uri.ssh import SshLocation
from hvext.core.uri.vhost_user import VhostUserLocation
from hvext.core.value import replace, value_object
from hvext.errors import InputError
from hvext.host.opening import Way

_NFS_PORT = 2049
_PORTS = {"http": 80, "https": 443, "ftp": 21, "ftps": 990}
#: Names of parameters whose value is the path of something that is read.
_READ = ("conf", "config", "keyring", "ca", "cert", "certificate", "certificates")
_READ_ENDS = ("_file", "_conf", "_keyring")


@value_object
class PathNeed:
    """One path: how it is opened, ``why``, and whether QEMU does it or hvext (and its scripts) does.

    ``optional`` paths may be missing, but not closed. ``transport`` is empty for what belongs to none.
    """

    path: str
    way: Way
    why: str
    transport: str = ""
    by_qemu: bool = True
    optional: bool = False

    @property
    def check(self) -> str:
        """The id of the check that this is for."""
        return {Way.READ: "files.readable", Way.CONNECT: "files.socket"}.get(self.way, "files.storage")


@value_object
class Server:
    """Where a location connects to; ``connect`` is False where a server may be there for one connection only."""

    host: str
    port: int
    connect: bool = True


def paths_of(location: Location, transport: str) -> tuple[PathNeed, ...]:
    """Return what QEMU opens on this host for a location, but for a Ceph keyring."""
    found: list[PathNeed] = []
    match location:
        case FileLocation(path=path):
            found.append(PathNeed(path=path, way=Way.WRITE, why="the volume itself"))
        case BlkioLocation(path=path):
            way = Way.CONNECT if location.driver == "virtio-blk-vhost-user" else Way.USE
            found.append(PathNeed(path=path, way=way, why="what libblkio opens"))
        case VhostUserLocation(path=path):
            found.append(PathNeed(path=path, way=Way.CONNECT, why="the vhost-user server"))
        case GlusterLocation(servers=servers):
            sockets = (each.path for each in servers if isinstance(each, GlusterSocket))
            found += [PathNeed(path=path, way=Way.CONNECT, why="the Gluster server") for path in sockets]
        case NbdLocation():
            found += _of_nbd(location)
        case RbdLocation():
            found += _of_rbd(location)
    return tuple(replace(each, transport=transport) for each in found)


def _of_nbd(location: NbdLocation) -> Iterator[PathNeed]:
    if isinstance(location.server, UnixServer):
        yield PathNeed(path=location.server.path, way=Way.CONNECT, why="the NBD server")
    if isinstance(location.tls, Certificates):
        folder = location.tls.folder
        yield PathNeed(path=f"{folder}/ca-cert.pem", way=Way.READ, why="who may have signed the server's certificate")
        for name in ("client-cert.pem", "client-key.pem"):
            yield PathNeed(path=f"{folder}/{name}", way=Way.READ, why="the client's certificate", optional=True)
    if isinstance(location.tls, PresharedKey):
        yield PathNeed(path=location.tls.file, way=Way.READ, why="the pre-shared keys")


def _of_rbd(location: RbdLocation) -> Iterator[PathNeed]:
    told = bool(location.monitors) or any(name == "mon_host" for name, _value in location.options)
    path = location.conf or DEFAULT_CONF
    if path.startswith("/"):
        yield PathNeed(path=path, way=Way.READ, why="where Ceph's monitors are", optional=told and not location.conf)


def paths_of_disk(record: DiskRecord) -> Iterator[PathNeed]:
    """Yield the files that a disk of the journal names, which its provider's scripts or hvext read."""
    for name, value in record.disk.volume.parameters.items():
        word = name.lower()
        named = word in _READ or word.endswith(_READ_ENDS)
        if named and value.startswith("/") and not is_secret_name(name):
            why = f"parameter {name} of {record.words}"
            yield PathNeed(path=value, way=Way.READ, why=why, by_qemu=False)
    for role, path in record.disk.secret_files.items():
        if path.startswith("/"):
            yield PathNeed(path=path, way=Way.READ, why=f"the {role} of {record.words}", by_qemu=False)


def rbd_of_disk(record: DiskRecord) -> RbdLocation | None:
    """Return what the shipped provider rbd offers QEMU, as far as its parameters tell; None where they do not."""
    values = {name.lower(): value for name, value in record.disk.volume.parameters.items()}
    try:
        return RbdLocation(
            pool=values.get("pool", "rbd"),
            image=record.disk.volume.name,
            user=values.get("id", ""),
            conf=values.get("conf", ""),
            options=(("keyring", values["keyring"]),) if values.get("keyring") else (),
        )
    except InputError:
        return None


def servers_of(location: Location) -> tuple[Server, ...]:
    """Return the servers of the network that a location names itself, any of which may be enough."""
    match location:
        case NbdLocation(server=TcpServer(host=host, port=port), tls=tls):
            return (Server(host=host, port=port, connect=tls is not None),)
        case IscsiLocation(host=host, port=port) | SshLocation(host=host, port=port):
            return (Server(host=host, port=port),)
        case NfsLocation(host=host):
            return (Server(host=host, port=_NFS_PORT),)
        case GlusterLocation(servers=servers):
            return tuple(Server(host=each.host, port=each.port) for each in servers if isinstance(each, GlusterHost))
        case RbdLocation(monitors=monitors):
            return tuple(Server(host=each.host, port=each.port) for each in monitors)
        case CurlLocation(url=url):
            parts = urlsplit(url)
            return (Server(host=parts.hostname or "", port=parts.port or _PORTS.get(parts.scheme, 0)),)
        case _:
            return ()
