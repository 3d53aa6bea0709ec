"""Keys of Ceph and certificates of NBD through a real libvirtd: used, never shown, and gone with the disk."""

from __future__ import annotations

import asyncio
import base64
import secrets
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hvext.core.disk import Disk
from hvext.core.domain import parse_domain
from hvext.core.value import replace
from hvext.errors import OperationFailed
from hvext.host.journal import JournalFolder
from hvext.host.provider import ProviderHost
from hvext.operations.domains.vm import open_domain
from hvext.operations.journal import read_records
from hvext.operations.observe_host import HostObserver
from tests.providers import read_calls, write_provider
from tests.secrecy import remember
from tests.servers.ceph import POOL, USER, CephCluster, ceph_cluster
from tests.servers.certificates import Certificates, certificates
from tests.servers.libvirtd import Libvirtd, libvirtd
from tests.servers.nbd import PSK_USER, NbdServer, nbd_server
from tests.vm.libvirt_guests import domain_xml

if TYPE_CHECKING:
    from tests.vm.conftest import Storage

pytestmark = [pytest.mark.vm, pytest.mark.nightly]
MIB = 1 << 20
Offering = Callable[..., ProviderHost]
FAKE = Disk.from_mapping({"provider": "fake", "volume": "v", "device": "scsi-hd"})


@pytest.fixture(scope="module")
def authority() -> Iterator[Certificates]:
    with certificates() as made:
        yield made


@pytest.fixture(scope="module")
def daemon(authority: Certificates) -> Iterator[Libvirtd]:
    with libvirtd(conf=f'nbd_tls_x509_cert_dir = "{authority.client}"\n') as running:
        yield running


@pytest.fixture
def paused(daemon: Libvirtd, storage: Storage) -> Iterator[Libvirtd]:
    """A libvirtd with the persistent domain ``g``, which runs paused, without a guest in it."""
    if "g" not in daemon.virsh("list", "--name").split():
        daemon.define(domain_xml("g"))
        daemon.virsh("start", "g", "--paused")
    yield daemon
    if "ua-hv-" in whole_xml(daemon):
        # The test has failed.
        daemon.clear()


@pytest.fixture(scope="module")
def ceph() -> Iterator[CephCluster]:
    with ceph_cluster() as cluster:
        cluster.create("v", 32 * MIB)
        yield cluster


@pytest.fixture(scope="module")
def nbd(authority: Certificates) -> Iterator[NbdServer]:
    with nbd_server(tcp=True, certificates=authority) as server:
        server.create("v", 32 * MIB)
        yield server


def whole_xml(daemon: Libvirtd) -> str:
    return daemon.virsh("dumpxml", "g", "--security-info") + daemon.virsh(
        "dumpxml", "g", "--inactive", "--security-info"
    )


def known(daemon: Libvirtd) -> str:
    return daemon.virsh("secret-list").strip()


@pytest.fixture
def offering(tmp_path: Path) -> Iterator[Offering]:
    """A function that makes a provider ``fake`` whose attach prints an empty line and this URI, for the test's time."""
    answers = []

    def make(uri: str, name: str = "p") -> ProviderHost:
        folder = tmp_path / name
        answers.append(folder / "answer")
        write_provider(folder, "fake", {"attach": f"cat {folder}/answer"}, record=folder / "calls")
        answers[-1].write_text(f"\nkvm:{uri}\n")
        return ProviderHost(search_path=(str(folder),), log_directory=None)

    yield make
    for answer in answers:
        answer.unlink()


def with_key(ceph: CephCluster, key: str) -> str:
    """The URI that names monitor and user, with a key: what libvirt can say."""
    return f"rbd:{POOL}/v:id={USER}:key={key}:mon_host={ceph.host}\\:{ceph.port}"


def actions(folder: Path) -> list[str]:
    return [call.action for call in read_calls(folder / "calls")]


def tls(server: NbdServer) -> str:
    return server.uri("v").replace("nbd", "nbds", 1)


def test_a_key_of_ceph_is_a_libvirt_secret_that_no_xml_shows_and_that_goes_with_the_disk(
    paused: Libvirtd, ceph: CephCluster, offering: Offering, tmp_path: Path
) -> None:
    key = remember(ceph.key)
    host = offering(with_key(ceph, ceph.key))
    with open_domain(paused.uri, "g", host=host) as vm:
        plugged = vm.plug(FAKE)
        assert (plugged.live, plugged.persistent) == (True, True)
        assert vm.disks()[FAKE.volume.uuid].size_bytes == 32 * MIB
        # QEMU would ask the cluster, which may not answer: nobody who only looks has it do that.
        ((seen,),) = (each.disks for each in asyncio.run(HostObserver().observe()))
        assert (seen.access, seen.to_json()["size_bytes"]) == ("userspace", None)
        assert seen.counts is not None
        (line,) = known(paused).splitlines()
        assert "ceph" in line
        assert FAKE.names.root in line
        shown = whole_xml(paused)
        assert key not in shown
        assert f'username="{USER}"' in shown.replace("'", '"')
        assert key not in paused.log_of("g")
        # What a reader may not have.
        with pytest.raises(Exception, match="private"):
            paused.virsh("secret-get-value", line.split()[0])
        ceph.resize("v", 48 * MIB)
        assert vm.resize(FAKE, 48).after_bytes == 48 * MIB
        gone = vm.unplug(FAKE)
        assert gone.detached
        assert gone.removed
    assert known(paused) == ""
    assert not list((paused.folder / "etc" / "secrets").glob("*"))
    assert read_records(JournalFolder()) == {}


