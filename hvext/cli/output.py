"""Printing results and errors."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence

from hvext.errors import HvextError

#: The manual page with the causes and cures of all errors, which packages have.
_MAN = "hvext-errors(7)"


def open_streams() -> None:
    """Make the standard streams usable, whatever the caller made of them.

    One that is closed becomes /dev/null, also for files and programs that are opened later; text that the encoding
    of standard output does not have, or a path that is not UTF-8, is printed with backslashes.
    """
    for name, flags, mode in (("stdin", os.O_RDONLY, "r"), ("stdout", os.O_WRONLY, "w"), ("stderr", os.O_WRONLY, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def stop_output() -> None:
    """Let go of standard output after it failed, so that Python does not try again at exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_error(error: HvextError, *, as_json: bool) -> None:
    """Print an error to standard error; to a person, or in JSON, with the place where its cure is described."""
    if as_json:
        value = {"error": error.to_json(), "help": _help(error), "man": _MAN}
        print(json.dumps(value, ensure_ascii=False), file=sys.stderr)
        return
    print(f"hvext: {error.message}", file=sys.stderr)
    print_hint(error.hint)
    if type(error) is not HvextError and sys.stderr.isatty():
        print(f"see {_help(error)}, or man hvext-errors", file=sys.stderr)


def _help(error: HvextError) -> str:
    """Return the page of the documentation, and the heading on it, that has the error's cause and cure."""
    from hvext.core.documentation import page_here

    return f"{page_here('troubleshooting')}#{type(error).__name__.lower()}"


def print_warnings(warnings: Sequence[str]) -> None:
    """Print warnings to standard error."""
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def print_hint(hint: str) -> None:
    """Print a hint to standard error, where there is one."""
    if hint:
        _print_rest()
        print(f"hint: {hint}", file=sys.stderr)


def _print_rest() -> None:
    """Have what was printed stand before what follows on standard error, where both go to one file."""
    # What fails here fails once more at the end, where it is told.
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()


def print_note(note: str) -> None:
    """Print a note to standard error, where there is one."""
    if note:
        _print_rest()
        print(f"note: {note}", file=sys.stderr)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header, in columns."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def reporter(*, verbose: bool) -> Callable[[str], None]:
    """Return what reports steps: to standard error when a person watches or asks for it, else nothing."""
    wanted = verbose or sys.stderr.isatty()

    def report(name: str) -> None:
        if wanted:
            print(f"  {name}", file=sys.stderr)

    return report


def place_text(place: object) -> str:
    """Return where a disk is, for people, in the words of plug: a path is a path, whatever QEMU opens it as."""
    text = str(place or "-")
    for prefix in ("host_device:/", "file:/"):
        if text.startswith(prefix):
            return "/" + text.removeprefix(prefix)
    return text


def size_text(size_bytes: int | None) -> str:
    """Return a size for people: whole MiB where it is, else bytes."""
    if size_bytes is None:
        return "-"
    mib, rest = divmod(size_bytes, 1 << 20)
    return f"{size_bytes} B" if rest else f"{mib} MiB"
