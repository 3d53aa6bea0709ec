from __future__ import annotations

import json
from xml.etree.ElementTree import tostring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.uri import parse_filename, parse_uri
from hvext.core.uri.gluster import GlusterHost, GlusterLocation, GlusterSocket
from hvext.core.uri.location import Companions, Needs
from hvext.errors import InputError, LocationError, RenderError, UnsupportedLocation

LOCAL = GlusterHost(host="localhost")


def gluster(*servers: GlusterHost | GlusterSocket, path: str = "p", **more: object) -> GlusterLocation:
    servers = servers or (GlusterHost(host="h"),)
    return GlusterLocation(**{"volume": "v", "path": path, "servers": servers, **more})  # type: ignore[arg-type]


VALID: dict[str, GlusterLocation] = {
    "gluster://h/v/p": gluster(),
    "gluster+tcp://h/v/p": gluster(),
    "gluster://h:/v/p": gluster(),
    "gluster://h:24008/v/a/b": gluster(GlusterHost(host="h", port=24008), path="a/b"),
    "gluster://[::1]:5/v/p": gluster(GlusterHost(host="::1", port=5)),
    "gluster://[fe80::7%25eth0]/v/p": gluster(GlusterHost(host="fe80::7%eth0")),
    "gluster:///v/p": gluster(LOCAL),
    "gluster://h//v//p": gluster(),
    "gluster://h/v/p/": gluster(path="p/"),
    "gluster://h/v/a//b": gluster(path="a//b"),
    "gluster://h/v%2Fa/b": gluster(path="a/b"),
    "gluster://h/v/%C3%A9%20%3F%23%2525": gluster(path="é ?#%25"),
    "gluster://h/v/p?": gluster(),
    "gluster+unix:///v/p?socket=/run/s": gluster(GlusterSocket(path="/run/s")),
    "gluster+unix:///v/p?s%6fcket=/run/a%20b%26%3f": gluster(GlusterSocket(path="/run/a b&?")),
    'json:{"driver":"gluster","volume":"v","path":"/p","server":[{"type":"inet","host":"h","port":"1"}]}': gluster(
        GlusterHost(host="h", port=1)
    ),
    'json:{"driver":"gluster","volume":"v","path":"p","server":[{"type":"tcp","host":"::1","port":1},'
    '{"type":"unix","path":"/s"}],"debug":"9","logfile":"/l"}': gluster(
        GlusterHost(host="::1", port=1), GlusterSocket(path="/s"), debug=9, logfile="/l"
    ),
    'json:{"driver":"gluster","volume":"v","path":"p","server.1.type":"inet","server.1.host":"b","server.0.host":"a",'
    '"server.0.type":"inet"}': gluster(GlusterHost(host="a"), GlusterHost(host="b")),
}


@pytest.mark.parametrize("uri", VALID)
def test_a_uri_is_read_as_qemu_reads_it(uri: str) -> None:
    assert parse_uri(uri) == VALID[uri]
    assert parse_uri(VALID[uri].uri()) == VALID[uri]


INVALID: dict[str, str] = {
    "gluster:h/v/p": "must start with gluster://",
    "gluster:/h/v/p": "must start with gluster://",
    "gluster://": "names no file",
    "gluster://h": "names no file",
    "gluster://h/v": "names no file",
    "gluster://h/v/": "names no file",
    "gluster://h//": "names no file",
    "gluster://h:0/v/p": "port 0",
    "gluster://u@h/v/p": "Gluster knows no users",
    "gluster://h/v/p#f": "fragment",
    "gluster://h/v/a b": "write it as %20",
    "gluster://h/v/%00": "NUL",
    "gluster://h/v/%ff": "UTF-8",
    "gluster://h/v/p?debug=3": "'debug'",
    "gluster://h/v/p?socket=/s": "'socket'",
    "gluster+unix://h/v/p?socket=/s": "names a host 'h'",
    "gluster+unix:///v/p": "exactly one query parameter",
    "gluster+unix:///v/p?sock=/s": "exactly one query parameter",
    "gluster+unix:///v/p?socket=/s&debug=1": "exactly one query parameter",
    "gluster+unix:///v/p?socket=s": "'s' is not absolute",
    "gluster+unix:///v/p?socket=": "'' is not absolute",
    'json:{"driver":"gluster","path":"p","server":[]}': "volume is missing",
    'json:{"driver":"gluster","volume":"v","path":"p","server":[]}': "needs a server",
    'json:{"driver":"gluster","volume":"v","path":"/","server":[{"type":"unix","path":"/s"}]}': "path ''",
    'json:{"driver":"gluster","volume":"a/b","path":"p","server":[{"type":"unix","path":"/s"}]}': "volume 'a/b'",
    'json:{"driver":"gluster","volume":"v","path":"p","server":[{"type":"vsock"}]}': "server.0.type 'vsock'",
    'json:{"driver":"gluster","volume":"v","path":"p","server":[{"type":"inet"}]}': "server.0.host is missing",
    'json:{"driver":"gluster","volume":"v","path":"p","server":[{"type":"inet","host":"h","to":5}]}': "'server.0.to'",
    'json:{"driver":"gluster","volume":"v","path":"p","server":[{"type":"unix","path":"/s"}],"debug":10}': "debug must",
    'json:{"driver":"gluster","volume":"v","path":"p","server":[{"type":"unix","path":"/s"}],"logfile":"l"}': "'l' is",
}