def test_a_wrong_key_of_ceph_is_found_out_and_leaves_nothing(
    paused: Libvirtd, ceph: CephCluster, offering: Offering, tmp_path: Path
) -> None:
    # Of somebody else: its type, the time it was made, its length, and the key itself.
    key = remember(base64.b64encode(struct.pack("<HIIH", 1, 0, 0, 16) + secrets.token_bytes(16)).decode())
    host = offering(with_key(ceph, key))
    before = paused.virsh("dumpxml", "g", "--inactive")
    with open_domain(paused.uri, "g", host=host) as vm, pytest.raises(OperationFailed) as failure:
        vm.plug(FAKE)
    assert key not in str(failure.value)
    assert "undone: attach fake/v" in failure.value.message
    assert known(paused) == ""
    assert paused.virsh("dumpxml", "g", "--inactive") == before
    assert actions(tmp_path / "p") == ["attach", "detach"]
    assert read_records(JournalFolder()) == {}


def test_a_disk_that_libvirt_refuses_leaves_no_key_of_ceph(
    paused: Libvirtd, ceph: CephCluster, offering: Offering, tmp_path: Path
) -> None:
    remember(ceph.key)
    host = offering(with_key(ceph, ceph.key))
    # The domain has <boot dev='hd'/>.
    disk = replace(FAKE, options=replace(FAKE.options, bootindex=1))
    with open_domain(paused.uri, "g", host=host) as vm, pytest.raises(OperationFailed, match="per-device boot"):
        vm.plug(disk)
    assert known(paused) == ""
    assert not list((paused.folder / "etc" / "secrets").glob("*"))
    assert "ua-hv-" not in whole_xml(paused)


@pytest.mark.parametrize("named", ["by nobody", "by the provider"])
def test_certificates_of_nbd_are_those_of_libvirts_configuration(
    paused: Libvirtd, nbd: NbdServer, authority: Certificates, offering: Offering, tmp_path: Path, named: str
) -> None:
    more = f"?tls-certificates={authority.client}" if named == "by the provider" else ""
    host = offering(f"{tls(nbd)}{more}")
    with open_domain(paused.uri, "g", host=host) as vm:
        assert vm.plug(FAKE).changed
        assert vm.disks()[FAKE.volume.uuid].size_bytes == 32 * MIB
        live = parse_domain(paused.virsh("dumpxml", "g")).disks[FAKE.volume.uuid]
        assert live.location is not None
        assert live.location.uri() == tls(nbd)
        asked = '{"execute": "qom-list", "arguments": {"path": "/objects"}}'
        assert "tls-creds-x509" in paused.virsh("qemu-monitor-command", "g", asked)
        assert vm.unplug(FAKE).detached
        # libvirt has removed the credentials with the disk.
        assert "tls-creds-x509" not in paused.virsh("qemu-monitor-command", "g", asked)
    assert known(paused) == ""


def test_certificates_that_the_server_refuses_leave_nothing(
    nbd: NbdServer, authority: Certificates, storage: Storage, offering: Offering, tmp_path: Path
) -> None:
    host = offering(tls(nbd))
    with libvirtd(conf=f'nbd_tls_x509_cert_dir = "{authority.wrong_ca}"\n') as own:
        own.define(domain_xml("g"))
        own.virsh("start", "g", "--paused")
        before = whole_xml(own)
        with open_domain(own.uri, "g", host=host) as vm, pytest.raises(OperationFailed, match="certificate") as failure:
            vm.plug(FAKE)
        assert "undone: attach fake/v" in failure.value.message
        assert whole_xml(own) == before
        asked = '{"execute": "qom-list", "arguments": {"path": "/objects"}}'
        assert "tls-creds-x509" not in own.virsh("qemu-monitor-command", "g", asked)
    assert actions(tmp_path / "p") == ["attach", "detach"]


def test_what_libvirt_cannot_say_of_nbds_tls_is_refused_with_the_reason(
    paused: Libvirtd, nbd: NbdServer, authority: Certificates, offering: Offering, tmp_path: Path
) -> None:
    for number, (more, words) in enumerate(
        (
            (f"?tls-certificates={authority.anonymous}", "nbd_tls_x509_cert_dir"),
            (f"?tls-psk-file={tmp_path}/keys.psk", "a pre-shared key for NBD"),
            ("?tls-verify-peer=0", "whose certificate is not verified"),
        )
    ):
        uri = tls(nbd).replace("//", f"//{PSK_USER}@") if "psk" in more else tls(nbd)
        host = offering(f"{uri}{more}", str(number))
        with open_domain(paused.uri, "g", host=host) as vm, pytest.raises(OperationFailed) as failure:
            vm.plug(FAKE)
        assert words in f"{failure.value} {failure.value.hint}", more
        assert actions(tmp_path / str(number)) == ["attach", "detach"]
