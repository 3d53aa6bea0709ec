from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import pytest

from hvext.core.identity import DiskNames
from hvext.core.running import RunningDisk, parse_chains, parse_running

DISK = DiskNames(uuid.UUID("0d1b4b5e-6d8a-4d3b-9a57-0c5f2f6f7a10"))
ROOT, SECOND_ROOT = DISK.roots
THROTTLE, SECOND_THROTTLE = DISK.throttle_nodes
OLD, NEW = f"{ROOT}-00", f"{ROOT}-01"


def node(name: str, filename: str = "/dev/x") -> dict[str, Any]:
    return {
        "node-name": name,
        "drv": "raw",
        "file": filename,
        "image": {"virtual-size": 1 << 20},
        "ro": False,
        "cache": {"direct": True, "no-flush": False},
        "detect_zeroes": "off",
    }


def statistics(chain: Sequence[str], qdev: str) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for name in reversed(chain):
        inner = {"node-name": name, "stats": {}, **({"parent": inner} if inner else {})}
    return {"device": "", "qdev": qdev, **inner}


def running(names: Sequence[str], chain: Sequence[str]) -> RunningDisk:
    kinds = {DISK.device: "virtio-blk-pci"}
    counted = [statistics(chain, f"/machine/peripheral/{DISK.device}/virtio-backend")]
    return parse_running([node(name) for name in names], kinds, (), {}, counted)[DISK.uuid]


@pytest.mark.parametrize(
    ("driver", "direct", "cached"),
    [("rbd", False, True), ("rbd", True, False), ("file", False, False), ("nbd", False, False)],
)
def test_a_cache_that_goes_with_its_node_is_told_from_the_page_cache(driver: str, direct: bool, cached: bool) -> None:
    own = node(OLD) | {"drv": driver, "cache": {"direct": direct, "no-flush": False}}
    counted = [statistics([ROOT, OLD], DISK.device)]
    disk = parse_running([node(ROOT), own], {DISK.device: "scsi-hd"}, (), {}, counted)[DISK.uuid]
    assert disk.protocol is not None
    assert disk.protocol.cached_by_client is cached


@pytest.mark.parametrize("qdev", [f"/machine/peripheral/{DISK.device}/virtio-backend", DISK.device])
def test_the_nodes_of_a_device_are_told_however_qemu_names_it(qdev: str) -> None:
    assert parse_chains([statistics([ROOT, OLD], qdev)]) == {DISK.device: (ROOT, OLD)}


@pytest.mark.parametrize(
    ("chain", "leftovers"),
    [
        ((THROTTLE, ROOT, OLD), (SECOND_THROTTLE, SECOND_ROOT, NEW)),
        ((SECOND_THROTTLE, SECOND_ROOT, NEW), (THROTTLE, ROOT, OLD)),
    ],
)
def test_the_nodes_in_use_are_told_from_those_that_an_interruption_left(
    chain: tuple[str, ...], leftovers: tuple[str, ...]
) -> None:
    # All show the same storage: a server that came back.
    disk = running([OLD, ROOT, THROTTLE, NEW, SECOND_ROOT, SECOND_THROTTLE], chain)
    assert (disk.throttle, disk.root, disk.protocol) != (None, None, None)
    assert tuple(each.name for each in (disk.throttle, disk.root, disk.protocol) if each) == chain
    assert disk.top is disk.throttle
    assert disk.leftovers == leftovers
    # What is above others goes first.
    order = disk.node_names
    assert set(order) == {*chain, *leftovers}
    for above, below in ((THROTTLE, ROOT), (ROOT, OLD), (SECOND_THROTTLE, SECOND_ROOT), (SECOND_ROOT, NEW)):
        assert order.index(above) < order.index(below)


def test_nodes_without_a_device_are_all_to_be_removed() -> None:
    disk = parse_running([node(OLD), node(SECOND_ROOT), node(ROOT)], {}, (), {})[DISK.uuid]
    assert disk.device is None
    assert set(disk.node_names) == {OLD, ROOT, SECOND_ROOT}
    assert disk.node_names[-1] == OLD
    assert not disk.leftovers


def test_a_device_on_nodes_of_somebody_else_is_not_the_disk() -> None:
    # The disk's own node is there, and the device does not use it.
    disk = running([ROOT, OLD], ["libvirt-1-format", "libvirt-1-storage"])
    assert disk.root is None
    assert not disk.leftovers
