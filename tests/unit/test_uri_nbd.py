from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.uri import parse_filename, parse_uri
from hvext.core.uri.location import Companions, PrivateFile
from hvext.core.uri.nbd import NbdLocation, TcpServer, UnixServer, VsockServer
from hvext.core.uri.nbd_tls import CERTIFICATES, Certificates, PresharedKey, Tls
from hvext.core.uri.syntax import SOCKET_PATH_BYTES
from hvext.errors import InputError, LocationError, RenderError

BESIDE = Companions(node="hv-1", folder="/run/private")
TCP = TcpServer(host="h")
UNIX = UnixServer(path="/run/s")


def nbd(server: TcpServer | UnixServer | VsockServer = TCP, export: str = "e", **more: object) -> NbdLocation:
    return NbdLocation(server=server, export=export, **more)  # type: ignore[arg-type]


def x509(**more: object) -> Certificates:
    return Certificates(**more)  # type: ignore[arg-type]


VALID: dict[str, NbdLocation] = {
    "nbds://h/e": nbd(tls=x509()),
    "nbds://h:1/e": nbd(TcpServer(host="h", port=1), tls=x509()),
    "nbds://[::1]/e": nbd(TcpServer(host="::1"), tls=x509()),
    "nbds://h/e?tls-certificates=/etc/pki/qemu": nbd(tls=x509()),
    "nbds://h/e?tls-certificates=/etc/my%20pki": nbd(tls=x509(folder="/etc/my pki")),
    "nbds://h/e?tls-hostname=other.example": nbd(tls=x509(hostname="other.example")),
    "nbds://h/e?tls-verify-peer=0": nbd(tls=x509(verify=False)),
    "nbds://h/e?tls-verify-peer=false&tls-type=x509": nbd(tls=x509(verify=False)),
    "nbds://h/e?tls-verify-peer=1": nbd(tls=x509()),
    "nbds://alice@h/e?tls-psk-file=/etc/keys": nbd(tls=PresharedKey(file="/etc/keys", user="alice")),
    "nbds://a%40b@h/e?tls-type=psk&tls-psk-file=/k": nbd(tls=PresharedKey(file="/k", user="a@b")),
    "nbds://h/e?tls-psk-file=/k/keys.psk": nbd(tls=PresharedKey(file="/k/keys.psk")),
    "nbds+unix:///e?socket=/run/s&tls-hostname=h": nbd(UNIX, tls=x509(hostname="h")),
    "nbds+unix:///e?tls-hostname=h;socket=/run/s": nbd(UNIX, tls=x509(hostname="h")),
    "nbds+unix:///e?socket=/run/s&tls-verify-peer=0": nbd(UNIX, tls=x509(verify=False)),
    "nbds+unix://alice@/e?socket=/run/s&tls-psk-file=/k": nbd(UNIX, tls=PresharedKey(file="/k", user="alice")),
    "nbd+vsock://2": nbd(VsockServer(cid=2), ""),
    "nbd+vsock://3:10810/e": nbd(VsockServer(cid=3, port=10810)),
    "nbd+vsock://4294967295:4294967295/e": nbd(VsockServer(cid=(1 << 32) - 1, port=(1 << 32) - 1)),
    "nbds+vsock://3/e?tls-hostname=h": nbd(VsockServer(cid=3), tls=x509(hostname="h")),
    "nbd://h/e?reconnect-delay=10": nbd(reconnect_delay_s=10),
    "nbd+tcp://h/e?reconnect-delay=10&open-timeout=5": nbd(reconnect_delay_s=10, open_timeout_s=5),
    "nbd://h/e?reconnect-delay=0": nbd(),
    "nbd+unix:///e?&socket=/run/s&": nbd(UNIX),
    "nbd+unix:///e?socket=/run/s&open-timeout=4294967295": nbd(UNIX, open_timeout_s=(1 << 32) - 1),
    "nbds://h/e?reconnect-delay=1": nbd(tls=x509(), reconnect_delay_s=1),
    'json:{"driver":"nbd","server":{"type":"inet","host":"h","port":"10809"},"export":"e"}': nbd(),
    'json:{"driver":"nbd","server.type":"inet","server.host":"::1","server.port":"1"}': nbd(
        TcpServer(host="::1", port=1), ""
    ),
    'json:{"driver":"nbd","server":{"type":"unix","path":"/run/s"},"reconnect-delay":5,"open-timeout":"6"}': nbd(
        UNIX, "", reconnect_delay_s=5, open_timeout_s=6
    ),
    'json:{"driver":"nbd","server":{"type":"vsock","cid":"2","port":"7"}}': nbd(VsockServer(cid=2, port=7), ""),
    'json:{"driver":"nbd","host":"h","export":"e"}': nbd(),
    'json:{"driver":"nbd","host":"h","port":"1"}': nbd(TcpServer(host="h", port=1), ""),
    'json:{"driver":"nbd","path":"/run/s"}': nbd(UNIX, ""),
}


