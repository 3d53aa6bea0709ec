"""``--dry-run``: what it says is what is done afterwards, and it changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hvext.cli import main
from hvext.host import process
from hvext.host.qmp import connect
from hvext.operations.dry_run.unknown import OPEN
from hvext.operations.inspect import running_disks
from tests.conftest import need
from tests.providers import read_calls, write_provider
from tests.watching import wait_until

MIB = 1 << 20
#: Asked of QEMU before and after.
LISTS = ("query-named-block-nodes", "query-block", "query-chardev", "query-iothreads")


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a command."""

    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest that stands still, with a SCSI controller: it lets a disk go without being asked."""

    folder: Path
    monitor: str

    def run(self, command: str, *words: str, status: int = 0) -> Done:
        argv = [command, "--qmp", self.monitor, *words]
        argv += ["--search-path", f"{self.folder}/providers", "--log-dir", "none"]
        out, err = io.StringIO(), io.StringIO()
        # In a thread: a test may have an event loop of its own.
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), ThreadPoolExecutor(1) as pool:
            done = Done(pool.submit(main, argv).result(), out.getvalue(), err.getvalue())
        assert done.status == status, done
        return done

    def plan(self, command: str, *words: str) -> Any:
        return json.loads(self.run(command, *words, "--dry-run", "--json").stdout)

    def steps(self, command: str, *words: str) -> list[str]:
        """Do it, and return the names of the steps that were done."""
        return [line.strip() for line in self.run(command, *words, "-v").stderr.splitlines()]

    async def has(self) -> object:
        """All that QEMU has, and the journal and private files."""
        async with connect(self.monitor) as monitor:
            lists = [await monitor.execute(name) for name in LISTS]
            objects = await monitor.execute("qom-list", {"path": "/objects"})
            disks = sorted(str(uuid) for uuid in await running_disks(monitor))
        places = [Path(os.environ[name]) for name in ("HVEXT_STATE_DIR", "HVEXT_RUNTIME_DIR")]
        files = {str(path): path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}
        return json.loads(json.dumps([lists, objects, disks])), files, len(read_calls(self.folder))


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    image = tmp_path / "image"
    image.write_bytes(b"")
    os.truncate(image, 4 * MIB)
    (tmp_path / "where").write_text(str(image))
    scripts = {
        "attach": f"printf '\\nkvm:file:%s\\n' \"$(cat {tmp_path}/where)\"",
        "grow": f'truncate -s "${{VOL_NEW_SIZE}}M" {image}',
    }
    write_provider(tmp_path / "providers", "fake", scripts, record=tmp_path)
    monitor = tmp_path / "qmp"
    argv = [need("qemu-system-x86_64", "qemu-system-x86"), "-S", "-machine", "pc", "-accel", "tcg", "-m", "16"]
    argv += ["-nodefaults", "-display", "none", "-name", "still", "-device", "virtio-scsi-pci,id=scsi0"]
    argv += ["-qmp", f"unix:{monitor},server=on,wait=off"]
    with process.start(argv, env=dict(os.environ), log_path=tmp_path / "qemu.log"):
        wait_until(monitor.exists, "QEMU listens")
        yield Guest(tmp_path, str(monitor))


UUID = "11111111-2222-4333-8444-555555555555"
PLUG = ("fake", "v1", "-o", "device=scsi-hd", "-o", "iops_total=100")


async def test_what_is_said_is_what_is_done_and_until_then_nothing_is(guest: Guest) -> None:
    copy = guest.folder / "copy"
    copy.write_bytes(b"")
    os.truncate(copy, 8 * MIB)
    for command, words in (
        ("plug", PLUG),
        ("resize", ("fake", "v1", "--new-size", "8")),
        ("repoint", ("fake", "v1", "--access", "userspace")),
        ("repoint", ("fake", "v1", "--to", f"file:{guest.folder}/image")),
        ("unplug", ("fake", "v1")),
    ):
        if "--access" in words:
            (guest.folder / "where").write_text(str(copy))
        before = await guest.has()
        planned = guest.plan(command, *words)
        assert await guest.has() == before, command
        done = [name for name in guest.steps(command, *words) if name != "find a place in the guest"]
        if "--access" in words:
            # Only now the provider says where.
            done = [OPEN if name == f"open {copy}" else name for name in done]
        assert [step["step"] for step in planned["steps"]] == done, command
        assert done


def test_each_step_of_a_plug_is_said_with_what_takes_it_back(guest: Guest) -> None:
    first, *others = guest.plan("plug", *PLUG)["steps"]
    assert first == {"step": "attach fake/v1", "inverse": "detach fake/v1", "one_way": False}
    assert all(step["inverse"] for step in others)
    shown = guest.run("plug", *PLUG, "--dry-run").stdout
    assert "attach fake/v1" in shown
    assert "detach fake/v1" in shown


def test_what_would_be_refused_is_refused_and_what_is_done_already_has_no_steps(guest: Guest) -> None:
    assert "no disk" in guest.run("repoint", "fake", "v1", "--to", "/dev/null", "--dry-run", status=1).stderr
    assert guest.plan("unplug", "fake", "v1")["steps"] == []
    assert "nope" in guest.run("plug", "nope", "v1", "--dry-run", status=1).stderr
    guest.run("plug", *PLUG)
    assert guest.plan("plug", *PLUG)["steps"] == []
    assert guest.plan("repoint", "fake", "v1", "--to", f"file:{guest.folder}/image")["steps"] == []
    assert "shrink" in guest.run("resize", "fake", "v1", "--new-size", "2", "--dry-run", status=2).stderr
    assert "either" in guest.run("repoint", "fake", "v1", "--dry-run", status=2).stderr
    guest.run("unplug", "fake", "v1")


def test_what_would_be_refused_is_refused_with_the_same_words(guest: Guest) -> None:
    guest.run("plug", *PLUG, "--disk-uuid", UUID)
    for status, words in (
        (1, ("plug", "nope", "v1")),
        (2, ("plug", "fake", "v2", "-o", "device=floppy")),
        (2, ("plug", "--disk", "provider=fake,volume=v2", "fake", "v2")),
        (2, ("repoint", "fake", "v1")),
        (1, ("repoint", "fake", "v2", "--access", "userspace")),
        (1, ("repoint", "--disk-uuid", UUID, "--to", "vhost-user:/nowhere")),
        (2, ("resize", "fake", "v1", "--new-size", "2", "--disk-uuid", UUID)),
        (1, ("resize", "nope", "v1", "--new-size", "16", "--disk-uuid", UUID)),
        (2, ("unplug", "fake")),
        (1, ("plug", "fake", "v2", "-o", "device=scsi-hd", "--secret", "password=/nowhere")),
        (1, ("unplug", "nope", "v1", "--disk-uuid", UUID)),
    ):
        tried, done = (guest.run(*words, *more, status=status).stderr for more in (("--dry-run",), ()))
        # What is known once the guest has let a disk go, is in the hint.
        told = slice(1) if words[:2] == ("unplug", "nope") else slice(None)
        assert tried.splitlines()[told] == done.splitlines()[told], words


async def test_what_a_disk_that_went_by_itself_has_left_is_said_and_left_until_it_is_recovered(guest: Guest) -> None:
    guest.run("plug", *PLUG)
    async with connect(guest.monitor) as monitor:
        (disk,) = (await running_disks(monitor)).values()
        await monitor.execute("device_del", {"id": disk.names.device})
    # QEMU takes a moment to let go of what the device had.
    await asyncio.sleep(0.5)
    before = await guest.has()
    (planned,) = guest.plan("recover")
    assert await guest.has() == before
    steps = guest.steps("recover")
    assert [step["step"] for step in planned["steps"]] == steps
    assert steps == ["remove its nodes and objects", "detach fake/v1"]
    assert guest.plan("recover") == []


def test_of_several_disks_the_one_that_is_refused_is_said_so_and_the_others_all_the_same(guest: Guest) -> None:
    disks = ["--disk", "provider=fake,volume=v1,device=scsi-hd", "--disk", "provider=nope,volume=v2"]
    done = guest.run("plug", *disks, "--dry-run", "--json", status=1)
    good, bad = json.loads(done.stdout)
    assert good["steps"]
    assert "nope" in bad["refused"]["message"]


def test_several_disks_are_said_each_by_itself_and_one_that_is_named_twice_is_refused(guest: Guest) -> None:
    disks = [f"provider=fake,volume=v{number},device=scsi-hd" for number in (1, 2)]
    plans = guest.plan("plug", "--disk", disks[0], "--disk", disks[1])
    assert [plan["operation"] for plan in plans] == ["plug fake/v1", "plug fake/v2"]
    guest.run("plug", "--disk", disks[0], "--disk", disks[0], "--dry-run", status=2)
