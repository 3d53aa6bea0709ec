from __future__ import annotations

import base64
import json
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.secret import Secret
from hvext.core.uri import masked, parse_filename, parse_uri
from hvext.core.uri.ceph import Monitor
from hvext.core.uri.location import Companions, Location
from hvext.core.uri.rbd import RbdLocation
from hvext.errors import InputError, LocationError, RenderError

BESIDE = Companions(node="hvabcdefghijklmnopqrstuvwxyz-00", folder="/run/private")
KEY = "AQADpQJrYpDWJRAAOqW2lcU0n/5YV7ve4x8Zww=="


def rbd(**more: object) -> RbdLocation:
    return RbdLocation(**{"pool": "p", "image": "i", **more})  # type: ignore[arg-type]


def mons(*addresses: tuple[str, int]) -> tuple[Monitor, ...]:
    return tuple(Monitor(host=host, port=port) for host, port in addresses)


VALID: dict[str, RbdLocation] = {
    "rbd:p/i:id=vm:key=" + KEY: rbd(user="vm", key=Secret(KEY)),
    "rbd:p/i:key=" + KEY.replace("=", "\\="): rbd(key=Secret(KEY)),
    "rbd:p/i:rbd_cache=true": rbd(),
    "rbd:p/i:rbd cache=0": rbd(),
    "rbd:volumes/a.b:id=admin:rbd_cache=true:conf=/etc/ceph/ceph.conf": rbd(
        pool="volumes", image="a.b", user="admin", conf="/etc/ceph/ceph.conf"
    ),
    "rbd:p/i:mon_host=h\\:6789": rbd(monitors=mons(("h", 6789))),
    "rbd:p/i:mon_host=192.0.2.1\\:6789\\;[2001\\:db8\\:\\:1]\\:3300": rbd(
        monitors=mons(("192.0.2.1", 6789), ("2001:db8::1", 3300))
    ),
    "rbd:p/i:mon_host=a\\:1, b\\:2 c\\:3;d\\:4": rbd(monitors=mons(("a", 1), ("b", 2), ("c", 3), ("d", 4))),
    "rbd:p/i:mon_host=a\\:1\\;": rbd(monitors=mons(("a", 1))),
    "rbd:p/i:mon host=a\\:06789": rbd(monitors=mons(("a", 6789))),
    "rbd:p/i:mon_host=h": rbd(options=(("mon_host", "h"),)),
    "rbd:p/i:mon_host=a\\:1\\;b": rbd(options=(("mon_host", "a:1;b"),)),
    "rbd:p/i:mon_host=\\:\\:1": rbd(options=(("mon_host", "::1"),)),
    "rbd:p/i:mon_host=h\\:0": rbd(options=(("mon_host", "h:0"),)),
    "rbd:p/i:mon_host=v2\\:3300": rbd(options=(("mon_host", "v2:3300"),)),
    "rbd:p/i:mon_host=[v2\\:192.0.2.1\\:3300,v1\\:192.0.2.1\\:6789]": rbd(
        options=(("mon_host", "[v2:192.0.2.1:3300,v1:192.0.2.1:6789]"),)
    ),
    "rbd:p/i:mon_host=[fe80\\:\\:1%eth0]\\:6789": rbd(options=(("mon_host", "[fe80::1%eth0]:6789"),)),
    "rbd:p/i:auth_supported=cephx\\;none": rbd(auth=("cephx", "none")),
    "rbd:p/i:auth_supported=cephx;none": rbd(auth=("cephx", "none")),
    "rbd:p/i:auth_client_required=none": rbd(auth=("none",)),
    "rbd:p/i:auth_client_required=none:auth_supported=cephx, cephx": rbd(auth=("cephx",)),
    "rbd:p/i:auth_client_required=gss:auth_supported=cephx": rbd(auth=("cephx",)),
    "rbd:p/i:auth_client_required=cephx:auth_supported=gss": rbd(
        options=(("auth_client_required", "cephx"), ("auth_supported", "gss"))
    ),
    "rbd:p/i:auth_client_required=gss": rbd(options=(("auth_client_required", "gss"),)),
    "rbd:p/i:rados_osd_op_timeout=30:rbd_cache_size=1": rbd(
        options=(("rados_osd_op_timeout", "30"), ("rbd_cache_size", "1"))
    ),
    "rbd:p/i:rbd_cache_size=1:rados osd op timeout=30:rbd_cache_size=2": rbd(
        options=(("rados_osd_op_timeout", "30"), ("rbd_cache_size", "2"))
    ),
    "rbd:p/i:keyring=/etc/a\\,b=c:id=vm": rbd(user="vm", options=(("keyring", "/etc/a,b=c"),)),
    "rbd:p/i:conf=/a:conf=/b": rbd(conf="/b"),
    "rbd:p/i\\:id=x:i\\d=y": rbd(image="i:id=x", user="y"),
    "rbd:p/i@s:keyring=/a@b": rbd(snapshot="s", options=(("keyring", "/a@b"),)),
    'json:{"driver":"rbd","pool":"p","image":"i"}': rbd(),
    'json:{"driver":"rbd","pool":"p","image":"i","namespace":"","user":"u","snapshot":"s","conf":"/c"}': rbd(
        user="u", snapshot="s", conf="/c"
    ),
    'json:{"driver":"rbd","pool":"p","image":"i","server":[{"host":"h","port":"1"}]}': rbd(monitors=mons(("h", 1))),
    'json:{"driver":"rbd","pool":"p","image":"i","auth-client-required":["none"]}': rbd(auth=("none",)),
    'json:{"driver":"rbd","pool":"p","image":"i","server.1.port":"2","server.1.host":"::1","server.0.host":"h",'
    '"server.0.port":"1","auth-client-required.0":"cephx"}': rbd(
        monitors=mons(("h", 1), ("::1", 2)), auth=("cephx",)
    ),
    'json:{"driver":"rbd","pool":"p","image":"i","key":"' + KEY + '"}': rbd(key=Secret(KEY)),
}  # fmt: skip


