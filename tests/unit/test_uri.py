from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.options import DetectZeroes
from hvext.core.running import Node
from hvext.core.uri import FileLocation, Location, Opened, parse_filename, parse_uri
from hvext.core.uri.nbd import EXPORT_BYTES, NbdLocation, TcpServer, UnixServer
from hvext.core.uri.rbd import RbdLocation
from hvext.core.uri.syntax import SOCKET_PATH_BYTES
from hvext.errors import InputError, LocationError, UnsupportedLocation


def unix(path: str, export: str = "") -> NbdLocation:
    return NbdLocation(server=UnixServer(path=path), export=export)


def tcp(host: str, port: int = 10809, export: str = "") -> NbdLocation:
    return NbdLocation(server=TcpServer(host=host, port=port), export=export)


def shown_by_qemu(location: NbdLocation | FileLocation) -> str:
    """What QEMU reports as ``file`` of a node at a location: nothing in it is encoded."""
    if isinstance(location, FileLocation):
        return location.path
    export = f"/{location.export}" if location.export else ""
    if isinstance(location.server, UnixServer):
        return f"nbd+unix://{export}?socket={location.server.path}"
    assert isinstance(location.server, TcpServer)
    return f"nbd://{location.server.host}:{location.server.port}{export}"


def rbd(pool: str, image: str, **more: str) -> RbdLocation:
    return RbdLocation(pool=pool, image=image, **more)


def file(path: str) -> FileLocation:
    return FileLocation(path=path, opened=Opened.FILE)


def device(path: str) -> FileLocation:
    return FileLocation(path=path, opened=Opened.HOST_DEVICE)


VALID: dict[str, Location] = {
    "nbd://h": tcp("h"),
    "nbd://h/": tcp("h"),
    "nbd://h:/e": tcp("h", export="e"),
    "nbd://h:1/e": tcp("h", 1, "e"),
    "nbd+tcp://h:65535/e": tcp("h", 65535, "e"),
    "nbd://192.0.2.1:10809/e": tcp("192.0.2.1", export="e"),
    "nbd://[::1]": tcp("::1"),
    "nbd://[2001:db8::1]:5/a/b": tcp("2001:db8::1", 5, "a/b"),
    "nbd://[fe80::1%eth0]:5": tcp("fe80::1%eth0", 5),
    "nbd://h//e": tcp("h", export="/e"),
    "nbd://h/%2Fe": tcp("h", export="/e"),
    "nbd://h/a%2fb": tcp("h", export="a/b"),
    "nbd://h/a%252Fb": tcp("h", export="a%2Fb"),
    "nbd://h/%C3%A9%20+": tcp("h", export="é +"),
    "nbd://h/a:b@c,d;e=f&g": tcp("h", export="a:b@c,d;e=f&g"),
    "nbd://my_host.example-1": tcp("my_host.example-1"),
    "nbd+unix:///e?socket=/run/s": unix("/run/s", "e"),
    "nbd+unix:///?socket=/run/s": unix("/run/s"),
    "nbd+unix://?socket=/run/s": unix("/run/s"),
    "nbd+unix:////e?socket=/run/s": unix("/run/s", "/e"),
    "nbd+unix:///e?socket=/run/a%20b%26c+d": unix("/run/a b&c+d", "e"),
    "nbd+unix:///e?socket=/run/%C3%A9?x=y": unix("/run/é?x=y", "e"),
    "nbd:h:1": tcp("h", 1),
    "nbd:h:1:exportname=e": tcp("h", 1, "e"),
    "nbd:[::1]:1:exportname=e": tcp("::1", 1, "e"),
    "nbd:h:1:exportname=a%2Fb:exportname=c": tcp("h", 1, "a%2Fb:exportname=c"),
    "nbd:unix:/run/s": unix("/run/s"),
    "nbd:unix:/run/a%20b,c?d#e:exportname=/f g": unix("/run/a%20b,c?d#e", "/f g"),
    "nbd:unix:/run/exportname=x": unix("/run/exportname=x"),
    "/srv/disk": file("/srv/disk"),
    "/srv/nbd://h": file("/srv/nbd://h"),
    "/srv/%2F,é\n": file("/srv/%2F,é\n"),
    "//srv": file("//srv"),
    "/dev/sdb": device("/dev/sdb"),
    "/devices/x": file("/devices/x"),
    "file:/srv/disk": file("/srv/disk"),
    "file:///srv/disk": file("///srv/disk"),
    "file:/dev/sdb": device("/dev/sdb"),
    "file:/srv/a%20b?c#d": file("/srv/a%20b?c#d"),
    "host_device:/srv/link": device("/srv/link"),
    "/" + "a" * 10000: file("/" + "a" * 10000),
    "rbd:p/i": rbd("p", "i"),
    "rbd:p/n/i": rbd("p", "i", namespace="n"),
    "rbd:p/i@s": rbd("p", "i", snapshot="s"),
    "rbd:my-pool/My.Image:id=admin:conf=/etc/ceph/ceph.conf": rbd(
        "my-pool", "My.Image", user="admin", conf="/etc/ceph/ceph.conf"
    ),
    "rbd:p/i@s:conf=/etc/a@b": rbd("p", "i", snapshot="s", conf="/etc/a@b"),
    "rbd:p/i:conf=/etc/a\\@b": rbd("p", "i", conf="/etc/a@b"),
    "rbd:p\\/q/i\\@j\\:k\\\\": rbd("p/q", "i@j:k\\"),
    "rbd:p/i%2F": rbd("p", "i%2F"),
    "rbd:p/i:id=a:id=b": rbd("p", "i", user="b"),
    "rbd:p/i\\": rbd("p", "i\\"),
    "rbd:p/é b": rbd("p", "é b"),
}


