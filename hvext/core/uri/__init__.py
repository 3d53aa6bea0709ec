"""Storage URIs and paths: text in, a typed location out.

One module per protocol; a new protocol is a new module and its line in ``_parse_known``.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from hvext.core.text import checked, quoted
from hvext.core.uri import file, nbd, rbd, schemes
from hvext.core.uri.file import FileLocation, Opened
from hvext.core.uri.location import Location
from hvext.errors import LocationError, UnsupportedLocation

__all__ = ["FileLocation", "Location", "Opened", "parse_filename", "parse_uri"]

_SCHEME = re.compile(r"([A-Za-z0-9+._-]+):")


def parse_uri(text: str, *, look: Callable[[str], Opened] | None = None) -> Location:
    """Return the location that a URI or an absolute path names, as QEMU would read it.

    ``look`` tells whether a path is a file or a device; without it the name decides (``/dev/…`` is a device). Raises
    LocationError for text that cannot be read and UnsupportedLocation for protocols that cannot be opened.
    """
    checked(text, "URI", error=LocationError)
    if text.startswith("/"):
        return FileLocation(path=text, opened=(look or file.by_name)(text))
    match = _SCHEME.match(text)
    if match is None:
        raise LocationError(f"{quoted(text)} is neither a URI nor an absolute path")
    return _parse_known(match[1], text[match.end() :], look or file.by_name)


def parse_filename(driver: str, filename: str) -> Location | None:
    """Return the location of an open node from what QEMU reports of it; None when that does not tell it all.

    The inverse of ``Location.filename``.
    """
    try:
        if driver in tuple(Opened):
            return FileLocation(path=filename, opened=Opened(driver))
        return nbd.parse_filename(filename) if driver == "nbd" else None
    except LocationError:
        return None


def _parse_known(scheme: str, rest: str, look: Callable[[str], Opened]) -> Location:
    if scheme in file.SCHEMES:
        return file.parse(scheme, rest, look)
    if scheme in nbd.SCHEMES:
        return nbd.parse(scheme, rest)
    if scheme in rbd.SCHEMES:
        return rbd.parse(rest)
    raise _unsupported(scheme)


def _unsupported(scheme: str) -> UnsupportedLocation:
    if scheme in schemes.REMOVED:
        return UnsupportedLocation(f"protocol {scheme!r} was removed from QEMU in {schemes.REMOVED[scheme]}")
    if schemes.is_elsewhere(scheme):
        return UnsupportedLocation(f"hvext does not open {scheme!r} URIs; it opens {_listed()}")
    if scheme.lower() != scheme and schemes.is_known_scheme(scheme.lower()):
        return UnsupportedLocation(f"QEMU knows no protocol {scheme!r}", hint=f"write {scheme.lower()!r}")
    return UnsupportedLocation(f"QEMU knows no protocol {scheme!r}", hint=f"hvext opens {_listed()}")


def _listed() -> str:
    return ", ".join(sorted(schemes.OPENED))
