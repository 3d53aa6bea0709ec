"""Network block devices, in every form that QEMU takes.

``nbd://HOST[:PORT][/EXPORT]``, ``nbd+tcp://…``, ``nbd+unix:///[EXPORT]?socket=PATH``, and without percent-encoding
``nbd:HOST:PORT[:exportname=EXPORT]`` and ``nbd:unix:PATH[:exportname=EXPORT]``.

Stricter than QEMU where QEMU drops something silently: user names, fragments, port 0 and what follows a ``%00``.
Source: QEMU, block/nbd.c, ``nbd_parse_uri`` and ``nbd_parse_filename``; RFC 3986; the NBD project's doc/uri.md.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes
from xml.etree.ElementTree import Element, SubElement

from hvext.core.text import checked, quoted
from hvext.core.uri.location import LibvirtSource, Location
from hvext.core.xml import checked_xml
from hvext.errors import LocationError

SCHEMES = ("nbd", "nbd+tcp", "nbd+unix")
DEFAULT_PORT = 10809
#: sun_path is 108 bytes with its closing NUL; longer paths cannot be connected to.
SOCKET_PATH_BYTES = 107
#: NBD_MAX_STRING_SIZE of the protocol.
EXPORT_BYTES = 4096
_EXPORT_MARK = ":exportname="
_URI = re.compile(r"//(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?P<fragment>#.*)?\Z", re.DOTALL)
#: What RFC 3986 lets stand in path and query.
_ALLOWED = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
_HOST_NAME = re.compile(r"[A-Za-z0-9_.-]+\Z")
_PATH_SAFE = "/!$&'()*+,;=:@~"
_QUERY_SAFE = "/!$'()*+,:@~"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixServer:
    """An NBD server behind a unix socket."""

    path: str

    def __post_init__(self) -> None:
        checked(self.path, "socket path", error=LocationError)
        if not self.path.startswith("/"):
            raise LocationError(f"socket path {quoted(self.path)} is not absolute")
        size = len(self.path.encode())
        if size > SOCKET_PATH_BYTES:
            raise LocationError(
                f"socket path {quoted(self.path)} has {size} bytes; a unix socket's path has at most "
                f"{SOCKET_PATH_BYTES}",
                hint="use a shorter directory",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpServer:
    """An NBD server at a host (name, IPv4 or bare IPv6 address) and port."""

    host: str
    port: int = DEFAULT_PORT

    def __post_init__(self) -> None:
        if ":" in self.host:
            try:
                scope = ipaddress.IPv6Address(self.host).scope_id
            except ValueError as error:
                raise LocationError(f"host {quoted(self.host)} is not an IPv6 address: {error}") from error
            if scope is not None and not _HOST_NAME.match(scope):
                raise LocationError(f"host {quoted(self.host)} ends in {quoted(scope)}, which names no interface")
        elif not _HOST_NAME.match(self.host):
            raise LocationError(f"host {quoted(self.host)} is neither a host name nor an address")
        if not 1 <= self.port <= 65535:
            raise LocationError(f"port {self.port} is not between 1 and 65535")


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdLocation(Location):
    """One export of an NBD server; the empty name is the server's default export."""

    server: UnixServer | TcpServer
    export: str = ""

    def __post_init__(self) -> None:
        checked(self.export, "export name", error=LocationError)
        if len(self.export.encode()) > EXPORT_BYTES:
            raise LocationError(f"export name {quoted(self.export)} is longer than {EXPORT_BYTES} bytes")

    @property
    def driver(self) -> str:
        return "nbd"

    def blockdev(self) -> dict[str, object]:
        if isinstance(self.server, UnixServer):
            server: dict[str, object] = {"type": "unix", "path": self.server.path}
        else:
            server = {"type": "inet", "host": self.server.host, "port": str(self.server.port)}
        return {"server": server, **({"export": self.export} if self.export else {})}

    def uri(self) -> str:
        export = "/" + quote(self.export, safe=_PATH_SAFE) if self.export else ""
        if isinstance(self.server, UnixServer):
            return f"nbd+unix://{export or '/'}?socket={quote(self.server.path, safe=_QUERY_SAFE)}"
        host = f"[{self.server.host}]" if ":" in self.server.host else self.server.host
        return f"nbd://{host}:{self.server.port}{export}"

    @property
    def filename(self) -> str:
        export = f"/{self.export}" if self.export else ""
        if isinstance(self.server, UnixServer):
            return f"nbd+unix://{export}?socket={self.server.path}"
        return f"nbd://{self.server.host}:{self.server.port}{export}"

    def libvirt_source(self) -> LibvirtSource:
        source = Element("source", {"protocol": "nbd"})
        if self.export:
            source.set("name", checked_xml(self.export, "the NBD export's name"))
        if isinstance(self.server, UnixServer):
            path = checked_xml(self.server.path, "the NBD server's socket path")
            SubElement(source, "host", {"transport": "unix", "socket": path})
        else:
            SubElement(source, "host", {"name": self.server.host, "port": str(self.server.port)})
        return LibvirtSource(disk_type="network", element=source)


