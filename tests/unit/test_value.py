"""Value objects: what they promise to whoever makes, compares, changes and prints one."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from hvext.core.value import MISSING, field, fields, replace, value_object


@value_object
class Place:
    bus: str
    slot: int = 0
    key: str = field(default="s", repr=False)
    notes: Mapping[str, str] = field(default_factory=dict)
    LIMIT: ClassVar[int] = 7

    def __post_init__(self) -> None:
        if self.slot > self.LIMIT:
            raise ValueError(f"slot {self.slot} is too high")


@value_object
class NamedPlace(Place):
    name: str

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "name", self.name.lower())


@value_object
class Nothing:
    pass


@value_object
class Own:
    text: str

    def __init__(self, text: str) -> None:
        object.__setattr__(self, "text", text)

    def __repr__(self) -> str:
        return "***"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AsLibrary:
    bus: str
    slot: int = 0
    key: str = dataclasses.field(default="s", repr=False)
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)


def test_a_value_has_what_it_was_given_and_defaults_for_the_rest() -> None:
    place = Place(bus="pci", notes={"a": "b"})
    assert (place.bus, place.slot, place.key, place.notes) == ("pci", 0, "s", {"a": "b"})


def test_no_two_values_share_what_a_factory_made() -> None:
    assert Place(bus="pci").notes is not Place(bus="pci").notes


@pytest.mark.parametrize(
    "given",
    [{}, {"slot": 1}, {"bus": "pci", "slto": 1}, {"slto": 1}, {"bus": "pci", "LIMIT": 9}],
    ids=["nothing", "one is missing", "an unknown name", "unknown for missing", "a variable of the class"],
)
def test_a_wrong_name_is_an_error_in_the_words_of_python(given: dict[str, Any]) -> None:
    with pytest.raises(TypeError) as ours:
        Place(**given)
    with pytest.raises(TypeError) as librarys:
        AsLibrary(**given)
    assert str(ours.value) == str(librarys.value).replace("AsLibrary", "Place")


def test_values_without_names_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Place\.__init__\(\) takes 1 positional argument but 2 were given"):
        Place("pci")  # type: ignore[call-arg]


def test_all_that_is_missing_is_named() -> None:
    with pytest.raises(TypeError, match=r"missing 2 required keyword-only arguments: 'bus' and 'name'"):
        NamedPlace()  # type: ignore[call-arg]


def test_a_value_is_checked_when_it_is_made_and_when_it_is_changed() -> None:
    with pytest.raises(ValueError, match="slot 8 is too high"):
        Place(bus="pci", slot=8)
    with pytest.raises(ValueError, match="slot 8 is too high"):
        replace(Place(bus="pci"), slot=8)


def test_a_check_can_write_a_field_in_another_way() -> None:
    assert NamedPlace(bus="pci", name="Root").name == "root"


@pytest.mark.parametrize("name", ["slot", "new"])
def test_nobody_changes_a_value(name: str) -> None:
    place = Place(bus="pci")
    with pytest.raises(AttributeError, match=f"cannot assign to field '{name}'"):
        setattr(place, name, 1)
    with pytest.raises(AttributeError, match=f"cannot delete field '{name}'"):
        delattr(place, name)
    assert place == Place(bus="pci")


def test_values_are_equal_by_their_fields_and_their_class() -> None:
    assert Place(bus="pci", slot=1) == Place(slot=1, bus="pci", key="s")
    assert Place(bus="pci") != Place(bus="pci", slot=1)
    assert Place(bus="pci", key="t") != Place(bus="pci")
    assert Place(bus="pci") != AsLibrary(bus="pci")  # type: ignore[comparison-overlap]
    assert NamedPlace(bus="pci", name="x") != Place(bus="pci")
    assert Nothing() == Nothing()


def test_what_somebody_keeps_at_a_value_makes_it_no_other() -> None:
    place = Place(bus="pci")
    place.__dict__["kept"] = 1
    assert place == Place(bus="pci")
    assert replace(place, slot=1) == Place(bus="pci", slot=1)


def test_equal_values_are_one_key() -> None:
    assert len({Own("a"), Own("a"), Own("b")}) == 2
    assert hash(Nothing()) == hash(Nothing())
    with pytest.raises(TypeError, match="unhashable"):
        hash(Place(bus="pci"))


def test_a_value_is_printed_as_the_library_does_without_what_is_secret() -> None:
    assert repr(Place(bus="p'ci", slot=2)) == repr(AsLibrary(bus="p'ci", slot=2)).replace("AsLibrary", "Place")
    assert repr(Place(bus="pci")) == "Place(bus='pci', slot=0, notes={})"
    assert repr(Nothing()) == "Nothing()"


def test_what_a_class_says_itself_stays() -> None:
    assert Own("a").text == "a"
    assert repr(Own("a")) == "***"
    assert Own("a") == replace(Own("b"), text="a")


def test_a_changed_value_keeps_the_rest_and_leaves_the_old_one() -> None:
    place = NamedPlace(bus="pci", slot=3, name="x")
    moved = replace(place, bus="pcie")
    assert moved == NamedPlace(bus="pcie", slot=3, name="x")
    assert place.bus == "pci"
    # copy.replace of Python 3.13 asks for it.
    assert place.__replace__(bus="pcie") == moved  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="unexpected keyword argument 'nowhere'"):
        replace(place, nowhere=1)


def test_fields_come_in_their_order_those_of_the_base_first() -> None:
    assert [each.name for each in fields(NamedPlace)] == ["bus", "slot", "key", "notes", "name"]
    assert fields(NamedPlace(bus="pci", name="x")) == fields(NamedPlace)
    bus, slot, key, notes = fields(Place)
    assert (bus.default, slot.default, key.default, notes.default) == (MISSING, 0, "s", MISSING)
    assert (notes.default_factory, slot.default_factory) == (dict, MISSING)
    with pytest.raises(TypeError, match="no value"):
        fields(7)


def test_a_default_that_could_change_is_refused() -> None:
    with pytest.raises(TypeError, match="notes has a default that can change"):

        @value_object
        class Shared:
            notes: list[str] = []  # noqa: RUF012

    with pytest.raises(ValueError, match="not both"):
        field(default=1, default_factory=int)


def test_values_can_be_copied_and_sent_to_other_processes() -> None:
    place = NamedPlace(bus="pci", notes={"a": "b"}, name="x")
    for other in (copy.copy(place), copy.deepcopy(place), pickle.loads(pickle.dumps(place))):  # noqa: S301
        assert other == place
        with pytest.raises(AttributeError):
            other.bus = "pcie"  # type: ignore[misc]


def test_no_value_is_taken_apart_by_place() -> None:
    assert Place.__match_args__ == ()
