"""The options of a ``json:`` location, taken one by one and with their types; what is left over is refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

from hvext.core.secret import Secret
from hvext.core.text import checked, quoted
from hvext.errors import InputError, LocationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    _Word = TypeVar("_Word", bound=StrEnum)

_SHARED = frozenset(
    ("node-name", "cache", "read-only", "auto-read-only", "discard", "detect-zeroes", "force-share", "aio")
)


class Fields:
    """A JSON object whose members are taken one by one: ``text``, ``number``, ``flag`` and so on, then ``finish``.

    Every method raises LocationError, which names the member by its dotted path. Numbers and flags may be written as
    text, as QEMU takes them in ``json:``.
    """

    def __init__(self, values: Mapping[str, object], where: str = "") -> None:
        self._values = dict(values)
        self._where = where

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def path(self, name: str) -> str:
        """The dotted path of a member, for messages."""
        return f"{self._where}{name}"

    def text(self, name: str) -> str | None:
        """Take a text, None when absent."""
        value = self._values.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, str):
            raise LocationError(f"json: {self.path(name)} must be text; got {quoted(str(value))}")
        return checked(value, f"json: {self.path(name)}", error=LocationError)

    def needed(self, name: str) -> str:
        """Take a text that must be there."""
        value = self.text(name)
        if value is None:
            raise LocationError(f"json: {self.path(name)} is missing")
        return value

    def secret(self, name: str) -> Secret | None:
        """Take a secret text, None when absent; no message quotes it."""
        value = self._values.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, str):
            raise LocationError(f"json: {self.path(name)} must be text")
        try:
            return Secret(value)
        except InputError as error:
            raise LocationError(f"json: {self.path(name)}: {error.message}") from None

    def number(self, name: str, low: int = 0, high: int = (1 << 32) - 1) -> int | None:
        """Take a whole number between ``low`` and ``high``, None when absent."""
        value = self._values.pop(name, None)
        if value is None:
            return None
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise LocationError(
                f"json: {self.path(name)} must be a whole number, {low} to {high}; got {quoted(str(value))}"
            )
        return value

    def flag(self, name: str) -> bool | None:
        """Take true or false (also ``on`` and ``off``), None when absent."""
        value = self._values.pop(name, None)
        words = {"on": True, "off": False}
        if isinstance(value, str) and value in words:
            return words[value]
        if value is None or isinstance(value, bool):
            return value
        raise LocationError(f"json: {self.path(name)} must be true or false; got {quoted(str(value))}")

    def choice(self, name: str, kind: type[_Word]) -> _Word | None:
        """Take one of the words of ``kind``, None when absent."""
        text = self.text(name)
        if text is None:
            return None
        try:
            return kind(text)
        except ValueError:
            raise LocationError(f"json: {self.path(name)} {quoted(text)} is not one of {', '.join(kind)}") from None

    def sub(self, name: str) -> Fields | None:
        """Take an object, None when absent."""
        value = self._values.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise LocationError(f"json: {self.path(name)} must be an object; got {quoted(str(value))}")
        return Fields(value, f"{self.path(name)}.")

    def subs(self, name: str) -> list[Fields]:
        """Take a list of objects, empty when absent; an object with the keys 0, 1, … is a list as well."""
        value = self._values.pop(name, None)
        if value is None:
            return []
        if isinstance(value, Mapping) and set(value) == {str(index) for index in range(len(value))}:
            value = [value[str(index)] for index in range(len(value))]
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise LocationError(f"json: {self.path(name)} must be a list of objects; got {quoted(str(value))}")
        return [Fields(item, f"{self.path(name)}.{index}.") for index, item in enumerate(value)]

    def texts(self, name: str) -> tuple[str, ...]:
        """Take a list of texts, empty when absent; an object with the keys 0, 1, … is a list as well."""
        value = self._values.pop(name, None)
        if value is None:
            return ()
        if isinstance(value, Mapping) and set(value) == {str(index) for index in range(len(value))}:
            value = [value[str(index)] for index in range(len(value))]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise LocationError(f"json: {self.path(name)} must be a list of texts; got {quoted(str(value))}")
        return tuple(checked(item, f"json: {self.path(name)}", error=LocationError) for item in value)

    def finish(self) -> None:
        """Refuse what was not taken."""
        for name in self._values:
            hint = ""
            if name in _SHARED:
                hint = "how a disk is opened is said by the disk's options, not by its URI"
            elif name.endswith("-secret") or name == "tls-creds":
                from hvext.core.documentation import page

                hint = "it names an object of another QEMU: hvext makes secrets and credentials itself, see "
                hint += page("uris")
            raise LocationError(f"json: option {quoted(self.path(name))} is not taken", hint=hint)
