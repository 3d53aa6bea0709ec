from __future__ import annotations

import json
from xml.etree.ElementTree import tostring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.secret import Secret
from hvext.core.uri import masked, parse_filename, parse_uri
from hvext.core.uri.curl import CurlLocation
from hvext.core.uri.location import Companions
from hvext.errors import InputError, LocationError, RenderError


def web(url: str, login: tuple[str, str] | None = None, **more: object) -> CurlLocation:
    user: dict[str, object] = {} if login is None else {"username": login[0], "password": Secret(login[1])}
    return CurlLocation(**{"url": url, **user, **more})  # type: ignore[arg-type]


VALID: dict[str, CurlLocation] = {
    "http://h": web("http://h"),
    "https://h/": web("https://h/"),
    "ftp://h/a/b": web("ftp://h/a/b"),
    "ftps://h:990/a": web("ftps://h:990/a"),
    "https://[::1]:8443/x": web("https://[::1]:8443/x"),
    "http://[fe80::1%25eth0]/x": web("http://[fe80::1%25eth0]/x"),
    "https://h:/x": web("https://h:/x"),
    "https://müller.example/é": web("https://müller.example/é"),
    "https://h/a%20b%2Fc/../d?x=1&y=%26#".removesuffix("#"): web("https://h/a%20b%2Fc/../d?x=1&y=%26"),
    "https://h/x@y:z": web("https://h/x@y:z"),
    "https://h?q=u:p@h": web("https://h?q=u:p@h"),
    "https://u@h/x": web("https://h/x", username="u"),
    "https://u:p@h/x": web("https://h/x", ("u", "p")),
    "https://u%40%3A:p%2F%40%25é@h:1/x?y": web("https://h:1/x?y", ("u@:", "p/@%é")),
    "https://u:p:q@h/x": web("https://h/x", ("u", "p:q")),
    "https://u:@h/x": web("https://h/x", ("u", "")),
    "https://:p@h/x": web("https://h/x", ("", "p")),
    "https://@h/x": web("https://h/x", ("", "")),
    "https://u%zz@h/x": web("https://h/x", username="u%zz"),
    'json:{"driver":"http","url":"http://u:p@h/x"}': web("http://h/x", ("u", "p")),
    'json:{"driver":"https","url":"https://h/x","sslverify":"off","readahead":"512","timeout":10000,"username":"u",'
    '"password":"p","cookie":"a=b; c=d","proxy-username":"pu","proxy-password":"pp"}': web(
        "https://h/x",
        ("u", "p"),
        sslverify=False,
        readahead_bytes=512,
        timeout_s=10000,
        cookie=Secret("a=b; c=d"),
        proxy_username="pu",
        proxy_password=Secret("pp"),
    ),
}


@pytest.mark.parametrize("uri", VALID)
def test_a_url_is_handed_on_as_it_is_but_for_its_user(uri: str) -> None:
    assert parse_uri(uri) == VALID[uri]
    assert parse_uri(VALID[uri].uri(reveal=True)) == VALID[uri]


INVALID: dict[str, str] = {
    "http:h/x": "does not start with http://",
    "https:/h/x": "does not start with",
    "https://": "names no host",
    "https:///h/x": "names no host",
    "https://?x": "names no host",
    "https://u@/x": "names no host",
    "https://h/a b": "write it as %20",
    "https://h/a\n": "write it as %0A",
    "https://h/a\0": "NUL",
    "https://h/x#f": "'#' in names as %23",
    "https://h:0/x": "port 0",
    "https://h:70000/x": "port 70000",
    "https://h:x/x": "port 'x'",
    "https://::1/x": "is not HOST[:PORT]",
    "https://[::1/x": "is not HOST[:PORT]",
    "https://a@b@h/x": "write it as %40",
    "https://u:%00@h/x": "without NUL",
    "https://u:%ff@h/x": "UTF-8",
    "https://%0Au:x@h/x": "control character",
    'json:{"driver":"https"}': "url is missing",
    'json:{"driver":"https","url":"http://h/x"}': "does not start with https://",
    'json:{"driver":"https","url":"/x"}': "does not start with",
    'json:{"driver":"http","url":"http://h/x","sslverify":true}': "sslverify is for https and ftps, not for http",
    'json:{"driver":"ftp","url":"ftp://h/x","cookie":"abcd"}': "a cookie is for http and https, not for ftp",
    'json:{"driver":"http","url":"http://h/x","readahead":513}': "multiple of 512",
    'json:{"driver":"http","url":"http://h/x","timeout":10001}': "timeout must be",
    'json:{"driver":"http","url":"http://h/x","cookie":"a\\nb"}': "control character",
    'json:{"driver":"http","url":"http://u@h/x","username":"u"}': "take the user out of url",
    'json:{"driver":"http","url":"http://h/x","cookie-secret":"s"}': "'cookie-secret'",
    'json:{"driver":"http","url":"http://h/x","force-range":true}': "'force-range'",
}


