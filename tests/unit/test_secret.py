"""Secrets cannot be shown, and are hidden in every text that might be a URI."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.secret import MASK, Secret, is_secret_name
from hvext.core.uri import parse_uri, shown
from hvext.core.uri.mask import hidden_parts, masked
from hvext.errors import InputError

SECRET = Secret("hunter2hunter2")


@pytest.mark.parametrize("show", [repr, str, "{}".format, "%s".__mod__, "{0!r:>20}".format, lambda it: f"{it}", ascii])
def test_a_secret_is_printed_as_a_mask(show: Callable[[object], str]) -> None:
    assert show(SECRET).strip() == MASK


def test_a_secret_can_only_be_taken_out_on_purpose() -> None:
    assert SECRET.reveal() == "hunter2hunter2"
    assert copy.deepcopy({"a": SECRET}) == {"a": SECRET}
    for leave in (json.dumps, pickle.dumps):
        with pytest.raises(TypeError) as caught:
            leave(SECRET)
        assert "hunter2" not in str(caught.value)
    assert not hasattr(SECRET, "__dict__")


def test_secrets_are_compared_by_their_text() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1


def test_an_impossible_secret_is_refused_without_being_quoted() -> None:
    for text in ("hunter2\0", "hunter2\udcff"):
        with pytest.raises(InputError) as caught:
            Secret(text)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__suppress_context__


NAMES = {
    True: ("password", "chap_password", "KEY", "api-key", "tls_psk", "X-Amz-Signature", "cookie", "access_token"),
    False: ("pool", "key_file", "keyring", "password-file", "token_id", "monkey", "host-key-check", "secret_name", ""),
}


@pytest.mark.parametrize(("name", "secret"), [(name, secret) for secret, names in NAMES.items() for name in names])
def test_the_name_of_a_parameter_tells_whether_it_is_secret(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


HIDDEN = {
    "iscsi://u%hunter2x@h/t/1": "iscsi://u%***@h/t/1",
    "iscsi://u%a/b@hunter2x@h/t/1": "iscsi://u%***@h/t/1",
    "https://u:hunter2x@h:443/p": "https://u:***@h:443/p",
    "https://us%40er:hunter2x@h/p": "https://us%40er:***@h/p",
    "rbd:p/i:id=u:key=hunter2x==:conf=/e": "rbd:p/i:id=u:key=***:conf=/e",
    "rbd:p/i:key=hunter2x\\:more:conf=/e": "rbd:p/i:key=***:conf=/e",
    "rbd:p/i:key =hunter2x": "rbd:p/i:key =***",
    "rbd:p/i:id=u@key=hunter2x": "rbd:p/i:id=u@key=***",
    'json:{"driver":"iscsi","password":"hunter2x"}': 'json:{"driver":"iscsi","password":"***"}',
    "json:{'password' : 'hunter2x'}": "json:{'password' : '***'}",
    'json:{password:"hunter2x"}': 'json:{password:"***"}',
    'json:{"password" "hunter2x"}': 'json:{"password" "***"}',
    "http://h/p?X-Amz-Signature=hunter2x&a=b": "http://h/p?X-Amz-Signature=***&a=b",
    "iscsi:u%hunter2x@h/t/1": None,
    "iscsi//u%hunter2x@h/t/1": None,
    "iscsi://u%hunter2x": None,
    "https:/u:hunter2x@h/p": None,
    "two iscsi://a%hunter2x@h/t/1 and https://b:hunter2y@h/p": None,
}
PLAIN = (
    "nbd://[fe80::1%25eth0]:10809/e",
    "nbd:h:10809:exportname=a@b",
    "nbd+unix:///a@b?socket=/run/s",
    "rbd:pool/image@snap:id=x:conf=/etc/ceph/ceph.conf:keyring=/k",
    "ssh://us%40er@h:22/p?host_key_check=sha256:00",
    'json:{"driver":"ssh","host-key-check":{"mode":"none"}}',
    'json:{"driver":"iscsi","password-secret":"sec0"}',
    "CHAP username specified but no password was given",
    "gluster://h:24007/v/a@b",
    "iSCSI: Failed to connect to LUN : SENSE KEY:ILLEGAL_REQUEST(5) ASCQ:LOGICAL_UNIT_NOT_SUPPORTED(0x2500)",
)


@pytest.mark.parametrize("text", HIDDEN)
def test_a_secret_in_a_text_is_hidden_and_the_rest_stays(text: str) -> None:
    assert "hunter2" not in masked(text)
    assert HIDDEN[text] in (None, masked(text))
    assert hidden_parts(text)


@pytest.mark.parametrize("text", PLAIN)
def test_a_text_without_a_secret_stays_as_it_is(text: str) -> None:
    assert masked(text) == text


def test_known_secrets_are_hidden_wherever_they_are() -> None:
    assert masked("the key abcdef is abcdefgh", [Secret("abcdef"), Secret("abcdefgh")]) == "the key *** is ***"
    assert masked("a cat", [Secret("a")]) == "a cat"


@given(text=st.text())
def test_hiding_twice_is_hiding_once(text: str) -> None:
    assert masked(masked(text)) == masked(text)


ACCEPTED = (
    'json:{"driver":"iscsi","transport":"tcp","portal":"h","target":"t","user":"u","p\\u0061ssword":"hunter2x"}',
    "rbd:p/i:ke\\y=aHVudGVyMng=",
    "https://u:hunter2x@h/p",
)
REFUSED = (
    'json:{"driver":"qcow2","file":{"driver":"https","password":"hunter2x"}}',
    'json:{"driver":"nbd","server":[{"secret":"hunter2x"}]}',
    'json:{"password":{"a":{"b":1},"c":"hunter2x"}}',
    "ISCSI://u%41hunter2x@h/t/0",
    "ftp://[u]:hunter2x@h/x",
    "http://u[:hunter2x@h/",
    'json:{"driver":"https","url":"https:\\/\\/u:hunter2x@h\\/x"}',
    "nbds:" + "x" * 60 + "?token=hunter2x" + "y" * 60,
)


@pytest.mark.parametrize("uri", [*ACCEPTED, *REFUSED])
def test_no_way_of_writing_a_uri_shows_its_secret(uri: str) -> None:
    said = [shown(uri), shown(f"kvm:{uri}"), masked(f"QEMU says: {uri}: refused")]
    try:
        location = parse_uri(uri)
        said += [repr(location), location.words, location.uri()]
    except InputError as error:
        said += [str(error), repr(error)]
    for hidden in ("hunter2", "aHVudGVyMng", "hunter"):
        assert not [words for words in said if hidden in words]


def test_a_password_is_given_only_to_who_asks_for_a_user() -> None:
    secrets = {"password": Secret("hunter2x"), "key": Secret("aHVudGVyMng=")}
    assert parse_uri("http://evil.example/x").with_secrets(secrets) == parse_uri("http://evil.example/x")
    assert parse_uri("iscsi://h/t/0").with_secrets(secrets) == parse_uri("iscsi://h/t/0")
    assert parse_uri("iscsi://u@h/t/0").with_secrets(secrets) == parse_uri("iscsi://u%hunter2x@h/t/0")
    assert parse_uri("rbd:p/i").with_secrets(secrets) == parse_uri("rbd:p/i:key=aHVudGVyMng=")


def test_text_that_is_nested_without_end_is_refused_in_words() -> None:
    for text in ('json:{"driver' + ".a" * 1950 + '":1}', "json:" + '{"a":' * 1300, "json:" + "[" * 4000):
        with pytest.raises(InputError):
            parse_uri(text)
        assert masked(text)
