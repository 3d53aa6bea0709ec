"""No name in a URI adds an option of its own to ``-drive`` or to libvirt's XML: the real parsers read the same storage.

QEMU's is asked what its block drivers want of their client libraries (see ``recorder``), once with ``blockdev-add``,
which knows no quoting, and once with the legacy string. libvirt's is asked for the node that it would open.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvext.core.command_line import drive_argv
from hvext.core.identity import DiskNames
from hvext.core.options import DeviceModel, DiskOptions
from hvext.core.plan import DiskPlan, plan_disk
from hvext.core.secret import Secret
from hvext.core.uri import FileLocation, Location, Opened, parse_uri
from hvext.core.uri.curl import CurlLocation
from hvext.core.uri.gluster import GlusterHost, GlusterLocation
from hvext.core.uri.iscsi import IscsiLocation
from hvext.core.uri.nbd import NbdLocation
from hvext.core.uri.nbd_server import TcpServer, UnixServer
from hvext.core.uri.nfs import NfsLocation
from hvext.core.uri.rbd import RbdLocation
from hvext.core.uri.ssh import SshLocation
from hvext.core.value import replace
from hvext.errors import InputError, RenderError
from hvext.host.private import write_private
from tests.conftest import need
from tests.corpus.meaning import meaning
from tests.corpus.recorder import Recorder, build_shim, recorder
from tests.corpus.test_libvirt import BESIDE, SECRETS, Said, plain, storage
from tests.corpus.uris import CORPUS
from tests.host.oracle import Refused, libvirt_daemon

#: HMP cuts what is longer.
LONGEST = 900

pieces = st.sampled_from(
    [
        *(",", ",,", "=", "a", ":", "@", ";", "%", "%2C", "\\", '"', "'", " ", "/", "é", "on", "json:{", "}"),
        *("file.filename=/etc/passwd", ",readonly=on", ",snapshot=on", ",file.driver=file"),
        *("</source>", "<x/>", "&amp;", "&#10;", "'/>"),
    ]
)
names = st.lists(pieces, min_size=1, max_size=5).map("".join)

#: A location of each kind that has a name in every place that takes one.
MAKERS: dict[str, Callable[[str, str], Location]] = {
    "file": lambda one, two: FileLocation(path=f"/corpus/{one}{two}", opened=Opened.FILE),
    "nbd": lambda one, two: NbdLocation(server=UnixServer(path=f"/{one}"), export=two),
    "nbd-tcp": lambda one, two: NbdLocation(server=TcpServer(host="192.0.2.1"), export=one + two),
    "rbd": lambda one, two: RbdLocation(pool=one, image=two, user="u", conf=f"/{one}"),
    "iscsi": lambda one, two: IscsiLocation(host="192.0.2.1", target=one, lun=1, user="u", password=Secret(two)),
    "ssh": lambda one, two: SshLocation(host="192.0.2.1", path=f"/{one}", user=two),
    "nfs": lambda one, two: NfsLocation(host="192.0.2.1", path=f"/{one}/{two}"),
    "http": lambda one, two: CurlLocation(
        url=f"http://192.0.2.1/{quote(one, safe=',=:@;')}", username=two, password=Secret(one)
    ),
    "gluster": lambda one, two: GlusterLocation(volume=one, path=two, servers=(GlusterHost(host="192.0.2.1"),)),
}


@st.composite
def locations(draw: st.DrawFn) -> Location | None:
    """A location with odd names, or None where one of them cannot be there."""
    make = MAKERS[draw(st.sampled_from(sorted(MAKERS)))]
    try:
        return make(draw(names), draw(names))
    except InputError:
        return None


def planned(location: Location, key: str, *, libvirt: bool = False) -> DiskPlan:
    options = DiskOptions(device=DeviceModel.SCSI_HD) if libvirt else DiskOptions()
    return plan_disk(
        DiskNames(uuid.uuid5(uuid.NAMESPACE_OID, key)), location, options, folder=os.environ["HVEXT_RUNTIME_DIR"]
    )


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    qemu = need("qemu-system-x86_64", "qemu-system-x86")
    folder: Path = tmp_path_factory.mktemp("shim")
    with recorder(qemu, build_shim(folder)) as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HVEXT_RUNTIME_DIR", str(running.folder / "private"))
        yield running


def difference(asked: Recorder, location: Location) -> str:
    """What the legacy string opens beyond, or instead of, what the node opens; empty when both open the same."""
    plan = planned(location, "drive")
    write_private(plan.needs.files)
    node = {key: value for key, value in plan.nodes[0].items() if key not in ("node-name", "cache", "read-only")}
    by_node = asked.as_node(node, objects=plan.needs.objects)
    argv = drive_argv(plan)
    (drive,) = [value for option, value in zip(argv[::2], argv[1::2], strict=True) if option == "-drive"]
    drive = drive.replace(f"id={plan.names.drive},", "", 1)
    if len(drive.encode()) > LONGEST or not by_node.taken:
        return ""
    by_drive = asked.as_drive(drive, objects=plan.needs.objects)
    files = plan.needs.files
    same = meaning(by_node, files) == meaning(by_drive, files) and by_node.taken == by_drive.taken
    return "" if same else f"{location}\n{drive}\n  node:  {by_node}\n  drive: {by_drive}"


def test_the_legacy_string_opens_what_the_node_opens(asked: Recorder) -> None:
    wrong, compared = [], 0
    for row in CORPUS:
        try:
            location = parse_uri(row.uri, look=lambda _path: Opened.FILE)
            # One that tries again for a second does so a number of times.
            if not location.block_node or location.buffered_only or getattr(location, "open_timeout_s", 0):
                continue
        except InputError:
            continue
        wrong += [words] if (words := difference(asked, location)) else []
        compared += 1
    assert not wrong, "\n".join(wrong)
    assert compared > 250


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(location=locations())
def test_no_name_adds_an_option_to_a_drive(asked: Recorder, location: Location | None) -> None:
    if location is not None:
        assert not difference(asked, location)


@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=st.lists(locations(), min_size=100, max_size=150))
def test_no_name_adds_anything_to_xml(drawn: list[Location | None]) -> None:
    said = []
    for number, location in enumerate(drawn):
        if location is not None:
            plan = planned(location, str(number), libvirt=True)
            each = Said(str(number), replace(plan, companions=BESIDE))
            try:
                each.xml()
            except RenderError:
                continue
            said.append(each)
    with libvirt_daemon() as oracle, oracle.secrets(SECRETS):
        try:
            found = storage(oracle.argv([each.xml(index) for index, each in enumerate(said)]))
        except Refused as error:
            raise AssertionError([each.plan.location for each in said]) from error
    assert len(found) == len(said)
    for each in said:
        assert plain(each.plan.nodes[0]) == plain(found[f"ua-{each.plan.names.device}"]), each.plan.location
