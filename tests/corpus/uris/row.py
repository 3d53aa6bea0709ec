"""What a row of the corpus is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What is to be expected of a text before anybody is asked."""

    #: Everybody takes it, and for the same storage.
    VALID = "valid"
    #: Unusual: what it means, or whether it means anything, is the oracle's to say.
    ODD = "odd"
    #: Nobody takes it.
    INVALID = "invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One text: ``id`` is ``PROTOCOL-NAME`` and never changes, since the documentation refers to it."""

    id: str
    uri: str
    protocol: str
    kind: Kind
    #: Whether the host's page cache is passed by; some options only go together with it.
    direct: bool = True


def rows(
    protocol: str,
    *,
    valid: Mapping[str, str] | None = None,
    odd: Mapping[str, str] | None = None,
    invalid: Mapping[str, str] | None = None,
    direct: bool = True,
) -> tuple[Row, ...]:
    """The rows of one protocol, each mapping from a name to its text."""
    return tuple(
        Row(id=f"{protocol}-{name}", uri=uri, protocol=protocol, kind=kind, direct=direct)
        for kind, texts in ((Kind.VALID, valid), (Kind.ODD, odd), (Kind.INVALID, invalid))
        for name, uri in (texts or {}).items()
    )
