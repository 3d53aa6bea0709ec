"""The provider of image files on a mounted file system."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.shipped import NAME, Place, has_pattern, losetup, qemu_io


def volumes_of(place: Place) -> Path:
    return Path(place.parameters["dir"])


def test_a_folder_whose_file_system_is_not_mounted_is_refused(sharedfile: Place, mounted: Path, folder: Path) -> None:
    sharedfile.do("verify", mount=str(mounted))
    assert f"and not on the one at {folder}" in sharedfile.refuse("verify", mount=str(folder))
    assert "cannot open the folder" in sharedfile.refuse("verify", dir=f"{mounted}/none")
    if not Path("/usr").is_mount():
        assert "is on the file system of this host" in sharedfile.refuse(
            "create", variables={"VOL_SIZE": "1"}, dir="/usr"
        )
        sharedfile.do("verify", dir="/usr", mount="/")
    assert "there is no file here" in sharedfile.refuse("attach", marker="here")
    (volumes_of(sharedfile) / "here").touch()
    sharedfile.do("verify", marker="here")
    (volumes_of(sharedfile) / "here").unlink()
    assert "an absolute path" in sharedfile.refuse("verify", dir="volumes")
    assert "the parameter dir is not set" in sharedfile.refuse("verify", dir="")


def test_a_mount_point_with_blanks_in_it_is_found(sharedfile: Place, folder: Path) -> None:
    point = folder / "a b\\c"
    point.mkdir()
    subprocess.run(["mount", "--bind", str(volumes_of(sharedfile)), str(point)], check=True)
    try:
        sharedfile.do("verify", dir=str(point), mount=str(point))
    finally:
        subprocess.run(["umount", str(point)], check=True)


def test_a_volume_is_removed_only_when_nobody_uses_it(sharedfile: Place) -> None:
    sharedfile.create()
    (path,), (uri,) = sharedfile.attach()
    file = Path(uri.removeprefix("file:"))
    assert "is attached on this host" in sharedfile.refuse("remove")
    with file.open("rb"), Path(path).open("rb"):
        assert f"process {os.getpid()}" in sharedfile.refuse("detach")
    sharedfile.do("detach")
    sharedfile.do("attach", host="other", path="no")
    assert "is attached on other" in sharedfile.refuse("remove")
    sharedfile.do("detach", host="other")
    sharedfile.do("remove")
    assert list(volumes_of(sharedfile).iterdir()) == []


def test_a_snapshot_of_files_keeps_the_bytes_and_is_refused_while_they_change(sharedfile: Place) -> None:
    sharedfile.create()
    path, uri = sharedfile.attach()
    qemu_io(uri, "write -P 1 0 64k")
    wanted = {"VOL_SNAPSHOT_NAME": "s", "VOL_SNAPSHOT_SIZE": "20"}
    assert "use a file system with reflinks" in sharedfile.refuse("snapshot", variables=wanted)
    sharedfile.do("detach")
    sharedfile.do("attach", host="other", path="no")
    assert "attached on other" in sharedfile.refuse("snapshot", variables=wanted)
    sharedfile.do("detach", host="other")
    sharedfile.do("snapshot", variables=wanted)
    assert "already in" in sharedfile.refuse("snapshot", variables=wanted)
    path, uri = sharedfile.attach()
    qemu_io(path, "write -P 2 0 64k")
    copy = sharedfile.attach("s")[1]
    assert has_pattern(copy, 1)
    assert has_pattern(uri, 2)
    assert qemu_io(copy, "length").strip() == "20 MiB"


def test_a_loop_device_that_others_put_on_the_file_is_left_alone(sharedfile: Place) -> None:
    sharedfile.create()
    file = volumes_of(sharedfile) / NAME / "disk.raw"
    theirs = losetup("--find", "--show", "--read-only", str(file))
    try:
        (path,), _uri = sharedfile.attach()
        assert path != theirs
        sharedfile.do("detach")
        assert losetup("-nO", "BACK-FILE", theirs) == str(file)
    finally:
        losetup("--detach", theirs)


def test_what_a_killed_create_left_is_swept_away(sharedfile: Place) -> None:
    left = volumes_of(sharedfile) / f".{NAME}~{os.uname().nodename}.999999999"
    left.mkdir()
    others = volumes_of(sharedfile) / f".{NAME}~elsewhere.999999999"
    others.mkdir()
    sharedfile.create()
    assert not left.exists()
    others.rmdir()


def test_a_full_file_system_leaves_no_half_volume(sharedfile: Place) -> None:
    words = sharedfile.refuse("create", variables={"VOL_SIZE": "4096"}, preallocate="yes")
    assert "No space left on device" in words
    assert list(volumes_of(sharedfile).iterdir()) == []
