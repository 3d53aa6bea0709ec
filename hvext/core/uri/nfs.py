"""Files on an NFS server: ``nfs://HOST/PATH[?uid=&gid=&tcp-syncnt=&readahead=&pagecache=&debug=]``.

QEMU mounts the folder that the path ends in by itself, through libnfs. Path and query are percent-decoded; numbers are
read as C does (``0x10``, ``010``).

Stricter than QEMU where it drops or changes something silently: ports (the portmapper tells libnfs which), users in
front of the host, numbers above QEMU's limits, paths that are not absolute, and names ending like a query.
Source: QEMU, block/nfs.c, ``nfs_parse_uri`` and ``nfs_client_open``; qemu-storage-daemon-qmp-ref(7),
BlockdevOptionsNfs.
"""

from __future__ import annotations

import re

from hvext.core.text import checked, quoted
from hvext.core.uri.disk_source import add_host, network_source, refuse
from hvext.core.uri.location import Companions, LibvirtSource, Location
from hvext.core.uri.syntax import (
    check_host,
    decoded,
    encoded_host,
    encoded_path,
    parse_address,
    query_pairs,
    split_uri,
)
from hvext.core.value import value_object
from hvext.errors import LocationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hvext.core.uri.fields import Fields

#: What QEMU reports of a node has at most this many bytes; the rest is cut off.
_REPORTED_BYTES = 4095
#: Parameter of the URI, field here, option of the driver, and the largest value that QEMU does not change.
_NUMBERS = (
    ("uid", "user", "user", (1 << 32) - 1),
    ("gid", "group", "group", (1 << 32) - 1),
    ("tcp-syncnt", "tcp_syn_count", "tcp-syn-count", (1 << 31) - 1),
    ("readahead", "readahead_bytes", "readahead-size", 1 << 20),
    ("pagecache", "page_cache_pages", "page-cache-size", 2048),
    ("debug", "debug", "debug", 2),
)
_PARAMETERS = {parameter: field for parameter, field, _option, _high in _NUMBERS}
_OPTIONS = {option: field for _parameter, field, option, _high in _NUMBERS}
#: How what QEMU reports goes on behind the path.
_REPORTED_IDS = r"\?(?=uid=|gid=)(?:uid=(?P<uid>[0-9]{1,20}))?(?:(?:(?<=\?)|&)gid=(?P<gid>[0-9]{1,20}))?\Z"


@value_object
class NfsLocation(Location):
    """A file of a server; ``user`` and ``group`` are numbers, and QEMU's own when absent."""

    host: str
    path: str
    user: int | None = None
    group: int | None = None
    tcp_syn_count: int | None = None
    readahead_bytes: int | None = None
    page_cache_pages: int | None = None
    debug: int | None = None

    def __post_init__(self) -> None:
        check_host(self.host)
        checked(self.path, "NFS path", error=LocationError)
        if not self.path.startswith("/"):
            raise LocationError(f"NFS path {quoted(self.path)} is not absolute")
        if re.search(_REPORTED_IDS, self.path):
            raise LocationError(
                f"NFS path {quoted(self.path)} ends like a query", hint="QEMU's reports could not be told apart"
            )
        for _parameter, field, option, high in _NUMBERS:
            value = getattr(self, field)
            if value is not None and not 0 <= value <= high:
                raise LocationError(f"NFS {option} {value} is not between 0 and {high}")

    @property
    def driver(self) -> str:
        return "nfs"

    @property
    def buffered_only(self) -> bool:
        return self.readahead_bytes is not None or self.page_cache_pages is not None

    def blockdev(self, beside: Companions = Companions()) -> dict[str, object]:
        numbers = {option: getattr(self, field) for option, field in _OPTIONS.items()}
        given = {option: value for option, value in numbers.items() if value is not None}
        return {"server": {"type": "inet", "host": self.host}, "path": self.path, **given}

    def uri(self, *, reveal: bool = False) -> str:
        numbers = ((parameter, getattr(self, field)) for parameter, field in _PARAMETERS.items())
        query = "&".join(f"{parameter}={value}" for parameter, value in numbers if value is not None)
        return f"nfs://{encoded_host(self.host)}{encoded_path(self.path)}{'?' if query else ''}{query}"

    @property
    def reported(self) -> Location:
        # QEMU leaves out what changes nothing of what is read, and takes 0 for absent.
        return NfsLocation(host=self.host, path=self.path, user=self.user or None, group=self.group or None)

    def libvirt_source(self, beside: Companions = Companions()) -> LibvirtSource:
        from xml.etree.ElementTree import SubElement

        fields = ("tcp_syn_count", "readahead_bytes", "page_cache_pages", "debug")
        refuse({f"{field.replace('_', ' ')} for NFS": getattr(self, field) is not None for field in fields})
        source = network_source("nfs", self.path, "the NFS path")
        add_host(source, self.host, None)
        # The '+' keeps libvirt from looking for a user with this name. Its schema wants the element in any case.
        ids = (("user", self.user), ("group", self.group))
        # libvirt keeps them as signed numbers, and gives QEMU a negative one.
        refuse({f"the NFS {name} {value}": (value or 0) >= 1 << 31 for name, value in ids})
        SubElement(source, "identity", {name: f"+{value}" for name, value in ids if value is not None})
        return LibvirtSource(disk_type="network", element=source)