@pytest.mark.parametrize("uri", INVALID)
def test_a_uri_that_cannot_be_read_is_refused_with_the_part_that_is_wrong(uri: str) -> None:
    with pytest.raises(LocationError) as caught:
        parse_uri(uri)
    assert INVALID[uri] in str(caught.value)


def test_rdma_is_not_silently_something_else() -> None:
    with pytest.raises(UnsupportedLocation, match="would use TCP instead"):
        parse_uri("gluster+rdma://h/v/p")


def test_what_the_driver_is_told_is_what_the_location_says() -> None:
    location = gluster(GlusterHost(host="::1"), GlusterSocket(path="/s"), debug=0, logfile="/l")
    assert location.blockdev() == {
        "volume": "v",
        "path": "p",
        "server": [{"type": "inet", "host": "::1", "port": "24007"}, {"type": "unix", "path": "/s"}],
        "debug": 0,
        "logfile": "/l",
    }
    assert location.needs(Companions()) == Needs()
    assert gluster(path="a b").uri() == "gluster://h:24007/v/a%20b"
    assert gluster(GlusterSocket(path="/s&")).uri() == "gluster+unix:///v/p?socket=/s%26"


def test_an_open_node_is_recognised_whatever_the_order_of_its_servers() -> None:
    """QEMU reports the options in no order, with dotted keys."""
    location = gluster(*(GlusterHost(host=f"h{number}") for number in range(12)), debug=1, logfile="/l")
    flat = {"driver": "gluster", "volume": "v", "path": "p"}
    for number, server in reversed(list(enumerate(location.servers))):
        flat |= {f"server.{number}.{name}": str(value) for name, value in server.options.items()}
    assert parse_filename("gluster", "json:" + json.dumps(flat)) == location.reported
    assert location.reported == gluster(*location.servers)
    assert parse_filename("gluster", "gluster://h/v/p") is None


def test_libvirt_gets_all_servers() -> None:
    source = gluster(GlusterHost(host="::1"), GlusterSocket(path="/s"), path="a/b").libvirt_source()
    assert source.disk_type == "network"
    assert tostring(source.element, encoding="unicode") == (
        '<source protocol="gluster" name="v/a/b"><host name="::1" port="24007" />'
        '<host transport="unix" socket="/s" /></source>'
    )


@pytest.mark.parametrize(
    ("location", "feature"),
    [
        (gluster(debug=4), "debug level"),
        (gluster(logfile="/l"), "logfile"),
        (gluster(GlusterHost(host="fe80::1%eth0")), "host 'fe80::1%eth0'"),
        (gluster(GlusterSocket(path="/")), "socket path '/'"),
        (gluster(path="\x01"), "character 3"),
    ],
)
def test_what_libvirt_cannot_say_is_refused_by_name(location: GlusterLocation, feature: str) -> None:
    with pytest.raises(RenderError) as caught:
        location.libvirt_source()
    assert feature in str(caught.value)


some_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=25)
tricky = st.lists(st.sampled_from(["/", "?", "#", "%", "%2F", ":", "@", "&", "=", "+", " ", "é"])).map("".join)
texts = some_text | tricky
servers = st.builds(
    GlusterHost,
    host=st.sampled_from(["h", "fe80::1%eth0"]) | st.ip_addresses(v=6).map(str),
    port=st.integers(1, 65535),
) | st.builds(GlusterSocket, path=texts.map(lambda text: f"/{text}"))
locations = st.builds(
    GlusterLocation,
    volume=texts.map(lambda text: text.replace("/", "")).filter(bool),
    path=texts.map(lambda text: text.lstrip("/")).filter(bool),
    servers=st.lists(servers, min_size=1, max_size=3).map(tuple),
    debug=st.sampled_from([None, None, 0, 9]),
    logfile=st.just("") | texts.map(lambda text: f"/{text}"),
)


@given(location=locations)
def test_a_location_survives_being_written_as_a_uri(location: GlusterLocation) -> None:
    assert parse_uri(location.uri()) == location


@given(
    uri=st.builds(
        str.__add__, st.sampled_from(["gluster:", "gluster://", "gluster://h/v/", "gluster+unix:///v/p?socket="]), texts
    )
)
def test_any_text_is_a_location_or_an_input_error(uri: str) -> None:
    try:
        location = parse_uri(uri)
    except InputError as error:
        str(error).encode()
        return
    assert parse_uri(location.uri()) == location
