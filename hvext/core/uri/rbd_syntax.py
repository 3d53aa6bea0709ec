r"""The text of ``rbd:`` URIs: ``POOL[/NAMESPACE]/IMAGE[@SNAPSHOT][:NAME=VALUE…]``.

A backslash takes the next character as it is, which is how ``: @ / = ; \`` get into names and values.
Source: QEMU, block/rbd.c, ``qemu_rbd_parse_filename``, ``qemu_rbd_next_tok`` and ``qemu_rbd_unescape``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from hvext.core.text import quoted
from hvext.core.value import value_object
from hvext.errors import LocationError


@value_object
class RbdText:
    """The parts of an ``rbd:`` URI, nothing escaped in them; ``options`` in the order in which they were written."""

    pool: str
    namespace: str
    image: str
    snapshot: str
    options: tuple[tuple[str, str], ...]


def split_rbd(rest: str) -> RbdText:
    """Return the parts of ``rbd:rest``; raises LocationError, which shows no values of options."""
    spec, *options = split(rest, ":")
    path, *snapshots = split(spec, "@")
    if not snapshots and any(len(split(option, "@")) > 1 for option in options):
        # QEMU looks for the snapshot in all of the text, and would read another image's name and no option.
        raise LocationError(
            f"rbd:{quoted(spec)}… has '@' in an option, which QEMU takes for a snapshot's", hint="write \\@"
        )
    names = [plain(part) for part in split(path, "/")]
    if len(names) not in (2, 3) or len(snapshots) > 1 or not all((*names, *snapshots)):
        raise LocationError(
            f"rbd:{quoted(spec)} is not POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]",
            hint="write rbd:POOL/IMAGE, without //" if spec.startswith("//") else "write \\ before / @ : in names",
        )
    return RbdText(
        pool=names[0],
        namespace=names[1] if len(names) == 3 else "",
        image=names[-1],
        snapshot=plain(snapshots[0]) if snapshots else "",
        options=tuple(_option(option) for option in options),
    )


def _option(text: str) -> tuple[str, str]:
    name, *values = split(text, "=")
    if not values or not name:
        raise LocationError(
            f"rbd: option {quoted(plain(name))} has no value", hint="options are NAME=VALUE; write \\: for ':' in one"
        )
    value = plain(text[len(name) + 1 :])
    if not value:
        raise LocationError(f"rbd: option {plain(name)} has no value", hint="leave it out for Ceph's default")
    return plain(name), value


def join_rbd(names: Iterable[str], snapshot: str, options: Iterable[tuple[str, str]]) -> str:
    """Return the URI of these parts."""
    path = "/".join(escaped(name) for name in names)
    at = f"@{escaped(snapshot)}" if snapshot else ""
    return "".join([f"rbd:{path}{at}", *(f":{name}={escaped(value)}" for name, value in options)])


def split(text: str, separator: str) -> list[str]:
    """Split at separators that no backslash protects; escapes stay."""
    parts, start, position = [], 0, 0
    while position < len(text):
        if text[position] == "\\":
            position += 1
        elif text[position] == separator:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    return [*parts, text[start:]]


def plain(text: str) -> str:
    """Return a part without its escapes."""
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def escaped(text: str) -> str:
    """Return a name or value as it stands in a URI."""
    return re.sub(r"([\\:@/=;])", r"\\\1", text)
