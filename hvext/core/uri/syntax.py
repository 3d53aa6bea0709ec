"""The parts of URIs that several protocols share: hosts, ports, percent-encoding, queries.

Source: RFC 3986, sections 2 and 3; RFC 6874 for the zones of IPv6 addresses.
"""

from __future__ import annotations

import re

from hvext.core.text import checked, quoted
from hvext.core.value import value_object
from hvext.errors import LocationError

#: sun_path is 108 bytes with its closing NUL; longer paths cannot be connected to.
SOCKET_PATH_BYTES = 107
#: What may stand unencoded in the path and in the query of the URIs that are written here.
PATH_SAFE = "/!$&'()*+,;=:@~"
QUERY_SAFE = "/!$'()*+,:@~"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
#: What RFC 3986 calls unreserved: it is never encoded.
_UNRESERVED = f"{_LETTERS}_.-~"
#: What it lets stand in path and query.
_ALLOWED = frozenset(f"{_UNRESERVED}!$&'()*+,;=:@/?")
_HOST_NAME = frozenset(f"{_LETTERS}_.-")
_HEXADECIMAL = frozenset("0123456789ABCDEFabcdef")


@value_object
class UriParts:
    """The parts of ``scheme://authority/path?query``, nothing decoded; ``userinfo`` and ``query`` None when absent."""

    scheme: str
    userinfo: str | None
    address: str
    path: str
    query: str | None


def split_uri(scheme: str, rest: str) -> UriParts:
    """Return the parts of ``scheme:rest``; raises LocationError for what is no URI, and for a fragment."""
    if not rest.startswith("//"):
        raise LocationError(f"{scheme}:{quoted(rest)} is no {scheme} URI", hint=f"it must start with {scheme}://")
    before, hash_sign, fragment = rest[2:].partition("#")
    before, question_mark, query = before.partition("?")
    authority, slash, path = before.partition("/")
    refuse_torn_userinfo(authority, rest, scheme)
    if hash_sign:
        raise LocationError(
            f"{scheme} URI has a fragment {quoted(hash_sign + fragment)}", hint="write '#' in names as %23"
        )
    userinfo, at, address = authority.rpartition("@")
    if "@" in userinfo:
        raise LocationError(
            f"{scheme} URI has '@' in front of its host more than once", hint="write it in names as %40"
        )
    return UriParts(
        scheme=scheme,
        userinfo=userinfo if at else None,
        address=address,
        path=slash + path,
        query=query if question_mark else None,
    )


def refuse_torn_userinfo(authority: str, rest: str, scheme: str) -> None:
    """Raise LocationError for a password that is cut off by one of the URI's own separators, without showing it."""
    if "@" in rest and re.fullmatch(r"[^@:\[\]]*:[0-9]*[^0-9@][^@]*", authority):
        raise LocationError(
            f"{scheme} URI has no port behind its host, or a password with '/', '?' or '#' in it",
            hint="in a password, write them %2F, %3F and %23",
        )


def decoded(text: str, what: str, scheme: str) -> str:
    """Return ``text`` percent-decoded; raises LocationError for characters that a URI cannot hold, and for NUL.

    ``what`` names the part and ``scheme`` the kind of URI for messages.
    """
    for index, sign in enumerate(text):
        if sign not in _ALLOWED and not (sign == "%" and _is_byte(text[index + 1 : index + 3])):
            raise LocationError(
                f"{what} in the {scheme} URI has {quoted(sign)} at character {index + 1}",
                hint=f"write it as {_encoded(sign, '')}",
            )
    first, *others = text.encode().split(b"%")
    plain = first + b"".join(bytes.fromhex(part[:2].decode()) + part[2:] for part in others)
    try:
        return checked(plain.decode(), what, error=LocationError)
    except UnicodeDecodeError as error:
        raise LocationError(f"{what} {quoted(text)} in the {scheme} URI does not decode to UTF-8") from error


def _is_byte(digits: str) -> bool:
    return len(digits) == 2 and _HEXADECIMAL.issuperset(digits)


