"""The four renderings of one plan mean the same disk, in the eyes of QEMU and of libvirt."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from hvext.core.command_line import blockdev_argv, drive_argv
from hvext.core.commands import plug_commands
from hvext.core.domain_xml import disk_xml
from hvext.core.identity import DiskNames
from hvext.core.options import Cache, DeviceModel, DiskOptions, Placement, Throttle
from hvext.core.plan import DiskPlan, plan_disk
from hvext.core.uri import FileLocation, Location, Opened, parse_filename, parse_uri
from hvext.core.uri.nbd import NbdLocation, TcpServer, UnixServer
from hvext.core.uri.rbd import RbdLocation
from hvext.core.value import fields
from hvext.errors import InputError, RenderError
from tests.conftest import need
from tests.host.oracle import (
    MIB,
    Libvirt,
    Qmp,
    Refused,
    absent,
    domain,
    libvirt,
    nbd_server,
    qemu,
    schema,
    short_folder,
)

#: Names that have taken a disk elsewhere in one option syntax or another; none is the prefix of another's meaning.
ODD_NAMES = {
    "plain": "plain",
    "comma": "a,b",
    "comma-readonly": "x,readonly=on",
    "comma-file": "x,file.filename=/etc/passwd",
    "comma-export": "x,file.export=plain",
    "two-commas": "a,,b",
    "last-comma": "end,",
    "equals": "a=b",
    "colon": "a:b",
    "double-quote": 'a"b',
    "single-quote": "a'b",
    "percent": "a%2Cb",
    "blank": "a b",
    "outer-blanks": " a ",
    "newline": "a\nb",
    "carriage-return": "a\rb",
    "tab": "a\tb",
    "accent": "é",
    "emoji": "\N{GRINNING FACE}",
    "line-separator": "a\u2028b",
    "backslash": "a\\b",
    "dollar": "a${b}",
    "hash": "a#b",
    "question": "a?b",
    "query": "?socket=b",
    "ampersand": "a&b",
    "semicolon": "a;b",
    "leading-dash": "-a",
    "json": 'json:{"driver":"null-co"}',
    "protocol": "nbd:a:1",
    "dots": "..a",
    "markup": "<a>",
    "control": "a\x01b",
}
#: What XML 1.0 cannot hold.
NOT_IN_XML = ("control",)
#: libvirt reads these, and gets them right (see below); only its schema has no line ends in paths, two digits for
#: SCSI ids, and few characters for snapshots.
NOT_IN_SCHEMA = (
    *(f"{kind} {what}" for kind in ("file", "socket") for what in ("newline", "carriage-return")),
    "scsi-far-address",
    "rbd snapshot",
)

FULL_THROTTLE = Throttle(
    bps_total=10_000_001,
    bps_total_max=20_000_002,
    bps_total_max_length=3,
    iops_read=401,
    iops_read_max=502,
    iops_read_max_length=6,
    iops_write=703,
    iops_write_max=804,
    iops_write_max_length=9,
    iops_size=4096,
)
OTHER_THROTTLE = Throttle(
    bps_read=1_000_001,
    bps_read_max=2_000_002,
    bps_read_max_length=3,
    bps_write=4_000_004,
    bps_write_max=5_000_005,
    bps_write_max_length=6,
    iops_total=707,
    iops_total_max=808,
    iops_total_max_length=9,
)
SCSI = DeviceModel.SCSI_HD
#: Every option with every value it can have, in few disks. Those on scsi-hd sit on the controller scsi0.
OPTIONS = {
    "defaults": DiskOptions(),
    "writeback-threads": DiskOptions.from_mapping({"cache": "writeback", "aio": "threads"}),
    "writethrough-uring": DiskOptions.from_mapping({"cache": "writethrough", "aio": "io_uring"}),
    "directsync-native": DiskOptions.from_mapping({"cache": "directsync", "aio": "native"}),
    "unsafe-zeroes": DiskOptions.from_mapping({"cache": "unsafe", "detect_zeroes": "on"}),
    "unmap": DiskOptions.from_mapping({"discard": "unmap", "detect_zeroes": "unmap"}),
    "discard-only": DiskOptions.from_mapping({"discard": "unmap"}),
    "read-only": DiskOptions(read_only=True),
    "read-only-scsi": DiskOptions(device=SCSI, read_only=True),
    "stop-stop": DiskOptions.from_mapping({"werror": "stop", "rerror": "stop"}),
    "stop-writes-only": DiskOptions.from_mapping({"werror": "stop"}),
    "stop-reads-only": DiskOptions.from_mapping({"rerror": "stop", "device": "scsi-hd"}),
    "enospc": DiskOptions.from_mapping({"werror": "enospc", "rerror": "report"}),
    "ignore-report": DiskOptions.from_mapping({"werror": "report", "rerror": "ignore"}),
    "ignore-writes": DiskOptions.from_mapping({"werror": "ignore", "device": "scsi-hd"}),
    "serial": DiskOptions(serial="A-1_2.3+" + "x" * 12),
    "serial-scsi": DiskOptions(device=SCSI, serial="s" * 36),
    "bootindex": DiskOptions(bootindex=7),
    "bootindex-scsi": DiskOptions(device=SCSI, bootindex=8, cache=Cache.WRITETHROUGH),
    "iothread": DiskOptions(iothread="iothread1"),
    "iothread-of-its-own": DiskOptions(iothread="auto"),
    "throttle": DiskOptions(throttle=FULL_THROTTLE),
    "throttle-scsi": DiskOptions(device=SCSI, throttle=OTHER_THROTTLE),
    "throttle-read-only": DiskOptions(throttle=OTHER_THROTTLE, read_only=True, cache=Cache.WRITEBACK),
    "scsi-address": DiskOptions(device=SCSI, placement=Placement(bus="scsi0", scsi_id=9, lun=5)),
    "scsi-far-address": DiskOptions(device=SCSI, placement=Placement(bus="scsi0", scsi_id=255, lun=16383)),
    "serial-with-commas": DiskOptions(serial="a,b=c,readonly=on"),
}
#: What hvext says it cannot say in XML, by a word of the reason.
NO_XML = {"iothread-of-its-own": "iothread", "serial-with-commas": "serial"}


@dataclass(frozen=True)
class Case:
    """A plan, and the size of the storage that it has to open."""

    name: str
    plan: DiskPlan
    size: int


def planned(name: str, location: Location, size: int, options: DiskOptions | None = None) -> Case:
    options = options or DiskOptions(device=SCSI, placement=Placement(bus="scsi0"))
    return Case(name, plan_disk(DiskNames(uuid.uuid5(uuid.NAMESPACE_OID, name)), location, options), size)


def sparse(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.fixture(scope="module")
def odd_cases() -> Iterator[list[Case]]:
    """Every odd name as a file, as an NBD export and as the socket of a server; each has a size of its own."""
    cases = []
    with short_folder() as folder, contextlib.ExitStack() as servers:
        for number, (what, name) in enumerate(ODD_NAMES.items(), start=1):
            path = sparse(folder / "f" / name, number * MIB)
            cases.append(planned(f"file {what}", FileLocation(path=str(path), opened=Opened.FILE), number * MIB))
        (folder / "s").mkdir()
        sizes = {name: (100 + number) * MIB for number, name in enumerate(ODD_NAMES.values())}
        servers.enter_context(nbd_server(folder / "s" / "exports", sizes))
        for what, name in ODD_NAMES.items():
            location = NbdLocation(server=UnixServer(path=str(folder / "s" / "exports")), export=name)
            cases.append(planned(f"export {what}", location, sizes[name]))
        for number, (what, name) in enumerate(ODD_NAMES.items(), start=200):
            path = folder / "s" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            servers.enter_context(nbd_server(path, {"": number * MIB}))
            location = NbdLocation(server=UnixServer(path=str(path)))
            cases.append(planned(f"socket {what}", location, number * MIB))
        yield cases


@pytest.fixture(scope="module")
def option_cases() -> Iterator[list[Case]]:
    """Every option on a file of its own; the virtio disks on root ports rp0, rp1 and so on."""
    cases: list[Case] = []
    with short_folder() as folder:
        for number, (what, options) in enumerate(OPTIONS.items(), start=1):
            path = sparse(folder / what, number * MIB)
            values: Any = {each.name: getattr(options, each.name) for each in fields(DiskOptions)}
            if options.device is not SCSI:
                values["placement"] = Placement(bus=f"rp{number}")
            elif options.placement == Placement():
                values["placement"] = Placement(bus="scsi0", scsi_id=number, lun=0)
            location = FileLocation(path=str(path), opened=Opened.FILE)
            cases.append(planned(what, location, number * MIB, DiskOptions(**values)))
        yield cases


def frame(cases: Sequence[Case]) -> list[str]:
    """What has to be in the machine before the disks."""
    argv = ["-device", "virtio-scsi-pci,id=scsi0", "-object", "iothread,id=iothread1"]
    buses = [case.plan.options.placement.bus or "" for case in cases]
    for bus in buses:
        if bus.startswith("rp"):
            number = int(bus[2:])
            argv += ["-device", f"pcie-root-port,id={bus},chassis={number},addr={number // 8 + 2:x}.{number % 8}"]
            argv[-1] += ",multifunction=on"
    return argv


@contextlib.contextmanager
def cold(render: Callable[[DiskPlan], list[str]], cases: Sequence[Case]) -> Iterator[Qmp]:
    with qemu(*frame(cases), *(word for case in cases for word in render(case.plan))) as monitor:
        yield monitor


@contextlib.contextmanager
def plugged(cases: Sequence[Case]) -> Iterator[Qmp]:
    with qemu(*frame(cases)) as monitor:
        for case in cases:
            for command in plug_commands(case.plan):
                monitor.execute(command.execute, **command.arguments)
        yield monitor


def device_properties(monitor: Qmp, plan: DiskPlan) -> dict[str, Any]:
    path = f"/machine/peripheral/{plan.names.device}"
    names = ["serial", "bootindex", "write-cache", "werror", "rerror", "share-rw", "logical_block_size", "type"]
    names += ["channel", "scsi-id", "lun"] if plan.options.device is SCSI else ["iothread", "addr", "config-wce"]
    found = {name: monitor.get(path, name) for name in names}
    found["bus"] = monitor.get(path, "parent_bus")
    return found


def seen(monitor: Qmp, cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """What QEMU has of each disk: all of its nodes, its device and its objects."""
    nodes = {node["node-name"]: node for node in monitor.execute("query-named-block-nodes", flat=True)}
    backends = {entry["inserted"]["node-name"]: entry for entry in monitor.execute("query-block")}
    objects = {entry["name"] for entry in monitor.execute("qom-list", path="/objects")}
    views = {}
    for case in cases:
        names = case.plan.names
        own = {name: node for name, node in nodes.items() if name.startswith(names.root)}
        backend = backends[str(case.plan.top_node["node-name"])]
        views[case.name] = {
            "nodes": {
                name: {key: node[key] for key in ("drv", "file", "ro", "cache", "detect_zeroes")}
                | {"size": node["image"]["virtual-size"], "format": node["image"]["format"]}
                for name, node in own.items()
            },
            "qdev": backend["qdev"],
            "removable": backend["removable"],
            "device": device_properties(monitor, case.plan),
            "objects": sorted(name for name in objects if name.startswith(names.device)),
            "limits": monitor.get(f"/objects/{names.throttle_group}", "limits")
            if names.throttle_group in objects
            else None,
        }
    assert len(nodes) == sum(len(view["nodes"]) for view in views.values()), "QEMU has nodes that nobody asked for"
    return views


def assert_opened_as_planned(views: dict[str, dict[str, Any]], cases: Sequence[Case]) -> None:
    for case in cases:
        plan, view = case.plan, views[case.name]
        options = plan.options
        assert set(view["nodes"]) == {node["node-name"] for node in plan.nodes}, case.name
        for wanted in plan.nodes:
            node = view["nodes"][wanted["node-name"]]
            assert node["drv"] == wanted["driver"], case.name
            assert node["size"] == case.size, f"{case.name}: another storage was opened"
            assert node["ro"] is options.read_only, case.name
            assert node["cache"]["direct"] is options.cache_mode.direct, case.name
            assert node["cache"]["no-flush"] is options.cache_mode.no_flush, case.name
            assert node["detect_zeroes"] == wanted.get("detect-zeroes", "off"), case.name
        protocol = view["nodes"][plan.nodes[0]["node-name"]]
        told = parse_filename(protocol["drv"], protocol["file"])
        assert told in (plan.location.reported, None), f"{case.name}: an operation would take this disk for another one"
        assert plan.names.device in view["qdev"], case.name
        assert view["removable"] is False, case.name
        assert view["objects"] == sorted(str(item["id"]) for item in plan.objects), case.name


def assert_device_as_planned(views: dict[str, dict[str, Any]], cases: Sequence[Case]) -> None:
    for case in cases:
        options, device = case.plan.options, views[case.name]["device"]
        assert device["serial"] == (options.serial or ""), case.name
        assert device["bootindex"] == (options.bootindex or -1), case.name
        assert device["write-cache"] == ("on" if options.cache_mode.write_cache else "off"), case.name
        assert device["werror"] == (options.werror or "auto"), case.name
        assert device["rerror"] == (options.rerror or "auto"), case.name
        place = options.placement
        if options.device is SCSI:
            wanted = (0, place.scsi_id, place.lun)
            assert (device["channel"], device["scsi-id"], device["lun"]) == wanted, case.name
        else:
            assert device["bus"] == f"/machine/peripheral/{place.bus}/{place.bus}", case.name
        limits = views[case.name]["limits"]
        if options.throttle.limits:
            assert {name: limits[name] for name in options.throttle.limits} == options.throttle.limits, case.name
            unset = {name: value for name, value in limits.items() if name not in options.throttle.limits}
            assert set(unset.values()) <= {0, 1}, case.name


def test_an_odd_name_opens_the_right_storage_cold_legacy_and_hot(odd_cases: list[Case]) -> None:
    with cold(blockdev_argv, odd_cases) as monitor:
        by_blockdev = seen(monitor, odd_cases)
    assert_opened_as_planned(by_blockdev, odd_cases)
    with cold(drive_argv, odd_cases) as monitor:
        by_drive = seen(monitor, odd_cases)
    assert_opened_as_planned(by_drive, odd_cases)
    with plugged(odd_cases) as monitor:
        by_qmp = seen(monitor, odd_cases)
    assert by_blockdev == by_drive == by_qmp


def test_every_option_means_the_same_cold_legacy_and_hot(option_cases: list[Case]) -> None:
    with cold(blockdev_argv, option_cases) as monitor:
        by_blockdev = seen(monitor, option_cases)
    assert_opened_as_planned(by_blockdev, option_cases)
    assert_device_as_planned(by_blockdev, option_cases)
    with cold(drive_argv, option_cases) as monitor:
        by_drive = seen(monitor, option_cases)
    assert by_drive == by_blockdev
    with plugged(option_cases) as monitor:
        by_qmp = seen(monitor, option_cases)
    assert by_qmp == by_blockdev


def test_an_iothread_serves_the_disk_it_was_given_to(option_cases: list[Case]) -> None:
    cases = {case.name: case for case in option_cases if "iothread" in case.name}
    for start in (cold(blockdev_argv, [*cases.values()]), cold(drive_argv, [*cases.values()])):
        with start as monitor:
            for name, thread in (
                ("iothread", "iothread1"),
                ("iothread-of-its-own", cases["iothread-of-its-own"].plan.names.iothread),
            ):
                device = f"/machine/peripheral/{cases[name].plan.names.device}"
                assert monitor.get(device, "iothread") == f"/objects/{thread}"


@pytest.mark.parametrize("render", [blockdev_argv, drive_argv])
def test_a_scsi_disk_starts_with_a_controller_in_its_own_iothread(
    render: Callable[[DiskPlan], list[str]], tmp_path: Path
) -> None:
    location = FileLocation(path=str(sparse(tmp_path / "disk", MIB)), opened=Opened.FILE)
    options = DiskOptions(device=SCSI, iothread="auto", placement=Placement(bus="own", scsi_id=3, lun=4))
    plan = plan_disk(DiskNames(uuid.uuid4()), location, options, controller="own")
    with qemu(*render(plan)) as monitor:
        assert monitor.get("/machine/peripheral/own", "iothread") == "/objects/own-iothread"
        device = f"/machine/peripheral/{plan.names.device}"
        assert [monitor.get(device, name) for name in ("scsi-id", "lun")] == [3, 4]


def test_a_disk_of_a_pc_machine_sits_in_the_slot_it_was_given(tmp_path: Path) -> None:
    location = FileLocation(path=str(sparse(tmp_path / "disk", MIB)), opened=Opened.FILE)
    plan = plan_disk(
        DiskNames(uuid.uuid4()), location, DiskOptions(placement=Placement(bus="pci.0", addr="1e")), controller=None
    )
    for render in (blockdev_argv, drive_argv):
        with qemu(*render(plan), machine="pc") as monitor:
            assert monitor.get(f"/machine/peripheral/{plan.names.device}", "addr") == 0x1E << 3
    with qemu(machine="pc") as monitor:
        for command in plug_commands(plan):
            monitor.execute(command.execute, **command.arguments)
        assert monitor.get(f"/machine/peripheral/{plan.names.device}", "addr") == 0x1E << 3


@contextlib.contextmanager
def loop_device(path: Path) -> Iterator[str]:
    if os.geteuid() != 0:
        absent("only root can make loop devices")
    made = subprocess.run([need("losetup", "mount"), "-f", "--show", path], capture_output=True, text=True, check=False)
    if made.returncode:
        absent(f"no loop device: {made.stderr}")
    try:
        yield made.stdout.strip()
    finally:
        subprocess.run(["losetup", "-d", made.stdout.strip()], check=True)


def test_a_block_device_is_opened_as_one(tmp_path: Path) -> None:
    with loop_device(sparse(tmp_path / "disk", 3 * MIB)) as device:
        cases = [planned("device", parse_uri(device), 3 * MIB, DiskOptions(placement=Placement(bus="rp1")))]
        with cold(blockdev_argv, cases) as monitor:
            views = seen(monitor, cases)
        assert_opened_as_planned(views, cases)
        with cold(drive_argv, cases) as monitor:
            assert seen(monitor, cases) == views
        with plugged(cases) as monitor:
            assert seen(monitor, cases) == views


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_server_on_tcp_is_reached_at_its_address(host: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        try:
            listener.bind((host, 0))
        except OSError:
            absent(f"this machine has no address {host}")
        listener.listen()
        location = NbdLocation(server=TcpServer(host=host, port=listener.getsockname()[1]), export="a/b")
        assert parse_uri(location.uri()) == location
        cases = [planned(f"tcp {host}", location, 3 * MIB, DiskOptions(placement=Placement(bus="rp1")))]
        with nbd_server(listener, {"a/b": 3 * MIB, "b": 4 * MIB}):
            with cold(blockdev_argv, cases) as monitor:
                views = seen(monitor, cases)
            assert_opened_as_planned(views, cases)
            with cold(drive_argv, cases) as monitor:
                assert seen(monitor, cases) == views
            with plugged(cases) as monitor:
                assert seen(monitor, cases) == views


@pytest.mark.parametrize("render", [blockdev_argv, drive_argv])
def test_a_writable_disk_on_read_only_storage_is_refused_and_not_made_read_only(
    render: Callable[[DiskPlan], list[str]],
) -> None:
    with short_folder() as folder, nbd_server(folder / "s", {"e": MIB}, writable=False):
        location = NbdLocation(server=UnixServer(path=str(folder / "s")), export="e")
        case = planned("read-only export", location, MIB)
        with pytest.raises(Refused, match=r"(?i)read-only|write permission"), cold(render, [case]):
            pass
        fine = planned("read-only export", location, MIB, DiskOptions(read_only=True))
        with cold(render, [fine]) as monitor:
            assert_opened_as_planned(seen(monitor, [fine]), [fine])


def drives_only(argv: Sequence[str]) -> list[str]:
    """The block options of a command line, without its devices."""
    pairs = zip(argv[::2], argv[1::2], strict=True)
    return [word for option, value in pairs if option in ("-blockdev", "-drive") for word in (option, value)]


characters = st.characters(codec="utf-8", exclude_characters="\0/")
tricky = st.lists(
    st.sampled_from([",", ",,", "=", ":", "%", "\\", '"', "'", "file=", "on", "json:{", "}", "..", " ", "\n", "é", "?"])
).map("".join)
file_names = (st.text(characters, min_size=1) | tricky).filter(
    lambda name: 0 < len(name.encode()) < 60 and name not in (".", "..")
)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(names=st.lists(file_names, min_size=10, max_size=20, unique=True))
def test_no_name_can_add_an_option_or_open_another_storage(names: list[str]) -> None:
    with short_folder() as folder:
        (folder / "f").mkdir()
        sizes = {name: number * MIB for number, name in enumerate(names, start=1)}
        cases = []
        for name, size in sizes.items():
            file = FileLocation(path=str(sparse(folder / "f" / name, size)), opened=Opened.FILE)
            export = NbdLocation(server=UnixServer(path=str(folder / "exports")), export=name)
            cases += [planned(f"file {name}", file, size), planned(f"export {name}", export, size)]
        with nbd_server(folder / "exports", sizes):
            for render in (blockdev_argv, drive_argv):
                argv = [word for case in cases for word in drives_only(render(case.plan))]
                with qemu(*argv, machine="none") as monitor:
                    nodes = {node["node-name"]: node for node in monitor.execute("query-named-block-nodes", flat=True)}
                wanted = {node["node-name"]: case for case in cases for node in case.plan.nodes}
                assert set(nodes) == set(wanted)
                for node_name, case in wanted.items():
                    node = nodes[node_name]
                    assert (node["image"]["virtual-size"], node["ro"]) == (case.size, False)
                    if node["drv"] != "raw":
                        assert parse_filename(node["drv"], node["file"]) in (case.plan.location.reported, None)


NBD_FORMS = (
    "nbd+unix:///?socket={socket}",
    "nbd+unix://?socket={socket}",
    "nbd+unix:///a?socket={socket}",
    "nbd+unix:////a?socket={socket}",
    "nbd+unix:///%2Fa?socket={socket}",
    "nbd+unix:///a%2Fb?socket={socket}",
    "nbd+unix:///a/b?socket={socket}",
    "nbd+unix:///a+b?socket={socket}",
    "nbd+unix:///a%20b?socket={socket}",
    "nbd+unix:///%C3%A9?socket={socket}",
    "nbd+unix:///a:exportname=b?socket={socket}",
    "nbd+unix:///a%252Fb?socket={socket}",
    "nbd:unix:{socket}",
    "nbd:unix:{socket}:exportname=a",
    "nbd:unix:{socket}:exportname=/a",
    "nbd:unix:{socket}:exportname=a%2Fb",
    "nbd:unix:{socket}:exportname=é",
    "nbd:unix:{socket}:exportname=a:exportname=b",
    "nbd:unix:{socket}:exportname=a b?c#d",
)


def test_an_nbd_uri_names_the_export_that_qemu_takes_it_for() -> None:
    with short_folder() as folder:
        uris = [form.format(socket=folder / "s") for form in NBD_FORMS]
        locations = [parse_uri(uri) for uri in uris]
        exports = sorted({location.export for location in locations if isinstance(location, NbdLocation)})
        with nbd_server(folder / "s", {name: number * MIB for number, name in enumerate(exports, start=1)}):
            argv = []
            for number, (uri, location) in enumerate(zip(uris, locations, strict=True)):
                argv += ["-drive", f"if=none,id=d{number},node-name=q{number},format=raw,file={uri}"]
                ours = {"driver": location.driver, **location.blockdev(), "node-name": f"h{number}"}
                argv += ["-blockdev", json.dumps(ours)]
            with qemu(*argv, machine="none") as monitor:
                nodes = {node["node-name"]: node for node in monitor.execute("query-named-block-nodes", flat=True)}
    for number, uri in enumerate(uris):
        qemus, ours = (nodes[f"{side}{number}"]["image"]["virtual-size"] for side in "qh")
        assert qemus == ours, uri
        # An empty export that is spelled out shows as one slash more.
        assert nodes[f"q{number}"]["file"].replace(":///?", "://?") == nodes[f"h{number}"]["file"], uri


def test_the_longest_export_name_is_opened_and_never_taken_for_a_shorter_one() -> None:
    with short_folder() as folder:
        name = "e" * 4096
        location = NbdLocation(server=UnixServer(path=str(folder / "s")), export=name)
        case = planned("long", location, 2 * MIB)
        with nbd_server(folder / "s", {name[:-1]: MIB, name: 2 * MIB}):
            for render in (blockdev_argv, drive_argv):
                with qemu(*drives_only(render(case.plan)), machine="none") as monitor:
                    nodes = monitor.execute("query-named-block-nodes", flat=True)
                assert {node["image"]["virtual-size"] for node in nodes} == {2 * MIB}
                # QEMU has no room for it in what it reports.
                assert {parse_filename(node["drv"], node["file"]) for node in nodes} == {None}


@pytest.mark.parametrize(
    "throttle",
    [
        Throttle(bps_total=1, bps_total_max=1, bps_total_max_length=2**32 - 1),
        Throttle(bps_total=10**15, iops_read=10**15, iops_size=10**15),
        Throttle(bps_read=1, bps_read_max=10**15 // 7, bps_read_max_length=7),
    ],
    ids=["longest", "largest", "largest-burst"],
)
def test_qemu_takes_the_largest_limits_that_hvext_takes(throttle: Throttle) -> None:
    options = DiskOptions(throttle=throttle)
    plan = plan_disk(DiskNames(uuid.uuid4()), FileLocation(path="/x", opened=Opened.FILE), options)
    with qemu(machine="none") as monitor:
        monitor.execute("object-add", **plan.objects[0])


@pytest.mark.parametrize(
    "limits",
    [
        {"bps_total": 10**15 + 1},
        {"bps_total": 1, "bps_read": 1},
        {"iops_total_max": 1},
        {"iops_total": 2, "iops_total_max": 1},
        {"iops_total": 2, "iops_total_max_length": 2},
        {"bps_total": 1, "bps_total_max": 1, "bps_total_max_length": 2**32},
        {"bps_read": 1, "bps_read_max": 10**15, "bps_read_max_length": 2},
        {"iops_size": 4096},
    ],
    ids=str,
)
def test_qemu_refuses_the_limits_that_hvext_refuses(limits: dict[str, int]) -> None:
    with pytest.raises(InputError):
        Throttle(**limits)
    group = {"qom-type": "throttle-group", "id": "t"}
    with qemu(machine="none") as monitor, pytest.raises(Refused):
        monitor.execute("object-add", **group, limits={name.replace("_", "-"): n for name, n in limits.items()})


def conf_that_qemu_reads(uri: str) -> str:
    """The configuration file that QEMU's parser finds in an rbd: URI: opening one that is missing is an error."""
    done = subprocess.run(
        [need("qemu-img", "qemu-utils"), "info", uri], capture_output=True, text=True, timeout=60, check=False
    )
    if "Unknown protocol" in done.stderr or "Unknown driver" in done.stderr:
        absent("this QEMU has no rbd driver (Debian package qemu-block-extra)")
    return done.stderr.partition("error reading conf file ")[2].partition(": No such file")[0]


