"""Network block devices, in every form that QEMU takes, and with TLS as the NBD project writes it.

``nbd://HOST[:PORT][/EXPORT]``, ``nbd+tcp://…``, ``nbd+unix:///[EXPORT]?socket=PATH``, and without percent-encoding
``nbd:HOST:PORT[:exportname=EXPORT]`` and ``nbd:unix:PATH[:exportname=EXPORT]``.

QEMU knows no ``nbds://[USER@]HOST…``, ``nbds+unix://…`` and ``nbd+vsock://CID[:PORT][/EXPORT]``, and no parameters
but ``socket``; its driver has options for all of them, and here they are those options: the parameters of ``nbd_tls``,
and on every form with ``//`` the parameters ``reconnect-delay=SECONDS`` and ``open-timeout=SECONDS``.

Stricter than QEMU where QEMU drops something silently: user names, fragments, port 0 and what follows a ``%00``.
Source: QEMU, block/nbd.c, ``nbd_parse_uri`` and ``nbd_parse_filename``; RFC 3986; the NBD project's doc/uri.md.
"""

from __future__ import annotations

import re

from hvext.core.text import checked, meant, quoted
from hvext.core.uri.location import Companions, LibvirtSource, Location, Needs
from hvext.core.uri.nbd_server import (
    NbdServer,
    TcpServer,
    UnixServer,
    VsockServer,
    server_from_options,
    tcp_server,
    vsock_server,
)
from hvext.core.uri.nbd_tls import CERTIFICATES, TLS_NAMES, Certificates, Tls, take_tls
from hvext.core.uri.syntax import (
    UriParts,
    decoded,
    encoded_path,
    encoded_query,
    encoded_userinfo,
    parse_port,
    query_pairs,
    split_uri,
)
from hvext.core.value import value_object
from hvext.core.xml import checked_xml
from hvext.errors import LocationError, RenderError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hvext.core.uri.fields import Fields

__all__ = ["NbdLocation", "TcpServer", "UnixServer", "VsockServer", "from_options", "parse", "parse_filename"]

#: NBD_MAX_STRING_SIZE of the protocol.
EXPORT_BYTES = 4096
_SECONDS = (1 << 32) - 1
_DELAYS = ("reconnect-delay", "open-timeout")
_EXPORT_MARK = ":exportname="
_OTHER_FORM = "use the -blockdev, -drive or QMP form"


@value_object
class NbdLocation(Location):
    """One export of an NBD server; the empty name is the server's default export.

    For ``reconnect_delay_s`` seconds after a lost connection, requests wait for another before they fail; for
    ``open_timeout_s`` seconds, the first connection is tried again. Both are 0 by default.
    """

    server: NbdServer
    export: str = ""
    tls: Tls | None = None
    reconnect_delay_s: int = 0
    open_timeout_s: int = 0

    def __post_init__(self) -> None:
        checked(self.export, "export name", error=LocationError)
        if len(self.export.encode()) > EXPORT_BYTES:
            raise LocationError(f"export name {quoted(self.export)} is longer than {EXPORT_BYTES} bytes")
        for name, seconds in (("reconnect-delay", self.reconnect_delay_s), ("open-timeout", self.open_timeout_s)):
            if not 0 <= seconds <= _SECONDS:
                raise LocationError(f"NBD {name} {seconds} is not between 0 and {_SECONDS} seconds")
        if (
            isinstance(self.tls, Certificates)
            and self.tls.verify
            and not self.tls.hostname
            and not isinstance(self.server, TcpServer)
        ):
            raise LocationError(
                "NBD over TLS without a host name: nothing says whose certificate the server must show",
                hint="add tls-hostname=NAME",
            )

    @property
    def driver(self) -> str:
        return "nbd"

    def blockdev(self, beside: Companions = Companions()) -> dict[str, object]:
        return {
            "server": self.server.blockdev(),
            **({"export": self.export} if self.export else {}),
            **(self.tls.blockdev(beside) if self.tls else {}),
            **({"reconnect-delay": self.reconnect_delay_s} if self.reconnect_delay_s else {}),
            **({"open-timeout": self.open_timeout_s} if self.open_timeout_s else {}),
        }

    def needs(self, beside: Companions) -> Needs:
        return self.tls.needs(beside) if self.tls else Needs()

    def uri(self, *, reveal: bool = False) -> str:
        scheme = f"{'nbds' if self.tls else 'nbd'}{self.server.scheme_suffix}"
        user = f"{encoded_userinfo(self.tls.user)}@" if self.tls and self.tls.user else ""
        export = "/" + encoded_path(self.export) if self.export else "/" if not self.server.authority else ""
        pairs = {
            **self.server.query,
            **(self.tls.query if self.tls else {}),
            **({"reconnect-delay": str(self.reconnect_delay_s)} if self.reconnect_delay_s else {}),
            **({"open-timeout": str(self.open_timeout_s)} if self.open_timeout_s else {}),
        }
        query = "&".join(f"{name}={encoded_query(value)}" for name, value in pairs.items())
        return f"{scheme}://{user}{self.server.authority}{export}{'?' + query if query else ''}"

    @property
    def reported(self) -> Location:
        # QEMU reports neither TLS nor delays: they change nothing of what is read.
        return NbdLocation(server=self.server, export=self.export)

    def libvirt_source(self, beside: Companions = Companions()) -> LibvirtSource:
        from xml.etree.ElementTree import Element, SubElement

        self._check_libvirt()
        source = Element("source", {"protocol": "nbd"})
        if self.export:
            source.set("name", checked_xml(self.export, "the NBD export's name"))
        if isinstance(self.tls, Certificates):
            source.set("tls", "yes")
            if self.tls.hostname:
                source.set("tlsHostname", self.tls.hostname)
        if isinstance(self.server, UnixServer):
            path = checked_xml(self.server.path, "the NBD server's socket path")
            SubElement(source, "host", {"transport": "unix", "socket": path})
        elif isinstance(self.server, TcpServer):
            SubElement(source, "host", {"name": self.server.host, "port": str(self.server.port)})
        if self.reconnect_delay_s:
            SubElement(source, "reconnect", {"delay": str(self.reconnect_delay_s)})
        return LibvirtSource(disk_type="network", element=source)

    def _check_libvirt(self) -> None:
        certificates = self.tls if isinstance(self.tls, Certificates) else None
        obstacles = {
            "NBD over AF_VSOCK": isinstance(self.server, VsockServer),
            "an NBD open-timeout": self.open_timeout_s > 0,
            "a pre-shared key for NBD": self.tls is not None and certificates is None,
            "an NBD server whose certificate is not verified": certificates is not None and not certificates.verify,
        }
        for feature, there in obstacles.items():
            if there:
                raise RenderError(f"libvirt XML cannot say {feature}", hint=_OTHER_FORM)
        if certificates and certificates.folder != CERTIFICATES:
            raise RenderError(
                f"libvirt XML cannot say which folder has the TLS certificates ({certificates.folder})",
                hint="name it in libvirt's qemu.conf as nbd_tls_x509_cert_dir, and leave tls-certificates out",
            )


