from __future__ import annotations

import re
from xml.etree.ElementTree import tostring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.uri import parse_filename, parse_uri
from hvext.core.uri.location import Companions, Needs
from hvext.core.uri.nfs import NfsLocation
from hvext.errors import InputError, LocationError, RenderError


def nfs(path: str = "/e/v", **more: object) -> NfsLocation:
    return NfsLocation(**{"host": "h", "path": path, **more})  # type: ignore[arg-type]


VALID: dict[str, NfsLocation] = {
    "nfs://h/e/v": nfs(),
    "nfs://h:/e/v": nfs(),
    "nfs://h/v": nfs("/v"),
    "nfs://h/": nfs("/"),
    "nfs://192.0.2.1//e/v": nfs("//e/v", host="192.0.2.1"),
    "nfs://[::1]/e/v": nfs(host="::1"),
    "nfs://[fe80::7%25eth0]/e/v": nfs(host="fe80::7%eth0"),
    "nfs://h/e/%C3%A9%20%3F%2F%2520": nfs("/e/é ?/%20"),
    "nfs://h/e/v?": nfs(),
    "nfs://h/e/v?uid=0&gid=4294967295": nfs(user=0, group=4294967295),
    "nfs://h/e/v?uid=0x10;gid=010": nfs(user=16, group=8),
    "nfs://h/e/v?u%69d=%31": nfs(user=1),
    "nfs://h/e/v?tcp-syncnt=3&readahead=1048576&pagecache=2048&debug=2": nfs(
        tcp_syn_count=3, readahead_bytes=1 << 20, page_cache_pages=2048, debug=2
    ),
    'json:{"driver":"nfs","server":{"type":"inet","host":"::1"},"path":"/e/v"}': nfs(host="::1"),
    'json:{"driver":"nfs","server":{"type":"inet","host":"h"},"path":"/e/v","user":"1","group":2,"tcp-syn-count":3,'
    '"readahead-size":4,"page-cache-size":5,"debug":1}': nfs(
        user=1, group=2, tcp_syn_count=3, readahead_bytes=4, page_cache_pages=5, debug=1
    ),
}


@pytest.mark.parametrize("uri", VALID)
def test_a_uri_is_read_as_qemu_reads_it(uri: str) -> None:
    assert parse_uri(uri) == VALID[uri]
    assert parse_uri(VALID[uri].uri()) == VALID[uri]


INVALID: dict[str, str] = {
    "nfs:h/e/v": "must start with nfs://",
    "nfs:///e/v": "names no host",
    "nfs://h": "names no path",
    "nfs://h?uid=1": "names no path",
    "nfs://h:2049/e/v": "port 2049, which QEMU ignores",
    "nfs://h:x/e/v": "not HOST[:PORT]",
    "nfs://u@h/e/v": "user name, which QEMU ignores",
    "nfs://h/e/a b": "write it as %20",
    "nfs://h/e/v#f": "fragment",
    "nfs://h/e/%00": "NUL",
    "nfs://h/e/%ff": "UTF-8",
    "nfs://h/e/v?uid": "uid",
    "nfs://h/e/v?uid=": "uid='', which is no number",
    "nfs://h/e/v?uid=-1": "uid='-1'",
    "nfs://h/e/v?uid=09": "uid='09'",
    "nfs://h/e/v?uid=\u0661": "in the NFS URI has",
    "nfs://h/e/v?uid=4294967296": "user 4294967296 is not between 0 and 4294967295",
    "nfs://h/e/v?uid=1&uid=1": "twice",
    "nfs://h/e/v?readahead=1048577": "readahead-size 1048577 is not between 0 and 1048576",
    "nfs://h/e/v?pagecache=2049": "page-cache-size 2049",
    "nfs://h/e/v?debug=3": "debug 3",
    "nfs://h/e/v?version=4": "'version'",
    "nfs://h/e/v%3Fuid=1": "ends like a query",
    'json:{"driver":"nfs","path":"/e/v"}': "needs server",
    'json:{"driver":"nfs","server":{"type":"unix","path":"/s"},"path":"/e/v"}': "server.type 'unix'",
    'json:{"driver":"nfs","server":{"type":"inet","host":"h","port":"1"},"path":"/e/v"}': "'server.port'",
    'json:{"driver":"nfs","server":{"type":"inet","host":"h"},"path":"v"}': "'v' is not absolute",
    'json:{"driver":"nfs","server":{"type":"inet","host":"h"},"path":"/v","user":"root"}': "user must be a whole",
}


@pytest.mark.parametrize("uri", INVALID)
def test_a_uri_that_cannot_be_read_is_refused_with_the_part_that_is_wrong(uri: str) -> None:
    with pytest.raises(LocationError) as caught:
        parse_uri(uri)
    assert INVALID[uri] in str(caught.value)


