"""The places where an NBD server can listen: TCP, a unix socket, AF_VSOCK.

Source: qemu-storage-daemon-qmp-ref(7), SocketAddress.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from hvext.core.text import quoted
from hvext.core.uri.syntax import check_host, check_port, check_socket_path, encoded_host, parse_address
from hvext.core.value import value_object
from hvext.errors import LocationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hvext.core.uri.fields import Fields

DEFAULT_PORT = 10809
_LAST_CID = (1 << 32) - 1
_ONLY_NAMES = ("numeric", "to", "ipv4", "ipv6", "keep-alive", "mptcp")


@value_object
class UnixServer:
    """An NBD server behind a unix socket."""

    path: str

    def __post_init__(self) -> None:
        check_socket_path(self.path)

    @property
    def scheme_suffix(self) -> str:
        """What the scheme of its URIs ends in."""
        return "+unix"

    @property
    def authority(self) -> str:
        """What stands between ``//`` and the export."""
        return ""

    @property
    def query(self) -> Mapping[str, str]:
        """The query parameters of its URIs."""
        return {"socket": self.path}

    def blockdev(self) -> dict[str, object]:
        """The ``server`` of the nbd driver."""
        return {"type": "unix", "path": self.path}


@value_object
class TcpServer:
    """An NBD server at a host (name, IPv4 or bare IPv6 address) and port."""

    host: str
    port: int = DEFAULT_PORT

    def __post_init__(self) -> None:
        check_host(self.host)
        check_port(self.port)

    @property
    def scheme_suffix(self) -> str:
        """What the scheme of its URIs ends in."""
        return ""

    @property
    def authority(self) -> str:
        """What stands between ``//`` and the export."""
        return f"{encoded_host(self.host)}:{self.port}"

    @property
    def query(self) -> Mapping[str, str]:
        """The query parameters of its URIs."""
        return {}

    def blockdev(self) -> dict[str, object]:
        """The ``server`` of the nbd driver."""
        return {"type": "inet", "host": self.host, "port": str(self.port)}


@value_object
class VsockServer:
    """An NBD server in another virtual machine, or on the host of this one: a context id (host: 2) and a port."""

    cid: int
    port: int = DEFAULT_PORT

    def __post_init__(self) -> None:
        if not 0 <= self.cid <= _LAST_CID:
            raise LocationError(f"AF_VSOCK context id {self.cid} is not between 0 and {_LAST_CID}")
        if not 1 <= self.port <= _LAST_CID:
            raise LocationError(f"AF_VSOCK port {self.port} is not between 1 and {_LAST_CID}")

    @property
    def scheme_suffix(self) -> str:
        """What the scheme of its URIs ends in."""
        return "+vsock"

    @property
    def authority(self) -> str:
        """What stands between ``//`` and the export."""
        return f"{self.cid}:{self.port}"

    @property
    def query(self) -> Mapping[str, str]:
        """The query parameters of its URIs."""
        return {}

    def blockdev(self) -> dict[str, object]:
        """The ``server`` of the nbd driver."""
        return {"type": "vsock", "cid": str(self.cid), "port": str(self.port)}


NbdServer = UnixServer | TcpServer | VsockServer


def tcp_server(address: str) -> TcpServer:
    """Return the server at ``HOST[:PORT]``; raises LocationError."""
    host, port = parse_address(address, "nbd")
    if not host:
        raise LocationError("NBD URI over TCP names no host", hint="for a unix socket, write nbd+unix:///")
    return TcpServer(host=host, port=DEFAULT_PORT if port is None else port)


def vsock_server(address: str) -> VsockServer:
    """Return the server at ``CID[:PORT]``; raises LocationError."""
    match = re.fullmatch(r"(?P<cid>[0-9]{1,10})(?::(?P<port>[0-9]{0,10}))?", address)
    if match is None:
        raise LocationError(
            f"NBD URI over AF_VSOCK has the address {quoted(address)}, which is not CID[:PORT]",
            hint="nbd+vsock://2 is the host that a virtual machine runs on, nbd+vsock://3 a virtual machine",
        )
    return VsockServer(cid=int(match["cid"]), port=int(match["port"]) if match["port"] else DEFAULT_PORT)


def server_from_options(fields: Fields) -> NbdServer:
    """Return the server of a ``json:`` description, also where it has QEMU's older ``host``, ``port`` and ``path``.

    Raises LocationError.
    """
    server = fields.sub("server")
    if server is None:
        return _older(fields)
    for old in ("host", "port", "path"):
        if old in fields:
            raise LocationError(f"json: nbd has server, and {old} as well", hint="leave one out")
    kind = server.needed("type")
    address: NbdServer
    if kind == "unix":
        address = UnixServer(path=server.needed("path"))
    elif kind == "inet":
        _refuse_tuning(server)
        address = TcpServer(host=server.needed("host"), port=_port(server))
    elif kind == "vsock":
        address = vsock_server(f"{server.needed('cid')}:{server.needed('port')}")
    else:
        more = "; a file descriptor is one of another process" if kind == "fd" else ""
        raise LocationError(
            f"json: server.type {quoted(kind)} is not taken for nbd", hint=f"it is inet, unix or vsock{more}"
        )
    server.finish()
    return address


def _older(fields: Fields) -> NbdServer:
    host, path, port = fields.text("host"), fields.text("path"), fields.number("port", 1, 65535)
    if path is not None and host is None and port is None:
        return UnixServer(path=path)
    if host is not None and path is None:
        return TcpServer(host=host, port=DEFAULT_PORT if port is None else port)
    raise LocationError("json: nbd needs server", hint='for example "server":{"type":"unix","path":"/run/nbd.sock"}')


def _port(server: Fields) -> int:
    port = server.number("port", 1, 65535)
    if port is None:
        raise LocationError(f"json: {server.path('port')} is missing")
    return port


def _refuse_tuning(server: Fields) -> None:
    for name in _ONLY_NAMES:
        if name in server:
            raise LocationError(
                f"json: {server.path(name)} is not taken", hint="an address in the place of the host name is exact"
            )