def parse(scheme: str, rest: str) -> NfsLocation:
    """Return the location of ``nfs:rest``; raises LocationError."""
    parts = split_uri(scheme, rest)
    if parts.userinfo is not None:
        raise LocationError("NFS URI has a user name, which QEMU ignores", hint="write ?uid=NUMBER&gid=NUMBER")
    host, port = parse_address(parts.address, scheme)
    if not host:
        raise LocationError("NFS URI names no host")
    if port is not None:
        raise LocationError(f"NFS URI has the port {port}, which QEMU ignores", hint="the portmapper tells it the port")
    if not parts.path:
        raise LocationError("NFS URI names no path", hint="write nfs://HOST/PATH")
    numbers = {}
    for name, value in query_pairs(parts.query, "NFS").items():
        if name not in _PARAMETERS:
            raise LocationError(
                f"NFS URI has the query parameter {quoted(name)}", hint=f"there are {', '.join(_PARAMETERS)}"
            )
        numbers[_PARAMETERS[name]] = _number(value, name)
    return NfsLocation(host=host, path=decoded(parts.path, "the path", "NFS"), **numbers)


def _number(text: str, name: str) -> int:
    match = re.fullmatch(r"0[xX](?P<hex>[0-9A-Fa-f]{1,16})|0(?P<octal>[0-7]{0,21})|(?P<plain>[1-9][0-9]{0,18})", text)
    if match is None:
        raise LocationError(f"NFS URI has {name}={quoted(text)}, which is no number")
    if match["hex"]:
        return int(match["hex"], 16)
    return int(match["plain"]) if match["plain"] else int(match["octal"] or "0", 8)


def parse_filename(_driver: str, filename: str) -> NfsLocation | None:
    """Return the location that QEMU reports (it encodes nothing in it, and writes no brackets)."""
    match = re.fullmatch(r"nfs://(?P<host>[^/]+)(?P<path>/.*)", filename, re.DOTALL)
    if match is None or len(filename.encode()) >= _REPORTED_BYTES:
        return None
    ids = re.search(_REPORTED_IDS, match["path"])
    if ids is None:
        return NfsLocation(host=match["host"], path=match["path"])
    user, group = (int(value) if value else None for value in (ids["uid"], ids["gid"]))
    return NfsLocation(host=match["host"], path=match["path"][: ids.start()], user=user, group=group)


def from_options(_driver: str, fields: Fields) -> NfsLocation:
    """Return the location of a ``json:`` description; raises LocationError."""
    server = fields.sub("server")
    if server is None:
        raise LocationError("json: nfs needs server")
    kind = server.needed("type")
    if kind != "inet":
        raise LocationError(f"json: server.type {quoted(kind)} is not taken for nfs", hint="it is inet")
    host = server.needed("host")
    server.finish()
    numbers = {field: fields.number(option) for option, field in _OPTIONS.items()}
    return NfsLocation(host=host, path=fields.needed("path"), **numbers)
