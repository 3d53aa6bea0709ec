"""What commands a QEMU has, and which arguments they take: the QAPI schema it describes itself with.

QEMU's own check would come too late: a disk is several commands, and all but the one that is wrong would have to be
undone. So the arguments are compared with the schema before anything is sent. Versions are never compared.

Source: query-qmp-schema in qemu-qmp-ref(7); "Client JSON Protocol introspection" in QEMU's docs/devel/qapi-code-gen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from types import NoneType

from hvext.core.value import value_object
from hvext.errors import CapabilityError, InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    _Type = Mapping[str, Any]

#: How the value of a tag is spoken of; any other tag is named itself.
_NOUNS = {"driver": "driver", "qom-type": "object"}
_KINDS = frozenset(("builtin", "enum", "array", "object", "alternate", "command", "event"))
_WORDS = {
    "string": "text",
    "int": "a whole number",
    "number": "a number",
    "boolean": "a boolean",
    "null": "null",
    "object": "an object",
    "array": "a list",
}
_PYTHON = (
    (bool, "boolean"),
    (int, "int"),
    (float, "number"),
    (Mapping, "object"),
    (list | tuple, "array"),
    (NoneType, "null"),
)
#: So many names are listed in a hint; of more, only those like the one that is wrong.
_LISTED = 20


@value_object
class _Place:
    """Where in the arguments of a command a value stands, and whose option it is."""

    command: str
    path: tuple[str, ...] = ()
    owner: str = "QEMU"

    def at(self, name: str) -> _Place:
        return _Place(command=self.command, path=(*self.path, name), owner=self.owner)

    @property
    def name(self) -> str:
        return ".".join(self.path)

    def error(self, words: str, wrong: str = "", known: Collection[str] = ()) -> CapabilityError:
        # Only for errors: it takes a while to load.
        from difflib import get_close_matches

        hint = ""
        if like := get_close_matches(wrong, known):
            hint = f"did you mean {' or '.join(like)}?"
        elif known and len(known) <= _LISTED:
            hint = f"it knows {', '.join(sorted(known))}"
        return CapabilityError(f"{self.command}: {words}", hint=hint)


@value_object
class Schema:
    """The commands of a QEMU with the types of their arguments. ``types`` are the entries of the answer, by name."""

    types: Mapping[str, _Type]

    @classmethod
    def from_qmp(cls, answer: object) -> Self:
        """Return the schema from what ``query-qmp-schema`` returned; raises InputError when that is something else."""
        if not isinstance(answer, list) or not all(_is_entry(entry) for entry in answer):
            raise InputError("this is not the answer of query-qmp-schema: a list of types with names")
        schema = cls(types={entry["name"]: entry for entry in answer})
        missing = sorted(schema._named() - schema.types.keys())
        if missing:
            raise InputError(
                f"the answer of query-qmp-schema is not whole: it names {missing[0]!r} and has no such type"
            )
        return schema

    def to_json(self) -> list[_Type]:
        """Return the schema as ``query-qmp-schema`` returned it."""
        return list(self.types.values())

    @classmethod
    def from_json(cls, value: list[_Type]) -> Self:
        """Return the schema that `to_json` wrote, which was looked through before that."""
        return cls(types={entry["name"]: entry for entry in value})

    def only(self, commands: Iterable[str]) -> Self:
        """Return the schema of those of ``commands`` that it has, with the types that they lead to, and of no other."""
        kept: dict[str, _Type] = {}
        names = [command for command in commands if self.has_command(command)]
        while names:
            name = names.pop()
            if name not in kept:
                kept[name] = self.types[name]
                names += _named_in(kept[name])
        return type(self)(types=kept)

    @cached_property
    def drivers(self) -> frozenset[str]:
        """The names of all block drivers (BlockdevDriver), also of those whose module may be missing."""
        return self.values("blockdev-add", "driver")

    def has_command(self, command: str) -> bool:
        """Return whether there is such a command."""
        return self.types.get(command, {}).get("meta-type") == "command"

    def members(self, command: str, path: str = "", chosen: Mapping[str, object] | None = None) -> frozenset[str]:
        """Return the names that an object in the arguments of a command may have; none where there is no such object.

        ``path`` leads to the object by dots (empty: the arguments themselves; list elements have no name of their own).
        ``chosen`` holds the values that decide between variants, in the shape of the arguments:
        ``members("blockdev-add", "server", {"driver": "nbd", "server": {"type": "inet"}})``.
        """
        found, value = self._find(command, path, {} if chosen is None else chosen)
        return frozenset(self._options(found, value)) if found is not None else frozenset()

    def has(self, command: str, path: str, chosen: Mapping[str, object] | None = None) -> bool:
        """Return whether a command has the argument at ``path``; ``chosen`` as in `members`."""
        return self._find(command, path, {} if chosen is None else chosen)[0] is not None

    def values(self, command: str, path: str, chosen: Mapping[str, object] | None = None) -> frozenset[str]:
        """Return the words that the argument at ``path`` may be; none where there is no such closed list of words."""
        found, _value = self._find(command, path, {} if chosen is None else chosen)
        return _words(found) if found is not None and found["meta-type"] == "enum" else frozenset()

    def check(self, command: str, arguments: Mapping[str, object]) -> None:
        """Raise CapabilityError when the command or one of its arguments is not what this QEMU takes.

        The message names the argument by dotted path, list elements by number. A value that is not of a JSON type is
        opaque text, such as a secret: it passes where text does, and no message shows it. ``device_add`` is not
        described by the schema and is refused here: see `Capabilities.check_device`.
        """
        place = _Place(command=command)
        if command == "device_add":
            raise place.error("the schema does not describe its arguments; they are checked as a device")
        if not self.has_command(command):
            raise place.error("this QEMU has no such command")
        self._check(self.types[self.types[command]["arg-type"]], arguments, place)

    def _named(self) -> set[str]:
        """All names of types that types refer to."""
        return {name for entry in self.types.values() for name in _named_in(entry)}

    def _find(self, command: str, path: str, chosen: object) -> tuple[_Type | None, object]:
        if not self.has_command(command):
            return None, None
        found: _Type | None = self._object_in(self.types[self.types[command]["arg-type"]])
        for name in path.split(".") if path else ():
            member = self._options(found, chosen).get(name) if found is not None else None
            if member is None:
                return None, None
            found = self._object_in(self.types[member["type"]])
            chosen = chosen.get(name) if isinstance(chosen, Mapping) else None
            chosen = chosen[0] if isinstance(chosen, list) and chosen else chosen
        return found, chosen

    def _object_in(self, kind: _Type) -> _Type:
        """The object that lists and alternatives lead to, or the type itself."""
        while kind["meta-type"] == "array":
            kind = self.types[kind["element-type"]]
        if kind["meta-type"] == "alternate":
            options = (self.types[each["type"]] for each in kind["members"])
            kind = next((each for each in options if each["meta-type"] in ("object", "enum")), kind)
        return kind

    def _options(self, kind: _Type, value: object) -> dict[str, _Type]:
        """The members of an object type, with those of the variant that the value chooses."""
        if kind["meta-type"] != "object":
            return {}
        options = {member["name"]: member for member in kind["members"]}
        chosen = value.get(kind["tag"]) if "tag" in kind and isinstance(value, Mapping) else None
        for variant in kind.get("variants", ()):
            if variant["case"] == chosen:
                options |= self._options(self.types[variant["type"]], value)
        return options

    def _check(self, kind: _Type, value: object, place: _Place) -> None:
        match kind["meta-type"]:
            case "object" if isinstance(value, Mapping):
                self._check_object(kind, value, place)
            case "array" if isinstance(value, list | tuple):
                for number, element in enumerate(value):
                    self._check(self.types[kind["element-type"]], element, place.at(str(number)))
            case "alternate":
                self._check(self._alternative(kind, value, place), value, place)
            case "enum" if isinstance(value, str):
                if not _is_word(value, kind):
                    raise _unknown_word(place, value, kind)
            case _ if not self._fits(kind, value):
                raise place.error(f"{_option(place)} takes {_expected(kind)}, not {_WORDS[_json_type(value)]}")

    def _check_object(self, kind: _Type, value: Mapping[str, object], place: _Place) -> None:
        tag = kind.get("tag")
        if tag is not None and tag in value:
            members = {member["name"]: member for member in kind["members"]}
            self._check(self.types[members[tag]["type"]], value[tag], place.at(tag))
            place = _Place(command=place.command, path=place.path, owner=_owner(tag, value[tag]))
        options = self._options(kind, value)
        for name, member in value.items():
            if name not in options:
                raise place.error(f"this {place.owner} has no option {place.at(name).name!r}", name, options)
            self._check(self.types[options[name]["type"]], member, place.at(name))
        for name, option in options.items():
            if name not in value and "default" not in option:
                raise place.error(f"this {place.owner} needs the option {place.at(name).name!r}")

    def _alternative(self, kind: _Type, value: object, place: _Place) -> _Type:
        options = [self.types[member["type"]] for member in kind["members"]]
        for option in options:
            if self._fits(option, value):
                return option
        expected = " or ".join(_expected(option) for option in options)
        raise place.error(f"{_option(place)} takes {expected}, not {_WORDS[_json_type(value)]}")

    def _fits(self, kind: _Type, value: object) -> bool:
        """Whether a value's JSON type is that of a type."""
        given, wanted = _json_type(value), _wanted(kind)
        return wanted in (given, "value") or (given == "int" and wanted == "number")


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str) and entry.get("meta-type") in _KINDS


