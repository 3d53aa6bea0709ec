"""Storage URIs without their secrets, for messages, logs and JSON.

This looks at text that may be no valid URI at all, so it hides too much rather than too little: everything behind
the user name in ``scheme://user:password@``, and the value of every option whose name sounds like a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from hvext.core.secret import MASK, Secret, is_secret_name

SHORTEST = 4
#: ``user:password@`` and iSCSI's ``user%password@``. A password may itself hold an ``@``, and, where somebody forgot to
#: encode it or with iSCSI, also ``/ ? #``; a port in front of a path is none. The lengths are bounded (a line of an
#: answer has at most 4096 bytes), because a script may print megabytes without a line end.
_USERINFO = re.compile(
    r"(?:iscsi|iser)://[^@?\s:%]{0,4096}[:%](?P<chap>.{0,4096})@"
    r"|(?:iscsi|iser)://[^@/\s%\[]{1,4096}%(?P<open>[^\s@/]{1,4096})"
    r"|://[^/?#\s:@\[]{0,4096}?(?::|%(?![0-9A-Fa-f]{2}))"
    r"(?:(?P<secret>[^/?#\s]{0,4096})|(?![0-9]{0,5}[/?#])(?P<torn>\S{0,4096}))@"
    # No URI at all: a slash too few, or none.
    r"|(?<![A-Za-z0-9._-])(?<!://)[A-Za-z0-9._-]{1,64}[:%](?P<loose>[^\s@/:=\\]{1,4096})@"
)
#: ``name=value`` behind ``? & ; : , @`` in URIs, where a backslash protects the next character (``rbd:``).
_OPTION = re.compile(r"[?&;:,@](?=(?P<name>[A-Za-z0-9_.-]{1,64})\s{0,8}=(?P<secret>(?:\\.|[^&;:,\s\\]){1,4096}))")
#: ``"name": "value"`` in ``json:``, also where a quote or the colon was forgotten; QEMU takes single quotes as well.
_MEMBER = re.compile(
    r"(?:[\"']|(?<=[{,\s]))(?P<name>[A-Za-z0-9_.-]{1,64})[\"']?\s{0,8}"
    r"(?::?\s{0,8}\"(?P<secret>(?:\\.|[^\"\\])+)|:?\s{0,8}'(?P<single>(?:\\.|[^'\\])+)"
    r"|:\s{0,8}[\[{](?P<nested>[^\]}]+)|:\s{0,8}(?P<bare>[^\s\"',{}\[\]]+))"
)


def hidden_parts(text: str) -> tuple[str, ...]:
    """Return the parts of a text that are secrets, the longest first."""
    return tuple(sorted({text[start:end] for start, end in _spans(text)}, key=len, reverse=True))


def masked(text: str, known: Iterable[Secret] = ()) -> str:
    """Return a text with the secrets of all URIs in it, and those that are ``known``, replaced by ``***``.

    Known secrets of less than four characters are left: hiding them would hide half of the text.
    """
    for secret in sorted((item.reveal() for item in known), key=len, reverse=True):
        if len(secret) >= SHORTEST:
            text = text.replace(secret, MASK)
    result, done = [], 0
    for start, end in sorted(_spans(text)):
        if start >= done:
            result += [text[done:start], MASK]
        done = max(done, end)
    return "".join((*result, text[done:]))


def _spans(text: str) -> list[tuple[int, int]]:
    matches = list(_USERINFO.finditer(text))
    for pattern in (_OPTION, _MEMBER):
        matches += [match for match in pattern.finditer(text) if _is_secret(match["name"])]
    # In each pattern, the secret is the last group that takes part.
    spans = [match.span(match.lastindex or 0) for match in matches]
    return [(start, end) for start, end in spans if end > start]


def _is_secret(name: str) -> bool:
    # Neither the name of an object that holds a secret nor the fingerprint of a server's key is one.
    return is_secret_name(name) and not name.endswith("-secret") and name != "host_key_check"
