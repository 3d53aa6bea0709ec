"""Real storage for the shipped providers: Ceph with cephx, tgtd with CHAP, a mounted file system, a loop device.

The kernel of a test machine has neither krbd nor an iSCSI initiator: ``rbd map`` and ``iscsiadm`` are small programs
in the tests of these providers, which make a real block device of the same bytes and pass everything else on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.servers.ceph import POOL, USER, CephCluster, ceph_cluster
from tests.servers.iscsi import TARGET, IscsiTarget, iscsi_target
from tests.servers.iscsi import USER as CHAP_USER
from tests.shipped import MIB, OWN, PROVIDERS, WITH_TGT, Place, losetup


@pytest.fixture(autouse=True, scope="module")
def _programs() -> None:
    need("qemu-io", "qemu-utils")
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")


@pytest.fixture(scope="module")
def ceph() -> Iterator[CephCluster]:
    with ceph_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def target() -> Iterator[IscsiTarget]:
    with iscsi_target() as server:
        yield server


@pytest.fixture(scope="module")
def mounted() -> Iterator[Path]:
    """A file system of its own."""
    with tempfile.TemporaryDirectory(prefix="hvx-") as name:
        image, point = Path(name, "fs"), Path(name, "m")
        with image.open("wb") as file:
            file.truncate(512 * MIB)
        subprocess.run([need("mkfs.ext4", "e2fsprogs"), "-q", str(image)], check=True)
        point.mkdir()
        subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
        try:
            yield point
        finally:
            subprocess.run(["umount", str(point)], check=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hvx-") as name:
        yield Path(name)


@pytest.fixture
def rbd(ceph: CephCluster, folder: Path) -> Iterator[Place]:
    parameters = {"pool": POOL, "id": USER, "conf": str(ceph.conf), "keyring": str(ceph.keyring)}
    place = Place(provider="rbd", folder=folder, parameters=parameters, scripts=PROVIDERS / "rbd")
    yield place
    place.tear_down()
    for image in ceph.rbd("ls", POOL).split():
        ceph.rbd("rm", "--no-progress", f"{POOL}/{image}")
    assert ceph.rbd("trash", "ls", "--all", POOL) == ""


@pytest.fixture
def iscsi(target: IscsiTarget, folder: Path) -> Iterator[Place]:
    password = folder / "password"
    password.write_text(target.password)
    unit = f"u{len(target.units)}"
    target.create(unit, 16 * MIB)

    def image(uri: str) -> list[str]:
        assert uri == f"iscsi://{CHAP_USER}@{target.portal}/{TARGET}/{target.units[unit]}"
        options = f"driver=iscsi,transport=tcp,portal={target.portal},target={TARGET},lun={target.units[unit]}"
        words = ["--object", f"secret,id=s,file={password}", "--image-opts"]
        return [*words, f"{options},user={CHAP_USER},password-secret=s"]

    def enlarge(_name: str, size_mib: int) -> None:
        os.truncate(target.path(unit), size_mib * MIB)
        target.admin(f"--mode logicalunit --op delete --tid 1 --lun {target.units[unit]}")
        offer = f"--mode logicalunit --op new --tid 1 --lun {target.units[unit]} --bstype=rdwr --blocksize=512 -b"
        target.admin(offer, str(target.path(unit)))

    parameters = {"portal": target.portal, "target": TARGET, "lun": str(target.units[unit])}
    parameters |= {"user": CHAP_USER, "password_file": str(password)}
    place = Place(
        provider="iscsi",
        folder=folder,
        parameters=parameters,
        scripts=PROVIDERS / "iscsi",
        image=image,
        enlarge=enlarge,
    )
    yield place
    place.tear_down()


@pytest.fixture
def made(target: IscsiTarget, folder: Path) -> Iterator[Place]:
    """The provider that has tgtd's tool make its units, with the password itself as a parameter."""
    backing = folder / "backing"
    backing.mkdir()
    parameters = {"portal": target.portal, "target": "iqn.2001-04.org.example", "backing": str(backing)}
    parameters |= {"user": CHAP_USER, "password": target.password}
    parameters["tgtadm"] = f"env TGT_IPC_SOCKET={target.folder / 'control'} tgtadm -C {target.port}"
    (folder / "password").write_text(target.password)

    def image(uri: str) -> list[str]:
        _, _, portal, name, lun = uri.split("/")
        assert portal == f"{CHAP_USER}@{target.portal}"
        options = f"driver=iscsi,transport=tcp,portal={target.portal},target={name},lun={lun},user={CHAP_USER}"
        return ["--object", f"secret,id=s,file={folder}/password", "--image-opts", f"{options},password-secret=s"]

    place = Place(
        provider="iscsi", folder=folder, parameters=parameters, scripts=PROVIDERS / "iscsi", image=image, path=WITH_TGT
    )
    yield place
    for left in backing.iterdir():
        place.do("remove", left.name)
    place.tear_down()
    assert target.admin("--mode target --op show").count("Target ") == 1


@pytest.fixture
def sharedfile(mounted: Path, folder: Path) -> Iterator[Place]:
    volumes = mounted / folder.name
    volumes.mkdir()
    place = Place(
        provider="sharedfile", folder=folder, parameters={"dir": str(volumes)}, scripts=PROVIDERS / "sharedfile"
    )
    yield place
    for left in volumes.iterdir():
        place.do("detach", left.name)
    place.tear_down()
    assert [line for line in losetup("--list", "-nO", "BACK-FILE").split() if str(volumes) in line] == []
    shutil.rmtree(volumes)


@pytest.fixture
def blockdev(folder: Path) -> Iterator[Place]:
    image = folder / "image"
    image.write_bytes(b"")
    os.truncate(image, 16 * MIB)
    device = losetup("--find", "--show", "--direct-io=on", str(image))
    link = folder / "by-id"
    link.symlink_to(device)
    place = Place(
        provider="blockdev",
        folder=folder,
        parameters={"path": str(link), "adopt": "yes"},
        scripts=PROVIDERS / "blockdev",
        enlarge=lambda _name, size_mib: os.truncate(image, size_mib * MIB),
    )
    yield place
    place.do("detach")
    losetup("--detach", device)
    place.tear_down()


@pytest.fixture(params=OWN)
def place(request: pytest.FixtureRequest) -> Place:
    """Each of the providers on its storage."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found