@pytest.mark.parametrize(
    "conf", ["/nonexistent/a:b", "/nonexistent/a@b", "/nonexistent/a=b;c", "/nonexistent/a\\b", "/nonexistent/a,b é"]
)
@pytest.mark.parametrize("snapshot", ["", "s@/:"])
def test_qemu_reads_the_rbd_uris_that_hvext_writes(conf: str, snapshot: str) -> None:
    location = RbdLocation(pool="p/:@", namespace="n/", image="i@\\", snapshot=snapshot, conf=conf)
    assert parse_uri(location.uri()) == location
    assert conf_that_qemu_reads(location.uri()) == conf


def test_qemu_takes_an_at_sign_in_an_rbd_option_for_a_snapshot() -> None:
    """Why hvext refuses it: QEMU reads no configuration file here, and an image of another name."""
    assert conf_that_qemu_reads("rbd:p/i:conf=/nonexistent/a@b") == ""


# What libvirt makes of the XML.


@dataclass(frozen=True)
class Translated:
    """libvirt's own options for one disk: the guest device, the format node and the storage node."""

    device: dict[str, Any]
    format: dict[str, Any]
    storage: dict[str, Any]


def translated(argv: Sequence[str]) -> dict[str, Translated]:
    """libvirt's command line by the ids of the guest devices."""
    pairs = list(itertools.pairwise(argv))
    nodes = {
        node["node-name"]: node for node in (json.loads(value) for option, value in pairs if option == "-blockdev")
    }
    found = {}
    for device in (json.loads(value) for option, value in pairs if option == "-device" and value.startswith("{")):
        if "drive" in device:
            top = nodes[device["drive"]]
            found[device["id"]] = Translated(device, top, nodes[top["file"]] if "file" in top else top)
    return found