@pytest.mark.parametrize("uri", VALID, ids=[masked(uri)[:60] for uri in VALID])
def test_options_of_an_image_are_carried_by_fields_or_by_a_configuration(uri: str) -> None:
    location = parse_uri(uri)
    assert location == VALID[uri]
    assert parse_uri(location.uri(reveal=True)) == location


#: Text that cannot be read, and words of the error that name the wrong part.
INVALID: dict[str, str] = {
    "rbd:p/i:id": "option 'id' has no value",
    "rbd:p/i:": "option '' has no value",
    "rbd:p/i:=x": "option '' has no value",
    "rbd:p/i:id=": "option id has no value",
    "rbd:p/i:mon_host=h:6789": "option '6789' has no value",
    "rbd:p/i:keyring=/a@b": "write \\@",
    "rbd:p/i:rbd-cache-size=1": "no option 'rbd-cache-size'",
    "rbd:p/i:RBD_CACHE=1": "no option 'RBD_CACHE'",
    "rbd:p/i:é=1": "no option 'é'",
    "rbd:p/i: =1": "no option ' '",
    "rbd:p/i: id=1": "id=USER, the file conf=FILE, without blanks",
    "rbd:p/i:namespace=n": "the image is rbd:POOL/NAMESPACE/IMAGE",
    "rbd:p/i:snapshot=s": "no option 'snapshot'",
    "rbd:p/i:user=u": "no option 'user'",
    "rbd:p/i:cluster=c": "no option 'cluster'",
    "rbd:p/i:rbd_cache=maybe": "rbd_cache is 'maybe'",
    "rbd:p/i:rgw_crypt_kmip_password=hunter2": "only key can",
    "rbd:p/i:some_secret=hunter2": "only key can",
    "rbd:p/i:key=hunter2hunter": "not base64",
    "rbd:p/i:key=hunter2,": "not base64",
    "rbd:p/i:keyring=/a\nb": "line end",
    "rbd:p/i:keyring=/a\rb": "line end",
    "rbd:p/i:keyring= /a": "blanks around",
    "rbd:p/i:keyring=/a\\ ": "blanks around",
    "rbd:p/i:id=é:keyring=/a": "user 'é' cannot be named",
    "rbd:p/i:id=a]b:keyring=/a": "user 'a]b' cannot be named",
    "rbd:p/i:id=a\\\\b:keyring=/a": "cannot be named in a Ceph configuration, which keyring needs",
    "rbd:p/i:conf=/a,/b:keyring=/k": "more than one file",
    "rbd:p/i:conf=/a\\;/b:keyring=/k": "more than one file",
    "rbd:p/i:conf=/etc/$cluster.conf:keyring=/k": "more than one file",
    "rbd:p/i:conf=ceph.conf:keyring=/k": "not the absolute path",
    "rbd:p/i:conf=/etc/..:keyring=/k": "not the absolute path",
    "rbd:p/i:conf=/etc/:keyring=/k": "not the absolute path",
    'json:{"driver":"rbd","image":"i"}': "pool is missing",
    'json:{"driver":"rbd","pool":"p","image":"i","key-secret":"s"}': "key-secret",
    'json:{"driver":"rbd","pool":"p","image":"i","encrypt":{"format":"luks"}}': "encrypt",
    'json:{"driver":"rbd","pool":"p","image":"i","server":[{"host":"h"}]}': "server.0.port is missing",
    'json:{"driver":"rbd","pool":"p","image":"i","server":[{"host":"h","port":"1","to":2}]}': "server.0.to",
    'json:{"driver":"rbd","pool":"p","image":"i","server":[{"host":"fe80::1%lo","port":"1"}]}': "no zone",
    'json:{"driver":"rbd","pool":"p","image":"i","server":[{"host":"v1","port":"1"}]}': "names a protocol",
    'json:{"driver":"rbd","pool":"p","image":"i","server":"h"}': "list of objects",
    'json:{"driver":"rbd","pool":"p","image":"i","auth-client-required":["gss"]}': "'gss' is not of cephx, none",
    'json:{"driver":"rbd","pool":"p","image":"i","auth-client-required":"cephx"}': "list of texts",
    'json:{"driver":"rbd","pool":"p","image":"i","key":"hunter2!"}': "not base64",
    'json:{"driver":"rbd","pool":"p","image":"i","rbd_cache":"true"}': "'rbd_cache' is not taken",
}


