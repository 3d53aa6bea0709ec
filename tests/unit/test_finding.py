"""What findings mean: for the host, and for each transport. And what Ceph's client would read."""

from __future__ import annotations

from typing import Any

import pytest

from hvext.core.capability import STORAGE_DRIVERS
from hvext.core.finding import (
    CHECKS,
    SUBJECTS,
    TRANSPORTS,
    Finding,
    Severity,
    by_cure,
    in_order,
    is_ready,
    transport_of,
    transport_states,
)
from hvext.core.uri import parse_uri
from hvext.core.uri.rbd import RbdLocation
from hvext.errors import InputError
from hvext.operations.doctor.ceph import keyrings
from hvext.operations.doctor.paths import paths_of, servers_of


def finding(severity: Severity, check: str = "qemu.driver", **values: Any) -> Finding:
    return Finding(id=check, severity=severity, tried="t", found="f", cure="c", **values)


@pytest.mark.parametrize(
    ("severities", "ready", "strictly"),
    [
        ("", True, True),
        ("ok absent", True, True),
        ("ok warning absent", True, False),
        ("ok error", False, False),
    ],
)
def test_a_host_is_ready_when_nothing_is_in_error(severities: str, ready: bool, strictly: bool) -> None:
    found = [finding(Severity(word)) for word in severities.split()]
    assert is_ready(found) is ready
    assert is_ready(found, strict=True) is strictly


@pytest.mark.parametrize("severity", Severity)
def test_a_transport_is_ready_unless_a_fault_touches_it(severity: Severity) -> None:
    found = [finding(severity, transports=("rbd",)), finding(Severity.ERROR, transports=("nbd", "nbds"))]
    states = {each.transport.name: each for each in transport_states(found)}
    assert states.keys() == TRANSPORTS.keys()
    assert states["rbd"].ready is (severity is Severity.OK)
    assert {name for name, each in states.items() if not each.ready} - {"rbd"} == {"nbd", "nbds"}
    assert states["nbd"].why == "f (qemu.driver)"
    assert [each.transport.name for each in transport_states(found, ("rbd",))] == ["rbd"]


def test_every_driver_that_opens_storage_belongs_to_a_transport() -> None:
    for driver in STORAGE_DRIVERS:
        name = transport_of(driver)
        assert driver in TRANSPORTS[name].drivers or name == "blkio"
    assert transport_of("nbd", tls=True) == "nbds"
    assert transport_of("vhost-user-blk-pci") == "vhost-user"


@pytest.mark.parametrize(
    "values",
    [
        {"check": "nonesuch.check"},
        {"transports": ("carrier-pigeon",)},
    ],
)
def test_a_finding_that_nobody_could_look_up_cannot_be_made(values: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        finding(Severity.ERROR, **values)


@pytest.mark.parametrize("severity", [Severity.WARNING, Severity.ERROR, Severity.ABSENT])
def test_no_fault_is_without_a_cure(severity: Severity) -> None:
    with pytest.raises(InputError, match="no cure"):
        Finding(id="qemu.driver", severity=severity, tried="t", found="f")


def test_findings_stand_in_the_order_of_the_checks() -> None:
    names = list(CHECKS)
    found = [finding(Severity.OK, name) for name in reversed(names)]
    assert [each.id for each in in_order(found)] == names
    assert {name.partition(".")[0] for name in CHECKS} == {*SUBJECTS, "doctor"}


def test_faults_with_one_cure_are_one_group_at_the_place_of_the_first() -> None:
    def said(about: str, severity: Severity, cure: str) -> Finding:
        return Finding(id="qemu.driver", severity=severity, tried="t", found="f", about=about, cure=cure)

    bad, fine = Severity.ABSENT, Severity.OK
    found = [said("rbd", bad, "apt"), said("nbd", fine, ""), said("blkio", bad, "build"), said("file", fine, "")]
    found += [said("ssh", Severity.ERROR, "apt")]
    groups = [[each.about for each in group] for group in by_cure(found)]
    assert groups == [["rbd", "ssh"], ["nbd"], ["blkio"], ["file"]]


# --- What is looked at for a URI -------------------------------------------------------------------------------------


def rbd(text: str) -> RbdLocation:
    location = parse_uri(text)
    assert isinstance(location, RbdLocation)
    return location


@pytest.mark.parametrize(
    ("uri", "conf", "wanted"),
    [
        ("rbd:p/i", "", ("/etc/ceph/ceph.client.admin.keyring", "/etc/ceph/ceph.keyring", "/etc/ceph/keyring")),
        ("rbd:p/i:id=vm:conf=/etc/ceph/b.conf", "", ("/etc/ceph/b.client.vm.keyring", "/etc/ceph/b.keyring")),
        ("rbd:p/i:id=vm", "[global]\nkeyring = /g\n[client.vm]\nkeyring=/k-${id}.$type # mine", ("/k-vm.client",)),
        ("rbd:p/i:id=vm", "[client]\nkeyring = /c\n[client.other]\nkeyring = /o", ("/c",)),
        ("rbd:p/i:keyring=/mine", "[global]\nkeyring = /g", ("/mine",)),
        ("rbd:p/i", "[global]\nkey file = /f\nkeyfile = /e", ("/e",)),
        ("rbd:p/i", "[global]\nauth client required = none", ()),
        ("rbd:p/i:auth_client_required=none", "", ()),
        ("rbd:p/i:key=c2VjcmV0", "", ()),
    ],
)
def test_the_keyring_is_the_one_that_ceph_would_take(uri: str, conf: str, wanted: tuple[str, ...]) -> None:
    found = keyrings(rbd(uri), conf)
    assert found[: len(wanted)] == wanted
    assert bool(found) is bool(wanted)


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("file:/srv/v", ["/srv/v"]),
        ("nbd+unix:///x?socket=/s", ["/s"]),
        ("nbds://h/x", [f"/etc/pki/qemu/{name}.pem" for name in ("ca-cert", "client-cert", "client-key")]),
        ("nbds://h/x?tls-psk-file=/k", ["/k"]),
        ("vhost-user:/s", ["/s"]),
        ("gluster+unix:///vol/x?socket=/g", ["/g"]),
        ("rbd:p/i", ["/etc/ceph/ceph.conf"]),
        ('json:{"driver":"io_uring","filename":"/v"}', ["/v"]),
        ("iscsi://h/t/1", []),
    ],
)
def test_what_a_uri_names_on_this_host_is_looked_at(uri: str, wanted: list[str]) -> None:
    assert [each.path for each in paths_of(parse_uri(uri), "path")] == wanted


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("nbd://h/x", [("h", 10809, False)]),
        ("nbds://h/x", [("h", 10809, True)]),
        ("iscsi://h:1/t/1", [("h", 1, True)]),
        ("ssh://h/x", [("h", 22, True)]),
        ("nfs://h/e/x", [("h", 2049, True)]),
        ("gluster://h/v/x", [("h", 24007, True)]),
        ("https://h:8443/x", [("h", 8443, True)]),
        ("ftp://h/x", [("h", 21, True)]),
        (r"rbd:p/i:mon_host=a\:6789\;b\:6789", [("a", 6789, True), ("b", 6789, True)]),
        ("nbd+unix:///x?socket=/s", []),
    ],
)
def test_a_server_is_connected_to_unless_it_may_serve_one_connection_only(
    uri: str, wanted: list[tuple[str, int, bool]]
) -> None:
    assert [(each.host, each.port, each.connect) for each in servers_of(parse_uri(uri))] == wanted
