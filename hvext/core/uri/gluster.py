"""Files on a GlusterFS volume: ``gluster[+tcp]://[HOST[:PORT]]/VOLUME/PATH``, ``gluster+unix:///VOLUME/PATH?socket=S``.

The path of the URI is percent-decoded, then taken apart; slashes in front of volume and path mean nothing. Several
servers, ``debug`` and ``logfile`` need ``json:``.

Stricter than QEMU where it drops something silently: ``gluster+rdma`` (which QEMU 7.2 opens over TCP), users in front
of the host, port 0, and debug levels above 9.
Source: QEMU, block/gluster.c, ``qemu_gluster_parse_uri`` and ``qemu_gluster_parse_json``;
qemu-storage-daemon-qmp-ref(7), BlockdevOptionsGluster.
"""

from __future__ import annotations

from hvext.core.text import checked, quoted
from hvext.core.uri import description
from hvext.core.uri.disk_source import add_host, add_socket, network_source, refuse
from hvext.core.uri.location import Companions, LibvirtSource, Location
from hvext.core.uri.syntax import (
    check_host,
    check_port,
    check_socket_path,
    decoded,
    encoded_host,
    encoded_path,
    encoded_query,
    parse_address,
    query_pairs,
    split_uri,
)
from hvext.core.value import value_object
from hvext.errors import LocationError, UnsupportedLocation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hvext.core.uri.fields import Fields

DEFAULT_PORT = 24007
LAST_DEBUG_LEVEL = 9


@value_object
class GlusterSocket:
    """A management daemon behind a unix socket."""

    path: str

    def __post_init__(self) -> None:
        check_socket_path(self.path)

    @property
    def options(self) -> dict[str, object]:
        """What QEMU's driver is told."""
        return {"type": "unix", "path": self.path}


@value_object
class GlusterHost:
    """A management daemon at a host (name, IPv4 or bare IPv6 address) and port."""

    host: str
    port: int = DEFAULT_PORT

    def __post_init__(self) -> None:
        check_host(self.host)
        check_port(self.port)

    @property
    def options(self) -> dict[str, object]:
        """What QEMU's driver is told."""
        return {"type": "inet", "host": self.host, "port": str(self.port)}


@value_object
class GlusterLocation(Location):
    """A file of a volume; ``servers`` are asked for the volume in their order."""

    volume: str
    path: str
    servers: tuple[GlusterHost | GlusterSocket, ...]
    debug: int | None = None
    logfile: str = ""

    def __post_init__(self) -> None:
        checked(self.volume, "Gluster volume", error=LocationError)
        checked(self.path, "Gluster path", error=LocationError)
        checked(self.logfile, "Gluster logfile", error=LocationError)
        if not self.volume or "/" in self.volume:
            raise LocationError(f"Gluster volume {quoted(self.volume)} is no name")
        if not self.path or self.path.startswith("/"):
            raise LocationError(f"Gluster path {quoted(self.path)} is empty or starts with '/'")
        if not self.servers:
            raise LocationError("a Gluster volume needs a server")
        if self.debug is not None and not 0 <= self.debug <= LAST_DEBUG_LEVEL:
            raise LocationError(f"Gluster debug level {self.debug} is not between 0 and {LAST_DEBUG_LEVEL}")
        if self.logfile and not self.logfile.startswith("/"):
            raise LocationError(f"Gluster logfile {quoted(self.logfile)} is not absolute")

    @property
    def driver(self) -> str:
        return "gluster"

    def blockdev(self, beside: Companions = Companions()) -> dict[str, object]:
        servers = [server.options for server in self.servers]
        return {"volume": self.volume, "path": self.path, "server": servers, **self._log()}

    def _log(self) -> dict[str, object]:
        """The options that no URI can say."""
        debug = {"debug": self.debug} if self.debug is not None else {}
        return {**debug, **({"logfile": self.logfile} if self.logfile else {})}

    def uri(self, *, reveal: bool = False) -> str:
        server = self.servers[0]
        if len(self.servers) > 1 or self._log():
            return description.write("gluster", self.blockdev())
        name = f"/{encoded_path(self.volume)}/{encoded_path(self.path)}"
        if isinstance(server, GlusterSocket):
            return f"gluster+unix://{name}?socket={encoded_query(server.path)}"
        return f"gluster://{encoded_host(server.host)}:{server.port}{name}"

    @property
    def reported(self) -> Location:
        # QEMU leaves out what changes nothing of what is read.
        return self._replaced({"debug": None, "logfile": ""})

    def libvirt_source(self, beside: Companions = Companions()) -> LibvirtSource:
        refuse({"a Gluster debug level": self.debug is not None, "a Gluster logfile": bool(self.logfile)})
        source = network_source("gluster", f"{self.volume}/{self.path}", "the Gluster volume and path")
        for server in self.servers:
            if isinstance(server, GlusterSocket):
                add_socket(source, server.path)
            else:
                add_host(source, server.host, server.port)
        return LibvirtSource(disk_type="network", element=source)


