from __future__ import annotations

import uuid
from typing import Any

import pytest

from hvext.core.access import Access
from hvext.core.environment import VARIABLES, script_environment
from hvext.core.provider import Action
from hvext.core.volume import Volume
from hvext.errors import InputError

UUID = uuid.UUID("0d1b4b5e-6d8a-4d3b-9a57-0c5f2f6f7a10")
VOLUME = Volume(name=f"{UUID}.ext.disk0", uuid=UUID, cname="data", parameters={"pool": "fast", "Tier_2": "a b"})
#: What every script of the table gets, besides its own.
PARAMETERS = {"EXTP_POOL": "fast", "EXTP_TIER_2": "a b", "EXTP_PROVIDER": "sample", "EXTP_ACCESS": "userspace"}
OWN = {"VOL_NAME": f"{UUID}.ext.disk0", "VOL_UUID": str(UUID), "VOL_CNAME": "data"}
#: The interface's table: for each script the arguments it needs, and all of its variables.
TABLE: dict[Action, tuple[dict[str, Any], dict[str, str]]] = {
    Action.CREATE: ({"size_mib": 10}, {**OWN, "VOL_SIZE": "10"}),
    Action.ATTACH: ({}, OWN),
    Action.DETACH: ({}, OWN),
    Action.REMOVE: ({}, OWN),
    Action.GROW: ({"size_mib": 10, "new_size_mib": 30}, {**OWN, "VOL_SIZE": "10", "VOL_NEW_SIZE": "30"}),
    Action.SETINFO: (
        {"metadata": "originstname+web 1.example"},
        {**OWN, "VOL_METADATA": "originstname+web_1.example"},
    ),
    Action.SNAPSHOT: (
        {"snapshot_name": "snap", "snapshot_size_mib": 7},
        {"VOL_NAME": f"{UUID}.ext.disk0", "VOL_SNAPSHOT_NAME": "snap", "VOL_SNAPSHOT_SIZE": "7"},
    ),
    Action.OPEN: ({"exclusive": True}, {**OWN, "VOL_OPEN_EXCLUSIVE": "True"}),
    Action.CLOSE: ({}, OWN),
    Action.VERIFY: ({}, {}),
}
ARGUMENTS: dict[str, Any] = {name: value for given, _ in TABLE.values() for name, value in given.items()}


@pytest.mark.parametrize("action", Action)
def test_a_script_gets_exactly_the_variables_of_the_interface(action: Action) -> None:
    given, variables = TABLE[action]
    assert script_environment(action, "sample", VOLUME, **given) == variables | PARAMETERS


@pytest.mark.parametrize("action", Action)
def test_the_variables_that_are_declared_are_those_that_are_exported(action: Action) -> None:
    assert VARIABLES[action] == set(TABLE[action][1])


@pytest.mark.parametrize(
    ("action", "argument"),
    [(action, name) for action in Action for name in ARGUMENTS if name not in TABLE[action][0]],
)
def test_a_value_that_a_script_does_not_take_is_refused_and_not_dropped(action: Action, argument: str) -> None:
    given = {**TABLE[action][0], argument: ARGUMENTS[argument]}
    with pytest.raises(InputError, match=f"{action} takes no VOL_"):
        script_environment(action, "sample", VOLUME, **given)


@pytest.mark.parametrize(("action", "argument"), [(action, name) for action in Action for name in TABLE[action][0]])
def test_a_value_that_a_script_needs_is_asked_for_by_name(action: Action, argument: str) -> None:
    given = {name: value for name, value in TABLE[action][0].items() if name != argument}
    with pytest.raises(InputError, match=f"{action} needs VOL_"):
        script_environment(action, "sample", VOLUME, **given)


def test_a_disk_without_a_name_for_people_has_no_vol_cname() -> None:
    volume = Volume(name="v", uuid=UUID)
    for action in Action:
        assert "VOL_CNAME" not in script_environment(action, "sample", volume, **TABLE[action][0])


@pytest.mark.parametrize(("exclusive", "text"), [(True, "True"), (False, "False")])
def test_exclusive_is_written_as_ganeti_writes_it(exclusive: bool, text: str) -> None:
    assert script_environment(Action.OPEN, "sample", VOLUME, exclusive=exclusive)["VOL_OPEN_EXCLUSIVE"] == text


@pytest.mark.parametrize(
    ("access", "text"),
    [
        (Access.PREFER_USERSPACE, "userspace"),
        (Access.USERSPACE, "userspace"),
        (Access.KERNELSPACE, "kernelspace"),
    ],
)
def test_a_provider_is_told_the_access_in_one_of_ganetis_two_words(access: Access, text: str) -> None:
    assert script_environment(Action.ATTACH, "sample", VOLUME, access=access)["EXTP_ACCESS"] == text


@pytest.mark.parametrize("argument", [name for name in ARGUMENTS if name.endswith("size_mib")])
@pytest.mark.parametrize("size", [0, -1, 1 << 43, True, 1.5, "10"])
def test_a_size_that_no_volume_can_have_is_refused(argument: str, size: Any) -> None:
    action = next(action for action, (given, _) in TABLE.items() if argument in given)
    with pytest.raises(InputError, match="whole number of MiB"):
        script_environment(action, "sample", VOLUME, **{**TABLE[action][0], argument: size})


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "a\nb", "..", "x" * 256])
def test_a_snapshot_name_that_a_script_could_mistake_for_a_path_or_option_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="volume name"):
        script_environment(Action.SNAPSHOT, "sample", VOLUME, snapshot_name=name, snapshot_size_mib=1)


def test_metadata_keeps_ganetis_alphabet() -> None:
    sent = script_environment(Action.SETINFO, "sample", VOLUME, metadata="-a b\u00e9" + "x" * 200)["VOL_METADATA"]
    assert sent == "_a_b_" + "x" * 123


@pytest.mark.parametrize("provider", ["", "a.b", "../x", "a b", "a\n"])
def test_a_provider_name_that_is_no_name_is_refused(provider: str) -> None:
    with pytest.raises(InputError, match="provider name"):
        script_environment(Action.ATTACH, provider, VOLUME)
