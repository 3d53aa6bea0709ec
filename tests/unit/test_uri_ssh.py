from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.uri import masked, parse_filename, parse_uri
from hvext.core.uri.location import Companions, Needs
from hvext.core.uri.ssh import CheckMode, HashType, HostKeyCheck, SshLocation
from hvext.errors import InputError, LocationError, RenderError

MD5 = "0123456789abcdef" * 2
SHA1 = "0123456789" * 4
SHA256 = "0123456789abcdef" * 4


def ssh(path: str = "/p", **more: object) -> SshLocation:
    return SshLocation(**{"host": "h", "path": path, **more})  # type: ignore[arg-type]


def hashed(kind: HashType, fingerprint: str) -> HostKeyCheck:
    return HostKeyCheck(mode=CheckMode.HASH, hash_type=kind, fingerprint=fingerprint)


NO = HostKeyCheck(mode=CheckMode.NONE)
YES = HostKeyCheck(mode=CheckMode.KNOWN_HOSTS)
VALID: dict[str, SshLocation] = {
    "ssh://h/p": ssh(),
    "ssh://h/": ssh("/"),
    "ssh://h//p": ssh("//p"),
    "ssh://h:22/p": ssh(),
    "ssh://h:/p": ssh(),
    "ssh://h:2222/a/b": ssh("/a/b", port=2222),
    "ssh://[::1]/p": ssh(host="::1"),
    "ssh://[fe80::7%25eth0]:5/p": ssh(host="fe80::7%eth0", port=5),
    "ssh://[fe80::7%eth0]/p": ssh(host="fe80::7%eth0"),
    "ssh://u@h/p": ssh(user="u"),
    "ssh://@h/p": ssh(),
    "ssh://a%40b%20c@h/p": ssh(user="a@b c"),
    "ssh://h/%C3%A9%20%3F%23%2Fa%2525+:@": ssh("/é ?#/a%25+:@"),
    "ssh://h/~/p": ssh("/~/p"),
    "ssh://h/p?host_key_check=no": ssh(host_key_check=NO),
    "ssh://h/p?host_key_check=yes": ssh(host_key_check=YES),
    f"ssh://h/p?host_key_check=md5:{MD5}": ssh(host_key_check=hashed(HashType.MD5, MD5)),
    f"ssh://h/p?host_key_check=sha1:{SHA1}": ssh(host_key_check=hashed(HashType.SHA1, SHA1)),
    f"ssh://h/p?host_key_check=sha256%3A{SHA256.upper()}": ssh(host_key_check=hashed(HashType.SHA256, SHA256)),
    "ssh://h/p?host_key_check=md5:" + ":".join(["aB"] * 16): ssh(host_key_check=hashed(HashType.MD5, "ab" * 16)),
    'json:{"driver":"ssh","server":{"host":"::1"},"path":"/p"}': ssh(host="::1"),
    'json:{"driver":"ssh","server.host":"h","server.port":"23","path":"/p","user":"u","host-key-check.mode":"none"}': (
        ssh(port=23, user="u", host_key_check=NO)
    ),
    'json:{"driver":"ssh","server":{"host":"h","port":22},"path":"/p","host-key-check":{"mode":"hash","type":"sha1",'
    f'"hash":"{SHA1}"}}}}': ssh(host_key_check=hashed(HashType.SHA1, SHA1)),
}


@pytest.mark.parametrize("uri", VALID)
def test_a_uri_is_read_as_qemu_reads_it(uri: str) -> None:
    assert parse_uri(uri) == VALID[uri]
    assert parse_uri(VALID[uri].uri()) == VALID[uri]


INVALID: dict[str, str] = {
    "ssh:h/p": "must start with ssh://",
    "ssh://": "names no host",
    "ssh:///p": "names no host",
    "ssh://u@/p": "names no host",
    "ssh://h": "names no path",
    "ssh://h?host_key_check=no": "names no path",
    "ssh://h:0/p": "port 0",
    "ssh://h:x/p": "not HOST[:PORT]",
    "ssh://u:pw@h/p": "has a password, and QEMU takes none",
    "ssh://u%3Apw@h/p": "SSH_AUTH_SOCK",
    "ssh://a%2Fb@h/p": "':' or '/' in it",
    "ssh://a@b@h/p": "'@' in front of its host more than once",
    "ssh://h/a b": "write it as %20",
    "ssh://h/p#f": "fragment '#f'",
    "ssh://h/a%00": "NUL",
    "ssh://h/%ff": "UTF-8",
    "ssh://h/p?mode=ro": "'mode'",
    "ssh://h/p?host_key_check=no&mode=ro": "'mode'",
    "ssh://h/p?host_key_check=no;mode=ro": "'mode'",
    "ssh://h/p?host_key_check=no&host_key_check=no": "twice",
    "ssh://h/p?host_key_check=maybe": "host_key_check='maybe'",
    "ssh://h/p?host_key_check=": "host_key_check=''",
    "ssh://h/p?host_key_check=sha512:00": "'sha512:00'",
    "ssh://h/p?host_key_check=md5:": "32 hexadecimal digits",
    "ssh://h/p?host_key_check=sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=": "no base64",
    'json:{"driver":"ssh","path":"/p"}': "needs server",
    'json:{"driver":"ssh","server":{"port":"22"},"path":"/p"}': "server.host is missing",
    'json:{"driver":"ssh","server":{"host":"h","ipv4":true},"path":"/p"}': "'server.ipv4'",
    'json:{"driver":"ssh","server":{"host":"h"}}': "path is missing",
    'json:{"driver":"ssh","server":{"host":"h"},"path":"p"}': "'p' is not absolute",
    'json:{"driver":"ssh","server":{"host":"h"},"path":"/p","host-key-check":{}}': "host-key-check.mode is missing",
    'json:{"driver":"ssh","server":{"host":"h"},"path":"/p","host-key-check":{"mode":"hash"}}': "needs its type",
    'json:{"driver":"ssh","server":{"host":"h"},"path":"/p","host-key-check":{"mode":"none","hash":"00"}}': (
        "takes no fingerprint"
    ),
    'json:{"driver":"ssh","server":{"host":"h"},"path":"/p","host_key_check":"no"}': "'host_key_check'",
}