@pytest.mark.parametrize("uri", INVALID, ids=repr)
def test_an_rbd_uri_that_cannot_be_right_is_refused_with_the_part_that_is_wrong(uri: str) -> None:
    with pytest.raises(LocationError) as caught:
        parse_uri(uri)
    assert INVALID[uri] in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_node_names_what_the_schema_has_fields_for() -> None:
    location = parse_uri(f"rbd:p/n/i@s:id=vm:key={KEY}:auth_supported=cephx:mon_host=h\\:1\\;[\\:\\:1]\\:2:conf=/c")
    assert location.blockdev(BESIDE) == {
        "pool": "p",
        "namespace": "n",
        "image": "i",
        "snapshot": "s",
        "conf": "/c",
        "user": "vm",
        "auth-client-required": ["cephx"],
        "server": [{"host": "h", "port": "1"}, {"host": "::1", "port": "2"}],
        "key-secret": "hvabcdefghijklmnopqrstuvwxyz-00-key",
    }
    needs = location.needs(BESIDE)
    assert needs.objects == (
        {
            "qom-type": "secret",
            "id": "hvabcdefghijklmnopqrstuvwxyz-00-key",
            "data": Secret(KEY),
            "format": "base64",
        },
    )
    assert needs.files == ()


def test_an_option_without_a_field_goes_behind_the_named_configuration() -> None:
    location = parse_uri('rbd:p/i:id=vm:conf=/etc/ceph/backup.conf:rados_osd_op_timeout=30:keyring=/a\\:"b\\;#\\\\é')
    (file,) = location.needs(BESIDE).files
    assert file.after == "/etc/ceph/backup.conf"
    assert not file.optional
    assert file.text is not None
    assert file.text.reveal() == ('\n[client.vm]\nkeyring = "/a:\\"b\\;\\#\\\\é"\nrados_osd_op_timeout = "30"\n')
    assert file.path == location.blockdev(BESIDE)["conf"]