def test_what_the_driver_is_told_is_what_the_location_says() -> None:
    location = nfs(host="::1", user=0, readahead_bytes=4096)
    assert location.blockdev() == {
        "server": {"type": "inet", "host": "::1"},
        "path": "/e/v",
        "user": 0,
        "readahead-size": 4096,
    }
    assert location.uri() == "nfs://[::1]/e/v?uid=0&readahead=4096"
    assert location.needs(Companions()) == Needs()


def test_a_cache_of_libnfs_goes_without_direct_io_only() -> None:
    """QEMU 7.2 refuses it, and QEMU 10.0 crashes."""
    assert nfs(readahead_bytes=0).buffered_only
    assert nfs(page_cache_pages=1).buffered_only
    assert not nfs(user=1, debug=1, tcp_syn_count=1).buffered_only


@pytest.mark.parametrize(
    ("filename", "location"),
    [
        ("nfs://h/e/v", nfs()),
        ("nfs://::1/e/a b?c#%20", nfs("/e/a b?c#%20", host="::1")),
        ("nfs://h/e/v?uid=1", nfs(user=1)),
        ("nfs://h/e/v?gid=2", nfs(group=2)),
        ("nfs://h/e/v?uid=1&gid=2", nfs(user=1, group=2)),
        ("nfs://h/e/v?uid=1&gid=", nfs("/e/v?uid=1&gid=")),
        ("nfs://h/e/v?uid=99999999999", None),
        ("nfs://h/" + "v" * 4087, None),
        ("nfs://h", None),
        ("nfs:///v", None),
        ("", None),
    ],
)
def test_an_open_node_is_recognised_by_what_qemu_reports(filename: str, location: NfsLocation | None) -> None:
    assert parse_filename("nfs", filename) == location


def test_qemu_reports_neither_the_user_0_nor_what_changes_no_data() -> None:
    assert nfs(user=0, group=0, debug=1, readahead_bytes=1).reported == nfs()
    assert nfs(user=1, group=2).reported == nfs(user=1, group=2)


def test_libvirt_gets_users_and_groups_as_numbers() -> None:
    source = nfs(host="::1", user=0, group=5).libvirt_source()
    assert source.disk_type == "network"
    assert tostring(source.element, encoding="unicode") == (
        '<source protocol="nfs" name="/e/v"><host name="::1" /><identity user="+0" group="+5" /></source>'
    )
    assert "<identity />" in tostring(nfs().libvirt_source().element, encoding="unicode")


@pytest.mark.parametrize(
    ("location", "feature"),
    [
        (nfs(tcp_syn_count=1), "tcp syn count"),
        (nfs(readahead_bytes=1), "readahead bytes"),
        (nfs(page_cache_pages=1), "page cache pages"),
        (nfs(debug=0), "debug"),
        (nfs(host="a_b"), "host 'a_b'"),
        (nfs("/\x01"), "character 2"),
    ],
)
def test_what_libvirt_cannot_say_is_refused_by_name(location: NfsLocation, feature: str) -> None:
    with pytest.raises(RenderError) as caught:
        location.libvirt_source()
    assert feature in str(caught.value)


some_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
tricky = st.lists(st.sampled_from(["/", "?", "#", "%", ":", "@", "&", "=", "?uid=", "?gid=", "&gid=", "1", " "])).map(
    "".join
)
hosts = st.sampled_from(["h", "192.0.2.1", "fe80::1%eth0"]) | st.ip_addresses(v=6).map(str)
numbers = st.fixed_dictionaries(
    {},
    optional={
        "user": st.integers(0, (1 << 32) - 1),
        "group": st.integers(0, (1 << 32) - 1),
        "tcp_syn_count": st.integers(0, 100),
        "readahead_bytes": st.integers(0, 1 << 20),
        "page_cache_pages": st.integers(0, 2048),
        "debug": st.integers(0, 2),
    },
)


@given(host=hosts, name=some_text | tricky, more=numbers)
def test_a_location_survives_being_written_as_a_uri(host: str, name: str, more: dict[str, int]) -> None:
    if re.search(r"\?(uid|gid)=[0-9]", name):
        # Names that end like QEMU's reports are refused.
        return
    location = nfs(f"/{name}", host=host, **more)
    assert parse_uri(location.uri()) == location
    ids = [f"{name}={value}" for name, value in (("uid", location.user), ("gid", location.group)) if value]
    filename = f"nfs://{host}{location.path}{'?' if ids else ''}{'&'.join(ids)}"
    assert parse_filename("nfs", filename) == location.reported


@given(
    uri=st.builds(str.__add__, st.sampled_from(["nfs:", "nfs://", "nfs://h/", "nfs://h/p?uid="]), some_text | tricky)
)
def test_any_text_is_a_location_or_an_input_error(uri: str) -> None:
    try:
        location = parse_uri(uri)
    except InputError as error:
        str(error).encode()
        return
    assert parse_uri(location.uri()) == location
