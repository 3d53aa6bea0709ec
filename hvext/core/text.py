"""Checks on strings that go into environments, JSON, command lines and XML."""

from __future__ import annotations

from collections.abc import Iterable

from hvext.errors import InputError

#: Characters of an excerpt in an error message.
_EXCERPT = 80


def quoted(text: str) -> str:
    """Return ``text`` in quotes for a message: control characters escaped, long text cut."""
    shown = repr(text[:_EXCERPT])
    return shown if len(text) <= _EXCERPT else f"{shown}… ({len(text)} characters)"


def checked(text: str, what: str, *, error: type[InputError] = InputError) -> str:
    """Return ``text`` when it can be written as UTF-8 without NUL; else raise ``error`` naming ``what``.

    QEMU takes its options as JSON, which has no way to write bytes that are not UTF-8.
    """
    if "\0" in text:
        raise error(f"{what} {quoted(text)} has a NUL byte in it")
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise error(
            f"{what} {quoted(text)} is not valid UTF-8", hint="QEMU's options can only carry UTF-8"
        ) from problem
    return text


def meant(wrong: str, known: Iterable[str], form: str = "") -> str:
    """Return "; did you mean NAME?" for the known name that is most like a wrong one; empty where none is.

    ``form`` is what stands behind the name in what the user writes (``=``).
    """
    # Only for errors: it takes a while to load.
    from difflib import get_close_matches

    like = get_close_matches(wrong, known, 1)
    return f"; did you mean {like[0]}{form}?" if like else ""
