"""Percent-encoding and the parts of URIs, against the library's and the patterns of RFC 3986."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.uri.syntax import (
    PATH_SAFE,
    QUERY_SAFE,
    decoded,
    encoded_path,
    encoded_query,
    encoded_userinfo,
    parse_port,
    split_uri,
)
from hvext.errors import LocationError

#: RFC 3986, appendix B, behind the scheme.
_PARTS = re.compile(r"//([^/?#]*)([^?#]*)(?:\?([^#]*))?(#.*)?\Z", re.DOTALL)
_ENCODED = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
texts = st.text() | st.text(alphabet="aZ09%/?#&;=@:[]._~-+ é\n\x7f")


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_text_is_encoded_as_the_library_does(text: str) -> None:
    assert encoded_path(text) == quote(text, safe=PATH_SAFE)
    assert encoded_query(text) == quote(text, safe=QUERY_SAFE)
    assert encoded_userinfo(text) == quote(text, safe="!$&'()*+,;=~")


@given(
    text=texts | st.lists(st.sampled_from(["%41", "%2f", "%C3%A9", "%ff", "%", "%4", "%zz", "a", "%25"])).map("".join)
)
def test_text_is_decoded_as_the_library_does_and_all_else_is_refused(text: str) -> None:
    whole = _ENCODED.fullmatch(text)
    plain = unquote_to_bytes(text) if whole else b"\xff"
    try:
        expected = plain.decode()
    except UnicodeDecodeError:
        expected = "\0"
    if "\0" in expected:
        with pytest.raises(LocationError):
            decoded(text, "it", "NBD")
    else:
        assert decoded(text, "it", "NBD") == expected


@given(rest=texts.map("//".__add__) | texts)
def test_a_uri_is_split_where_the_rfc_splits_it(rest: str) -> None:
    match = _PARTS.match(rest)
    try:
        parts = split_uri("nbd", rest)
    except LocationError:
        assert match is None or match[4] or "@" in rest
        return
    assert match is not None
    userinfo, at, address = match[1].rpartition("@")
    assert (parts.userinfo, parts.address) == (userinfo if at else None, address)
    assert (parts.path, parts.query) == (match[2], match[3])


@given(text=st.text() | st.text(alphabet="0123456789", max_size=20) | st.text(alphabet="0\uff119", max_size=16))
def test_a_port_is_five_digits_behind_at_most_nine_zeroes(text: str) -> None:
    if re.fullmatch(r"0{0,9}[0-9]{1,5}", text) and 1 <= int(text) <= 65535:
        assert parse_port(text) == int(text)
    else:
        with pytest.raises(LocationError):
            parse_port(text)
