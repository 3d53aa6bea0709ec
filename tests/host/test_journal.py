"""The journal's folder: whole files, one writer at a time, and clear words when it cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from hvext.core.disk import Disk
from hvext.core.history import Ending, parse_history
from hvext.core.record import Intent, Operation
from hvext.errors import HvextError, JournalError, OperationFailed, PlugError, ProviderNotFound
from hvext.host.files import private_folder
from hvext.host.journal import JournalFolder, state_folder
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


def fail(entry: Entry, error: HvextError) -> None:
    with entry.written_down():
        entry.note("grow it")
        raise error


def test_the_history_of_a_host_tells_how_each_operation_ended_and_does_not_grow_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HVEXT_RUNTIME_DIR", str(tmp_path / "run"))
    folder = JournalFolder(tmp_path / "state")
    with Journal(folder, "vm", monitor="/qmp", process=this_process()).locked_now() as journal:
        journal.begin(Operation.PLUG, disk("a"), intent=Intent.PRESENT).end()
        # It was there already, and nothing was done.
        journal.begin(Operation.PLUG, disk("a"), intent=Intent.PRESENT).revert()
        for error in (HvextError("no"), OperationFailed("no", step="s", left=["a node"])):
            with contextlib.suppress(HvextError):
                fail(journal.begin(Operation.RESIZE, disk("a"), intent=Intent.PRESENT), error)
        journal.begin(Operation.UNPLUG, disk("a"), intent=Intent.ABSENT).end(None)
    past = parse_history(folder.remembered())
    assert [(each.operation, each.ending, each.step) for each in past] == [
        (Operation.PLUG, Ending.DONE, ""),
        (Operation.RESIZE, Ending.FAILED, "grow it"),
        (Operation.RESIZE, Ending.LEFT, "grow it"),
        (Operation.UNPLUG, Ending.DONE, ""),
    ]
    volume = f"{disk('a').provider}/{disk('a').volume.name}"
    assert {(each.vm, each.volume, each.disk) for each in past} == {("vm", volume, disk("a").volume.uuid)}
    assert all(each.since <= each.until <= time.time() for each in past)
    for number in range(3 * 1024):
        folder.remember(f"{number} {'x' * 1000}\n")
    lines = folder.remembered()
    assert 512 < len(lines) < 1200
    assert [line.split()[0] for line in lines] == [str(number) for number in range(3072 - len(lines), 3072)]


def test_a_name_that_was_wrong_is_no_part_of_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVEXT_RUNTIME_DIR", str(tmp_path / "run"))
    folder = JournalFolder(tmp_path / "state")
    with Journal(folder, "vm", monitor="/qmp", process=this_process()).locked_now() as journal:
        # An unplug of a disk that was never there, a plug that was refused at once, and one with no such provider.
        journal.begin(Operation.UNPLUG, disk("a"), intent=Intent.ABSENT).end(None)
        with pytest.raises(PlugError), journal.begin(Operation.PLUG, disk("a"), intent=Intent.PRESENT).written_down():
            raise PlugError("no")
        with pytest.raises(ProviderNotFound):
            fail(journal.begin(Operation.PLUG, disk("a"), intent=Intent.PRESENT), ProviderNotFound("no"))
        journal.settle([], [journal.begin(Operation.PLUG, disk("a"), intent=Intent.PRESENT)])
        assert folder.remembered() == []
        # One that nobody wrote down, and that was there.
        unplug = journal.begin(Operation.UNPLUG, disk("a"), intent=Intent.ABSENT)
        unplug.note("ask the guest")
        unplug.end(None)
    assert [each.operation for each in parse_history(folder.remembered())] == [Operation.UNPLUG]


def test_an_unplug_that_the_guest_has_not_answered_or_has_refused_is_not_remembered_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HVEXT_RUNTIME_DIR", str(tmp_path / "run"))
    folder = JournalFolder(tmp_path / "state")
    with Journal(folder, "vm", monitor="/qmp", process=this_process()).locked_now() as journal:
        journal.begin(Operation.PLUG, disk("a"), intent=Intent.PRESENT).end()
        journal.begin(Operation.UNPLUG, disk("a"), intent=Intent.ABSENT).end(Intent.ABSENT)
        journal.begin(Operation.UNPLUG, disk("a"), intent=Intent.ABSENT).end(Intent.PRESENT)
    past = [(each.operation, each.ending) for each in parse_history(folder.remembered())]
    assert past == [(Operation.PLUG, Ending.DONE), (Operation.UNPLUG, Ending.FAILED)]


def test_a_step_of_a_migration_is_on_the_disk_before_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The guest goes on elsewhere: a host that forgets it would start it a second time.
    monkeypatch.setenv("HVEXT_RUNTIME_DIR", str(tmp_path / "run"))
    folder = JournalFolder(tmp_path / "state")
    plain, done = os.fdatasync, []

    def slow(descriptor: int) -> None:
        time.sleep(0.1)
        plain(descriptor)
        done.append(Path(folder.where("vm")).read_text())

    with Journal(folder, "vm", monitor="/qmp", process=this_process()).locked_now() as journal:
        journal.begin(Operation.PLUG, disk("a"), intent=Intent.PRESENT).end()
        monkeypatch.setattr(os, "fdatasync", slow)
        entry = journal.begin(Operation.MIGRATE, disk("a"), intent=Intent.PRESENT)
        assert len(done) == 1
        entry.reporter()("let the target run it")
        assert "let the target run it" in done[-1]


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


def test_a_users_state_is_where_the_xdg_specification_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HVEXT_STATE_DIR", "HVEXT_RUNTIME_DIR", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert (state_folder(), private_folder()) == ("/home/me/.local/state/hvext", "/home/me/.local/state/hvext/run")
    monkeypatch.setenv("XDG_STATE_HOME", "/states/")
    assert (state_folder(), private_folder()) == ("/states/hvext", "/states/hvext/run")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert private_folder() == "/run/user/1000/hvext"
    # Relative ones are to be ignored.
    monkeypatch.setenv("XDG_STATE_HOME", "states")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "run")
    assert (state_folder(), private_folder()) == ("/home/me/.local/state/hvext", "/home/me/.local/state/hvext/run")
    monkeypatch.setenv("HVEXT_STATE_DIR", "/mine")
    assert state_folder() == "/mine"