@pytest.mark.parametrize("uri", VALID, ids=[uri[:50] for uri in VALID])
def test_a_uri_is_read_as_qemu_reads_it(uri: str) -> None:
    location = parse_uri(uri)
    assert location == VALID[uri]
    assert parse_uri(location.uri(reveal=True), look=lambda _: Opened(location.driver)) == location


#: Text that cannot be read, and words of the error that name the wrong part.
INVALID: dict[str, str] = {
    "": "'' is neither",
    "disk.img": "'disk.img' is neither",
    "./disk:1": "'./disk:1' is neither",
    "/srv/a\0b": "NUL",
    "nbd://h/a\0b": "NUL",
    "/srv/\udcff": "UTF-8",
    "nbd:": "HOST:PORT",
    "nbd:h": "'h' is not HOST:PORT",
    "nbd:h:": "port ''",
    "nbd:h:x": "port 'x'",
    "nbd:h:0": "port 0",
    "nbd:h:65536": "port 65536",
    "nbd:h:123456": "port '123456'",
    "nbd:h:-1": "port '-1'",
    "nbd:h:\u0661": "port '\u0661'",
    "nbd:h:1,ipv4": "options behind the port",
    "nbd:h:1:exportname=": "empty :exportname=",
    "nbd:a:b:1": "[::1]:10809",
    "nbd:::1:1": "[::1]:10809",
    "nbd::1": "host ''",
    "nbd:unix:": "socket path ''",
    "nbd:unix:s": "socket path 's' is not absolute",
    "nbd:unix:/" + "s" * SOCKET_PATH_BYTES: "has 108 bytes",
    "nbd+unix:/run/s": "must start with nbd+unix://",
    "nbd+tcp:h:1": "must start with nbd+tcp://",
    "nbd://": "names no host",
    "nbd:///e": "names no host",
    "nbd://:1/e": "names no host",
    "nbd://u@h/e": "user name",
    "nbd://u:p@h/e": "a part of it that is secret",
    "nbd://u:long-password@h/e": "user name",
    "nbd://h:x/e": "'h:x' is not HOST[:PORT]",
    "nbd://h:0/e": "port 0",
    "nbd://h:65536/e": "port 65536",
    "nbd://::1/e": "[::1]:10809",
    "nbd://[::1": "not HOST[:PORT]",
    "nbd://[]": "only an IPv6 address",
    "nbd://[h]/e": "only an IPv6 address",
    "nbd://[::g]/e": "'::g' is not an IPv6 address",
    "nbd://[::1%a%b]/e": "not an IPv6 address",
    "nbd://[::1%a,b]/e": "names no interface",
    "nbd://h é/e": "'h é' is neither a host name",
    "nbd://h%41/e": "'h%41' is neither",
    "nbd://h/e?socket=/run/s": "query 'socket=/run/s'",
    "nbd://h/e#f": "fragment '#f'",
    "nbd://h/a b": "' ' at character 2",
    "nbd://h/é": "write it as %C3%A9",
    "nbd://h/a%2": "'%' at character 2",
    "nbd://h/a%zz": "write it as %25",
    "nbd://h/%00": "NUL",
    "nbd://h/%ff": "does not decode to UTF-8",
    "nbd://h/" + "a" * (EXPORT_BYTES + 1): "longer than 4096 bytes",
    "nbd+unix:///e": "socket=PATH; got ''",
    "nbd+unix:///e?": "socket=PATH; got ''",
    "nbd+unix:///e?socket": "got 'socket'",
    "nbd+unix:///e?socket=": "got 'socket='",
    "nbd+unix:///e?path=/s": "got 'path=/s'",
    "nbd+unix:///": "socket=PATH; got '' (write nbd+unix:///EXPORT?socket=PATH)",
    "nbd+unix:///e?sokcet=/s": "got 'sokcet=/s'; did you mean socket=?",
    "nbd://h/e?reconnect-dely=3": "'reconnect-dely', which means nothing here; did you mean reconnect-delay=?",
    "nbd+unix:///e?socket=/s&x=y": "%26",
    "nbd+unix:///e?socket=/s;x": "%3B",
    "nbd+unix:///e?socket=s": "'s' is not absolute",
    "nbd+unix:///e?socket=/%00": "NUL",
    "nbd+unix:///e?socket=/s#f": "fragment '#f'",
    "nbd+unix://h/e?socket=/s": "host 'h'",
    "nbd+unix://run/s": "host 'run'",
    "nbd+unix:///e?socket=/" + "s" * SOCKET_PATH_BYTES: "has 108 bytes",
    "file:": "no path",
    "file:x": "'x' is not absolute",
    "host_device:sdb": "'sdb' is not absolute",
    "rbd:": "POOL[/NAMESPACE]/IMAGE",
    "rbd:pool": "POOL[/NAMESPACE]/IMAGE",
    "rbd:/i": "POOL[/NAMESPACE]/IMAGE",
    "rbd:p/": "POOL[/NAMESPACE]/IMAGE",
    "rbd:p//i": "POOL[/NAMESPACE]/IMAGE",
    "rbd:a/b/c/d": "POOL[/NAMESPACE]/IMAGE",
    "rbd://pool/image": "POOL[/NAMESPACE]/IMAGE[@SNAPSHOT] (write rbd:POOL/IMAGE, without //)",
    "rbd:p/i@": "POOL[/NAMESPACE]/IMAGE",
    "rbd:p/i@s@t": "POOL[/NAMESPACE]/IMAGE",
    "rbd:p/i:id": "option 'id' has no value",
    "rbd:p/i:id=": "option id has no value",
    "rbd:p/i:conf=/etc/a@b": "write \\@",
    "rbd:p/i:": "option '' has no value",
    "rbd:p/i\0": "NUL",
}


