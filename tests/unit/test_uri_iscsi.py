from __future__ import annotations

import json
from xml.etree.ElementTree import tostring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.secret import Secret
from hvext.core.uri import masked, parse_filename, parse_uri
from hvext.core.uri.iscsi import HeaderDigest, IscsiLocation, Transport
from hvext.core.uri.location import Companions
from hvext.errors import InputError, LocationError, RenderError


def unit(target: str = "t", lun: int = 0, *, chap: str | None = None, **more: object) -> IscsiLocation:
    secret = None if chap is None else Secret(chap)
    return IscsiLocation(**{"host": "h", "target": target, "lun": lun, "password": secret, **more})  # type: ignore[arg-type]


VALID: dict[str, IscsiLocation] = {
    "iscsi://h/t/0": unit(),
    "iscsi://h:/t/0": unit(),
    "iscsi://h:3261/iqn.2003-01.org.x:a,b=c/16383": unit("iqn.2003-01.org.x:a,b=c", 16383, port=3261),
    "iscsi://192.0.2.1:0003260/t/007": unit("t", 7, host="192.0.2.1"),
    "iscsi://[::1]/t/0": unit(host="::1"),
    "iscsi://[fe80::1%eth0]:5/t/0": unit(host="fe80::1%eth0", port=5),
    "iser://h/t/0": unit(transport=Transport.ISER),
    "iscsi://h/t/0?iser": unit(transport=Transport.ISER),
    "iscsi://h/t/0?iser=1&": unit(transport=Transport.ISER),
    "iscsi://h/t/0?": unit(),
    "iscsi://h/a%2Fb%40c%3f%25é %C3%A9/0": unit("a/b@c?%é é"),
    "iscsi://h/t%2520/0": unit("t%20"),
    "iscsi://u%p@h/t/0": unit(user="u", chap="p"),
    "iscsi://u:p@h/t/0": unit(user="u", chap="p"),
    "iscsi://u%a%b:c/d#e@h/t/0": unit(user="u", chap="a%b:c/d#e"),
    "iscsi://u%40%p@h/t/0": unit(user="u", chap="40%p"),
    "iscsi://a/b%p@h/t/0": unit(user="a/b", chap="p"),
    "iscsi://u@h/t/0": unit(user="u"),
    "iscsi://@h/t/0": unit(),
    'json:{"driver":"iscsi","transport":"tcp","portal":"h","target":"t"}': unit(),
    'json:{"driver":"iscsi","transport":"iser","portal":"[::1]:5","target":"a/b","lun":"3","user":"u","password":"p@?",'
    '"initiator-name":"iqn.i","header-digest":"crc32c-none","timeout":0}': unit(
        "a/b",
        3,
        host="::1",
        port=5,
        transport=Transport.ISER,
        user="u",
        chap="p@?",
        initiator_name="iqn.i",
        header_digest=HeaderDigest.CRC32C_NONE,
        timeout_s=0,
    ),
}


@pytest.mark.parametrize("uri", VALID)
def test_a_uri_is_read_as_libiscsi_reads_it(uri: str) -> None:
    assert parse_uri(uri) == VALID[uri]
    assert parse_uri(VALID[uri].uri(reveal=True)) == VALID[uri]