def parse_filename(_driver: str, filename: str) -> NbdLocation | None:
    """Return the location that QEMU reports; None when it cannot be told (QEMU encodes nothing in it)."""
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
    parts = split_uri(scheme, rest)
    secured = scheme.startswith("nbds")
    user = _user(parts.userinfo, secured)
    export = decoded(parts.path[1:], "the export name", "NBD")
    query = query_pairs(parts.query, "NBD")
    server = _server(scheme, parts, query)
    tls = take_tls(user, query) if secured else None
    delays = {name: _seconds(query, name) for name in _DELAYS}
    for name in query:
        more = "" if secured or not name.startswith("tls-") else "TLS needs nbds; "
        like = meant(name, (*_DELAYS, *(TLS_NAMES if secured else ())), "=")
        raise LocationError(
            f"NBD URI has the query parameter {quoted(name)}, which means nothing here{like}",
            hint="" if like else f"{more}'&' and ';' in a value are written %26 and %3B",
        )
    return NbdLocation(
        server=server,
        export=export,
        tls=tls,
        reconnect_delay_s=delays["reconnect-delay"],
        open_timeout_s=delays["open-timeout"],
    )


def _user(userinfo: str | None, secured: bool) -> str:
    if userinfo is None:
        return ""
    if ":" in userinfo:
        raise LocationError(
            "NBD URI has a user name with a password; NBD knows no passwords",
            hint="keys of users are in a file: nbds://USER@HOST/EXPORT?tls-psk-file=FILE",
        )
    if not secured:
        raise LocationError(f"NBD URI has a user name in {quoted(userinfo)}; NBD without TLS knows no users")
    return decoded(userinfo, "the user name", "NBD")


def _server(scheme: str, parts: UriParts, query: dict[str, str]) -> NbdServer:
    """Return the server that a URI names; takes its part out of ``query``."""
    shown = quoted(parts.query or "")
    if scheme.endswith("+unix"):
        if parts.address:
            raise LocationError(
                f"{scheme} URI names a host {quoted(parts.address)}",
                hint=f"write {scheme}:///EXPORT?socket=PATH, with three slashes",
            )
        path = query.pop("socket", "")
        if not path:
            like = "".join(meant(name, ("socket",), "=") for name in query)
            raise LocationError(
                f"{scheme} URI needs the query parameter socket=PATH; got {shown}{like}",
                hint=f"write {scheme}:///EXPORT?socket=PATH",
            )
        return UnixServer(path=path)
    if "socket" in query:
        raise LocationError(
            f"NBD URI without +unix names a socket in its query {shown}", hint="?socket= goes with nbd+unix:///EXPORT"
        )
    return vsock_server(parts.address) if scheme.endswith("+vsock") else tcp_server(parts.address)


def _seconds(query: dict[str, str], name: str) -> int:
    text = query.pop(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise LocationError(f"NBD URI has {name}={quoted(text)}, which is no number of seconds")
    return int(text)


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
        server=TcpServer(host=match["v6"] or match["name"] or "", port=parse_port(match["port"])), export=export
    )


def from_options(_driver: str, fields: Fields) -> NbdLocation:
    """Return the location of a ``json:`` description; raises LocationError."""
    if "tls-hostname" in fields or "tls-creds" in fields:
        raise LocationError(
            "json: an nbd description cannot say TLS: its credentials are an object of another QEMU",
            hint="write nbds://HOST/EXPORT or nbds+unix:///EXPORT?socket=PATH, with tls-certificates= or tls-psk-file=",
        )
    return NbdLocation(
        server=server_from_options(fields),
        export=fields.text("export") or "",
        reconnect_delay_s=fields.number("reconnect-delay") or 0,
        open_timeout_s=fields.number("open-timeout") or 0,
    )