@pytest.mark.parametrize("uri", VALID, ids=[uri[:60] for uri in VALID])
def test_an_nbd_uri_becomes_options_of_the_nbd_driver(uri: str) -> None:
    location = parse_uri(uri)
    assert location == VALID[uri]
    assert parse_uri(location.uri(reveal=True)) == location


#: Text that cannot be read, and words of the error that name the wrong part.
INVALID: dict[str, str] = {
    "nbd://h/e?tls-certificates=/x": "TLS needs nbds",
    "nbd://alice@h/e": "NBD without TLS knows no users",
    "nbd://h/e?reconnect_delay=1": "'reconnect_delay'",
    "nbd://h/e?reconnect-delay=x": "reconnect-delay='x'",
    "nbd://h/e?reconnect-delay=": "reconnect-delay=''",
    "nbd://h/e?reconnect-delay=-1": "reconnect-delay='-1'",
    "nbd://h/e?open-timeout=4294967296": "not between 0 and 4294967295",
    "nbd://h/e?open-timeout=1&open-timeout=2": "twice",
    "nbd+unix:///e?socket=/s&socket=/t": "twice",
    "nbd:h:1:exportname=e?reconnect-delay=1": "",
    "nbds:h:1": "must start with nbds://",
    "nbds:///e": "names no host",
    "nbds://alice:hunter2@h/e?tls-psk-file=/k": "knows no passwords",
    "nbds://alice@h/e": "without tls-psk-file",
    "nbds://h/e?tls-type=psk": "without tls-psk-file",
    "nbds://h/e?tls-type=anon": "tls-type 'anon'",
    "nbds://h/e?tls-type=x509&tls-psk-file=/k": "tls-psk-file with tls-type=x509",
    "nbds://h/e?tls-psk-file=keys": "'keys' is not an absolute path",
    "nbds://h/e?tls-psk-file=": "'' is not an absolute path",
    "nbds://a%3Ab@h/e?tls-psk-file=/k": "USER:KEY",
    "nbds://a%0Ab@h/e?tls-psk-file=/k": "USER:KEY",
    "nbds://h/e?tls-psk-file=/k&tls-hostname=h": "tls-hostname",
    "nbds://h/e?tls-psk-file=/k&tls-certificates=/c": "tls-certificates",
    "nbds://h/e?tls-certificates=pki": "'pki' is not an absolute path",
    "nbds://h/e?tls-certificates=": "empty tls-certificates=",
    "nbds://h/e?tls-hostname=": "empty tls-hostname=",
    "nbds://h/e?tls-hostname=a%20b": "'a b' is neither a host name",
    "nbds://h/e?tls-verify-peer=maybe": "tls-verify-peer='maybe'",
    "nbds://h/e?tls-creds=x": "'tls-creds'",
    "nbds+unix:///e?tls-hostname=h": "socket=PATH",
    "nbds://h/e?tls-hostnam=h": "did you mean tls-hostname=?",
    "nbds+unix:///e?socket=/s": "tls-hostname=NAME",
    "nbds+unix://h/e?socket=/s": "write nbds+unix:///EXPORT",
    "nbds+vsock://2/e": "tls-hostname=NAME",
    "nbd+vsock:///e": "not CID[:PORT]",
    "nbd+vsock://host/e": "not CID[:PORT]",
    "nbd+vsock://4294967296/e": "context id 4294967296",
    "nbd+vsock://2:0/e": "port 0",
    "nbd+vsock://2/e?socket=/s": "without +unix",
    'json:{"driver":"nbd"}': "needs server",
    'json:{"driver":"nbd","port":"1"}': "needs server",
    'json:{"driver":"nbd","host":"h","path":"/s"}': "needs server",
    'json:{"driver":"nbd","server":{"type":"unix","path":"/s"},"host":"h"}': "host as well",
    'json:{"driver":"nbd","server":{"type":"fd","str":"3"}}': "'fd' is not taken",
    'json:{"driver":"nbd","server":{"type":"inet","host":"h","port":"1","to":9}}': "server.to is not taken",
    'json:{"driver":"nbd","server":{"type":"inet","host":"h","port":"1","ipv4":true}}': "server.ipv4",
    'json:{"driver":"nbd","server":{"type":"unix","path":"/s","abstract":true}}': "server.abstract",
    'json:{"driver":"nbd","server":{"type":"inet","host":"h"}}': "server.port is missing",
    'json:{"driver":"nbd","server":{"type":"unix","path":"/s"},"tls-creds":"t"}': "write nbds://",
    'json:{"driver":"nbd","server":{"type":"unix","path":"/s"},"tls-hostname":"t"}': "write nbds://",
    'json:{"driver":"nbd","server":{"type":"unix","path":"/s"},"reconnect-delay":4294967296}': "reconnect-delay",
    'json:{"driver":"nbd","server":{"type":"unix","path":"/s"},"x-dirty-bitmap":"b"}': "x-dirty-bitmap",
    'json:{"driver":"nbd","server":{"type":"unix","path":"/s"},"read-only":true}': "the disk's options",
}


