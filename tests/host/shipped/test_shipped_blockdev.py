"""The provider that adopts block devices, on a loop device."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.shipped import NAME, Place, has_pattern, qemu_io


def test_a_device_is_taken_over_and_given_back_only_when_that_is_said(blockdev: Place) -> None:
    (way,) = blockdev.attach()
    qemu_io(way, "write -P 3 0 64k")
    blockdev.do("detach")
    assert "set adopt=yes" in blockdev.refuse("create", variables={"VOL_SIZE": "16"}, adopt="no")
    assert "set adopt=yes" in blockdev.refuse("remove", adopt="no")
    blockdev.create()
    blockdev.do("remove")
    assert has_pattern(way, 3)


def test_a_device_is_given_to_one_volume_at_a_time(blockdev: Place) -> None:
    device = os.path.realpath(blockdev.parameters["path"])
    blockdev.attach()
    assert f"attached on this host as volume {NAME}" in blockdev.refuse("attach", "other", path=device)
    assert "attached on this host" in blockdev.refuse("create", "other", variables={"VOL_SIZE": "16"})
    assert "detach it first" in blockdev.refuse("remove")
    blockdev.do("detach", "other")
    assert blockdev.refuse("attach", "other")
    blockdev.do("detach")
    blockdev.attach("other")
    blockdev.do("detach", "other")


def test_a_device_in_use_is_not_taken_over(blockdev: Place) -> None:
    with Path(blockdev.parameters["path"]).open("rb"):
        assert f"process {os.getpid()}" in blockdev.refuse("create", variables={"VOL_SIZE": "16"})


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "the parameter path is not set"),
        ("sda", "it must be an absolute path"),
        ("/dev/none", "there is no /dev/none"),
        ("/dev/null", "/dev/null is no block device"),
        ("/etc/hostname", "/etc/hostname is no block device"),
    ],
)
def test_a_path_that_is_no_device_is_named(blockdev: Place, path: str, words: str) -> None:
    assert words in blockdev.refuse("verify", path=path)
    assert words in blockdev.refuse("attach", path=path)
