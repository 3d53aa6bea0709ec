"""The journal's folder: whole files, one writer at a time, and clear words when it cannot be written."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hvext.errors import JournalError
from hvext.host.journal import JournalFolder
from hvext.host.proc import is_alive, process_id, this_process
from tests.conftest import need
from tests.host.oracle import absent, short_folder

NAMES = [
    "web1",
    "a/b",
    "..",
    ".",
    ".hidden",
    "%",
    "100%",
    "ü",
    "x" * 300,
    "y" * 300,
    "x" * 299 + "y",
    "a b",
    "/tmp/q/qmp",
    "-n",
]


def test_every_name_of_a_vm_has_a_record_of_its_own(tmp_path: Path) -> None:
    folder = JournalFolder(tmp_path / "state")
    for name in NAMES:
        folder.store(name, f"text of {name}")
    assert [folder.load(name) for name in NAMES] == [f"text of {name}" for name in NAMES]
    assert sorted(folder.texts().values()) == sorted(f"text of {name}" for name in NAMES)
    assert len(list((tmp_path / "state").iterdir())) == len(NAMES)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    for name in NAMES:
        folder.remove(name)
        folder.remove(name)
    assert folder.texts() == {}


def test_a_lock_is_held_by_one_and_goes_with_its_process(tmp_path: Path) -> None:
    folder = JournalFolder(tmp_path)
    code = (
        "import sys, pathlib; from hvext.host.journal import JournalFolder\n"
        "lock = JournalFolder(pathlib.Path(sys.argv[1])).try_lock('vm'); print(lock is not None, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert folder.try_lock("vm") is None
        assert folder.holder("vm") == f"process {other.pid}"
        other.kill()
        other.wait()
        mine = folder.try_lock("vm")
        assert mine is not None
        assert folder.try_lock("vm") is None
        mine.release()
        again = folder.try_lock("vm")
        assert again is not None
        again.release(remove=True)
    assert not list(tmp_path.iterdir())


def test_locks_whose_files_are_removed_still_let_one_in_at_a_time(tmp_path: Path) -> None:
    # With the file gone, a second process would otherwise lock a new one beside it.
    folder = JournalFolder(tmp_path)
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        done = 0
        while done < 200:
            lock = folder.try_lock("vm")
            if lock is None:
                continue
            inside.append(1)
            most.append(len(inside))
            inside.pop()
            lock.release(remove=True)
            done += 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 600
    assert set(most) == {1}


def fill(folder: Path) -> None:
    """Leave no room in a small file system."""
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"x" * 4096):
            pass


def test_a_full_disk_leaves_the_old_record_and_says_so(tmp_path: Path) -> None:
    need("mount", "mount")
    with short_folder() as folder:
        small = folder / "small"
        small.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "hvext-test", str(small)], check=False).returncode:
            absent("no tmpfs can be mounted here")
        try:
            journal = JournalFolder(small)
            journal.store("vm", "old")
            fill(small)
            with pytest.raises(JournalError, match="No space left") as failure:
                journal.store("vm", "new" * 9999)
            assert "nothing is done" in failure.value.hint
            assert journal.load("vm") == "old"
            assert sorted(path.name for path in small.iterdir()) == ["filler", "vm.json"]
        finally:
            subprocess.run(["umount", str(small)], check=True)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="Not a directory"):
        JournalFolder(tmp_path / "file" / "state").store("vm", "x")
    with pytest.raises(JournalError, match="Not a directory"):
        JournalFolder(tmp_path / "file" / "state").try_lock("vm")


def test_a_process_is_not_taken_for_another_with_its_number() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        known = process_id(child.pid)
        assert known is not None
        assert is_alive(known)
        child.kill()
        # Dead, though nobody has reaped it.
        while is_alive(known):
            pass
        child.wait()
    assert process_id(child.pid) is None
    mine = this_process()
    assert mine is not None
    from dataclasses import replace

    assert not is_alive(replace(mine, ticks=mine.ticks - 1))
    assert not is_alive(None)