@pytest.mark.parametrize("uri", [uri for uri in INVALID if INVALID[uri]], ids=repr)
def test_an_nbd_uri_that_cannot_be_right_is_refused_with_the_part_that_is_wrong(uri: str) -> None:
    with pytest.raises(LocationError) as caught:
        parse_uri(uri)
    assert INVALID[uri] in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_query_behind_a_colon_form_is_part_of_the_export_as_for_qemu() -> None:
    assert parse_uri("nbd:h:1:exportname=e?reconnect-delay=1") == nbd(
        TcpServer(host="h", port=1), "e?reconnect-delay=1"
    )


def test_certificates_become_a_credentials_object_that_the_node_names() -> None:
    location = parse_uri("nbds://h/e?tls-certificates=/etc/pki/x&tls-hostname=n&reconnect-delay=3&open-timeout=4")
    assert location.blockdev(BESIDE) == {
        "server": {"type": "inet", "host": "h", "port": "10809"},
        "export": "e",
        "tls-creds": "hv-1-tls",
        "tls-hostname": "n",
        "reconnect-delay": 3,
        "open-timeout": 4,
    }
    assert location.needs(BESIDE).objects == (
        {"qom-type": "tls-creds-x509", "id": "hv-1-tls", "endpoint": "client", "dir": "/etc/pki/x"},
    )
    assert location.needs(BESIDE).files == ()


def test_a_certificate_is_verified_unless_the_uri_says_otherwise() -> None:
    (plain,) = parse_uri("nbds://h/e").needs(BESIDE).objects
    (lax,) = parse_uri("nbds://h/e?tls-verify-peer=0").needs(BESIDE).objects
    assert plain == {"qom-type": "tls-creds-x509", "id": "hv-1-tls", "endpoint": "client", "dir": CERTIFICATES}
    assert lax == plain | {"verify-peer": False}


