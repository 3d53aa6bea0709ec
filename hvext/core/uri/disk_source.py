"""The parts of libvirt's ``<source>`` element that several network protocols share.

What libvirt's own schema does not allow is refused here, also where its parser would let it pass.
Source: libvirt, docs/schemas/domaincommon.rng and basictypes.rng.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from hvext.core.text import quoted
from hvext.core.xml import checked_xml
from hvext.errors import RenderError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_OTHER_FORM = "use the -blockdev, -drive or QMP form"
#: dnsName and ipAddr of the schema; that an IPv6 address is one, the location has checked.
_HOST = r"[A-Za-z0-9.-]+|[0-9A-Fa-f:.]+"
#: genericName of the schema.
_GENERIC_NAME = r"[A-Za-z0-9_+-]+"


def unsayable(feature: str) -> RenderError:
    """Return the error for something that libvirt cannot say."""
    return RenderError(f"libvirt XML cannot say {feature}", hint=_OTHER_FORM)


def refuse(obstacles: Mapping[str, bool]) -> None:
    """Raise RenderError that names the first of the features that is there."""
    for feature, there in obstacles.items():
        if there:
            raise unsayable(feature)


def network_source(protocol: str, name: str, what: str) -> Element:
    """Return the ``<source>`` of a network disk; ``what`` calls its name in messages."""
    from xml.etree.ElementTree import Element

    return Element("source", {"protocol": protocol, "name": checked_xml(name, what)})


def add_host(source: Element, host: str, port: int | None) -> None:
    """Put a TCP server under ``source``; an IPv6 address without brackets."""
    from xml.etree.ElementTree import SubElement

    if not re.fullmatch(_HOST, host):
        raise unsayable(f"the host {quoted(host)}")
    SubElement(source, "host", {"name": host, **({} if port is None else {"port": str(port)})})


def add_socket(source: Element, path: str) -> None:
    """Put a unix socket under ``source``."""
    from xml.etree.ElementTree import SubElement

    if not re.fullmatch("/.+", path):
        raise unsayable(f"the socket path {quoted(path)}")
    SubElement(source, "host", {"transport": "unix", "socket": checked_xml(path, "the socket's path")})


def add_auth(source: Element, username: str, secret_usage: str) -> None:
    """Put a user under ``source`` and the libvirt secret that holds the password.

    libvirt calls the kind of all secrets but Ceph's ``iscsi``.
    """
    from xml.etree.ElementTree import SubElement

    if not re.fullmatch(_GENERIC_NAME, username):
        raise unsayable(f"the user name {quoted(username)}: its schema takes letters, digits, '_', '+' and '-'")
    auth = SubElement(source, "auth", {"username": username})
    SubElement(auth, "secret", {"type": "iscsi", "usage": secret_usage})
