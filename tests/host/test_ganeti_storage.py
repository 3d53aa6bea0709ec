"""Ganeti's own storage code over hvext's providers, each against its real storage."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvext.host.provider import SHIPPED, load_provider
from tests.conftest import need
from tests.ganeti import Ganeti
from tests.ganeti_disks import loop_device
from tests.host.oracle import MIB, absent, short_folder
from tests.servers import ceph
from tests.servers.iscsi import TARGET, USER, iscsi_target


@pytest.fixture(autouse=True)
def _needs() -> None:
    if os.geteuid() != 0:
        absent("loop devices need root")
    need("losetup", "util-linux")


@contextlib.contextmanager
def sample_storage(folder: Path) -> Iterator[dict[str, str]]:
    yield {"dir": f"{folder}/d", "run": f"{folder}/r"}


@contextlib.contextmanager
def shared_storage(folder: Path) -> Iterator[dict[str, str]]:
    """A mounted file system."""
    (folder / "m").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder / "m")], check=True, timeout=60)
    try:
        (folder / "m/d").mkdir()
        yield {"dir": f"{folder}/m/d", "run": f"{folder}/r"}
    finally:
        subprocess.run(["umount", str(folder / "m")], check=True, timeout=60)


@contextlib.contextmanager
def adopted_storage(folder: Path) -> Iterator[dict[str, str]]:
    """A block device that is there already."""
    with loop_device(folder / "disk") as device:
        yield {"path": device, "adopt": "yes", "run": f"{folder}/r"}


@contextlib.contextmanager
def unit_of_a_target(folder: Path) -> Iterator[dict[str, str]]:
    """A unit behind CHAP."""
    with iscsi_target() as target:
        target.create("unit", 16 * MIB)
        (folder / "password").write_text(target.password, encoding="utf-8")
        (folder / "password").chmod(0o600)
        yield {
            "portal": target.portal,
            "target": TARGET,
            "lun": str(target.units["unit"]),
            "user": USER,
            "password_file": f"{folder}/password",
            "path": "no",
            "run": f"{folder}/r",
        }


@contextlib.contextmanager
def ceph_pool(folder: Path) -> Iterator[dict[str, str]]:
    """A pool of a cluster with cephx."""
    with ceph.ceph_cluster() as cluster:
        yield {
            "pool": ceph.POOL,
            "id": ceph.USER,
            "keyring": str(cluster.keyring),
            "conf": str(cluster.conf),
            "path": "no",
            "run": f"{folder}/r",
        }


#: The storage of each shipped provider, and how what GetUserspaceAccessUri says begins.
STORAGE = {
    "sample": (sample_storage, "nbd+unix:///"),
    "sharedfile": (shared_storage, "file:/"),
    "blockdev": (adopted_storage, "Userspace access is not supported"),
    "iscsi": (unit_of_a_target, f"iscsi://{USER}@"),
    "rbd": (ceph_pool, "rbd:"),
}
#: Storage that is there before and afterwards, as large as it is.
ADOPTED = ("blockdev", "iscsi")


@pytest.mark.parametrize("version", [pytest.param("3.0", marks=pytest.mark.nightly), "3.1"])
@pytest.mark.parametrize(
    "provider",
    [
        pytest.param(name, marks=pytest.mark.nightly if name == "rbd" else ())
        for name in sorted(path.parent.name for path in Path(SHIPPED).glob("*/attach"))
    ],
)
def test_ganeti_finds_and_runs_the_shipped_providers(ganeti: dict[str, Ganeti], version: str, provider: str) -> None:
    made, uri = STORAGE[provider]
    adopted = provider in ADOPTED
    with short_folder() as folder, made(folder) as params:
        (folder / "log").mkdir()
        asked = {
            "providers": SHIPPED,
            "provider": provider,
            "logs": str(folder / "log"),
            "volume": f"{uuid.uuid4()}.ext.disk0",
            "uuid": str(uuid.uuid4()),
            "params": params,
            "size": 16 if adopted else 8,
            "grow": 0 if adopted else 8,
        }
        said = ganeti[version].ask("storage", asked)
    listed = subprocess.run(["losetup", "--list", "--noheadings"], capture_output=True, text=True, check=True).stdout
    assert str(folder) not in listed
    known = load_provider(SHIPPED, provider)
    assert said["name"] == provider
    assert [pair[0] for pair in said["parameters"]] == [each.name for each in known.parameters]
    assert said["attached"]
    assert said["uri"].startswith(uri)
    if params.get("path") != "no":
        assert said["read"] == "written by Ganeti"
        assert said["size"] == 16 * MIB
    assert said["after"] is True if adopted else "script failed" in said["after"]
