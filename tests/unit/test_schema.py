"""The schema, read from an excerpt of QEMU 7.2's: five block drivers, three objects, two kinds of chardev."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.capability import Capabilities, lacks_module, module_drivers, trial_node
from hvext.core.schema import Schema
from hvext.core.secret import Secret
from hvext.errors import CapabilityError, InputError

ANSWER = json.loads((Path(__file__).parent / "data/schema.json").read_text())
SCHEMA = Schema.from_qmp(ANSWER)
UNIX = {"type": "unix", "path": "/s"}
INET = {"type": "inet", "host": "h", "port": "1"}

GOOD: list[tuple[str, dict[str, Any]]] = [
    ("stop", {}),
    ("blockdev-add", {"driver": "nbd", "server": UNIX, "open-timeout": 3, "export": "e"}),
    ("blockdev-add", {"driver": "nbd", "server": {**INET, "ipv6": True}, "node-name": "n"}),
    ("blockdev-add", {"driver": "raw", "file": "n"}),
    ("blockdev-add", {"driver": "raw", "file": {"driver": "raw", "file": {"driver": "file", "filename": "/f"}}}),
    ("blockdev-add", {"driver": "quorum", "children": ["a", {"driver": "nbd", "server": UNIX}], "vote-threshold": 1}),
    ("blockdev-add", {"driver": "rbd", "pool": "p", "image": "i", "encrypt": {"format": "luks", "key-secret": "k"}}),
    ("blockdev-reopen", {"options": [{"driver": "raw", "file": "n"}]}),
    ("blockdev-reopen", {"options": ()}),
    ("object-add", {"qom-type": "throttle-group", "id": "t", "limits": {"iops-total": 5}}),
    ("object-add", {"qom-type": "secret", "id": "s", "data": Secret("hidden")}),
    ("chardev-add", {"id": "c", "backend": {"type": "null", "data": {}}}),
    ("qom-set", {"path": "/p", "property": "x", "value": {"any": [1, "thing"]}}),
]
#: Command, arguments, and what the error says.
BAD: list[tuple[str, Any, str]] = [
    ("blockdev-mirror", {}, "blockdev-mirror: this QEMU has no such command"),
    ("49", {}, "49: this QEMU has no such command"),
    ("device_add", {"driver": "scsi-hd"}, "checked as a device"),
    ("stop", {"now": True}, "this QEMU has no option 'now'"),
    ("blockdev-add", {"driver": "iscsi"}, "blockdev-add: this QEMU does not know driver 'iscsi' (it knows file, nbd, "),
    ("blockdev-add", {"node-name": "n"}, "blockdev-add: this QEMU needs the option 'driver'"),
    ("blockdev-add", {"driver": "nbd"}, "this QEMU's nbd driver needs the option 'server'"),
    (
        "blockdev-add",
        {"driver": "nbd", "server": UNIX, "open-timeut": 1},
        "blockdev-add: this QEMU's nbd driver has no option 'open-timeut' (did you mean open-timeout?)",
    ),
    ("blockdev-add", {"driver": "nbd", "server": {**UNIX, "port": "1"}}, "with type=unix, has no option 'server.port'"),
    ("blockdev-add", {"driver": "nbd", "server": {"type": "inet", "host": "h"}}, "needs the option 'server.port'"),
    ("blockdev-add", {"driver": "nbd", "server": {"type": "tcp"}}, "does not know server.type=tcp (it knows fd, inet"),
    ("blockdev-add", {"driver": "nbd", "server": [UNIX]}, "the option 'server' takes an object, not a list"),
    ("blockdev-add", {"driver": "file", "filename": 3}, "the option 'filename' takes text, not a whole number"),
    ("blockdev-add", {"driver": "file", "filename": None}, "the option 'filename' takes text, not null"),
    ("blockdev-add", {"driver": "file", "filename": "/f", "read-only": "on"}, "'read-only' takes a boolean, not text"),
    ("blockdev-add", {"driver": "file", "filename": "/f", "read-only": 1}, "a boolean, not a whole number"),
    ("blockdev-add", {"driver": "file", "filename": "/f", "detect-zeroes": True}, "takes one of off, on, unmap, not a"),
    ("blockdev-add", {"driver": "nbd", "server": UNIX, "open-timeout": True}, "takes a whole number, not a boolean"),
    ("blockdev-add", {"driver": "nbd", "server": UNIX, "open-timeout": 1.5}, "takes a whole number, not a number"),
    ("blockdev-add", {"driver": "raw", "file": 1}, "the option 'file' takes an object or text, not a whole number"),
    ("blockdev-add", {"driver": "raw", "file": {"driver": "nil"}}, "not know driver 'nil' (at 'file.driver')"),
    (
        "blockdev-add",
        {"driver": "raw", "file": {"driver": "rbd", "pool": "p", "image": "i", "mon-host": "m"}},
        "this QEMU's rbd driver has no option 'file.mon-host'",
    ),
    (
        "blockdev-add",
        {"driver": "raw", "file": "n", "cache": {"indirect": True}},
        "raw driver has no option 'cache.indirect'",
    ),
    (
        "blockdev-add",
        {"driver": "quorum", "children": ["a", {"driver": "nbd"}], "vote-threshold": 1},
        "nbd driver needs the option 'children.1.server'",
    ),
    ("blockdev-reopen", {"options": [{"driver": "raw", "file": "n", "x": 1}]}, "has no option 'options.0.x'"),
    (
        "object-add",
        {"qom-type": "iothread", "id": "i", "polls": 1},
        "this QEMU's iothread object has no option 'polls'",
    ),
    ("object-add", {"qom-type": "tls", "id": "i"}, "this QEMU does not know object 'tls'"),
    (
        "chardev-add",
        {
            "id": "c",
            "backend": {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": "/s"}}, "retry": 1}},
        },
        "with type=socket, has no option 'backend.data.retry'",
    ),
    ("stop", [], "it takes an object, not a list"),
]


@pytest.mark.parametrize(("command", "arguments"), GOOD)
def test_what_qemu_takes_passes(command: str, arguments: Any) -> None:
    SCHEMA.check(command, arguments)


@pytest.mark.parametrize(("command", "arguments", "words"), BAD)
def test_what_qemu_would_refuse_is_named_before_it_is_sent(command: str, arguments: Any, words: str) -> None:
    with pytest.raises(CapabilityError) as caught:
        SCHEMA.check(command, arguments)
    assert words in str(caught.value)


def test_no_message_shows_a_value_that_may_be_secret() -> None:
    for arguments in (
        {"driver": "file", "filename": "/f", "read-only": Secret("hidden")},
        {"driver": "file", "filename": "/f", "cache": "hidden"},
        {"driver": "raw", "file": "n", "password": "hidden"},
        {"driver": "nbd", "server": UNIX, "open-timeout": "hidden"},
    ):
        with pytest.raises(CapabilityError) as caught:
            SCHEMA.check("blockdev-add", arguments)
        assert "hidden" not in str(caught.value)


def test_a_whole_number_is_a_number() -> None:
    schema = Schema.from_qmp(
        [
            {"name": "wait", "meta-type": "command", "arg-type": "1", "ret-type": "1"},
            {"name": "1", "meta-type": "object", "members": [{"name": "seconds", "type": "number", "default": None}]},
            {"name": "number", "meta-type": "builtin", "json-type": "number"},
        ]
    )
    for seconds in (1, 1.5):
        schema.check("wait", {"seconds": seconds})
    for wrong in (True, "1"):
        with pytest.raises(CapabilityError, match="takes a number, not"):
            schema.check("wait", {"seconds": wrong})


def test_an_option_can_be_asked_for() -> None:
    assert SCHEMA.drivers == {"file", "nbd", "quorum", "raw", "rbd"}
    assert SCHEMA.values("blockdev-add", "detect-zeroes") == {"off", "on", "unmap"}
    assert SCHEMA.values("blockdev-reopen", "options.detect-zeroes") == {"off", "on", "unmap"}
    assert SCHEMA.values("blockdev-add", "node-name") == frozenset()
    assert SCHEMA.has("blockdev-add", "open-timeout", {"driver": "nbd"})
    assert not SCHEMA.has("blockdev-add", "open-timeout", {"driver": "rbd"})
    assert not SCHEMA.has("blockdev-add", "open-timeout")
    assert not SCHEMA.has("blockdev-mirror", "job-id")
    assert SCHEMA.has("blockdev-add", "file.filename", {"driver": "raw", "file": {"driver": "file"}})
    assert SCHEMA.has("blockdev-add", "children.pool", {"driver": "quorum", "children": [{"driver": "rbd"}]})
    socket = {"backend": {"type": "socket"}}
    assert SCHEMA.has("chardev-add", "backend.data.reconnect", socket)
    assert not SCHEMA.has("chardev-add", "backend.data.reconnect-ms", socket)
    assert not SCHEMA.has("chardev-add", "backend.data.reconnect", {"backend": {"type": "null"}})
    unix = {"driver": "nbd", "server": {"type": "unix"}}
    assert SCHEMA.members("blockdev-add", "server", unix) == {"type", "path", "abstract", "tight"}
    assert SCHEMA.members("blockdev-add", "no-such", unix) == frozenset()
    assert SCHEMA.members("stop") == frozenset()
    assert SCHEMA.members("object-add") == {"qom-type", "id"}


def test_older_schemas_list_the_words_of_an_enum_in_another_way() -> None:
    older = [
        {key: value for key, value in entry.items() if entry["meta-type"] != "enum" or key != "members"}
        for entry in ANSWER
    ]
    assert Schema.from_qmp(older).drivers == SCHEMA.drivers


@pytest.mark.parametrize(
    "answer", [None, {}, [1], [{"name": "x"}], [{"name": 1, "meta-type": "enum"}], [{"meta-type": "enum"}], ANSWER[:9]]
)
def test_another_answer_is_not_taken_for_a_schema(answer: object) -> None:
    with pytest.raises(InputError, match="query-qmp-schema"):
        Schema.from_qmp(answer)


# --- Whatever the schema allows --------------------------------------------------------------------------------------

_LEAVES: dict[str, st.SearchStrategy[Any]] = {
    "str": st.text(max_size=3),
    "int": st.integers(),
    "number": st.integers() | st.floats(allow_nan=False),
    "bool": st.booleans(),
    "null": st.none(),
    "any": st.integers() | st.text(max_size=3) | st.lists(st.none(), max_size=1),
}


def values(kind: str, depth: int = 3) -> st.SearchStrategy[Any]:
    """Values of a type; ``depth`` bounds nodes inside nodes."""
    entry = SCHEMA.types[kind]
    match entry["meta-type"]:
        case "builtin":
            return _LEAVES[kind]
        case "enum":
            return st.sampled_from(entry["values"])
        case "array":
            return st.lists(values(entry["element-type"], depth - 1), max_size=2) if depth else st.just([])
        case "alternate":
            options = [each["type"] for each in entry["members"]]
            leaves = [each for each in options if SCHEMA.types[each]["meta-type"] != "object"]
            return st.one_of(*(values(each, depth - 1) for each in (options if depth else leaves)))
    return objects(kind, depth)


@st.composite
def objects(draw: st.DrawFn, kind: str, depth: int) -> dict[str, Any]:
    entry = SCHEMA.types[kind]
    result = {}
    for member in entry["members"]:
        if "default" not in member or draw(st.booleans()):
            result[member["name"]] = draw(values(member["type"], depth))
    for variant in entry.get("variants", ()):
        if variant["case"] == result[entry["tag"]]:
            result |= draw(objects(variant["type"], depth))
    return result


def arguments_of(command: str) -> st.SearchStrategy[dict[str, Any]]:
    return objects(SCHEMA.types[command]["arg-type"], 3)


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every object inside a value, with where it is."""
    if isinstance(value, dict):
        yield path, value
        for name, inner in value.items():
            yield from places(inner, (*path, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from places(inner, (*path, str(number)))


COMMANDS = st.sampled_from(["blockdev-add", "blockdev-reopen", "object-add", "chardev-add", "qom-set"])


@given(COMMANDS.flatmap(lambda command: st.tuples(st.just(command), arguments_of(command))))
def test_every_value_the_schema_allows_passes(call: tuple[str, dict[str, Any]]) -> None:
    SCHEMA.check(*call)


@given(st.data(), st.sampled_from(["blockdev-add", "blockdev-reopen", "object-add", "chardev-add"]))
def test_an_unknown_option_is_found_wherever_it_stands(data: st.DataObject, command: str) -> None:
    arguments = data.draw(arguments_of(command))
    path, place = data.draw(st.sampled_from(list(places(arguments))))
    place["nonesuch"] = 1
    with pytest.raises(CapabilityError) as caught:
        SCHEMA.check(command, arguments)
    assert f"has no option '{'.'.join((*path, 'nonesuch'))}'" in str(caught.value)


# --- Capabilities ----------------------------------------------------------------------------------------------------

CAPABILITIES = Capabilities(
    schema=SCHEMA,
    devices={"virtio-blk-pci": frozenset(("drive", "serial", "bootindex"))},
    unloadable=frozenset(("rbd",)),
    binary="/usr/bin/qemu",
    version="7.2.0",
)
RBD = {"driver": "rbd", "pool": "p", "image": "i"}


def test_a_driver_without_its_module_is_named_with_its_package() -> None:
    assert CAPABILITIES.obstacle("nbd") is None
    missing = CAPABILITIES.obstacle("rbd")
    assert missing is not None
    assert "'rbd'" in missing
    assert "qemu-block-extra" in missing
    assert CAPABILITIES.obstacle("iscsi") == "it has no block driver 'iscsi'"
    CAPABILITIES.check_node({"driver": "nbd", "server": UNIX})
    for node in (RBD, {"driver": "raw", "file": RBD}, {"driver": "quorum", "children": [RBD], "vote-threshold": 1}):
        with pytest.raises(CapabilityError, match="'rbd' cannot be loaded: Debian package qemu-block-extra"):
            CAPABILITIES.check_node(node)


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ({"driver": "virtio-blk-pci", "id": "d", "bus": "b", "drive": "n"}, None),
        ({"driver": "virtio-blk-pci", "queues": 3}, "this QEMU's virtio-blk-pci device has no property 'queues'"),
        ({"driver": "vhost-user-blk-pci"}, "this QEMU has no device 'vhost-user-blk-pci'"),
        ({"driver": "pcie-root-port", "slot": 3}, None),
    ],
)
def test_a_device_is_compared_with_what_it_is_known_to_take(device: Mapping[str, object], words: str | None) -> None:
    if words is None:
        CAPABILITIES.check_device(device)
    else:
        with pytest.raises(CapabilityError, match=words):
            CAPABILITIES.check_device(device)


