"""Storage URIs without their secrets, for messages, logs and JSON.

This looks at text that may be no valid URI at all, so it hides too much rather than too little: everything behind
the user name in ``scheme://user:password@``, and the value of every option whose name sounds like a secret. Lengths are
bounded (a line of an answer has at most 4096 bytes), because a script may print megabytes without a line end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from hvext.core.secret import MASK, Secret, is_secret_name

#: A shorter secret cannot be hidden wherever it appears: half of the text would go.
SHORTEST = 4
#: A user name in a URI, in which ``%`` stands for a byte.
_USER = r"(?:[^/?#\s:@%]|%[0-9A-Fa-f]{2}){0,512}"
#: ``user:password@`` and iSCSI's ``user%password@``. A password may itself hold an ``@``, and, where somebody forgot to
#: encode it or with iSCSI, also ``/ ? #``; a port in front of a path is none, and neither is an IPv6 address.
_USERINFO = (
    r"(?:iscsi|iser)://(?!\[)[^@?\s:%]{0,512}(?:%|:(?![0-9]{0,5}(?:/|\Z)))(?P<chap>\S{0,4096})@"
    r"|(?:iscsi|iser)://[^@/\s%\[]{1,512}%(?P<open>[^\s@/]{1,4096})"
    rf"|://(?!\[[^\]\s]{{0,64}}:[^\]\s]{{0,64}}\]){_USER}(?::|%(?![0-9A-Fa-f]{{2}}))"
    r"(?:(?P<secret>[^/?#\s]{0,4096})|(?![0-9]{0,5}[/?#])(?P<torn>[^\s]{0,4096}))@"
    # No URI at all: a slash too few, or none.
    r"|(?:(?<=[:/]/)|(?<![A-Za-z0-9._/-]))(?<!://)[A-Za-z0-9._-]{1,64}[:%](?P<loose>[^\s@/:=\\]{1,4096})@"
)
#: ``name=value`` behind ``? & ; : , @`` in URIs, where a backslash protects the next character (``rbd:``).
_OPTION = r"[?&;:,@](?P<name>[A-Za-z0-9_.\\-]{1,64})\s{0,8}="
_VALUE = r"\s{0,8}(?P<secret>(?:\\.|[^&;:,\s\\]){1,4096})"
#: ``"name": "value"`` in ``json:``, also where a quote or the colon was forgotten; QEMU takes single quotes as well.
_MEMBER = r"(?:[\"']|(?<=[{,]))(?P<name>[A-Za-z0-9_.-]{1,64})(?=[\"':\s])[\"']?"
_ITEM = (
    r"\s{0,8}(?::?\s{0,8}\"(?P<secret>(?:\\.|[^\"\\]){1,4096})|:?\s{0,8}'(?P<single>(?:\\.|[^'\\]){1,4096})"
    r"|:\s{0,8}[\[{](?P<nested>[^\]}]{1,4096})|:\s{0,8}(?P<bare>[^\s\"',{}\[\]]{1,4096}))"
)
_JSON = r"json:\s*(?=\{)"
#: Deeper than any location is nested.
_DEPTH = 32


def hidden_parts(text: str) -> tuple[str, ...]:
    """Return the parts of a text that are secrets, the longest first."""
    found = {text[start:end] for start, end in _spans(text)}
    for _start, _end, value in _objects(text):
        _collect(value, found)
    return tuple(sorted(found, key=len, reverse=True))


def masked(text: str, known: Iterable[Secret] = ()) -> str:
    """Return a text with the secrets of all URIs in it, and those that are ``known``, replaced by ``***``.

    Known secrets of less than four characters are left: hiding them would hide half of the text.
    """
    for secret in sorted((item.reveal() for item in known), key=len, reverse=True):
        if len(secret) >= SHORTEST:
            text = text.replace(secret, MASK)
    parts, done = [], 0
    for start, end, value in _objects(text):
        parts += [_hidden(text[done:start]), _rewritten(text[start:end], value)]
        done = end
    return "".join((*parts, _hidden(text[done:])))


def _hidden(text: str) -> str:
    result, done = [], 0
    for start, end in sorted(_spans(text)):
        if start >= done:
            result += [text[done:start], MASK]
        done = max(done, end)
    return "".join((*result, text[done:]))


def _spans(text: str) -> list[tuple[int, int]]:
    # A pattern is compiled when it is first used, which takes longer than all else that is done with a URI.
    matches = list(re.finditer(_USERINFO, text, re.IGNORECASE)) if "@" in text or "%" in text else []
    for named, value, signs in ((_OPTION, _VALUE, "="), (_MEMBER, _ITEM, "\"'{,")):
        if any(sign in text for sign in signs):
            ends = [match.end() for match in re.finditer(named, text) if _is_secret(match["name"])]
            matches += [match for end in ends if (match := re.compile(value).match(text, end))]
    # In each pattern, the secret is the last group that takes part.
    spans = [match.span(match.lastindex or 0) for match in matches]
    return [(start, end) for start, end in spans if end > start]


def _objects(text: str) -> list[tuple[int, int, object]]:
    """Return where the objects of all ``json:`` in a text are, and their values: names in them may be escaped."""
    found: list[tuple[int, int, object]] = []
    if "json:" not in text:
        return found
    for match in re.finditer(_JSON, text):
        if found and match.start() < found[-1][1]:
            continue
        try:
            value, end = json.JSONDecoder().raw_decode(text, match.end())
        except (ValueError, RecursionError):
            continue
        found.append((match.end(), end, value))
    return found


def _rewritten(text: str, value: object) -> str:
    """Return an object's text without the secrets in it; the same text when there are none."""
    clean = _redacted(value)
    return _hidden(text) if clean == value else json.dumps(clean, ensure_ascii=False, separators=(",", ":"))


def _redacted(value: object, depth: int = 0) -> object:
    if depth > _DEPTH:
        return MASK
    if isinstance(value, dict):
        return {name: MASK if _is_secret(name) else _redacted(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item, depth + 1) for item in value]
    return _hidden(value) if isinstance(value, str) else value


def _collect(value: object, found: set[str], depth: int = 0, *, secret: bool = False) -> None:
    """Add all secret texts in a JSON value to ``found``."""
    if depth > _DEPTH:
        return
    if isinstance(value, dict):
        for name, item in value.items():
            _collect(item, found, depth + 1, secret=secret or _is_secret(name))
    elif isinstance(value, list):
        for item in value:
            _collect(item, found, depth + 1, secret=secret)
    elif value is not None and not isinstance(value, bool):
        text = str(value)
        found |= {text} if secret and text else {text[start:end] for start, end in _spans(text)}


def _is_secret(name: str) -> bool:
    plain = name.replace("\\", "")
    # The name of an object that holds a secret is none.
    return is_secret_name(plain) and not plain.endswith("-secret")
