from __future__ import annotations

import json

import pytest

from hvext.core.servers import server_key
from hvext.core.supervision import GiveUpRule, Guest, GuestState, Happening, Notice
from hvext.core.uri import parse_uri
from hvext.core.uri.file import Opened
from hvext.core.value import replace
from hvext.errors import InputError

RULE = GiveUpRule(tries=3, after_s=100)


@pytest.mark.parametrize(
    ("status", "full", "state"),
    [
        ("running", False, GuestState.RUNNING),
        ("inmigrate", False, GuestState.RUNNING),
        ("paused", False, GuestState.PAUSED),
        ("prelaunch", False, GuestState.PAUSED),
        ("postmigrate", False, GuestState.PAUSED),
        ("shutdown", False, GuestState.PAUSED),
        ("io-error", False, GuestState.BROKEN),
        ("io-error", True, GuestState.FULL),
    ],
)
def test_only_a_guest_that_an_io_error_stopped_is_broken(status: str, full: bool, state: GuestState) -> None:
    guest = Guest(RULE)
    guest.seen(status, 0.0, full=full)
    assert guest.state is state
    assert guest.well == (state in (GuestState.RUNNING, GuestState.PAUSED))


def test_a_change_is_said_once() -> None:
    guest = Guest(RULE)
    assert not guest.seen("running", 0)
    assert guest.seen("io-error", 1)
    assert not guest.seen("io-error", 2)
    assert guest.seen("running", 3)


def test_a_guest_is_given_up_after_so_many_tries_and_said_once() -> None:
    guest = Guest(RULE)
    guest.seen("io-error", 0)
    assert [guest.try_failed(now) for now in (1, 2, 3, 4, 5)] == [False, False, True, False, False]
    assert guest.state is GuestState.GAVE_UP
    assert not guest.well
    assert not guest.seen("io-error", 6), "seeing it again does not make it a new failure"
    guest.seen("running", 7)
    assert guest.well


def test_a_guest_is_given_up_after_so_long() -> None:
    guest = Guest(RULE)
    guest.seen("io-error", 1000)
    assert not guest.try_failed(1099)
    assert guest.try_failed(1100)


def test_a_new_failure_begins_with_no_tries() -> None:
    guest = Guest(RULE)
    for _time in range(5):
        guest.seen("io-error", 0)
        assert [guest.try_failed(0) for _try in range(2)] == [False, False]
        guest.seen("running", 0)


def test_a_paused_guest_is_never_given_up() -> None:
    guest = Guest(RULE)
    guest.seen("paused", 0)
    assert not any(guest.try_failed(1000) for _try in range(10))
    assert guest.state is GuestState.PAUSED


@pytest.mark.parametrize("values", [{"tries": 0}, {"after_s": 0}])
def test_a_rule_that_gives_up_at_once_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(InputError):
        GiveUpRule(**values)


def test_a_notice_is_one_line_and_one_json_object() -> None:
    notice = Notice(
        happening=Happening.FAILED_OVER,
        monitor="/run/vm.qmp",
        vm="one",
        disk="1-2",
        words="from a\nto b",
        values={"took_ms": 1.5},
    )
    assert notice.line("12:00") == "12:00 one disk 1-2: failed-over: from a to b"
    named = replace(notice, volume="sample/d1")
    assert named.line("12:00") == "12:00 one disk sample/d1 (1-2): failed-over: from a to b"
    assert named.to_json("12:00")["volume"] == "sample/d1"
    assert replace(notice, vm="").line("12:00") == "12:00 /run/vm.qmp disk 1-2: failed-over: from a to b"
    assert json.loads(json.dumps(notice.to_json("12:00"))) == {
        "time": "12:00",
        "vm": "one",
        "monitor": "/run/vm.qmp",
        "event": "failed-over",
        "disk": "1-2",
        "volume": None,
        "words": "from a\nto b",
        "took_ms": 1.5,
    }


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("nbd://host/a", "nbd://host/b", True),
        ("nbd://host/a", "nbd://host:1/a", False),
        ("nbd+unix:///a?socket=/s", "nbd+unix:///b?socket=/s", True),
        ("nbd+unix:///a?socket=/s", "nbd+unix:///a?socket=/t", False),
        ("rbd:pool/a:conf=/c", "rbd:pool/b:conf=/c", True),
        ("rbd:pool/a:conf=/c", "rbd:pool/a:conf=/d", False),
        ("iscsi://host/iqn.a/0", "iscsi://user%secret@host/iqn.b/1", True),
        ("https://user:secret@host/a", "https://host/b", True),
        ("ssh://host/a", "nfs://host/a", False),
        ("gluster://host/v/a", "gluster://host/v/b", True),
        ("/dev/loop0", "/dev/loop1", False),
    ],
)
def test_volumes_of_one_server_are_counted_together(one: str, other: str, same: bool) -> None:
    keys = [server_key(parse_uri(uri, look=lambda _path: Opened.HOST_DEVICE)) for uri in (one, other)]
    assert (keys[0] == keys[1]) is same
    assert not any("secret" in key for key in keys)