def _encoded(text: str, safe: str) -> str:
    """Return ``text`` percent-encoded, as urllib.parse has it, whose loading takes longer than reading a URI."""
    kept = (_UNRESERVED + safe).encode()
    return "".join(chr(byte) if byte in kept else f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def encoded_path(text: str) -> str:
    """Return ``text`` as it stands in a URI's path."""
    return _encoded(text, PATH_SAFE)


def encoded_query(text: str) -> str:
    """Return ``text`` as it stands as a value in a URI's query."""
    return _encoded(text, QUERY_SAFE)


def encoded_userinfo(text: str) -> str:
    """Return ``text`` as it stands as a user name or password in a URI."""
    return _encoded(text, "!$&'()*+,;=~")


def query_pairs(query: str | None, scheme: str) -> dict[str, str]:
    """Return the parameters of a query, decoded; raises LocationError for one without ``=`` and for one given twice."""
    pairs: dict[str, str] = {}
    for part in filter(None, (query or "").replace(";", "&").split("&")):
        name, equals, value = part.partition("=")
        name = decoded(name, "a query parameter's name", scheme)
        if not name or not equals:
            raise LocationError(
                f"{scheme} URI needs NAME=VALUE in its query; got {quoted(part)}",
                hint="'&' and ';' in a value are written %26 and %3B",
            )
        if name in pairs:
            raise LocationError(f"{scheme} URI has the query parameter {name!r} twice")
        pairs[name] = decoded(value, f"the query parameter {name!r}", scheme)
    return pairs


def check_host(host: str) -> str:
    """Return a host name, IPv4 or bare IPv6 address; raises LocationError for anything else."""
    if ":" in host:
        # Most hosts are names.
        import ipaddress

        try:
            scope = ipaddress.IPv6Address(host).scope_id
        except ValueError as error:
            raise LocationError(f"host {quoted(host)} is not an IPv6 address: {error}") from error
        if scope is not None and not (scope and _HOST_NAME.issuperset(scope)):
            raise LocationError(f"host {quoted(host)} ends in {quoted(scope)}, which names no interface")
    elif not (host and _HOST_NAME.issuperset(host)):
        raise LocationError(f"host {quoted(host)} is neither a host name nor an address")
    return host


def check_port(port: int) -> int:
    """Return a TCP port, 1 to 65535; raises LocationError."""
    if not 1 <= port <= 65535:
        raise LocationError(f"port {port} is not between 1 and 65535")
    return port


def parse_port(text: str) -> int:
    """Return the port that ``text`` writes; raises LocationError."""
    if not (text.isascii() and text.isdigit() and len(text) <= 14 and not text[:-5].strip("0")):
        raise LocationError(f"port {quoted(text)} is not a number between 1 and 65535")
    return check_port(int(text))


def parse_address(address: str, scheme: str, *, encoded: bool = True) -> tuple[str, int | None]:
    """Return host and port of ``HOST[:PORT]``, an IPv6 address in brackets; the host may be empty.

    With ``encoded``, the ``%`` in front of an IPv6 address's zone may be written ``%25``. Raises LocationError.
    """
    match = re.fullmatch(r"(?:\[(?P<v6>[^\]]*)\]|(?P<name>[^:\[\]]*))(?::(?P<port>[0-9]*))?", address)
    if match is None:
        raise LocationError(
            f"{quoted(address)} is not HOST[:PORT]",
            hint=f"an IPv6 address is written in brackets: {scheme}://[::1]:10809",
        )
    host = match["v6"] if match["v6"] is not None else match["name"]
    if encoded:
        host = host.replace("%25", "%", 1)
    if match["v6"] is not None and ":" not in host:
        raise LocationError(f"{quoted(address)}: only an IPv6 address stands in brackets")
    if host:
        check_host(host)
    return host, parse_port(match["port"]) if match["port"] else None


def bracketed(host: str) -> str:
    """Return a host as it stands in front of a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def encoded_host(host: str) -> str:
    """Return a host as it stands in a URI whose reader decodes it."""
    return bracketed(host).replace("%", "%25")


def check_socket_path(path: str) -> str:
    """Return the path of a unix socket; raises LocationError when it is not absolute or too long to connect to."""
    checked(path, "socket path", error=LocationError)
    if not path.startswith("/"):
        raise LocationError(f"socket path {quoted(path)} is not absolute")
    size = len(path.encode())
    if size > SOCKET_PATH_BYTES:
        raise LocationError(
            f"socket path {quoted(path)} has {size} bytes; a unix socket's path has at most {SOCKET_PATH_BYTES}",
            hint="use a shorter directory",
        )
    return path
