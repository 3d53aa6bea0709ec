"""Files behind a web or FTP server, read-only: ``http://``, ``https://``, ``ftp://`` and ``ftps://``.

QEMU hands the URL to libcurl as it is, and so does hvext: nothing is decoded, and the query belongs to the server.
Only user and password are taken out of it, percent-decoded as libcurl does it, and go to QEMU as options of their own,
the password in a secret object. Everything else (``sslverify``, ``timeout``, ``readahead``, ``cookie``,
``proxy-username``, ``proxy-password``) needs ``json:``; there, ``password``, ``cookie`` and ``proxy-password`` are the
secrets themselves.

Stricter than QEMU where libcurl drops or adds something silently: fragments, and ``http:///HOST/PATH``, which it reads
as ``http://HOST/PATH``.
Source: QEMU, block/curl.c; qemu-storage-daemon-qmp-ref(7), BlockdevOptionsCurlBase; libcurl, CURLOPT_URL(3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import quote, unquote_to_bytes

from hvext.core.secret import Secret, shown
from hvext.core.text import checked, quoted
from hvext.core.uri import description
from hvext.core.uri.disk_source import add_auth, add_host, network_source, refuse, unsayable
from hvext.core.uri.location import Companions, LibvirtSource, Location, Needs, secret_object
from hvext.core.uri.mask import masked
from hvext.core.uri.syntax import encoded_userinfo, parse_port, refuse_torn_userinfo
from hvext.core.value import value_object
from hvext.core.xml import checked_xml
from hvext.errors import InputError, LocationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from hvext.core.uri.fields import Fields

#: QEMU's own limit (CURL_TIMEOUT_MAX).
LONGEST_TIMEOUT_S = 10000
#: What QEMU reports of a node has at most this many bytes; the rest is cut off.
_REPORTED_BYTES = 4095
_URL = re.compile(
    r"(?P<scheme>https?|ftps?)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?P<fragment>#.*)?\Z",
    re.DOTALL,
)
_ADDRESS = r"(?P<host>\[[^\[\]]+\]|[^:\[\]]+)(?::(?P<port>[^:]*))?\Z"
_CONTROL = r"[\x00-\x1f\x7f]"
#: What libvirt leaves unencoded in the path of a URL.
_LIBVIRT_SAFE = "/;@&=+$,-_.!~*'()"
#: The fields that hold secrets, and what json: calls them; QEMU's options are named so with ``-secret`` behind it.
_SECRET_OPTIONS = {"password": "password", "cookie": "cookie", "proxy_password": "proxy-password"}


@value_object
class CurlLocation(Location):
    """A file named by a URL without user and password; ``username`` and ``password`` are for the server.

    ``cookie`` is the text of a Cookie header; ``sslverify`` None is QEMU's default, which checks.
    """

    SECRETS: ClassVar[tuple[str, ...]] = tuple(_SECRET_OPTIONS)
    SECRET_OF: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"password": "username", "proxy_password": "proxy_username"}
    )

    url: str
    username: str = ""
    password: Secret | None = None
    cookie: Secret | None = None
    sslverify: bool | None = None
    proxy_username: str = ""
    proxy_password: Secret | None = None
    readahead_bytes: int | None = None
    timeout_s: int | None = None

    def __post_init__(self) -> None:
        _check_url(self.url)
        for what, text in (("user name", self.username), ("proxy user name", self.proxy_username)):
            if re.search(_CONTROL, checked(text, what, error=LocationError)):
                raise LocationError(f"{what} {quoted(text)} has a control character")
        for role in self.SECRETS:
            secret = getattr(self, role)
            if secret is not None and re.search(_CONTROL, secret.reveal()):
                raise LocationError(f"the {role.replace('_', ' ')} for {self.driver} has a control character")
        self._check_scheme()
        self._check_tuning()

    def _check_tuning(self) -> None:
        if self.readahead_bytes is not None and (self.readahead_bytes % 512 or not 0 <= self.readahead_bytes < 1 << 31):
            raise LocationError(f"readahead of {self.readahead_bytes} bytes is not a multiple of 512 below 2 GiB")
        if self.timeout_s is not None and not 0 <= self.timeout_s <= LONGEST_TIMEOUT_S:
            raise LocationError(f"timeout {self.timeout_s} is not between 0 and {LONGEST_TIMEOUT_S} seconds")

    def _check_scheme(self) -> None:
        if self.sslverify is not None and self.driver not in ("https", "ftps"):
            raise LocationError(f"sslverify is for https and ftps, not for {self.driver}")
        if self.cookie is not None and self.driver not in ("http", "https"):
            raise LocationError(f"a cookie is for http and https, not for {self.driver}")

    def __repr__(self) -> str:
        return f"CurlLocation({self.uri()!r})"

    @property
    def driver(self) -> str:
        return self.url.partition(":")[0]

    @property
    def read_only(self) -> bool:
        return True

    def blockdev(self, beside: Companions = Companions()) -> dict[str, object]:
        options = self._options()
        for role, option in _SECRET_OPTIONS.items():
            if getattr(self, role) is not None:
                options[f"{option}-secret"] = beside.object_id(role)
        return options

    def _options(self) -> dict[str, object]:
        """The options without the secrets."""
        options: dict[str, object] = {"url": self.url}
        if self.username or self.password is not None:
            options["username"] = self.username
        if self.proxy_username or self.proxy_password is not None:
            options["proxy-username"] = self.proxy_username
        others = (("sslverify", self.sslverify), ("readahead", self.readahead_bytes), ("timeout", self.timeout_s))
        return {**options, **{name: value for name, value in others if value is not None}}

    def needs(self, beside: Companions) -> Needs:
        secrets = ((role, getattr(self, role)) for role in self.SECRETS)
        return Needs(
            objects=tuple(secret_object(beside, role, secret) for role, secret in secrets if secret is not None)
        )

    def uri(self, *, reveal: bool = False) -> str:
        secrets = {
            option: shown(getattr(self, role), reveal=reveal)
            for role, option in _SECRET_OPTIONS.items()
            if getattr(self, role) is not None
        }
        options = self._options()
        url = self.url if reveal else masked(self.url)
        if options.keys() - {"url", "username"} or secrets.keys() - {"password"}:
            return description.write(self.driver, {**options, "url": url, **secrets})
        if "username" not in options:
            return url
        start, _slashes, rest = url.partition("//")
        user = encoded_userinfo(self.username)
        if "password" in secrets:
            user += ":" + (encoded_userinfo(secrets["password"]) if reveal else secrets["password"])
        return f"{start}//{user}@{rest}"

    @property
    def reported(self) -> Location:
        # QEMU leaves out what changes nothing of what is read.
        return self._replaced({**dict.fromkeys(self.SECRETS), "readahead_bytes": None, "timeout_s": None})

    def libvirt_source(self, beside: Companions = Companions()) -> LibvirtSource:
        from xml.etree.ElementTree import SubElement

        self._check_libvirt()
        parts = _parts(self.url)
        source = network_source(self.driver, _libvirt_name(parts["path"]), "the path")
        if parts["query"]:
            source.set("query", checked_xml(parts["query"], "the query"))
        address = _address(parts["authority"])
        add_host(source, address["host"].strip("[]"), int(address["port"]) if address["port"] else None)
        if self.username:
            add_auth(source, self.username, beside.object_id("password"))
        if self.sslverify is not None:
            SubElement(source, "ssl", {"verify": "yes" if self.sslverify else "no"})
        if self.readahead_bytes:
            SubElement(source, "readahead", {"size": str(self.readahead_bytes)})
        if self.timeout_s:
            SubElement(source, "timeout", {"seconds": str(self.timeout_s)})
        return LibvirtSource(disk_type="network", element=source)

    def _check_libvirt(self) -> None:
        query = _parts(self.url)["query"]
        refuse(
            {
                "a proxy's user": bool(self.proxy_username) or self.proxy_password is not None,
                "a cookie without showing it": self.cookie is not None,
                "a query with a secret in it without showing it": masked(self.url) != self.url,
                f"a query for {self.driver}": bool(query) and self.driver not in ("http", "https"),
                "an empty query": query == "",
                "a user without a password": bool(self.username) and self.password is None,
                "a password without a user": not self.username and self.password is not None,
                "a readahead of 0": self.readahead_bytes == 0,
                "a timeout of 0": self.timeout_s == 0,
            }
        )


def _libvirt_name(path: str) -> str:
    """Return what libvirt turns into ``path``: it encodes the name again, in its own way."""
    try:
        name = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        name = ""
    written = re.sub("%[0-9A-Fa-f]{2}", lambda match: match[0].upper(), path or "/")
    if quote(name or "/", safe=_LIBVIRT_SAFE) != written:
        raise unsayable(f"the path {quoted(path)}: libvirt would encode it in another way")
    return name or "/"


def _parts(url: str) -> re.Match[str]:
    """Return the parts of a URL, ``scheme``, ``authority``, ``path``, ``query`` and ``fragment``; none is decoded."""
    match = _URL.match(url)
    if match is None:
        raise LocationError("the URL does not start with http://, https://, ftp:// or ftps://")
    return match


def _address(authority: str) -> re.Match[str]:
    """Return ``host``, an IPv6 address in its brackets, and ``port`` of a URL."""
    match = re.match(_ADDRESS, authority)
    if match is None:
        raise LocationError(
            f"{quoted(authority)} is not HOST[:PORT]" if authority else "the URL names no host",
            hint="an IPv6 address is written in brackets: https://[::1]/",
        )
    return match


def _check_url(url: str) -> None:
    """Raise LocationError unless libcurl takes the URL as it stands."""
    parts = _parts(url)
    if "@" in parts["authority"]:
        raise LocationError("the URL has a user in it", hint="username and password are options of their own")
    checked(url, "URL", error=LocationError)
    bad = re.search(r"[\x00-\x20\x7f]", url)
    if bad:
        raise LocationError(
            f"the URL has {quoted(bad[0])} at character {bad.start() + 1}", hint=f"write it as {quote(bad[0])}"
        )
    if parts["fragment"]:
        raise LocationError("the URL has a fragment, which is never sent", hint="write '#' in names as %23")
    port = _address(parts["authority"])["port"]
    if port:
        parse_port(port)


def parse(scheme: str, rest: str) -> CurlLocation:
    """Return the location of ``scheme:rest``; raises LocationError."""
    url, username, password = _taken_apart(f"{scheme}:{rest}")
    return CurlLocation(url=url, username=username, password=password)


def _taken_apart(url: str) -> tuple[str, str, Secret | None]:
    """Return a URL without its user, the user and the password."""
    parts = _parts(url)
    refuse_torn_userinfo(parts["authority"], url, parts["scheme"])
    userinfo, at, address = parts["authority"].rpartition("@")
    if not at:
        return url, "", None
    if "@" in userinfo:
        raise LocationError("the URL has '@' in its user name or password", hint="write it as %40")
    user, colon, password = userinfo.partition(":")
    plain = f"{parts['scheme']}://{address}{url[parts.end('authority') :]}"
    try:
        # libcurl sends an empty user and password for a lone '@' as well.
        return plain, _decoded(user), Secret(_decoded(password)) if colon or not user else None
    except (InputError, UnicodeDecodeError):
        raise LocationError("the URL's user name or password does not decode to UTF-8 text without NUL") from None


def _decoded(text: str) -> str:
    return unquote_to_bytes(text).decode()


def parse_filename(_driver: str, filename: str) -> CurlLocation | None:
    """Return the location that QEMU reports by its URL; None when that was cut off."""
    if len(filename.encode()) >= _REPORTED_BYTES:
        return None
    scheme, _colon, rest = filename.partition(":")
    return parse(scheme, rest)


def from_options(driver: str, fields: Fields) -> CurlLocation:
    """Return the location of a ``json:`` description; raises LocationError.

    ``password``, ``cookie`` and ``proxy-password`` are secrets, which reach QEMU only as secret objects.
    """
    url, username, password = _taken_apart(fields.needed("url"))
    if not url.startswith(f"{driver}://"):
        raise LocationError(f"json: url does not start with {driver}://")
    named = fields.text("username")
    own = fields.secret("password")
    if (username or password is not None) and (named is not None or own is not None):
        raise LocationError("json: both url and username or password say who asks", hint="take the user out of url")
    return CurlLocation(
        url=url,
        username=named or username,
        password=own if own is not None else password,
        cookie=fields.secret("cookie"),
        sslverify=fields.flag("sslverify"),
        proxy_username=fields.text("proxy-username") or "",
        proxy_password=fields.secret("proxy-password"),
        readahead_bytes=fields.number("readahead", 0, (1 << 31) - 1),
        timeout_s=fields.number("timeout", 0, LONGEST_TIMEOUT_S),
    )
