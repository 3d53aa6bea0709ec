from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.access import Access
from hvext.core.disk import Disk
from hvext.core.volume import Volume, check_size_mib, check_volume_name, derived_uuid, metadata_text
from hvext.errors import InputError

UUID = uuid.UUID("0d1b4b5e-6d8a-4d3b-9a57-0c5f2f6f7a10")


@pytest.mark.parametrize("name", [f"{UUID}.ext.disk0", "v", "é" * 127, "x" * 255, "a b", "a,b", "a:b", "...", "a-"])
def test_a_volume_name_that_providers_use_is_taken(name: str) -> None:
    assert check_volume_name(name) == name


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("", "1 to 255 bytes"),
        ("x" * 256, "1 to 255 bytes"),
        ("é" * 128, "1 to 255 bytes"),
        ("a/b", "'/'"),
        (".", "'.'"),
        ("..", "'..'"),
        ("-rf", "start with '-'"),
        ("a\nb", "control characters"),
        ("a\x7fb", "control characters"),
        ("a\0b", "NUL"),
        ("a\udc80b", "UTF-8"),
    ],
)
def test_a_volume_name_that_would_hurt_in_a_script_is_refused_in_words(name: str, word: str) -> None:
    with pytest.raises(InputError) as caught:
        check_volume_name(name)
    assert word in str(caught.value)
    with pytest.raises(InputError):
        Volume(name=name, uuid=UUID)


@pytest.mark.parametrize("name", ["pool", "_pool", "Pool2", "a" * 200])
def test_a_parameter_that_a_shell_can_read_is_taken(name: str) -> None:
    assert Volume(name="v", uuid=UUID, parameters={name: "x"}).parameters == {name: "x"}


@pytest.mark.parametrize("name", ["", "2pool", "po-ol", "po ol", "pool=", "pöol", "pool\n", "a.b"])
def test_a_parameter_that_no_shell_can_read_is_refused_by_name(name: str) -> None:
    with pytest.raises(InputError) as caught:
        Volume(name="v", uuid=UUID, parameters={name: "x"})
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["provider", "ACCESS", "Access"])
def test_a_parameter_that_would_replace_hvexts_own_is_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' is exported by hvext"):
        Volume(name="v", uuid=UUID, parameters={name: "x"})


def test_two_parameters_that_become_one_variable_are_refused() -> None:
    with pytest.raises(InputError, match="'pool' and 'POOL' are both EXTP_POOL"):
        Volume(name="v", uuid=UUID, parameters={"pool": "a", "POOL": "b"})


@pytest.mark.parametrize("value", ["a\0b", "\udcff"])
def test_a_value_that_no_environment_can_hold_is_refused_by_the_parameters_name(value: str) -> None:
    with pytest.raises(InputError, match="value of parameter 'pool'"):
        Volume(name="v", uuid=UUID, parameters={"pool": value})
    with pytest.raises(InputError, match="cname"):
        Volume(name="v", uuid=UUID, cname=value)


def test_a_volume_does_not_change_with_the_mapping_it_was_made_from() -> None:
    parameters = {"pool": "a"}
    volume = Volume(name="v", uuid=UUID, parameters=parameters)
    parameters["pool"] = "b"
    assert volume.parameters == {"pool": "a"}
    with pytest.raises(TypeError):
        volume.parameters["pool"] = "b"  # type: ignore[index]


def test_a_disk_without_a_uuid_keeps_the_one_it_was_given_first() -> None:
    assert derived_uuid("sample", "v") == uuid.UUID("5e3ae624-aced-5daa-900e-1471cedb1794")


def test_a_name_that_is_not_utf_8_is_an_input_error_before_it_becomes_a_uuid() -> None:
    with pytest.raises(InputError, match="not valid UTF-8"):
        derived_uuid("sample", "a\udcff")


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1)


@given(one=st.tuples(names, names), other=st.tuples(names, names))
def test_two_volumes_never_get_the_same_uuid(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (derived_uuid(*one) == derived_uuid(*other)) is (one == other)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("originstname+web1.example.org", "originstname+web1.example.org"),
        ("-a-b", "_a-b"),
        ("a b/c\n", "a_b_c_"),
        ("é+_", "_+_"),
        ("x" * 129, "x" * 128),
        ("", ""),
    ],
)
def test_metadata_is_what_ganeti_would_have_sent(text: str, kept: str) -> None:
    assert metadata_text(text) == kept


@given(text=st.text())
def test_metadata_never_has_a_character_that_a_script_must_quote(text: str) -> None:
    kept = metadata_text(text)
    assert len(kept) == min(len(text), 128)
    assert not kept.startswith("-")
    assert all(character.isascii() and (character.isalnum() or character in "-_+.") for character in kept)


@pytest.mark.parametrize("size", [1, 2**43 - 1])
def test_a_possible_size_is_taken(size: int) -> None:
    assert check_size_mib(size) == size


@pytest.mark.parametrize("size", [0, -1, 2**43, True])
def test_an_impossible_size_is_refused_with_its_name(size: int) -> None:
    with pytest.raises(InputError, match="new size must be a whole number of MiB"):
        check_size_mib(size, "new size")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": 5}, "a volume's name must be text; got 5"),
        ({"cname": 5}, "a volume's cname must be text; got 5"),
        ({"uuid": str(UUID)}, f"a volume's uuid must be a uuid.UUID; got '{UUID}'"),
        ({"parameters": [("a", "b")]}, "parameters must be a mapping"),
        ({"parameters": {"size": 5}}, "parameter 'size' must be text, not int"),
    ],
)
def test_a_volumes_value_of_a_wrong_kind_is_refused_by_its_fields_name(values: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"name": "v", "uuid": UUID} | values
    with pytest.raises(InputError) as caught:
        Volume(**given)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"provider": 5}, "a disk's provider must be text, not int"),
        ({"volume": "v"}, "volume must be a value of hvext.Volume; got 'v'"),
        ({"access": "maybe"}, "access must be one of prefer-userspace, userspace, kernelspace; got 'maybe'"),
        ({"options": {"cache": "none"}}, "options must be a value of hvext.DiskOptions"),
        ({"secret_files": "/etc/key"}, "secret_files must be a mapping"),
        ({"secret_files": {"key": b"/etc/key"}}, "a disk's secret_files of key must be text, not bytes"),
    ],
)
def test_a_disks_value_of_a_wrong_kind_is_refused_by_its_fields_name(values: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"provider": "p", "volume": Volume(name="v", uuid=UUID)} | values
    with pytest.raises(InputError) as caught:
        Disk(**given)
    assert words in caught.value.message


def test_the_access_of_a_disk_may_be_given_by_its_word() -> None:
    word: Any = "kernelspace"
    assert Disk(provider="p", volume=Volume(name="v", uuid=UUID), access=word).access is Access.KERNELSPACE