def test_objects_and_chardevs_are_checked_as_such() -> None:
    CAPABILITIES.check_object({"qom-type": "iothread", "id": "i"})
    CAPABILITIES.check_chardev({"id": "c", "backend": {"type": "null", "data": {}}})
    with pytest.raises(CapabilityError, match=r"^object-add"):
        CAPABILITIES.check_object({"qom-type": "iothread"})
    with pytest.raises(CapabilityError, match=r"^chardev-add"):
        CAPABILITIES.check_chardev({"id": "c"})


def test_capabilities_survive_being_kept() -> None:
    assert Capabilities.from_json(json.loads(json.dumps(CAPABILITIES.to_json()))) == CAPABILITIES


@pytest.mark.parametrize("field", ["schema", "devices", "unloadable", "binary"])
@pytest.mark.parametrize("value", [None, 3, [{}]])
def test_something_else_is_not_taken_for_capabilities(field: str, value: object) -> None:
    if field == "binary":
        with pytest.raises(InputError):
            Capabilities.from_json(value)
    else:
        with pytest.raises(InputError):
            Capabilities.from_json({**CAPABILITIES.to_json(), field: value})


def test_only_the_refusal_that_names_the_driver_speaks_of_a_module() -> None:
    assert module_drivers(SCHEMA) == ("rbd",)
    assert trial_node("rbd") == {"driver": "rbd", "node-name": "1", "pool": "p", "image": "i"}
    SCHEMA.check("blockdev-add", trial_node("rbd"))
    assert lacks_module("rbd", "Unknown driver 'rbd'")
    assert not lacks_module("rbd", "Invalid node-name: '1'")
    assert not lacks_module("rbd", "Unknown driver 'raw'")