@pytest.mark.parametrize("uri", INVALID)
def test_a_url_that_cannot_be_opened_is_refused_with_the_part_that_is_wrong(uri: str) -> None:
    with pytest.raises(LocationError) as caught:
        parse_uri(uri)
    assert INVALID[uri] in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "https://u:s3cret/s3cret@h/x",
        "https://u:s3cret?s3cret@h/x",
        "https://u:s3cret#s3cret@h/x",
        "https://u:s3cret@s3cret@h/x",
        "https://u:s3cret@h:x/",
        "https://u:s3cret@h/a b",
        "https://u:s3cret%01@h/",
        'json:{"driver":"https","url":"https://u:s3cret@h/x#"}',
        'json:{"driver":"https","url":"https://h/x","cookie":"s3cret\\u0001"}',
        'json:{"driver":"https","url":"https://h/x","proxy-password":["s3cret"]}',
        "json:{'driver':'https','cookie':'s3cret'}",
    ],
)
def test_a_password_or_cookie_is_not_shown_when_its_url_is_wrong(uri: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_uri(uri)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in masked(uri)


FULL = web(
    "https://h/x?token=s3cret0&a=b",
    ("u", "s3cret1"),
    cookie=Secret("a=s3cret2"),
    proxy_username="pu",
    proxy_password=Secret("s3cret3"),
    timeout_s=7,
)


def test_secrets_reach_qemu_as_objects_and_are_shown_nowhere() -> None:
    beside = Companions(node="d")
    assert FULL.blockdev(beside) == {
        "url": "https://h/x?token=s3cret0&a=b",
        "username": "u",
        "password-secret": "d-password",
        "cookie-secret": "d-cookie",
        "proxy-username": "pu",
        "proxy-password-secret": "d-proxy_password",
        "timeout": 7,
    }
    assert [(item["id"], item["data"]) for item in FULL.needs(beside).objects] == [
        ("d-password", Secret("s3cret1")),
        ("d-cookie", Secret("a=s3cret2")),
        ("d-proxy_password", Secret("s3cret3")),
    ]
    simple = web("https://h/x?token=s3cret0", ("u", "s3cret1"))
    assert simple.uri() == "https://u:***@h/x?token=***"
    for text in (repr(FULL), FULL.uri(), FULL.words, repr(simple), simple.uri(), masked(FULL.uri(reveal=True))):
        assert "s3cret" not in text
    assert json.loads(FULL.uri().removeprefix("json:"))["url"] == "https://h/x?token=***&a=b"


def test_a_web_server_is_only_read_from() -> None:
    assert all(VALID[uri].read_only for uri in VALID)


def test_an_open_node_is_recognised_by_what_qemu_reports() -> None:
    assert parse_filename("https", "https://h/x?y") == web("https://h/x?y", timeout_s=5, readahead_bytes=0).reported
    options = {**FULL.blockdev(), "driver": "https"}
    del options["timeout"]
    assert parse_filename("https", "json:" + json.dumps(options)) == FULL.reported
    assert FULL.reported == web("https://h/x?token=s3cret0&a=b", username="u", proxy_username="pu")
    assert parse_filename("https", "http://h/x") == web("http://h/x")
    assert parse_filename("https", "https://h/" + "x" * 4085) is None
    assert parse_filename("https", "") is None


def xml(location: CurlLocation) -> str:
    return tostring(location.libvirt_source(Companions(node="d")).element, encoding="unicode")


def test_libvirt_is_told_what_it_turns_into_the_same_url() -> None:
    assert xml(web("https://[::1]:8443/a%20b/c?x=1&y=%20", ("u", "s3cret"), sslverify=False, timeout_s=3)) == (
        '<source protocol="https" name="/a b/c" query="x=1&amp;y=%20"><host name="::1" port="8443" />'
        '<auth username="u"><secret type="iscsi" usage="d-password" /></auth>'
        '<ssl verify="no" /><timeout seconds="3" /></source>'
    )
    assert xml(web("ftp://h", readahead_bytes=1024)) == (
        '<source protocol="ftp" name="/"><host name="h" /><readahead size="1024" /></source>'
    )
    assert 'name="//a%"' in xml(web("http://h//a%25"))
    assert 'name="/é"' in xml(web("http://h/%c3%A9"))


@pytest.mark.parametrize(
    ("location", "feature"),
    [
        (web("https://h/x", cookie=Secret("a=b")), "a cookie without showing it"),
        (web("https://h/x", proxy_username="p"), "a proxy's user"),
        (web("https://h/x?token=abcd"), "a query with a secret"),
        (web("ftp://h/x?y"), "a query for ftp"),
        (web("http://h/x?"), "an empty query"),
        (web("http://h/x", username="u"), "a user without a password"),
        (web("http://h/x", ("", "p")), "a password without a user"),
        (web("http://h/x", ("a.b", "p")), "user name 'a.b'"),
        (web("http://h/x", readahead_bytes=0), "a readahead of 0"),
        (web("http://h/x", timeout_s=0), "a timeout of 0"),
        (web("http://h/a%2Fb"), "the path '/a%2Fb'"),
        (web("http://h/a%ff"), "the path '/a%ff'"),
        (web("http://h/é"), "the path '/é'"),
        (web("http://h_x/"), "the host 'h_x'"),
        (web("http://h/%01"), "character 2"),
    ],
)
def test_what_libvirt_cannot_say_is_refused_by_name(location: CurlLocation, feature: str) -> None:
    with pytest.raises(RenderError) as caught:
        location.libvirt_source()
    assert feature in str(caught.value)


plain = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20)
tricky = st.lists(st.sampled_from(["/", "?", "#", "%", "%2F", ":", "@", "&", "=", "+", " ", "é", "[", "]", '"'])).map(
    "".join
)
words = plain | tricky
secrets = words.map(Secret)
rests = words.map(lambda text: "".join("%20" if char in " #\x7f" else char for char in text))
urls = st.builds(
    "{}://{}/{}".format, st.sampled_from(["https"]), st.sampled_from(["h", "h:1", "[::1]", "[::1]:5"]), rests
)
locations = st.builds(
    CurlLocation,
    url=urls,
    username=words,
    password=st.none() | secrets,
    cookie=st.none() | secrets,
    sslverify=st.none() | st.booleans(),
    proxy_username=words,
    proxy_password=st.none() | secrets,
    readahead_bytes=st.none() | st.integers(0, 1 << 20).map(lambda number: number * 512),
    timeout_s=st.none() | st.integers(0, 10000),
)


@given(location=locations | st.builds(CurlLocation, url=urls, username=words, password=st.none() | secrets))
def test_a_location_survives_being_written_as_a_uri(location: CurlLocation) -> None:
    assert parse_uri(location.uri(reveal=True)) == location
    options = {"driver": "https", **location.blockdev(), "timeout": None, "readahead": None}
    report = "json:" + json.dumps({name: value for name, value in options.items() if value is not None})
    assert parse_filename("https", report) == location.reported


@given(
    uri=st.builds(str.__add__, st.sampled_from(["http:", "https://", "ftp://h/", "https://u:p@h/"]), st.text() | tricky)
)
def test_any_text_is_a_location_or_an_input_error(uri: str) -> None:
    try:
        location = parse_uri(uri)
    except InputError as error:
        str(error).encode()
        return
    assert parse_uri(location.uri(reveal=True)) == location