def test_a_file_of_keys_gets_the_one_name_that_qemu_looks_for() -> None:
    needs = parse_uri("nbds://alice@h/e?tls-psk-file=/etc/my.keys").needs(BESIDE)
    (credentials,) = needs.objects
    assert credentials == {
        "qom-type": "tls-creds-psk",
        "id": "hv-1-tls",
        "endpoint": "client",
        "dir": "/run/private/hv-1-tls",
        "username": "alice",
    }
    assert needs.files == (PrivateFile(path="/run/private/hv-1-tls/keys.psk", link="/etc/my.keys"),)


@pytest.mark.parametrize(("file", "folder"), [("/etc/nbd/keys.psk", "/etc/nbd"), ("/keys.psk", "/")])
def test_a_file_of_keys_that_has_the_name_already_is_used_where_it_is(file: str, folder: str) -> None:
    needs = parse_uri(f"nbds://h/e?tls-psk-file={file}").needs(BESIDE)
    assert needs.files == ()
    assert needs.objects == ({"qom-type": "tls-creds-psk", "id": "hv-1-tls", "endpoint": "client", "dir": folder},)


def test_a_plain_location_needs_nothing_and_says_nothing_of_tls() -> None:
    location = parse_uri("nbd+vsock://2:5/e")
    assert not location.needs(BESIDE).objects
    assert location.blockdev(BESIDE) == {"server": {"type": "vsock", "cid": "2", "port": "5"}, "export": "e"}


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("nbds://h:7/e?tls-certificates=/x&reconnect-delay=3", "nbd://h:7/e"),
        ("nbds+unix:///e?socket=/run/s&tls-psk-file=/k&open-timeout=3", "nbd+unix:///e?socket=/run/s"),
        (
            "nbds+vsock://2:7/e?tls-hostname=h",
            'json:{"server.type": "vsock", "driver": "nbd", "server.cid": "2", "export": "e", "server.port": "7", '
            '"tls-creds": "hv-1-tls", "tls-hostname": "h"}',
        ),
    ],
)
def test_what_qemu_shows_of_an_open_node_is_recognised(uri: str, shown: str) -> None:
    location = parse_uri(uri)
    assert parse_filename("nbd", shown) == location.reported
    assert location.reported != location


@pytest.mark.parametrize(
    ("uri", "attributes", "children"),
    [
        ("nbds://h/e", {"tls": "yes"}, [("host", {"name": "h", "port": "10809"})]),
        (
            "nbds+unix:///e?socket=/run/s&tls-hostname=n",
            {"tls": "yes", "tlsHostname": "n"},
            [("host", {"transport": "unix", "socket": "/run/s"})],
        ),
        (
            "nbd://h/e?reconnect-delay=9",
            {},
            [("host", {"name": "h", "port": "10809"}), ("reconnect", {"delay": "9"})],
        ),
    ],
)
def test_libvirt_is_told_of_tls_and_reconnecting(
    uri: str, attributes: dict[str, str], children: list[tuple[str, dict[str, str]]]
) -> None:
    source = parse_uri(uri).libvirt_source(BESIDE)
    assert source.disk_type == "network"
    assert source.element.attrib == {"protocol": "nbd", "name": "e", **attributes}
    assert [(child.tag, child.attrib) for child in source.element] == children


@pytest.mark.parametrize(
    ("uri", "feature"),
    [
        ("nbd+vsock://2/e", "AF_VSOCK"),
        ("nbd://h/e?open-timeout=1", "open-timeout"),
        ("nbds://h/e?tls-psk-file=/k", "pre-shared key"),
        ("nbds://h/e?tls-verify-peer=0", "not verified"),
        ("nbds://h/e?tls-certificates=/etc/other", "which folder has the TLS certificates (/etc/other)"),
    ],
)
def test_what_libvirt_cannot_say_of_nbd_is_named(uri: str, feature: str) -> None:
    with pytest.raises(RenderError) as caught:
        parse_uri(uri).libvirt_source(BESIDE)
    assert feature in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("seconds", [-1, 1 << 32])