#: Locations that no server here answers for, and those that are not opened in the tests above.
FURTHER_LOCATIONS = {
    "host device": FileLocation(path="/dev/disk/by-id/a,b", opened=Opened.HOST_DEVICE),
    "tcp": NbdLocation(server=TcpServer(host="server.example", port=1), export="/a//b"),
    "tcp default": NbdLocation(server=TcpServer(host="192.0.2.1")),
    "tcp IPv6": NbdLocation(server=TcpServer(host="2001:db8::1"), export="?a#b"),
    "rbd": RbdLocation(pool="a:b", image="c@d=e;f\\", snapshot="g", conf="/etc/ceph/a,b:c.conf"),
    "rbd snapshot": RbdLocation(pool="a", image="b", snapshot="g@h"),
}
for _what, _name in ODD_NAMES.items():
    FURTHER_LOCATIONS[f"rbd {_what}"] = RbdLocation(pool="p", image=_name.replace("/", ""))


@pytest.fixture(scope="module")
def xml_cases(odd_cases: list[Case], option_cases: list[Case]) -> list[Case]:
    further = [planned(what, location, 0, DiskOptions()) for what, location in FURTHER_LOCATIONS.items()]
    cases = [*odd_cases, *option_cases, *further]
    # A disk on the controller alone is one that libvirt gives an address.
    return [
        Case(case.name, plan_disk(case.plan.names, case.plan.location, DiskOptions()), case.size)
        if case.plan.options.placement == Placement(bus="scsi0")
        else case
        for case in cases
    ]