def test_the_private_configuration_keeps_the_name_from_which_ceph_takes_the_clusters() -> None:
    (file,) = parse_uri("rbd:p/i:conf=/etc/ceph/backup.conf:keyring=/k").needs(BESIDE).files
    folder, _slash, name = file.path.rpartition("/")
    assert name == "backup.conf"
    assert folder.startswith("/run/private/hvabcdefghijklmnopqrstuvwxyz-00-ceph-")
    (default,) = parse_uri("rbd:p/i:keyring=/k").needs(BESIDE).files
    assert default.path.endswith("/ceph.conf")
    assert (default.after, default.optional) == ("/etc/ceph/ceph.conf", True)


def test_options_are_for_the_user_that_ceph_takes_by_default() -> None:
    (file,) = parse_uri("rbd:p/i:keyring=/k").needs(BESIDE).files
    assert file.text is not None
    assert "[client.admin]" in file.text.reveal()


def test_an_image_without_such_options_needs_no_file() -> None:
    location = parse_uri("rbd:p/i:id=admin:rbd_cache=true:conf=/etc/ceph/ceph.conf")
    assert not location.needs(BESIDE).files
    assert location.blockdev(BESIDE)["conf"] == "/etc/ceph/ceph.conf"


def test_a_folder_that_ceph_would_take_for_several_files_is_refused() -> None:
    with pytest.raises(LocationError, match="more than one file"):
        parse_uri("rbd:p/i:keyring=/k").blockdev(Companions(node="n", folder="/run/a,b"))