def parse_filename(filename: str) -> NbdLocation | None:
    """Return the location whose ``filename`` this is; None when it cannot be told (QEMU encodes nothing in it)."""
    match = re.fullmatch(r"nbd\+unix://(?:/(?P<export>.+))?\?socket=(?P<path>.+)", filename, re.DOTALL)
    if match and filename.count("?socket=") == 1:
        return NbdLocation(server=UnixServer(path=match["path"]), export=match["export"] or "")
    match = re.fullmatch(r"nbd://(?P<host>[^/]+?):(?P<port>[0-9]+)(?:/(?P<export>.+))?", filename, re.DOTALL)
    if match:
        return NbdLocation(server=TcpServer(host=match["host"], port=int(match["port"])), export=match["export"] or "")
    return None


def parse(scheme: str, rest: str) -> NbdLocation:
    """Return the location of ``scheme:rest``; raises LocationError."""
    if rest.startswith("//"):
        return _parse_uri(scheme, rest)
    if scheme != "nbd":
        raise LocationError(f"{scheme}:{quoted(rest)} is no NBD URI", hint=f"it must start with {scheme}://")
    return _parse_colons(rest)


def _parse_uri(scheme: str, rest: str) -> NbdLocation:
    match = _URI.match(rest)
    if match is None:
        raise LocationError(f"{scheme}:{quoted(rest)} is not a URI")
    if match["fragment"]:
        raise LocationError(f"NBD URI has a fragment {quoted(match['fragment'])}", hint="write '#' in names as %23")
    export = _decoded(match["path"][1:], "the export name")
    query = match["query"] or ""
    if scheme == "nbd+unix":
        if match["authority"]:
            raise LocationError(
                f"nbd+unix URI names a host {quoted(match['authority'])}",
                hint="write nbd+unix:///EXPORT?socket=PATH, with three slashes",
            )
        return NbdLocation(server=UnixServer(path=_socket(query)), export=export)
    if query:
        raise LocationError(
            f"NBD URI over TCP has a query {quoted(query)}", hint="?socket= goes with nbd+unix:///EXPORT"
        )
    return NbdLocation(server=_tcp_server(match["authority"]), export=export)


def _socket(query: str) -> str:
    name, equals, value = query.partition("=")
    if name != "socket" or not equals or not value or re.search("[&;]", value):
        raise LocationError(
            f"nbd+unix URI needs exactly one query parameter, socket=PATH; got {quoted(query)}",
            hint="'&' and ';' in the path are written %26 and %3B",
        )
    return _decoded(value, "the socket path")


def _tcp_server(authority: str) -> TcpServer:
    if "@" in authority:
        raise LocationError(f"NBD URI has a user name in {quoted(authority)}; NBD knows no users")
    match = re.fullmatch(r"(?:\[(?P<v6>[^\]]*)\]|(?P<name>[^:\[\]]*))(?::(?P<port>[0-9]*))?", authority)
    if match is None:
        raise LocationError(
            f"{quoted(authority)} is not HOST[:PORT]", hint="an IPv6 address is written in brackets: [::1]:10809"
        )
    host = match["v6"] if match["v6"] is not None else match["name"]
    if not host:
        raise LocationError("NBD URI over TCP names no host", hint="for a unix socket, write nbd+unix:///")
    if match["v6"] is not None and ":" not in host:
        raise LocationError(f"{quoted(authority)}: only an IPv6 address stands in brackets")
    return TcpServer(host=host, port=_port(match["port"]) if match["port"] else DEFAULT_PORT)


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise LocationError(f"port {quoted(text)} is not a number between 1 and 65535")
    return int(text)


def _decoded(text: str, what: str) -> str:
    end = _ALLOWED.match(text)
    stop = end.end() if end else 0
    if stop < len(text):
        encoded = quote(text[stop].encode("utf-8", "surrogatepass"), safe="")
        raise LocationError(
            f"{what} in the NBD URI has {quoted(text[stop])} at character {stop + 1}", hint=f"write it as {encoded}"
        )
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError as error:
        raise LocationError(f"{what} {quoted(text)} in the NBD URI does not decode to UTF-8") from error


def _parse_colons(rest: str) -> NbdLocation:
    address, mark, export = rest.partition(_EXPORT_MARK)
    if mark and not export:
        raise LocationError("nbd: address ends in an empty :exportname=", hint="leave it out for the default export")
    if address.startswith("unix:"):
        return NbdLocation(server=UnixServer(path=address.removeprefix("unix:")), export=export)
    match = re.fullmatch(r"(?:\[(?P<v6>[^\]]*)\]|(?P<name>[^:\[\]]*)):(?P<port>[^:]*)", address)
    if match is None:
        raise LocationError(
            f"nbd: address {quoted(address)} is not HOST:PORT",
            hint="an IPv6 address is written in brackets: nbd:[::1]:10809",
        )
    if "," in match["port"]:
        raise LocationError(f"nbd: address {quoted(address)} has options behind the port; they are not taken")
    return NbdLocation(
        server=TcpServer(host=match["v6"] or match["name"] or "", port=_port(match["port"])), export=export
    )
