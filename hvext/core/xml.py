"""What XML 1.0 can and cannot hold."""

from __future__ import annotations

from hvext.core.text import quoted
from hvext.errors import RenderError

#: Beside control characters and surrogates.
_NO_CHARACTERS = "\ufffe\uffff"


def checked_xml(text: str, what: str) -> str:
    """Return ``text`` when XML 1.0 can hold it; raises RenderError that names ``what`` otherwise."""
    # Not by a pattern: to compile one with such ranges takes longer than the rest of a rendering.
    for number, character in enumerate(text, start=1):
        if not _exists(character):
            raise RenderError(
                f"libvirt XML cannot hold {what} {quoted(text)}: character {number} does not exist in XML 1.0",
                hint="use the -blockdev, -drive or QMP form",
            )
    return text


def _exists(character: str) -> bool:
    """Whether a character is one of XML's. Source: Extensible Markup Language 1.0, production 2, Char."""
    if character < " ":
        return character in "\t\n\r"
    return not "\ud800" <= character <= "\udfff" and character not in _NO_CHARACTERS
