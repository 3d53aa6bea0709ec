"""The journal's folder: whole files, one writer at a time, and clear words when it cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from hvext.core.disk import Disk
from hvext.core.record import Intent, Operation
from hvext.errors import JournalError, OperationFailed
from hvext.host.journal import JournalFolder
from hvext.host.proc import is_alive, process_id, this_process
from hvext.operations.journal import Entry, Journal, read_records
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


@pytest.mark.parametrize("name", [*NAMES, "a.b~c", "@ +=,:", "_", "-", "%", "naïve", "a/b", "a\\b", "²", "a\nb"])
def test_a_record_has_the_name_that_it_always_had(tmp_path: Path, name: str) -> None:
    # Also one that was written before, by what quoted every name.
    always = quote(name, safe=" @+=,:")
    found = Path(JournalFolder(tmp_path).where(name))
    assert found.parent == tmp_path
    if len(always) <= 200:
        assert found.name.removeprefix("%2E") == f"{always}.json".removeprefix(".")


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
    from hvext.core.value import replace

    assert not is_alive(replace(mine, ticks=mine.ticks - 1))
    assert not is_alive(None)


def disk(name: str) -> Disk:
    return Disk.from_mapping({"provider": "p", "volume": name})


class Syncs:
    """Counts how often a file is waited for; nothing else tells it apart from a write that only outlives a process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._counting(getattr(os, name)))

    def _counting(self, plain: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            self.count += 1
            plain(descriptor)

        return sync

    def since(self) -> int:
        before, self.count = self.count, 0
        return before


def test_only_what_has_to_outlive_the_host_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVEXT_RUNTIME_DIR", str(tmp_path / "run"))
    folder = JournalFolder(tmp_path / "state")
    syncs = Syncs(monkeypatch)
    journal = Journal(folder, "vm", monitor="/qmp", process=this_process())
    with journal.locked_now():
        journal.begin(Operation.PLUG, disk("a"), intent=Intent.PRESENT).end()
    assert syncs.since() > 0
    # A volume more is attached for the VM: the host has to know it after its power came back.
    with journal.locked_now():
        entry = journal.begin(Operation.PLUG, disk("b"), intent=Intent.PRESENT)
        entry.reporter()("a step")
        entry.end()
        # It goes on beside the steps, and has ended when the operation has.
        assert syncs.since() == 1
    # How far a move is, matters to the process alone.
    with journal.locked_now():
        entry = journal.begin(Operation.REPOINT, disk("b"), intent=Intent.PRESENT)
        for step in ("open it", "compare the sizes", "switch over"):
            entry.reporter()(step)
            known = read_records(folder)["vm"].disks[disk("b").volume.uuid].unfinished
            assert known is not None
            assert known.step == step
        entry.end()
        assert syncs.since() == 0
    with journal.locked_now():
        journal.forget(disk("b").volume.uuid)
    assert syncs.since() == 1


def test_an_operation_whose_record_does_not_get_to_the_disk_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HVEXT_RUNTIME_DIR", str(tmp_path / "run"))
    folder = JournalFolder(tmp_path / "state")
    with Journal(folder, "vm", monitor="/qmp", process=this_process()).locked_now() as journal:
        journal.begin(Operation.PLUG, disk("a"), intent=Intent.PRESENT).end()

        def broken(_descriptor: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", broken)
            entry = journal.begin(Operation.PLUG, disk("b"), intent=Intent.PRESENT)
            entry.reporter()("a step")
            with pytest.raises(OperationFailed, match="Input/output error"):
                entry.end()
        # The next operation writes all of it anew.
        journal.begin(Operation.REPOINT, disk("a"), intent=Intent.PRESENT).end()
    assert set(read_records(folder)["vm"].disks) == {disk(name).volume.uuid for name in "ab"}


def test_a_record_stays_short_however_much_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVEXT_RUNTIME_DIR", str(tmp_path / "run"))
    folder = JournalFolder(tmp_path / "state")
    with Journal(folder, "vm", monitor="/qmp", process=this_process()).locked_now() as journal:
        journal.begin(Operation.PLUG, disk("a"), intent=Intent.PRESENT).end()
        for _move in range(300):
            entry = journal.begin(Operation.REPOINT, disk("a"), intent=Intent.PRESENT)
            entry.reporter()("switch over")
            entry.end()
        assert read_records(folder)["vm"] == journal.record
        assert len(folder.load("vm") or "") < 64 * 1024


@pytest.mark.parametrize("seed", range(8))
def test_the_file_says_what_the_journal_says_whatever_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    # A change is looked for among the disks that a write is about alone: one that is missed would be lost in a crash.
    monkeypatch.setenv("HVEXT_RUNTIME_DIR", str(tmp_path / "run"))
    chance = random.Random(seed)  # noqa: S311
    folder = JournalFolder(tmp_path / "state")
    disks = [disk(name) for name in "abcdef"]
    for _lock in range(12):
        with Journal(folder, "vm", monitor="/qmp", process=this_process()).locked_now() as journal:
            entries = [journal.begin(Operation.PLUG, chance.choice(disks), intent=Intent.PRESENT)]
            for _step in range(12):
                match chance.randrange(8):
                    case 0 | 1:
                        entries.append(
                            journal.begin(chance.choice(list(Operation)), chance.choice(disks), intent=Intent.ABSENT)
                        )
                    case 2 | 3:
                        with journal.at_once():
                            for entry in chance.choices(entries, k=3):
                                entry.note(f"step {chance.random()}")
                    case 4:
                        chance.choice(entries).revert()
                    case 5:
                        journal.forget(*(each.volume.uuid for each in chance.choices(disks, k=2)))
                    case 6:
                        begun = journal.begin_all(Operation.PLUG, chance.choices(disks, k=3), intent=Intent.PRESENT)
                        journal.settle([entry for entry in begun if isinstance(entry, Entry)][-1:], [])
                    case _:
                        with contextlib.suppress(RuntimeError), journal.at_once():
                            chance.choice(entries).note("never done")
                            raise RuntimeError
                there = read_records(folder).get("vm")
                assert (there.disks if there else {}) == journal.record.disks


def test_what_a_killed_writer_tore_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVEXT_RUNTIME_DIR", str(tmp_path / "run"))
    folder = JournalFolder(tmp_path / "state")
    with Journal(folder, "vm", monitor="/qmp", process=this_process()).locked_now() as journal:
        journal.begin(Operation.PLUG, disk("a"), intent=Intent.PRESENT).end()
    with Path(folder.where("vm")).open("a") as file:
        file.write('{"disk": {"disk": {"prov')
    for name in ("b", "c"):
        with Journal(folder, "vm", monitor="/qmp", process=this_process()).locked_now() as journal:
            journal.begin(Operation.PLUG, disk(name), intent=Intent.PRESENT).end()
    assert {record.disk.volume.name for record in read_records(folder)["vm"].disks.values()} == {"a", "b", "c"}
