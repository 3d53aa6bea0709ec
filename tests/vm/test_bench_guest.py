"""The benchmark in a guest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hvext.bench.beside import Layer, beside
from hvext.bench.places import Made, Place
from hvext.bench.result import Level, Result, Workload
from hvext.bench.run import Settings, measure
from hvext.bench.tune import preferred
from hvext.bench.workload import QUICK
from hvext.core.access import Access
from hvext.core.disk import Disk
from hvext.core.options import DeviceModel
from hvext.errors import ProgramError
from hvext.host.provider import ProviderHost
from hvext.operations import volumes
from tests.conftest import need
from tests.host.oracle import short_folder
from tests.host.test_bench import Quiet

pytestmark = pytest.mark.vm

READ = Workload(name="r", rw="randread", block_bytes=4096, depth=4)
MIXED = Workload(name="m", rw="randrw", block_bytes=4096, depth=4, read_percent=70)
SYNCED = Workload(name="s", rw="randwrite", block_bytes=4096, depth=1, read_percent=0, fsync=1)
IMAGE = Path(__file__).parent.parent.parent / "vm-images" / "out"


def test_a_guest_measures_every_access_as_every_device(tmp_path: Path) -> None:
    need(str(IMAGE.parent / "out-fio" / "fio.gz"), "vm-images/build-fio")
    host = ProviderHost()
    with short_folder() as folder:
        disk = Disk.from_mapping({"provider": "sample", "volume": "b", "parameters": {"dir": str(folder)}})
        volumes.create_volume(host, disk, 64)
        settings = Settings(
            length=replace(QUICK, rounds=1, run_s=0.3, warm_up_s=0.1),
            levels=(Level.GUEST,),
            devices=(DeviceModel.VIRTIO_BLK, DeviceModel.SCSI_HD),
            made=(Made.VHOST_USER,),
            jobs=(READ, MIXED, SYNCED),
            destroy_data=True,
            guest=IMAGE,
        )
        watcher = Quiet()
        result = measure(host, disk, settings, watcher)
        # Nothing is left of it: the volume can be removed.
        volumes.remove_volume(host, disk)
    ran = {(run.device, run.access) for run in result.runs}
    assert ran == {
        ("virtio-blk-pci", "path"),
        ("virtio-blk-pci", "nbd"),
        ("virtio-blk-pci", "vhost-user-blk (made)"),
        ("scsi-hd", "path"),
        ("scsi-hd", "nbd"),
    }
    assert len(result.runs) == watcher.steps == watcher.expected == 3 * len(ran)
    for run in result.runs:
        found = run.measure()
        assert found.iops > 0
        assert found.latency_us["p50"] <= found.latency_us["p99"] <= found.latency_us["p99.9"]
        # Those that were under way when the warm-up ended are in the one and not in the other.
        assert 0 <= sum(run.latency_bins().values()) - found.ios <= 4
        assert run.raw["jobs"][0]["job options"].get("fsync") == ("1" if run.workload == "s" else None)
    assert result.host["acceleration"] in ("tcg", "kvm")
    assert Result.read(json.dumps(result.to_json())) == result


def test_a_disk_of_another_layer_is_the_device_that_it_is_there(tmp_path: Path) -> None:
    need(str(IMAGE.parent / "out-fio" / "fio.gz"), "vm-images/build-fio")

    def vary(places: Sequence[Place]) -> Sequence[Place]:
        return beside(preferred(places, Access.KERNELSPACE), (Layer.PROXMOX,))

    host = ProviderHost()
    with short_folder() as folder:
        disk = Disk.from_mapping({"provider": "sample", "volume": "b", "parameters": {"dir": str(folder)}})
        volumes.create_volume(host, disk, 64)
        settings = Settings(
            length=replace(QUICK, rounds=1, run_s=0.3, warm_up_s=0.1), levels=(Level.GUEST,), jobs=(READ,), guest=IMAGE
        )
        result = measure(host, disk, settings, Quiet(), vary=vary)
        volumes.remove_volume(host, disk)
    given, proxmox = (next(run for run in result.runs if run.access == name) for name in ("as given", "proxmox"))
    # fio tells which disk it had: sd… on the controller that runs in an iothread, vd… behind virtio-blk.
    assert given.raw["jobs"][0]["job options"]["filename"].startswith("/dev/vd")
    assert proxmox.raw["jobs"][0]["job options"]["filename"].startswith("/dev/sd")


def test_a_guest_without_fio_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("vmlinuz", "initrd.gz"):
        (tmp_path / "out" / name).symlink_to(IMAGE / name)
    host = ProviderHost()
    with short_folder() as folder:
        disk = Disk.from_mapping({"provider": "sample", "volume": "b", "parameters": {"dir": str(folder)}})
        volumes.create_volume(host, disk, 64)
        settings = Settings(length=QUICK, levels=(Level.HOST, Level.GUEST), guest=tmp_path / "out")
        with pytest.raises(ProgramError) as caught:
            # Nothing is attached, and nothing measured on the host, for a guest that cannot be had.
            measure(ProviderHost(search_path=()), disk, settings, Quiet())
        assert "vm-images/build-fio" in caught.value.hint
        volumes.remove_volume(host, disk)