def said_in_xml(cases: Sequence[Case]) -> dict[str, tuple[Case, str]]:
    counts = {"vd": 0, "sd": 0}
    said = {}
    for case in cases:
        bus = "sd" if case.plan.options.device is SCSI else "vd"
        with contextlib.suppress(RenderError):
            said[case.name] = (case, disk_xml(case.plan, counts[bus]))
            counts[bus] += 1
    return said


@pytest.fixture(scope="module")
def oracle() -> Iterator[Libvirt]:
    """One libvirt for all: it asks QEMU for everything it can do when it is first used."""
    with libvirt() as asked:
        yield asked


@pytest.fixture(scope="module")
def by_libvirt(oracle: Libvirt, xml_cases: list[Case]) -> dict[str, Translated]:
    return translated(oracle.argv([xml for _case, xml in said_in_xml(xml_cases).values()]))


def test_the_xml_is_what_libvirts_schema_describes(xml_cases: list[Case]) -> None:
    rules = schema()
    for name, (_case, xml) in said_in_xml(xml_cases).items():
        fine = rules.validate(etree.fromstring(domain([xml])))
        assert fine is (name not in NOT_IN_SCHEMA), f"{name}: {rules.error_log.last_error}"


def test_what_xml_cannot_say_is_refused_by_name(xml_cases: list[Case]) -> None:
    said = said_in_xml(xml_cases)
    refused = {case.name for case in xml_cases} - set(said)
    odd = {f"{kind} {what}" for kind in ("file", "export", "socket", "rbd") for what in NOT_IN_XML}
    assert refused == {*NO_XML, *odd}
    for case in xml_cases:
        if case.name in refused:
            with pytest.raises(RenderError, match=NO_XML.get(case.name, "does not exist in XML")):
                disk_xml(case.plan)


