"""iSCSI and iSER targets: ``iscsi://[USER[%PASSWORD]@]HOST[:PORT]/TARGET/LUN`` and ``iser://…``.

The URI is not QEMU's but libiscsi's. User and password stand in it as they are: the password starts behind the first
``%`` or, where there is none, the first ``:``, and ends at the first ``@``. Only the target's name is percent-decoded.
QEMU takes the rest as options: initiator name, header digest and time-out need ``json:``.

Stricter than QEMU where it drops something silently: query parameters, an empty user or password, ports that are no
number, and what names have beyond the 255 bytes that libiscsi keeps.
Source: QEMU, block/iscsi.c, ``iscsi_parse_filename``; libiscsi, lib/init.c, ``iscsi_parse_full_url``;
qemu-storage-daemon-qmp-ref(7), BlockdevOptionsIscsi.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from urllib.parse import quote, unquote_to_bytes

from hvext.core.secret import Secret, shown
from hvext.core.text import checked, quoted
from hvext.core.uri import description
from hvext.core.uri.disk_source import add_auth, add_host, network_source, refuse
from hvext.core.uri.location import Companions, LibvirtSource, Location, Needs, secret_object
from hvext.core.uri.syntax import bracketed, check_host, check_port, parse_address
from hvext.core.value import value_object
from hvext.core.xml import checked_xml
from hvext.errors import InputError, LocationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from hvext.core.uri.fields import Fields

DEFAULT_PORT = 3260
#: libiscsi cuts names at this length (MAX_STRING_SIZE).
NAME_BYTES = 255
#: The largest LUN that libiscsi can write into a request.
LAST_LUN = 16383
#: What may stand in a target's name in a URI: everything but the URI's own separators.
_TARGET_SAFE = ":!$&'()*+,;=~"
_QUERY_HINTS = {
    "header_digest": 'QEMU crashes on it; write json:{"driver":"iscsi",…,"header-digest":"crc32c"}',
    "target_user": "QEMU has no way to check the target's password",
    "target_password": "QEMU has no way to check the target's password",
}


class Transport(StrEnum):
    """What carries the requests; also the scheme of the URI, with ``iscsi`` for TCP."""

    TCP = "tcp"
    ISER = "iser"


class HeaderDigest(StrEnum):
    """Which checksum of the headers is offered to the target."""

    CRC32C = "crc32c"
    NONE = "none"
    CRC32C_NONE = "crc32c-none"
    NONE_CRC32C = "none-crc32c"


@value_object
class IscsiLocation(Location):
    """One logical unit of a target; ``user`` and ``password`` are for CHAP, ``timeout_s`` 0 or None for no limit."""

    SECRETS: ClassVar[tuple[str, ...]] = ("password",)
    SECRET_OF: ClassVar[Mapping[str, str]] = MappingProxyType({"password": "user"})

    host: str
    target: str
    lun: int
    port: int = DEFAULT_PORT
    transport: Transport = Transport.TCP
    user: str = ""
    password: Secret | None = None
    initiator_name: str = ""
    header_digest: HeaderDigest | None = None
    timeout_s: int | None = None

    def __post_init__(self) -> None:
        check_host(self.host)
        check_port(self.port)
        for what, text in (("target", self.target), ("user", self.user), ("initiator name", self.initiator_name)):
            _check_name(text, what)
        if not self.target:
            raise LocationError("the iSCSI target has no name")
        if not 0 <= self.lun <= LAST_LUN:
            raise LocationError(f"iSCSI LUN {self.lun} is not between 0 and {LAST_LUN}")
        if self.timeout_s is not None and not 0 <= self.timeout_s < 1 << 31:
            raise LocationError(f"iSCSI timeout {self.timeout_s} is not a number of seconds")
        self._check_password()

    def _check_password(self) -> None:
        if self.password is None:
            return
        if not self.user:
            raise LocationError("iSCSI has a password but no user", hint="QEMU would log in without either")
        if not 1 <= len(self.password.reveal().encode()) <= NAME_BYTES:
            raise LocationError(f"the iSCSI password must have 1 to {NAME_BYTES} bytes")

    @property
    def driver(self) -> str:
        return "iscsi"

    @property
    def portal(self) -> str:
        """Host and port, as they stand in the URI."""
        return f"{bracketed(self.host)}:{self.port}"

    def blockdev(self, beside: Companions = Companions()) -> dict[str, object]:
        password = {"password-secret": beside.object_id("password")} if self.password else {}
        return {**self._options(), **password, **self._tuning()}

    def _options(self) -> dict[str, object]:
        user = {"user": self.user} if self.user else {}
        return {"transport": str(self.transport), "portal": self.portal, "target": self.target, "lun": self.lun, **user}

    def _tuning(self) -> dict[str, object]:
        """The options that no URI can say."""
        name = {"initiator-name": self.initiator_name} if self.initiator_name else {}
        digest = {"header-digest": str(self.header_digest)} if self.header_digest else {}
        timeout = {"timeout": self.timeout_s} if self.timeout_s is not None else {}
        return {**name, **digest, **timeout}

    def needs(self, beside: Companions) -> Needs:
        if self.password is None:
            return Needs()
        return Needs(objects=(secret_object(beside, "password", self.password),))

    def uri(self, *, reveal: bool = False) -> str:
        userinfo = self._userinfo(reveal=reveal)
        if self._tuning() or userinfo is None:
            password = {"password": shown(self.password, reveal=reveal)} if self.password else {}
            return description.write("iscsi", {**self._options(), **password, **self._tuning()})
        scheme = "iser" if self.transport is Transport.ISER else "iscsi"
        return f"{scheme}://{userinfo}{self.portal}/{quote(self.target, safe=_TARGET_SAFE)}/{self.lun}"

    def _userinfo(self, *, reveal: bool) -> str | None:
        """User and password as they stand in the URI; None when it cannot say them."""
        if not self.user:
            return ""
        if re.search("[%:@?]", self.user):
            return None
        if self.password is None:
            return f"{self.user}@"
        if re.search("[@?]", self.password.reveal()):
            return None
        return f"{self.user}%{shown(self.password, reveal=reveal)}@"

    @property
    def reported(self) -> Location:
        # QEMU leaves out the time-out, which changes nothing of what is read.
        return self._replaced({"password": None, "timeout_s": None})

    def libvirt_source(self, beside: Companions = Companions()) -> LibvirtSource:
        from xml.etree.ElementTree import SubElement

        refuse(
            {
                "iSER": self.transport is Transport.ISER,
                "an iSCSI header digest": self.header_digest is not None,
                "an iSCSI timeout": self.timeout_s is not None,
                "an iSCSI target with '/' in its name": "/" in self.target,
                "an iSCSI user without a password": bool(self.user) and self.password is None,
            }
        )
        source = network_source("iscsi", f"{self.target}/{self.lun}", "the iSCSI target's name")
        add_host(source, self.host, self.port)
        if self.user:
            add_auth(source, self.user, beside.object_id("password"))
        if self.initiator_name:
            initiator = SubElement(source, "initiator")
            SubElement(initiator, "iqn", {"name": checked_xml(self.initiator_name, "the iSCSI initiator's name")})
        return LibvirtSource(disk_type="network", element=source)


def _check_name(text: str, what: str) -> None:
    checked(text, f"iSCSI {what}", error=LocationError)
    if len(text.encode()) > NAME_BYTES:
        raise LocationError(f"iSCSI {what} {quoted(text)} is longer than the {NAME_BYTES} bytes that libiscsi keeps")


def parse(scheme: str, rest: str) -> IscsiLocation:
    """Return the location of ``scheme:rest``; raises LocationError."""
    if not rest.startswith("//"):
        raise LocationError(
            f"the {scheme} URI does not start with {scheme}://", hint=f"write {scheme}://HOST[:PORT]/TARGET/LUN"
        )
    text, _question, query = rest[2:].partition("?")
    userinfo, at, place = text.partition("@")
    if "@" in (place + query if at else query):
        # Not quoted: it may be the rest of a password.
        raise LocationError(
            f"the {scheme} URI has '@' in its password or behind it, or '?' in its password",
            hint='write json:{"driver":"iscsi",…} for such a password, and %40 in the target\'s name',
        )
    transport = Transport.ISER if _asks_for_iser(query) or scheme == "iser" else Transport.TCP
    user, password = _credentials(userinfo) if at else ("", None)
    match = re.fullmatch(r"([^/]*)/([^/]+)/([0-9]{1,10})", place if at else text)
    if match is None:
        raise LocationError(
            f"the {scheme} URI does not end in HOST[:PORT]/TARGET/LUN",
            hint="'@', '/', '?' and '%' in the target's name are written %40, %2F, %3F and %25; the LUN is a number",
        )
    host, port = parse_address(match[1], scheme, encoded=False)
    if not host:
        raise LocationError(f"the {scheme} URI names no host")
    return IscsiLocation(
        host=host,
        port=DEFAULT_PORT if port is None else port,
        transport=transport,
        target=_decoded(match[2]),
        lun=int(match[3]),
        user=user,
        password=password,
    )


def _asks_for_iser(query: str) -> bool:
    """Whether a query asks for iSER; raises LocationError for anything else in it."""
    for parameter in filter(None, query.split("&")):
        name = parameter.partition("=")[0]
        if name != "iser":
            raise LocationError(
                f"iSCSI URI has the query parameter {quoted(name)}, which cannot be carried over to QEMU",
                hint=_QUERY_HINTS.get(name, "leave it out"),
            )
    return bool(query)


def _credentials(userinfo: str) -> tuple[str, Secret | None]:
    user, mark, password = userinfo.partition("%" if "%" in userinfo else ":")
    if mark and (not user or not password):
        raise LocationError(
            f"the iSCSI URI has an empty {'password' if user else 'user name'}",
            hint="QEMU would log in without user and password; leave both out for that",
        )
    if ":" in user:
        # All of it would be the user's name, and be shown: most likely it is a password with '%' in it.
        raise LocationError(
            "the iSCSI URI has ':' in front of the '%' that starts the password",
            hint="QEMU takes all in front of '%' for the user's name; write the location as json:{…}",
        )
    try:
        return user, Secret(password) if mark else None
    except InputError as error:
        raise LocationError(f"the iSCSI URI's password: {error.message}") from None


def _decoded(text: str) -> str:
    if re.search("%(?![0-9A-Fa-f]{2})", text):
        raise LocationError(f"iSCSI target {quoted(text)} has a '%' that encodes nothing", hint="write %25")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError as error:
        raise LocationError(f"iSCSI target {quoted(text)} does not decode to UTF-8") from error


def from_options(_driver: str, fields: Fields) -> IscsiLocation:
    """Return the location of a ``json:`` description; raises LocationError.

    ``password`` is the password itself, which reaches QEMU only as a secret object.
    """
    host, port = parse_address(fields.needed("portal"), "iscsi", encoded=False)
    transport = fields.choice("transport", Transport)
    if transport is None:
        raise LocationError("json: transport is missing", hint="it is tcp or iser")
    return IscsiLocation(
        host=host,
        port=DEFAULT_PORT if port is None else port,
        transport=transport,
        target=fields.needed("target"),
        lun=fields.number("lun", 0, LAST_LUN) or 0,
        user=fields.text("user") or "",
        password=fields.secret("password"),
        initiator_name=fields.text("initiator-name") or "",
        header_digest=fields.choice("header-digest", HeaderDigest),
        timeout_s=fields.number("timeout", 0, (1 << 31) - 1),
    )