def test_a_delay_that_qemu_could_not_hold_is_refused(seconds: int) -> None:
    with pytest.raises(LocationError, match="reconnect-delay"):
        nbd(reconnect_delay_s=seconds)


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
paths = text.map(lambda name: f"/{name}")
hosts = st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True) | st.ip_addresses(v=6).map(str)
tcp_servers = st.builds(TcpServer, host=hosts, port=st.integers(1, 65535))
other_servers = st.builds(
    UnixServer, path=paths.filter(lambda path: len(path.encode()) <= SOCKET_PATH_BYTES)
) | st.builds(VsockServer, cid=st.integers(0, (1 << 32) - 1), port=st.integers(1, (1 << 32) - 1))
keys = st.builds(PresharedKey, file=paths, user=text.filter(lambda user: not set(user) & set(":\r\n")))
named = st.builds(Certificates, folder=paths, hostname=hosts, verify=st.booleans())
delays = st.just(0) | st.integers(0, (1 << 32) - 1)


@st.composite
def nbd_locations(draw: st.DrawFn) -> NbdLocation:
    server = draw(tcp_servers | other_servers)
    unnamed: st.SearchStrategy[Tls] = st.builds(Certificates, folder=paths, verify=st.booleans())
    ways = [st.none(), keys, named, *([unnamed] if isinstance(server, TcpServer) else [])]
    return NbdLocation(
        server=server,
        export=draw(text),
        tls=draw(st.one_of(ways)),
        reconnect_delay_s=draw(delays),
        open_timeout_s=draw(delays),
    )


@given(location=nbd_locations())
def test_an_nbd_location_survives_being_written_as_a_uri(location: NbdLocation) -> None:
    assert parse_uri(location.uri(reveal=True)) == location
    json.dumps(location.blockdev(BESIDE))
    assert parse_uri(location.reported.uri()) == location.reported


@given(location=nbd_locations())
def test_the_objects_and_files_of_nbd_are_those_that_the_node_names(location: NbdLocation) -> None:
    node, needs = location.blockdev(BESIDE), location.needs(BESIDE)
    assert {name for name in node if name.startswith("tls-")} <= {"tls-creds", "tls-hostname"}
    assert [item["id"] for item in needs.objects] == [node[name] for name in node if name == "tls-creds"]
    assert all(file.path.startswith("/run/private/hv-1-") for file in needs.files)


starts = st.sampled_from(
    [
        *("nbds://", "nbds://h/e?", "nbds+unix:///?socket=/s&", "nbd+vsock://", "nbds://u@h/e?tls-psk-file="),
        *("nbd://h/e?reconnect-delay=", "nbds://h?tls-hostname=", 'json:{"driver":"nbd",', "nbds://h?tls-type=psk&"),
    ]
)
pieces = st.lists(
    st.sampled_from(
        ["tls-hostname=h", "tls-certificates=/c", "tls-psk-file=/k", "&", ";", "=", "%", "%41", "/", "@", ":"]
    )
).map("".join)


@given(uri=st.builds(str.__add__, starts, st.text() | pieces))
def test_any_text_that_begins_like_an_nbd_uri_is_a_location_or_an_input_error(uri: str) -> None:
    try:
        location = parse_uri(uri)
    except InputError as error:
        str(error).encode()
        return
    assert parse_uri(location.uri(reveal=True)) == location


@given(
    options=st.dictionaries(
        st.sampled_from(["server", "host", "path", "port", "export"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
    )
)
def test_any_description_of_an_nbd_node_is_a_location_or_an_input_error(options: dict[str, object]) -> None:
    try:
        location = parse_uri("json:" + json.dumps({"driver": "nbd", **options}))
    except InputError as error:
        str(error).encode()
        return
    assert parse_uri(location.uri()) == location