def test_libvirt_opens_the_storage_that_qemu_opens(xml_cases: list[Case], by_libvirt: dict[str, Translated]) -> None:
    for name, (case, _xml) in said_in_xml(xml_cases).items():
        storage = by_libvirt[f"ua-{case.plan.names.device}"].storage
        ours = case.plan.nodes[0]
        shared = ("node-name", "read-only", "auto-read-only", "cache", "discard")
        assert {key: value for key, value in storage.items() if key not in shared} == {
            key: value for key, value in ours.items() if key not in shared
        }, name
        assert storage["cache"] == ours["cache"], name


def test_libvirt_presents_the_disk_as_qemu_does(xml_cases: list[Case], by_libvirt: dict[str, Translated]) -> None:
    for name, (case, _xml) in said_in_xml(xml_cases).items():
        libvirts, plan = by_libvirt[f"ua-{case.plan.names.device}"], case.plan
        raw = plan.nodes[1]
        assert libvirts.format["driver"] == raw["driver"] == "raw", name
        for key in ("read-only", "cache", "detect-zeroes"):
            assert libvirts.format[key] == raw[key], f"{name}: {key}"
        # A discard reaches the storage when every node lets it through.
        ours = {node["discard"] for node in plan.nodes}
        assert {libvirts.format["discard"], libvirts.storage["discard"]} == ours, name
        defaults = {"werror": "enospc", "rerror": "report", "serial": None, "bootindex": None, "iothread": None}
        for key in (*defaults, "driver", "write-cache"):
            wanted = plan.device.get(key, defaults.get(key))
            assert libvirts.device.get(key, defaults.get(key)) == wanted, f"{name}: {key}"
        if plan.options.placement.scsi_id is not None:
            for key in ("bus", "channel", "scsi-id", "lun"):
                assert libvirts.device[key] == plan.device[key], f"{name}: {key}"