def _named_in(entry: _Type) -> list[str]:
    """The names of the types that an entry refers to."""
    names = [entry[key] for key in ("arg-type", "ret-type", "element-type") if key in entry]
    if entry["meta-type"] != "enum":
        names += [each["type"] for key in ("members", "variants") for each in entry.get(key, ())]
    return names


def _words(kind: _Type) -> frozenset[str]:
    """The words of an enum: ``values`` is its deprecated form."""
    return frozenset(member["name"] for member in kind["members"]) if "members" in kind else frozenset(kind["values"])


def _is_word(value: str, kind: _Type) -> bool:
    # Once for each option of each disk: to make the set of all drivers takes longer than to look through them.
    return any(member["name"] == value for member in kind["members"]) if "members" in kind else value in kind["values"]


def _wanted(kind: _Type) -> str:
    if kind["meta-type"] == "builtin":
        return str(kind["json-type"])
    return "string" if kind["meta-type"] == "enum" else str(kind["meta-type"])


def _expected(kind: _Type) -> str:
    words = _WORDS[_wanted(kind)]
    return f"one of {', '.join(sorted(_words(kind)))}" if kind["meta-type"] == "enum" else words


def _json_type(value: object) -> str:
    for kinds, name in _PYTHON:
        if isinstance(value, kinds):
            return name
    return "string"


def _option(place: _Place) -> str:
    return f"the option {place.name!r}" if place.path else "it"


def _owner(tag: str, value: object) -> str:
    return f"QEMU's {value} {_NOUNS[tag]}" if tag in _NOUNS else f"QEMU, with {tag}={value},"


def _unknown_word(place: _Place, word: str, kind: _Type) -> CapabilityError:
    last = place.path[-1] if place.path else ""
    if last in _NOUNS:
        at = "" if len(place.path) == 1 else f" (at {place.name!r})"
        return place.error(f"this QEMU does not know {_NOUNS[last]} {word!r}{at}", word, _words(kind))
    return place.error(f"this {place.owner} does not know {place.name}={word}", word, _words(kind))
