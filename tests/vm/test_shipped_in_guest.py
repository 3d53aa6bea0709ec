"""Volumes of the shipped providers in a running guest: plugged, written, grown, moved, unplugged, and read there."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hvext.core.disk import Disk
from hvext.core.stamp import check_blocks
from hvext.host.guest import Writer
from hvext.host.provider import ProviderHost
from hvext.operations import attachments, volumes
from hvext.operations.vm import open_vm
from tests.conftest import need
from tests.servers.ceph import POOL, USER, ceph_cluster
from tests.servers.iscsi import TARGET, iscsi_target
from tests.servers.iscsi import USER as CHAP_USER
from tests.servers.server import read_file
from tests.vm.state import on_debug_monitor, state_of
from tests.vm.volume import wait_for_bytes, wait_for_disk

if TYPE_CHECKING:
    from tests.vm.conftest import GuestFactory

pytestmark = pytest.mark.vm
MIB = 1 << 20
SIZE_MIB, GROWN_MIB = 32, 48
BLOCKS = 512


@dataclass(frozen=True, kw_only=True)
class Real:
    """A provider's real storage: the disk on it, how it is made larger where others do that, and what is in it."""

    disk: Disk
    read: Callable[[int], bytes]
    enlarge: Callable[[], None] = lambda: None


def disk_of(provider: str, run: Path, parameters: dict[str, str], **more: object) -> Disk:
    own = {"run": str(run), **parameters}
    return Disk.from_mapping({"provider": provider, "volume": "vol", "parameters": own, **more})


@contextmanager
def rbd(folder: Path) -> Iterator[Real]:
    with ceph_cluster() as ceph:
        parameters = {"pool": POOL, "id": USER, "conf": str(ceph.conf), "keyring": str(ceph.keyring)}
        read = lambda length: ceph.read("vol", 0, length)  # noqa: E731
        yield Real(disk=disk_of("rbd", folder / "run", parameters), read=read)


@contextmanager
def iscsi(folder: Path) -> Iterator[Real]:
    with iscsi_target() as target:
        target.create("vol", SIZE_MIB * MIB)
        password = folder / "password"
        password.write_text(target.password)
        parameters = {"portal": target.portal, "target": TARGET, "lun": "1", "user": CHAP_USER}
        parameters["password_file"] = str(password)

        def enlarge() -> None:
            # tgtd looks at the size of a unit only when it is made.
            os.truncate(target.path("vol"), GROWN_MIB * MIB)
            target.admin("--mode logicalunit --op delete --tid 1 --lun 1")
            offer = "--mode logicalunit --op new --tid 1 --lun 1 --bstype=rdwr --blocksize=512 -b"
            target.admin(offer, str(target.path("vol")))

        read = lambda length: target.read("vol", 0, length)  # noqa: E731
        disk = disk_of("iscsi", folder / "run", parameters, **{"secret.password": str(password)})
        yield Real(disk=disk, read=read, enlarge=enlarge)


@contextmanager
def sharedfile(folder: Path) -> Iterator[Real]:
    """A volume on a file system of its own."""
    image, point = folder / "fs", folder / "m"
    image.touch()
    os.truncate(image, 256 * MIB)
    subprocess.run([need("mkfs.ext4", "e2fsprogs"), "-q", str(image)], check=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
    try:
        read = lambda length: read_file(point / "vol" / "disk.raw", 0, length)  # noqa: E731
        yield Real(disk=disk_of("sharedfile", folder / "run", {"dir": str(point)}), read=read)
    finally:
        subprocess.run(["umount", str(point)], check=True)


@contextmanager
def blockdev(folder: Path) -> Iterator[Real]:
    """A loop device that somebody else made."""
    image = folder / "image"
    image.touch()
    os.truncate(image, SIZE_MIB * MIB)
    losetup = ["losetup", "--find", "--show", "--direct-io=on", str(image)]
    device = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield Real(
            disk=disk_of("blockdev", folder / "run", {"path": device, "adopt": "yes"}),
            read=lambda length: read_file(image, 0, length),
            enlarge=lambda: os.truncate(image, GROWN_MIB * MIB),
        )
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.parametrize("storage", [rbd, iscsi, sharedfile, blockdev], ids=lambda storage: storage.__name__)
def test_a_guest_keeps_every_block_of_a_shipped_providers_volume_through_its_life(
    share: GuestFactory, tmp_path: Path, storage: Callable[[Path], Iterator[Real]]
) -> None:
    need("losetup", "mount")
    host = ProviderHost(log_directory=str(tmp_path / "provider-logs"))
    guest = share()
    before = state_of(guest.machine)
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="hvext-"))
        stack.callback(shutil.rmtree, folder)
        real: Real = stack.enter_context(storage(folder))  # type: ignore[arg-type]
        disk = real.disk
        volumes.create_volume(host, disk, SIZE_MIB)
        stack.callback(attachments.detach, host, disk)
        with open_vm(str(guest.machine.qmp_path), host=host) as vm:
            vm.plug(disk)
            device = wait_for_disk(guest.console)
            writer = Writer(guest.console, device)
            writer.start(blocks=BLOCKS)
            offered = attachments.offer(host, disk).attachment
            ways = [*offered.uris_for("kvm"), *([offered.block_path] if offered.block_path else [])]
            for way in [*ways, *ways] if len(ways) > 1 else []:
                vm.repoint(disk.volume.uuid, way)
            # A target that has its unit taken away for a moment answers with errors to whoever writes then.
            on_debug_monitor(guest.machine, "stop")
            real.enlarge()
            on_debug_monitor(guest.machine, "cont")
            assert vm.resize(disk, GROWN_MIB, old_size_mib=SIZE_MIB).changed
            wait_for_bytes(guest.console, device, GROWN_MIB * MIB)
            end = GROWN_MIB * MIB // 4096 - 1
            status, text = guest.console.run(f"dd if=/dev/zero of={device} bs=4k count=1 seek={end} conv=fsync")
            assert status == 0, text
            verdict = writer.stop()
            vm.unplug(disk)
        assert (verdict.status.errors, verdict.bad, verdict.unreadable) == (0, 0, 0)
        report = check_blocks(real.read(BLOCKS * 4096), 0)
        assert report.ok
        assert report.valid == verdict.verified > BLOCKS // 2
        assert len(real.read(2 * GROWN_MIB * MIB)) == GROWN_MIB * MIB
        volumes.remove_volume(host, disk)
        assert not list((folder / "run").glob("*"))
    assert state_of(guest.machine) == before