@pytest.mark.parametrize("uri", INVALID, ids=[repr(uri[:50]) for uri in INVALID])
def test_a_uri_that_cannot_be_read_is_refused_with_the_part_that_is_wrong(uri: str) -> None:
    with pytest.raises(LocationError) as caught:
        parse_uri(uri)
    assert INVALID[uri] in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ('json:{"driver":"qcow3"}', "json: driver 'qcow3' is not one that hvext opens"),
        ("sheepdog:vdi", "was removed in QEMU 6.0"),
        ("unix:/run/s", "QEMU knows no protocol 'unix'"),
        ("RBD:p/i", "write 'rbd'"),
        ("NBD+unix:///e?socket=/s", "write 'nbd+unix'"),
        ("kvm:rbd:p/i", "QEMU knows no protocol 'kvm'"),
        ("c:/x", "QEMU knows no protocol 'c'"),
    ],
)
def test_a_protocol_that_cannot_be_opened_is_named(uri: str, words: str) -> None:
    with pytest.raises(UnsupportedLocation) as caught:
        parse_uri(uri)
    assert words in str(caught.value)


def test_a_path_is_looked_at_when_that_is_possible_and_told_by_name_otherwise() -> None:
    assert parse_uri("/dev/shm/disk", look=lambda _: Opened.FILE) == file("/dev/shm/disk")
    assert parse_uri("/srv/disk", look=lambda _: Opened.HOST_DEVICE) == device("/srv/disk")
    assert parse_uri("file:/srv/disk", look=lambda _: Opened.HOST_DEVICE) == device("/srv/disk")
    assert parse_uri("host_device:/srv/disk", look=lambda _: Opened.FILE) == device("/srv/disk")