@pytest.mark.parametrize(
    "options",
    [
        (("rbd_cache", "true"),),
        (("id", "x"),),
        (("conf", "/x"),),
        (("key", KEY),),
        (("mon_host", "h:1"),),
        (("auth_supported", "cephx"),),
        (("b", "1"), ("a", "1")),
        (("a", "1"), ("a", "2")),
        (("a", ""),),
        (("a", "x\0"),),
    ],
)
def test_options_that_no_uri_gives_are_refused(options: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(LocationError):
        rbd(options=options)


def test_monitors_are_given_once() -> None:
    with pytest.raises(LocationError, match="twice"):
        rbd(monitors=mons(("h", 1)), options=(("mon_host", "x"),))


def test_a_way_to_log_in_is_given_once() -> None:
    with pytest.raises(LocationError, match="each once"):
        rbd(auth=("cephx", "cephx"))


def test_the_key_is_shown_nowhere() -> None:
    location = parse_uri(f"rbd:p/i:id=vm:key={KEY}:keyring=/k")
    needs = location.needs(BESIDE)
    shown = [
        repr(location),
        str(location),
        location.uri(),
        location.words,
        repr(needs),
        f"{needs}",
        location.reported.uri(),
    ]
    assert not [text for text in shown if KEY in text or KEY[:-2] in text]
    assert ":key=***" in location.uri()
    assert KEY not in json.dumps(location.blockdev(BESIDE))
    assert KEY not in str(needs.files[0].text and needs.files[0].text.reveal())
    with pytest.raises(TypeError):
        pickle.dumps(location)


def _as_reported(location: Location) -> str:
    """What QEMU shows of a node that was opened with these options (measured on 7.2 and 10.0)."""
    shown = {name: value for name, value in location.blockdev(BESIDE).items() if isinstance(value, str)}
    del_names = ("key-secret",)
    node = {"driver": "rbd", **{name: value for name, value in shown.items() if name not in del_names}}
    servers = location.blockdev(BESIDE).get("server", [])
    assert isinstance(servers, list)
    for index, server in enumerate(servers):
        node |= {f"server.{index}.{name}": value for name, value in server.items()}
    return "json:" + json.dumps(dict(sorted(node.items(), reverse=True)))


@pytest.mark.parametrize("uri", VALID, ids=[masked(uri)[:60] for uri in VALID])
def test_what_qemu_shows_of_an_open_image_is_recognised(uri: str) -> None:
    location = parse_uri(uri)
    assert parse_filename("rbd", _as_reported(location)) == location.reported


def test_another_private_configuration_is_another_location_to_a_running_qemu() -> None:
    uris = ["", ":keyring=/k", ":keyring=/l", ":conf=/etc/ceph/x.conf:keyring=/k", ":id=b:keyring=/k"]
    assert len({parse_uri("rbd:p/i" + more).reported for more in uris}) == len(uris)
    elsewhere = Companions(node="other", folder="/elsewhere")
    location = parse_uri("rbd:p/i:keyring=/k")
    shown = json.dumps({"driver": "rbd", **location.blockdev(elsewhere)})
    assert parse_filename("rbd", "json:" + shown) == location.reported


def test_what_stands_for_a_private_configuration_cannot_be_opened() -> None:
    reported = parse_uri("rbd:p/i:keyring=/k").reported
    assert parse_uri(reported.uri()) == reported
    with pytest.raises(LocationError, match="does not show of an open image"):
        reported.blockdev(BESIDE)


def test_libvirt_is_told_of_monitors_key_snapshot_and_configuration() -> None:
    location = parse_uri(
        f"rbd:p/i@s:id=vm:key={KEY}:auth_supported=cephx\\;none:mon_host=h\\:1\\;[\\:\\:1]\\:2:conf=/c"
    )
    source = location.libvirt_source(BESIDE)
    assert source.element.attrib == {"protocol": "rbd", "name": "p/i"}
    assert [(child.tag, child.attrib) for child in source.element.iter()][1:] == [
        ("host", {"name": "h", "port": "1"}),
        ("host", {"name": "::1", "port": "2"}),
        ("snapshot", {"name": "s"}),
        ("config", {"file": "/c"}),
        ("auth", {"username": "vm"}),
        ("secret", {"type": "ceph", "usage": "hvabcdefghijklmnopqrstuvwxyz-00-key"}),
    ]


def test_libvirt_needs_a_user_for_a_key() -> None:
    source = parse_uri(f"rbd:p/i:key={KEY}").libvirt_source(BESIDE)
    auth = source.element.find("auth")
    assert auth is not None
    assert auth.get("username") == "admin"


@pytest.mark.parametrize(
    ("more", "feature"),
    [
        (":id=vm", "cephx user 'vm'"),
        (":keyring=/k", "the Ceph option keyring"),
        (":mon_host=h", "the Ceph option mon_host"),
        (":auth_supported=none", "authentication none"),
        (f":key={KEY}:auth_supported=cephx", "authentication cephx"),
    ],
)
def test_what_libvirt_cannot_say_of_rbd_is_named(more: str, feature: str) -> None:
    with pytest.raises(RenderError) as caught:
        parse_uri("rbd:p/i" + more).libvirt_source(BESIDE)
    assert feature in caught.value.message
    assert caught.value.hint
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("name", ["rbd:p/n/i", "rbd:p\\/q/i", "rbd:p/i\\/j"])
def test_libvirt_cannot_name_an_image_with_another_slash(name: str) -> None:
    with pytest.raises(RenderError, match="no namespaces"):
        parse_uri(name).libvirt_source(BESIDE)


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
names = text.filter(bool)
hosts = st.from_regex(r"[A-Za-z0-9_.-]{3,20}", fullmatch=True).filter(lambda host: host != "any") | st.ip_addresses(
    v=6
).map(str)
option_names = st.sampled_from(["keyring", "rados_osd_op_timeout", "rbd_cache_size", "x", "log_file", "debug_rbd"])
values = names.filter(lambda value: value == value.strip(" \t\v\f") and not set(value) & set("\r\n"))
secrets = st.binary(min_size=1, max_size=40).map(lambda data: Secret(base64.b64encode(data).decode()))


@st.composite
def rbd_locations(draw: st.DrawFn) -> RbdLocation:
    options = draw(st.dictionaries(option_names, values, max_size=3))
    user = st.from_regex(r"[A-Za-z0-9._-]{0,12}", fullmatch=True)
    conf = st.just("") | st.from_regex(r"/[A-Za-z0-9/_ -]{0,12}[a-z]", fullmatch=True)
    return RbdLocation(
        pool=draw(names),
        image=draw(names),
        namespace=draw(text),
        snapshot=draw(text),
        user=draw(user if options else text),
        conf=draw(conf if options else text),
        key=draw(st.none() | secrets),
        monitors=tuple(draw(st.lists(st.builds(Monitor, host=hosts, port=st.integers(1, 65535)), max_size=3))),
        auth=draw(st.sampled_from([(), ("cephx",), ("none",), ("cephx", "none"), ("none", "cephx")])),
        options=tuple(sorted(options.items())),
    )


@given(location=rbd_locations())
def test_an_rbd_location_survives_being_written_as_a_uri(location: RbdLocation) -> None:
    assert parse_uri(location.uri(reveal=True)) == location
    assert parse_uri(location.reported.uri()) == location.reported
    assert parse_filename("rbd", _as_reported(location)) == location.reported
    if location.key is not None:
        assert location.with_secrets({}).without_secrets().key is None


@given(location=rbd_locations())
def test_the_files_of_an_image_hold_one_section_and_whole_lines(location: RbdLocation) -> None:
    needs = location.needs(BESIDE)
    assert len(needs.files) == bool(location.options)
    for file in needs.files:
        assert file.text is not None
        head, *lines, end = file.text.reveal().split("\n")[1:]
        assert head == f"[client.{location.user or 'admin'}]"
        assert [line.partition(" = ")[0] for line in lines] == [name for name, _value in location.options]
        assert end == ""


starts = st.sampled_from(
    [
        "rbd:p/i:",
        "rbd:p/i:mon_host=",
        "rbd:p/i:auth_supported=",
        "rbd:p/i@s:keyring=",
        "rbd:p/i:conf=/c:x=",
        "rbd:p/i:key=",
    ]
)
pieces = st.lists(
    st.sampled_from(
        ["\\", ":", ";", ",", "=", "@", "/", " ", "#", '"', "[", "]", "::1", "id=", "conf=/c", "v2", "cephx"]
    )
).map("".join)


@given(uri=st.builds(str.__add__, starts, st.text() | pieces))
def test_any_text_that_begins_like_an_rbd_uri_is_a_location_or_an_input_error(uri: str) -> None:
    try:
        location = parse_uri(uri)
    except InputError as error:
        str(error).encode()
        return
    assert parse_uri(location.uri(reveal=True)) == location


@given(secret=st.from_regex(r"[A-Za-z0-9+/!é]{12}[A-Za-z0-9+/!@:,=;\\é -]{0,20}", fullmatch=True), more=pieces)
def test_no_error_shows_a_key_that_cannot_be_right(secret: str, more: str) -> None:
    try:
        shown = repr(parse_uri(f"rbd:p/i:key={secret}!{more}"))
    except InputError as error:
        shown = str(error)
    assert re.split("[:@,=; ]", secret)[0] not in shown
