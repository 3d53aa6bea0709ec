from __future__ import annotations

import socket
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.provider import (
    OPTIONAL_ACTIONS,
    Action,
    FileKind,
    Parameter,
    Provider,
    check_provider_name,
    parse_parameters,
    script_problem,
)
from hvext.errors import InputError


@pytest.mark.parametrize("name", ["rbd", "shared-file_2", "X", "-", "_"])
def test_a_provider_name_of_ganeti_is_taken(name: str) -> None:
    assert check_provider_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a.b", "a b", "a\n", "é", "a\0"])
def test_a_provider_name_cannot_lead_out_of_the_search_path(name: str) -> None:
    with pytest.raises(InputError, match="provider name"):
        check_provider_name(name)
    with pytest.raises(InputError):
        Provider(name=name, path="/x", actions=frozenset(), parameters=())


def test_the_scripts_are_those_of_the_interface() -> None:
    assert {str(action) for action in Action} == {
        *("create", "remove", "grow", "attach", "detach", "setinfo", "verify"),
        *("snapshot", "open", "close"),
    }
    assert {str(action) for action in OPTIONAL_ACTIONS} == {"snapshot", "open", "close"}


@pytest.mark.parametrize("action", Action)
def test_a_script_that_runs_has_no_problem(action: Action) -> None:
    assert script_problem(action, FileKind.REGULAR, executable=True) is None


@pytest.mark.parametrize("action", Action)
def test_only_optional_scripts_may_be_missing(action: Action) -> None:
    problem = script_problem(action, FileKind.MISSING, executable=False)
    assert problem == (None if action in OPTIONAL_ACTIONS else f"script {action} is missing")


@pytest.mark.parametrize("action", Action)
def test_a_script_that_is_there_must_be_executable_even_when_optional(action: Action) -> None:
    assert script_problem(action, FileKind.REGULAR, executable=False) == f"script {action} is not executable"


@pytest.mark.parametrize("kind", [kind for kind in FileKind if kind not in (FileKind.MISSING, FileKind.REGULAR)])
@pytest.mark.parametrize("executable", [True, False])
def test_a_script_that_is_no_file_is_said_to_be_what_it_is(kind: FileKind, executable: bool) -> None:
    problem = script_problem(Action.SNAPSHOT, kind, executable=executable)
    assert problem == f"script snapshot is {kind.value}, not a regular file"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("\n \n\t\n", []),
        ("pool The Ceph pool\n", [("pool", "The Ceph pool")]),
        ("pool \t The  Ceph pool  \r\nsize\r\n", [("pool", "The  Ceph pool"), ("size", "")]),
        ("  pool x\rtier y", [("pool", "x"), ("tier", "y")]),
        ("pool a\u2028b\x0bc", [("pool", "a\u2028b\x0bc")]),
    ],
    ids=["empty", "blank", "one", "crlf", "cr", "no-other-line-ends"],
)
def test_a_parameter_list_is_read_line_by_line(text: str, expected: list[tuple[str, str]]) -> None:
    wanted = tuple(Parameter(name=name, description=description) for name, description in expected)
    assert parse_parameters(text) == wanted


@given(text=st.text())
def test_any_parameter_list_can_be_read(text: str) -> None:
    for parameter in parse_parameters(text):
        assert parameter.name.split() == [parameter.name]


def test_a_script_lies_in_the_providers_directory() -> None:
    provider = Provider(name="p", path="/srv/p", actions=frozenset(Action), parameters=())
    assert provider.script(Action.SETINFO) == "/srv/p/setinfo"


def test_a_unit_test_cannot_start_a_program_or_open_a_socket() -> None:
    with pytest.raises(AssertionError, match="subprocess"):
        subprocess.run(["true"], check=False)
    with pytest.raises(AssertionError, match="socket"):
        socket.socket()
