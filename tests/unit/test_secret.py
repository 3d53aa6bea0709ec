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
