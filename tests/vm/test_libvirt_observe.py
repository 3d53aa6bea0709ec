"""What is seen of a domain's disks: the same names and units as over QMP, over connections that change nothing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from hvext.core.activity import activity
from hvext.core.disk import Disk
from hvext.core.metrics import vm_families
from hvext.core.observation import ObservedVm, Writers
from hvext.core.statistics import Kind
from hvext.errors import LibvirtRefused
from hvext.host.domain import DomainHandle, connect
from hvext.host.guest import Console
from hvext.host.journal import JournalFolder
from hvext.host.machine import GuestImage
from hvext.operations.domains.observe import DomainLooks
from hvext.operations.domains.vm import open_domain
from hvext.operations.observe import beside
from hvext.operations.observe_host import HostObserver
from hvext.operations.records import read_records
from tests.servers.libvirtd import Libvirtd, libvirtd
from tests.vm.libvirt_guests import booted, domain_xml

if TYPE_CHECKING:
    from tests.vm.conftest import Storage

pytestmark = pytest.mark.vm
MIB = 1 << 20


@pytest.fixture(scope="module")
def daemon() -> Iterator[Libvirtd]:
    with libvirtd() as running:
        yield running


@pytest.fixture
def paused(daemon: Libvirtd, storage: Storage) -> Iterator[Libvirtd]:
    """A libvirtd with the persistent domain ``g``, which runs paused, without a guest in it."""
    if "g" not in daemon.virsh("list", "--name").split():
        daemon.clear()
        daemon.define(domain_xml("g"))
        daemon.virsh("start", "g", "--paused")
    yield daemon
    if "ua-hv-" in daemon.virsh("dumpxml", "g") + daemon.virsh("dumpxml", "g", "--inactive"):
        # The test has failed.
        daemon.clear()


def seen() -> ObservedVm:
    (vm,) = asyncio.run(HostObserver().observe())
    return vm


def hvext(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hvext", *words], capture_output=True, text=True, timeout=60, check=False
    )


def samples(vms: list[ObservedVm]) -> dict[str, dict[tuple[str, ...], float]]:
    return {each.name: {one.labels: one.value for one in each.samples} for each in vm_families(vms)}


def test_the_disks_of_a_domain_are_seen_with_size_access_counts_and_what_is_pending(
    paused: Libvirtd, storage: Storage, create: Callable[..., Disk]
) -> None:
    disk = create(access="kernelspace", read_only=True)
    uuid = disk.volume.uuid
    with open_domain(paused.uri, "g", host=storage.host) as vm:
        vm.plug(disk)
        found = seen()
        assert (found.name, found.state, found.asked) == ("g", "paused", True)
        (one,) = found.disks
        assert (one.uuid, one.access, one.volume, one.pending) == (uuid, "kernelspace", "sample/vol", None)
        assert one.running is not None
        assert one.running.top is not None
        assert one.running.top.size_bytes == 64 * MIB
        told = one.to_json()
        location = vm.disks()[uuid].to_json()
        # Over QMP and in either list they are called the same.
        for name in ("device", "model", "driver", "filename", "uri", "size_bytes", "read_only", "cache_direct"):
            assert told[name] == location[name], name
        # QEMU has looked for a partition table, or nothing at all.
        assert one.counts is not None
        assert Kind.DISCARD not in one.counts.kinds
        assert one.counts.kinds[Kind.READ].failed is None
        measured = samples([found])
        assert measured["hvext_vm_up"] == {("g",): 1}
        assert measured["hvext_disk_size_bytes"] == {("g", str(uuid)): 64 * MIB}
        assert set(measured["hvext_disk_requests"]) == {("g", str(uuid), kind) for kind in ("read", "write", "flush")}
        # What is not told is no zero.
        assert measured["hvext_disk_failed_requests"] == {}
        ((info, _one),) = measured["hvext_disk_info"].items()
        assert info[2:] == ("sample", "vol", "kernelspace", "host_device", "virtio-blk-pci")
        assert vm.unplug(disk, timeout_s=0.1).state == "pending"
        (one,) = seen().disks
        assert one.pending is not None
        assert "waits for the guest" in one.pending.state
        assert samples([seen()])["hvext_vm_pending_unplugs"] == {("g",): 1}
        listed = hvext("disks", "--connect", paused.uri, "--domain", "g")
        assert "live, unplug pending" in listed.stdout
        assert "kernelspace" in listed.stdout
        (row,) = json.loads(hvext("disks", "--connect", paused.uri, "--domain", "g", "--json").stdout)
        assert (row["access"], row["target"], row["pending"]["operation"]) == ("kernelspace", "vda", "unplug")
        assert set(row["statistics"]) == {"read", "write", "flush", "idle_s"}
        in_depth = hvext("disks", "--connect", paused.uri, "--domain", "g", "--stats").stdout
        assert "VM g: paused" in in_depth
        assert "pending   unplug: waits for the guest" in in_depth
        paused.virsh("reset", "g")
        assert vm.unplug(disk, timeout_s=10).detached


def test_a_file_of_this_host_hides_no_size_and_one_on_a_server_hides_all(
    paused: Libvirtd, storage: Storage, create: Callable[..., Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = create(device="scsi-hd", access="userspace")
    system = storage.folder / "system.raw"
    system.write_bytes(bytes(MIB))
    with open_domain(paused.uri, "g", host=storage.host) as vm:
        vm.plug(disk, live=True)
        paused.virsh("attach-disk", "g", str(system), "vdz", "--live")
        (one,) = seen().disks
        assert one.to_json()["size_bytes"] == 64 * MIB
        # As if a server had that folder.
        table = f"{vm.handle.mounts}99 1 0:99 / {storage.folder} rw - nfs4 server:/export rw\n"
        monkeypatch.setattr(DomainHandle, "mounts", table)
        (one,) = seen().disks
        assert one.to_json()["size_bytes"] is None
        assert one.access == "userspace"
        assert one.counts is not None
        # Who asks for it, gets it.
        assert vm.disks()[disk.volume.uuid].size_bytes == 64 * MIB
        assert vm.unplug(disk).detached
    paused.end("g")


def test_looking_is_done_over_a_connection_that_can_change_nothing(paused: Libvirtd) -> None:
    with connect(paused.uri, read_only=True) as connection:
        domain = connection.domain("g")
        assert domain.state == "paused"
        with pytest.raises(LibvirtRefused, match="read only"):
            domain.detach("ua-nothing", live=True)


def test_a_domain_that_is_off_or_gone_or_unreachable_is_told_from_the_journal(
    paused: Libvirtd, storage: Storage, create: Callable[..., Disk]
) -> None:
    disk = create(device="scsi-hd", access="kernelspace")
    with open_domain(paused.uri, "g", host=storage.host) as vm:
        vm.plug(disk)
        paused.end("g")
        found = seen()
        assert (found.state, found.asked, len(found.disks)) == ("shut off", False, 1)
        assert found.disks[0].access is None
        folder = JournalFolder()
        said = beside(folder, "g", read_records(folder), Writers())
        paused.service.freeze()
        try:
            looks = DomainLooks()
            found = asyncio.run(looks.look(said, limit_s=0.2))
            # It is not asked once more as long as it has not answered.
            again = asyncio.run(looks.look(said, limit_s=60))
        finally:
            paused.service.thaw()
        assert (found.state, found.asked, len(found.disks)) == ("silent", False, 1)
        assert (again.state, again.words) == ("silent", "libvirt has not answered since an earlier look")
        assert vm.unplug(disk).detached
        vm.plug(disk)
    paused.virsh("undefine", "g")
    found = seen()
    assert (found.state, "no domain 'g'" in found.words) == ("ended", True)
    paused.define(domain_xml("g"))
    with open_domain(paused.uri, "g", host=storage.host) as vm:
        assert vm.unplug(disk).detached


@pytest.mark.nightly
def test_a_guests_requests_are_counted_over_libvirt_with_bytes_and_latency(
    storage: Storage, guest_image: GuestImage, create: Callable[..., Disk]
) -> None:
    disk = create(access="userspace")
    work = (
        "dd if=/dev/zero of=/dev/vda bs=1M count=8 oflag=direct conv=fsync; "
        "dd if=/dev/vda of=/dev/null bs=1M count=4 iflag=direct"
    )
    observer = HostObserver(names=["g"])

    async def around(console: Console) -> list[list[ObservedVm]]:
        before = await observer.observe()
        await asyncio.to_thread(console.run, work)
        return [before, await observer.observe()]

    with (
        libvirtd() as own,
        booted(own, guest_image, "g") as console,
        open_domain(own.uri, "g", host=storage.host) as vm,
    ):
        vm.plug(disk)
        console.run("while ! [ -b /dev/vda ]; do sleep 0.1; done")
        (row,) = activity(*asyncio.run(around(console)))
        assert (row.state, row.disk is not None and row.disk.access) == ("running", "userspace")
        assert row.rates is not None
        read, write, flush = (row.rates[kind] for kind in (Kind.READ, Kind.WRITE, Kind.FLUSH))
        assert write.bytes_per_s == 2 * read.bytes_per_s
        assert write.per_s >= 2 * read.per_s > 0
        assert flush.per_s
        assert all(rate.latency_s is not None and 0 < rate.latency_s < 60 for rate in (read, write, flush))
        assert vm.unplug(disk, timeout_s=30).detached