INVALID: dict[str, str] = {
    "iscsi:h/t/0": "start with iscsi://",
    "iser:/h/t/0": "start with iser://",
    "iscsi://": "does not end in HOST[:PORT]/TARGET/LUN",
    "iscsi://h": "does not end in",
    "iscsi://h/t": "does not end in",
    "iscsi://h/t/": "does not end in",
    "iscsi://h/t/x": "does not end in",
    "iscsi://h/t/-1": "does not end in",
    "iscsi://h/t/+1": "does not end in",
    "iscsi://h/t/0/": "does not end in",
    "iscsi://h//0": "does not end in",
    "iscsi://h//t/0": "does not end in",
    "iscsi://h/t/16384": "16384 is not between 0 and 16383",
    "iscsi:///t/0": "names no host",
    "iscsi://:3260/t/0": "names no host",
    "iscsi://h:0/t/0": "port 0",
    "iscsi://h:x/t/0": "'h:x' is not HOST[:PORT]",
    "iscsi://::1/t/0": "brackets",
    "iscsi://a b/t/0": "host 'a b'",
    "iscsi://h/t%zz/0": "'%' that encodes nothing",
    "iscsi://h/t%/0": "'%' that encodes nothing",
    "iscsi://h/t%00/0": "NUL",
    "iscsi://h/t%ff/0": "UTF-8",
    "iscsi://h/" + "t" * 256 + "/0": "255 bytes",
    "iscsi://h/t/0?header_digest=crc32c": "QEMU crashes on it",
    "iscsi://h/t/0?target_user=a&target_password=bcdef": "no way to check the target's password",
    "iscsi://h/t/0?iser&mode=ro": "'mode'",
    "iser://h/t/0?mode=ro": "'mode'",
    "iscsi://%q1@h/t/0": "empty user name",
    "iscsi://u%@h/t/0": "empty password",
    "iscsi://u:@h/t/0": "empty password",
    "iscsi://u:a%b@h/t/0": "':' in front of the '%'",
    "iscsi://u%p@q@h/t/0": "'@' in its password or behind it",
    "iscsi://u%p?q@h/t/0": "'?' in its password",
    "iscsi://h/a@b/0": "does not end in",
    'json:{"driver":"iscsi","transport":"tcp","target":"t"}': "portal is missing",
    'json:{"driver":"iscsi","portal":"h","target":"t"}': "transport is missing",
    'json:{"driver":"iscsi","transport":"rdma","portal":"h","target":"t"}': "transport 'rdma' is not one of tcp, iser",
    'json:{"driver":"iscsi","transport":"tcp","portal":"h","target":""}': "no name",
    'json:{"driver":"iscsi","transport":"tcp","portal":"h","target":"t","lun":16384}': "lun must be",
    'json:{"driver":"iscsi","transport":"tcp","portal":"h","target":"t","header-digest":"md5"}': "header-digest 'md5'",
    'json:{"driver":"iscsi","transport":"tcp","portal":"h","target":"t","password":"q1"}': "password but no user",
    'json:{"driver":"iscsi","transport":"tcp","portal":"h","target":"t","password-secret":"s"}': "'password-secret'",
    'json:{"driver":"iscsi","transport":"tcp","portal":"h","target":"t","user":"u","password":""}': "1 to 255 bytes",
}


