"""Storage URIs and paths: text in, a typed location out.

One module per protocol, entered in ``schemes``. Modules are imported when they are first needed: most processes see
one or two protocols.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from hvext.core.secret import MASK
from hvext.core.text import checked, quoted
from hvext.core.uri import file, schemes
from hvext.core.uri.file import FileLocation, Opened
from hvext.core.uri.location import Location
from hvext.core.uri.mask import SHORTEST, hidden_parts, masked
from hvext.errors import LocationError, UnsupportedLocation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hvext.core.uri.fields import Fields

__all__ = ["FileLocation", "Location", "Opened", "masked", "parse_filename", "parse_uri", "shown"]

_SCHEME_SIGNS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+._-")


def parse_uri(text: str, *, look: Callable[[str], Opened] | None = None) -> Location:
    """Return the location that a URI or an absolute path names, as QEMU would read it.

    ``look`` tells whether a path is a file or a device; without it the name decides (``/dev/…`` is a device). Raises
    LocationError for text that cannot be read and UnsupportedLocation for protocols that cannot be opened; neither
    shows a password.
    """
    try:
        return _parsed(text, look or file.by_name)
    except RecursionError:
        raise LocationError("it is nested deeper than any location is") from None
    except (LocationError, UnsupportedLocation) as error:
        hidden = hidden_parts(text)
        if not hidden:
            raise
        # Without its cause: that one may quote the text.
        if any(len(part) < SHORTEST and part in str(error) for part in hidden):
            # Hiding it letter by letter would tell it.
            raise type(error)("it cannot be read; the reason would show a part of it that is secret") from None
        raise type(error)(_hidden(error.message, hidden), hint=_hidden(error.hint, hidden)) from None


def shown(text: str) -> str:
    """Return the text of a URI without its secrets: as the location says it where there are any, else as it is."""
    try:
        location = _parsed(text, file.by_name)
    except (LocationError, UnsupportedLocation, RecursionError):
        return masked(text)
    return masked(text) if location.without_secrets() == location else location.uri()


def parse_filename(driver: str, filename: str) -> Location | None:
    """Return the location of an open node from what QEMU reports of it; None when that does not tell it all.

    The inverse of ``Location.reported``.
    """
    if driver not in schemes.DRIVERS:
        return None
    try:
        if filename.startswith("json:"):
            reported, fields = _module("description").read(filename.removeprefix("json:"), reported=True)
            return _from_options(reported, fields) if reported == driver else None
        parse = getattr(_module(schemes.DRIVERS[driver]), "parse_filename", None)
        location: Location | None = parse(driver, filename) if parse else None
    except LocationError:
        return None
    return location


def _parsed(text: str, look: Callable[[str], Opened]) -> Location:
    checked(text, "URI", error=LocationError)
    if text.startswith("/"):
        return FileLocation(path=text, opened=look(text))
    scheme, colon, rest = text.partition(":")
    if not scheme or not colon or not _SCHEME_SIGNS.issuperset(scheme):
        raise LocationError(f"{quoted(text)} is neither a URI nor an absolute path")
    if scheme in ("file", "host_device"):
        return file.parse(scheme, rest, look)
    if scheme == "json":
        driver, fields = _module("description").read(rest)
        return _from_options(driver, fields)
    if scheme in schemes.SCHEMES:
        location: Location = _module(schemes.SCHEMES[scheme]).parse(scheme, rest)
        return location
    raise _unsupported(scheme)


def _from_options(driver: str, fields: Fields) -> Location:
    if driver not in schemes.DRIVERS:
        raise UnsupportedLocation(
            f"json: driver {quoted(driver)} is not one that hvext opens",
            hint=f"it opens {', '.join(sorted(schemes.DRIVERS))}",
        )
    location: Location = _module(schemes.DRIVERS[driver]).from_options(driver, fields)
    fields.finish()
    return location


def _module(name: str) -> Any:
    return import_module(f"hvext.core.uri.{name}")


def _hidden(message: str, parts: tuple[str, ...]) -> str:
    for part in parts:
        for form in (part, repr(part)[1:-1]):
            message = message.replace(form, MASK)
            # Long text is cut in messages, and the cut may be in the secret.
            for length in range(len(form) - 1, SHORTEST - 1, -1):
                message = message.replace(f"{form[:length]}'…", f"{MASK}'…")
    return message


def _unsupported(scheme: str) -> UnsupportedLocation:
    if scheme in schemes.REMOVED:
        return UnsupportedLocation(f"protocol {scheme!r} was removed in {schemes.REMOVED[scheme]}")
    if scheme.lower() != scheme and schemes.is_known_scheme(scheme.lower()):
        return UnsupportedLocation(f"QEMU knows no protocol {scheme!r}", hint=f"write {scheme.lower()!r}")
    if scheme in schemes.LAYERS:
        return UnsupportedLocation(
            f"protocol {scheme!r} of QEMU is no storage",
            hint="it is for tests, or a layer over storage: print the storage",
        )
    listed = ", ".join(sorted(set(schemes.SCHEMES) - schemes.REFUSED))
    return UnsupportedLocation(f"QEMU knows no protocol {scheme!r}", hint=f"hvext opens {listed}")