def parse(scheme: str, rest: str) -> GlusterLocation:
    """Return the location of ``scheme:rest``; raises LocationError, and UnsupportedLocation for RDMA."""
    if scheme == "gluster+rdma":
        raise UnsupportedLocation(
            "QEMU has no Gluster over RDMA: 7.2 would use TCP instead, 10.0 does not know gluster+rdma",
            hint="write gluster://",
        )
    parts = split_uri(scheme, rest)
    if parts.userinfo is not None:
        raise LocationError("Gluster URI has a user name; Gluster knows no users")
    path = decoded(parts.path, "the path", "Gluster").lstrip("/")
    volume, slash, file = path.partition("/")
    file = file.lstrip("/")
    if not slash or not file:
        raise LocationError(f"Gluster URI names no file: {quoted(path)}", hint=f"write {scheme}://HOST/VOLUME/PATH")
    parameters = query_pairs(parts.query, "Gluster")
    server = _socket(parts.address, parameters) if scheme == "gluster+unix" else _host(parts.address, parameters)
    return GlusterLocation(volume=volume, path=file, servers=(server,))


def _socket(address: str, parameters: dict[str, str]) -> GlusterSocket:
    if address:
        raise LocationError(
            f"gluster+unix URI names a host {quoted(address)}",
            hint="write gluster+unix:///VOLUME/PATH?socket=S, with three slashes",
        )
    if list(parameters) != ["socket"]:
        raise LocationError("gluster+unix URI needs exactly one query parameter, socket=PATH")
    return GlusterSocket(path=parameters["socket"])


def _host(address: str, parameters: dict[str, str]) -> GlusterHost:
    for name in parameters:
        raise LocationError(
            f"Gluster URI over TCP has the query parameter {quoted(name)}",
            hint='debug and logfile go into json:{"driver":"gluster",…}, ?socket= goes with gluster+unix:///',
        )
    host, port = parse_address(address, "gluster")
    return GlusterHost(host=host or "localhost", port=DEFAULT_PORT if port is None else port)


def from_options(_driver: str, fields: Fields) -> GlusterLocation:
    """Return the location of a ``json:`` description; raises LocationError."""
    return GlusterLocation(
        volume=fields.needed("volume"),
        path=fields.needed("path").lstrip("/"),
        servers=tuple(_server(server) for server in fields.subs("server")),
        debug=fields.number("debug", 0, LAST_DEBUG_LEVEL),
        logfile=fields.text("logfile") or "",
    )


def _server(fields: Fields) -> GlusterHost | GlusterSocket:
    kind = fields.needed("type")
    if kind == "unix":
        server: GlusterHost | GlusterSocket = GlusterSocket(path=fields.needed("path"))
    elif kind in ("inet", "tcp"):
        port = fields.number("port", 1, 65535)
        server = GlusterHost(host=fields.needed("host"), port=DEFAULT_PORT if port is None else port)
    else:
        raise LocationError(f"json: {fields.path('type')} {quoted(kind)} is not taken for gluster", hint="inet or unix")
    fields.finish()
    return server