@pytest.mark.parametrize("uri", INVALID)
def test_a_uri_that_cannot_be_read_is_refused_with_the_part_that_is_wrong(uri: str) -> None:
    with pytest.raises(LocationError) as caught:
        parse_uri(uri)
    assert INVALID[uri] in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    ["ssh://u:s3cret@h/p", "ssh://u:s3cret/s3cret@h/p", "ssh://u:s3cret#s3cret@h/p", "ssh://u:s3cret@h:x/p"],
)
def test_a_password_that_somebody_wrote_all_the_same_is_not_shown(uri: str) -> None:
    with pytest.raises(LocationError) as caught:
        parse_uri(uri)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in masked(uri)


def test_what_the_driver_is_told_is_what_the_location_says() -> None:
    assert ssh(host="::1").blockdev() == {"server": {"host": "::1", "port": "22"}, "path": "/p"}
    assert ssh(user="u", port=5, host_key_check=hashed(HashType.MD5, MD5)).blockdev() == {
        "server": {"host": "h", "port": "5"},
        "path": "/p",
        "user": "u",
        "host-key-check": {"mode": "hash", "type": "md5", "hash": MD5},
    }
    assert ssh(host_key_check=YES).blockdev()["host-key-check"] == {"mode": "known_hosts"}
    assert ssh().needs(Companions()) == Needs()
    assert f"sha256:{SHA256}" in masked(ssh(host_key_check=hashed(HashType.SHA256, SHA256)).uri())


@pytest.mark.parametrize(
    ("filename", "location"),
    [
        ("ssh://root@h:22/p", ssh(user="root")),
        ("ssh://a@b@::1:5/a b?c#d%20@x:1/y", ssh("/a b?c#d%20@x:1/y", user="a@b", host="::1", port=5)),
        ("ssh://root@fe80::1%eth0:22/p", ssh(user="root", host="fe80::1%eth0")),
        ("ssh://root@h:22/p?host_key_check=no", None),
        ("ssh://h:22/p", None),
        ("ssh://root@h:22p", None),
        ("ssh://root@h:99999/p", None),
        ("", None),
    ],
)
def test_an_open_node_is_recognised_by_what_qemu_reports(filename: str, location: SshLocation | None) -> None:
    assert parse_filename("ssh", filename) == location


def test_the_check_of_the_host_key_is_not_among_what_qemu_reports() -> None:
    assert ssh(user="u", host_key_check=NO).reported == ssh(user="u")


def test_libvirt_has_no_ssh() -> None:
    with pytest.raises(RenderError, match="a disk behind SSH"):
        ssh().libvirt_source()


some_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
tricky = st.lists(st.sampled_from(["/", "?", "#", "%", "%2F", ":", "@", "&", "=", "+", " ", "é", "[", "]"])).map(
    "".join
)
users = (some_text | tricky).map(lambda text: text.replace("/", "").replace(":", ""))
hosts = st.sampled_from(["h", "192.0.2.1", "a.b_c-d", "fe80::1%eth0", "fe80::1%25"]) | st.ip_addresses(v=6).map(str)
checks = st.sampled_from(
    [None, NO, YES, hashed(HashType.MD5, MD5), hashed(HashType.SHA1, SHA1), hashed(HashType.SHA256, SHA256)]
)
locations = st.builds(
    SshLocation,
    host=hosts,
    path=(some_text | tricky).map(lambda text: f"/{text}"),
    port=st.integers(1, 65535),
    user=users,
    host_key_check=checks,
)


@given(location=locations)
def test_a_location_survives_being_written_as_a_uri(location: SshLocation) -> None:
    assert parse_uri(location.uri()) == location


@given(location=locations.filter(lambda location: bool(location.user)))
def test_what_qemu_reports_is_read_as_the_same_location_or_as_none(location: SshLocation) -> None:
    filename = f"ssh://{location.user}@{location.host}:{location.port}{location.path}"
    assert parse_filename("ssh", filename) in (location.reported, None)


@given(
    uri=st.builds(
        str.__add__, st.sampled_from(["ssh:", "ssh://", "ssh://h/", "ssh://h/p?host_key_check="]), some_text | tricky
    )
)
def test_any_text_is_a_location_or_an_input_error(uri: str) -> None:
    try:
        location = parse_uri(uri)
    except InputError as error:
        str(error).encode()
        return
    assert parse_uri(location.uri()) == location