def test_libvirt_understands_every_limit(oracle: Libvirt, xml_cases: list[Case]) -> None:
    throttled = {case.name: case for case in xml_cases if case.plan.options.throttle.limits}
    said = said_in_xml(list(throttled.values()))
    read = oracle.understood([xml for _case, xml in said.values()])
    kinds = {"bps": "bytes", "iops": "iops"}
    for case, _xml in said.values():
        disk = read.xpath(f"//disk[alias/@name='ua-{case.plan.names.device}']")[0]
        wanted = {}
        for name, value in case.plan.options.throttle.limits.items():
            unit, kind, *rest = name.split("-")
            wanted["_".join([kind, kinds[unit], "sec", *rest])] = str(value)
        assert {limit.tag: limit.text for limit in disk.find("iotune")} == wanted


@pytest.mark.parametrize(
    "location", [RbdLocation(pool="p", namespace="n", image="i"), RbdLocation(pool="p", image="a/b")]
)
def test_an_rbd_image_that_libvirt_would_take_for_another_is_refused(location: RbdLocation) -> None:
    plan = plan_disk(DiskNames(uuid.uuid4()), location, DiskOptions())
    with pytest.raises(RenderError, match="namespaces"):
        disk_xml(plan)


def test_a_cephx_user_that_xml_cannot_name_is_refused() -> None:
    location = RbdLocation(pool="p", image="i", user="admin")
    with pytest.raises(RenderError, match="cephx user 'admin'"):
        disk_xml(plan_disk(DiskNames(uuid.uuid4()), location, DiskOptions()))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (DiskOptions(iothread="io7"), "iothread 'io7'"),
        (DiskOptions(iothread="iothread0"), "iothread 'iothread0'"),
        (DiskOptions(iothread="iothread01"), "iothread 'iothread01'"),
        (DiskOptions(device=SCSI, iothread="iothread1"), "controller"),
        (DiskOptions(serial="a b"), "serial 'a b'"),
        (DiskOptions(device=SCSI, placement=Placement(scsi_id=3)), "part of a SCSI address"),
        (DiskOptions(device=SCSI, placement=Placement(lun=3)), "part of a SCSI address"),
        (DiskOptions(device=SCSI, placement=Placement(bus="scsi1")), "part of a SCSI address"),
        (DiskOptions(device=SCSI, placement=Placement(bus="fast", scsi_id=1, lun=1)), "controller 'fast'"),
        (DiskOptions(device=SCSI, placement=Placement(bus="scsi01", scsi_id=1, lun=1)), "controller 'scsi01'"),
    ],
)
def test_an_option_that_xml_cannot_say_is_refused_by_name(options: DiskOptions, word: str) -> None:
    plan = plan_disk(DiskNames(uuid.uuid4()), FileLocation(path="/x", opened=Opened.FILE), options)
    with pytest.raises(RenderError, match=word):
        disk_xml(plan)


def test_libvirt_really_refuses_or_changes_the_serials_that_hvext_keeps_out_of_xml(oracle: Libvirt) -> None:
    plan = plan_disk(DiskNames(uuid.uuid4()), FileLocation(path="/x", opened=Opened.FILE), DiskOptions(serial="SERIAL"))
    with pytest.raises(Refused, match="unsafe characters"):
        oracle.argv([disk_xml(plan).replace("SERIAL", "a,b")])
    changed = translated(oracle.argv([disk_xml(plan).replace("SERIAL", "a b")]))
    assert changed[f"ua-{plan.names.device}"].device["serial"] != "a b"