@pytest.mark.parametrize("uri", INVALID, ids=[uri[:60] for uri in INVALID])
def test_a_uri_that_cannot_be_read_is_refused_with_the_part_that_is_wrong(uri: str) -> None:
    with pytest.raises(LocationError) as caught:
        parse_uri(uri)
    assert INVALID[uri] in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "iscsi://u%s3cret/rest@h/t",
        "iscsi://u%s3cret@s3cret@h/t/0",
        "iscsi://u%s3cret?s3cret@h/t/0",
        "iscsi://u:s3cret@h:x/t/0",
        "iscsi://u:s3cret%s3cret@h/t/0",
        "iscsi://u%s3cret\0@h/t/0",
        'json:{"driver":"iscsi","password":"s3cret","x":1}',
        'json:{"driver":"iscsi","password":["s3cret"]}',
        "json:{'password':'s3cret'}",
        'json:{"password":"s3cret',
    ],
)
def test_a_password_is_not_shown_when_its_uri_is_wrong(uri: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_uri(uri)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in masked(uri)


def test_the_password_reaches_qemu_as_an_object_and_is_shown_nowhere() -> None:
    location = unit("a/b", 1, user="u", chap="s3cret", initiator_name="i", timeout_s=3)
    beside = Companions(node="disk-1")
    assert location.blockdev(beside) == {
        "transport": "tcp",
        "portal": "h:3260",
        "target": "a/b",
        "lun": 1,
        "user": "u",
        "password-secret": "disk-1-password",
        "initiator-name": "i",
        "timeout": 3,
    }
    assert location.needs(beside).objects == (
        {"qom-type": "secret", "id": "disk-1-password", "data": Secret("s3cret")},
    )
    simple = unit(user="u", chap="s3cret")
    assert simple.uri() == "iscsi://u%***@h:3260/t/0"
    assert simple.uri(reveal=True) == "iscsi://u%s3cret@h:3260/t/0"
    for text in (repr(location), location.uri(), location.words, simple.words, masked(simple.uri(reveal=True))):
        assert "s3cret" not in text
    assert "s3cret" not in masked(location.uri(reveal=True))


def test_a_password_from_elsewhere_completes_a_uri_with_a_user() -> None:
    location = parse_uri("iscsi://u@h/t/0")
    assert location.with_secrets({"password": Secret("p"), "key": Secret("k")}) == unit(user="u", chap="p")
    assert location.needs(Companions()).objects == ()
    assert parse_uri("iscsi://h/t/0").with_secrets({"password": Secret("p")}) == parse_uri("iscsi://h/t/0")


def test_an_open_node_is_recognised_by_what_qemu_reports() -> None:
    location = unit("a/b", 1, user="u", chap="p", header_digest=HeaderDigest.NONE, timeout_s=3)
    options = {key: value for key, value in location.blockdev().items() if key != "timeout"}
    report = "json:" + json.dumps({"driver": "iscsi", **options})
    assert parse_filename("iscsi", report) == location.reported
    assert location.reported == unit("a/b", 1, user="u", header_digest=HeaderDigest.NONE)
    assert parse_filename("iscsi", report[:40] + "...") is None
    assert parse_filename("iscsi", "iscsi://h/t/0") is None


def test_libvirt_gets_the_password_by_reference() -> None:
    source = unit("iqn.x:y", 2, host="::1", user="u", chap="s3cret", initiator_name="iqn.i").libvirt_source(
        Companions(node="d")
    )
    assert source.disk_type == "network"
    assert tostring(source.element, encoding="unicode") == (
        '<source protocol="iscsi" name="iqn.x:y/2"><host name="::1" port="3260" />'
        '<auth username="u"><secret type="iscsi" usage="d-password" /></auth>'
        '<initiator><iqn name="iqn.i" /></initiator></source>'
    )


@pytest.mark.parametrize(
    ("location", "feature"),
    [
        (unit(transport=Transport.ISER), "iSER"),
        (unit(header_digest=HeaderDigest.NONE), "header digest"),
        (unit(timeout_s=1), "timeout"),
        (unit("a/b"), "'/' in its name"),
        (unit(user="u"), "without a password"),
        (unit(user="a.b", chap="p"), "user name 'a.b'"),
        (unit(host="fe80::1%eth0"), "host 'fe80::1%eth0'"),
        (unit("a\x01"), "character 2"),
    ],
)
def test_what_libvirt_cannot_say_is_refused_by_name(location: IscsiLocation, feature: str) -> None:
    with pytest.raises(RenderError) as caught:
        location.libvirt_source()
    assert feature in str(caught.value)


some_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)
tricky = st.lists(st.sampled_from(["/", "?", "#", "%", "%2F", ":", "@", "&", "=", " ", "é", "u", "0"]), min_size=1).map(
    "".join
)
names = some_text | tricky.filter(lambda text: len(text.encode()) < 200)
hosts = st.sampled_from(["h", "192.0.2.1", "a.b_c-d"]) | st.ip_addresses(v=6).map(str)
logins = st.fixed_dictionaries({"user": names}, optional={"password": names.map(Secret)}) | st.just({})
places = st.fixed_dictionaries(
    {"host": hosts, "target": names, "lun": st.integers(0, 16383), "port": st.integers(1, 65535)},
    optional={
        "transport": st.sampled_from(Transport),
        "initiator_name": names,
        "header_digest": st.sampled_from(HeaderDigest),
        "timeout_s": st.integers(0, 1 << 30),
    },
)


@given(place=places, login=logins)
def test_a_location_survives_being_written_as_a_uri(place: dict[str, object], login: dict[str, object]) -> None:
    location = IscsiLocation(**{**place, **login})  # type: ignore[arg-type]
    assert parse_uri(location.uri(reveal=True)) == location
    assert parse_uri(location.without_secrets().uri()) == location.without_secrets()
    report = "json:" + json.dumps({"driver": "iscsi", **location.blockdev()})
    assert parse_filename("iscsi", report) == location.without_secrets()


@given(
    uri=st.builds(
        str.__add__,
        st.sampled_from(["iscsi:", "iscsi://", "iser://", "iscsi://u%p@h/", "iscsi://h/t/0?", "iscsi://h/"]),
        some_text | tricky,
    )
)
def test_any_text_is_a_location_or_an_input_error(uri: str) -> None:
    try:
        location = parse_uri(uri)
    except InputError as error:
        str(error).encode()
        return
    assert parse_uri(location.uri(reveal=True)) == location