def test_the_longest_socket_path_and_export_name_are_taken() -> None:
    path = "/" + "s" * (SOCKET_PATH_BYTES - 1)
    export = "é" * (EXPORT_BYTES // 2)
    assert parse_uri(f"nbd:unix:{path}:exportname={export}") == unix(path, export)
    with pytest.raises(LocationError, match="longer than 4096"):
        unix(path, export + "é")


def test_what_a_driver_is_told_is_what_the_location_says() -> None:
    assert unix("/s", "e").blockdev() == {"server": {"type": "unix", "path": "/s"}, "export": "e"}
    assert tcp("::1", 5).blockdev() == {"server": {"type": "inet", "host": "::1", "port": "5"}}
    assert file("/a,b").blockdev() == {"filename": "/a,b"}
    assert rbd("p", "i", namespace="n", snapshot="s", user="u", conf="/c").blockdev() == {
        "pool": "p",
        "namespace": "n",
        "image": "i",
        "snapshot": "s",
        "conf": "/c",
        "user": "u",
    }
    assert rbd("p", "i").blockdev() == {"pool": "p", "image": "i"}


def _node(driver: str) -> Node:
    return Node(
        name="n",
        driver=driver,
        filename="",
        size_bytes=0,
        read_only=False,
        direct=True,
        no_flush=False,
        detect_zeroes=DetectZeroes.OFF,
    )


def test_only_local_files_take_an_aio_mode_and_only_nbd_cannot_see_storage_grow() -> None:
    locations = (file("/f"), device("/d"), rbd("p", "i"), tcp("h"), unix("/s"))
    assert [location.local_aio for location in locations] == [True, True, False, False, False]
    assert [_node(location.driver).grows_in_place for location in locations] == [True, True, True, False, False]


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
some_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
tricky = st.lists(
    st.sampled_from(
        ["/", "//", "?", "#", "%", "%2F", "%00", ":", "@", "\\", "&", ";", "=", "+", " ", "é", "socket=", "]"]
    )
).map("".join)
paths = (text | tricky).map(lambda name: f"/{name}")
socket_paths = paths.filter(lambda path: len(path.encode()) <= SOCKET_PATH_BYTES)
hosts = (
    st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True)
    | st.ip_addresses(v=4).map(str)
    | st.ip_addresses(v=6).map(str)
    | st.ip_addresses(v=6).map(lambda address: f"{address}%eth0.1")
)
servers = st.builds(UnixServer, path=socket_paths) | st.builds(TcpServer, host=hosts, port=st.integers(1, 65535))
nbd_locations = st.builds(NbdLocation, server=servers, export=text | tricky)
file_locations = st.builds(FileLocation, path=paths, opened=st.sampled_from(Opened))
names = some_text | tricky.filter(bool)
optional = st.just("") | names
rbd_locations = st.builds(
    RbdLocation, pool=names, image=names, namespace=optional, snapshot=optional, user=optional, conf=optional
)


@given(location=nbd_locations | rbd_locations)
def test_a_location_survives_being_written_as_a_uri(location: Location) -> None:
    assert parse_uri(location.uri()) == location


@given(location=file_locations)
def test_a_path_survives_being_written_as_a_uri(location: FileLocation) -> None:
    assert parse_uri(location.uri(), look=lambda _: location.opened) == location


@given(location=nbd_locations | file_locations)
def test_what_qemu_reports_is_read_as_the_same_location_or_as_none(location: NbdLocation | FileLocation) -> None:
    assert parse_filename(location.driver, shown_by_qemu(location)) in (location, None)


@given(
    location=st.builds(NbdLocation, server=servers, export=st.from_regex("[A-Za-z0-9/:,=% -]{0,30}", fullmatch=True))
)
def test_an_nbd_node_with_a_plain_name_is_recognised(location: NbdLocation) -> None:
    if shown_by_qemu(location).count("?socket=") <= 1:
        assert parse_filename("nbd", shown_by_qemu(location)) == location


@pytest.mark.parametrize(
    ("driver", "filename"),
    [
        ("nbd", 'json:{"driver": "nbd"}'),
        ("nbd", ""),
        ("nbd", "nbd+unix:///a?socket=/b?socket=/c"),
        ("nbd", "nbd+unix:///a?socket=relative"),
        ("nbd", "nbd://h:99999/e"),
        ("file", 'json:{"driver": "file"}'),
        ("file", ""),
        ("rbd", 'json:{"driver": "rbd"}'),
        ("raw", "/srv/disk"),
    ],
)
def test_a_report_that_does_not_tell_it_all_is_no_location(driver: str, filename: str) -> None:
    assert parse_filename(driver, filename) is None


schemes = st.sampled_from(
    [
        *("nbd:", "nbd://", "nbd+tcp://", "nbd://[", "nbd://h:", "nbd:h:1:exportname="),
        *("nbd:unix:", "nbd+unix:///", "nbd+unix://?socket="),
        *("file:", "host_device:", "/"),
        *("rbd:", "rbd:p/i", "rbd:p/i@", "rbd:p/i:conf="),
        *("iscsi:", "x:"),
    ]
)


@given(uri=st.text() | st.builds(str.__add__, schemes, st.text() | tricky))
def test_any_text_is_a_location_or_an_input_error(uri: str) -> None:
    try:
        location = parse_uri(uri)
    except InputError as error:
        str(error).encode()
        return
    assert parse_uri(location.uri(reveal=True), look=lambda _: Opened(location.driver)) == location


@given(path=paths)
def test_a_bare_path_is_never_taken_for_a_protocol(path: str) -> None:
    location = parse_uri(path)
    assert isinstance(location, FileLocation)
    assert location.path == path
    assert PurePosixPath(location.path).is_absolute()
