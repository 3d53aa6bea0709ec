"""Domains on another host: which places of storage are the same from there, and what has to be done there.

hvext runs a provider's scripts where it runs itself. A path, and a server on the loopback address, are another thing on
every host.
"""

from __future__ import annotations

from urllib.parse import urlsplit
from xml.etree.ElementTree import Element

from hvext.core.domain import DomainDisk
from hvext.core.uri import Location
from hvext.errors import DomainError, RenderError
from hvext.host.domain import Connection, DomainHandle

#: What names the host that it is used on.
_LOOPBACK = ("localhost", "localhost.localdomain", "ip6-localhost", "::1", "[::1]")
_CURE = "have the provider offer a URI that both hosts reach, or run hvext on {host}"


def is_local(location: Location) -> bool:
    """Return whether a location means another thing on every host: a path, a unix socket, a loopback address."""
    try:
        source = location.libvirt_source()
    except RenderError:
        return _is_loopback(urlsplit(location.uri()).hostname or "")
    return source.disk_type != "network" or any(map(_is_own, source.element.iterfind("host")))


def _is_own(host: Element) -> bool:
    return host.get("transport") == "unix" or _is_loopback(host.get("name", ""))


def _is_loopback(name: str) -> bool:
    return name in _LOOPBACK or name.startswith("127.")


def in_the_way(domains: DomainHandle | Connection, location: Location) -> str | None:
    """Return why a domain, or those of a connection, cannot use a location of this host; None when they can."""
    if domains.is_here or not is_local(location):
        return None
    host = domains.hostname
    return f"the domain runs on {host}, and {location.words} is on this host; {_CURE.format(host=host)}"


def check_disk(domain: DomainHandle, disk: DomainDisk | None) -> None:
    """Raise DomainError for a disk whose volume was attached on the domain's host: scripts here do not reach it."""
    if disk is None or domain.is_here or disk.location is None or not is_local(disk.location):
        return
    host = domain.hostname
    raise DomainError(
        f"disk {disk.names.uuid} is at {disk.where} of {host}: its volume is attached there, and the provider's "
        "scripts would run here",
        hint=f"run hvext on {host}; --disk-uuid alone unplugs the disk and leaves its volume as it is",
    )
