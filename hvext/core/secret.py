"""Text that must never be shown: passwords, keys, cookies.

A ``Secret`` prints as ``***`` in every way Python has of turning a value into text, and cannot be pickled or written
as JSON. Its text is taken out with ``reveal()`` where it leaves hvext for QEMU, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable

from hvext.core.text import checked, quoted
from hvext.errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

#: What stands in the place of a secret.
MASK = "***"
_SECRET_WORDS = frozenset(
    "password passwd pass passphrase pwd secret key psk token credential credentials cookie cookies apikey signature "
    "sig".split()
)
#: What tells it in the middle of a word as well.
_STEMS = ("password", "passwd", "passphrase", "secret", "apikey")
#: A name that ends in one of these says where a secret is, or what it is called.
_POINTERS = frozenset("file path dir directory id name ring type size format check mode user username".split())


#: The parts that secrets play; see ``Location.SECRETS``.
ROLES = ("password", "key", "cookie", "proxy_password")


class Secret:
    """A secret text; two secrets are equal when their texts are. Raises InputError for text that is not UTF-8."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        try:
            checked(text, "secret")
        except InputError:
            # The error would quote it.
            raise InputError("a secret must be UTF-8 text without NUL bytes") from None
        self._text = text

    def reveal(self) -> str:
        """Return the text itself, for QEMU or a private file."""
        return self._text

    def __repr__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return MASK

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return False
        # Most commands compare none, and this loads OpenSSL.
        import hmac

        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied to another process")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self


def shown(secret: Secret, *, reveal: bool) -> str:
    """Return the text of a secret, or what stands in its place."""
    return secret.reveal() if reveal else MASK


def check_roles(roles: Iterable[str]) -> None:
    """Raise InputError for a role that no secret has."""
    for role in roles:
        if role not in ROLES:
            raise InputError(f"there is no secret {quoted(role)}", hint=f"secrets are {', '.join(ROLES)}")


def is_secret_name(name: str) -> bool:
    """Return whether the value of a parameter or option with this name is a secret, as far as its name tells."""
    words = _words(name)
    if not words or words[-1] in _POINTERS:
        return False
    return not _SECRET_WORDS.isdisjoint(words) or any(stem in word for stem in _STEMS for word in words)


def _words(name: str) -> list[str]:
    """Return the words of ``some-name``, ``SOME_NAME`` or ``someName`` in lower case; only ASCII is in them."""
    parts = []
    before = ""
    for sign in name:
        if not (sign.isascii() and sign.isalnum()):
            parts.append(" ")
        elif sign.isupper() and before.isascii() and (before.islower() or before.isdigit()):
            parts += (" ", sign)
        else:
            parts.append(sign)
        before = sign
    return "".join(parts).lower().split()
