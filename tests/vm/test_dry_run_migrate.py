"""``--dry-run`` from a start to a migration: what each command says is what it does then, on either side."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hvext.cli import main
from hvext.host import process
from tests.conftest import need
from tests.providers import read_calls, write_provider
from tests.watching import wait_until

pytestmark = pytest.mark.vm
#: A root port would be needed else.
DISK = ("--disk", "provider=fake,volume=v,device=scsi-hd")


class Sides:
    """Two QEMUs without a guest in them, and a journal for each, as on two hosts."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._patch = patch
        self._stack = contextlib.ExitStack()

    def run(self, side: str, *words: str, status: int = 0) -> tuple[str, str]:
        self._patch.setenv("HVEXT_STATE_DIR", f"{self.folder}/{side}")
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            done = main([*words, *self._scripts(words)])
        assert done == status, (words, err.getvalue())
        return out.getvalue(), err.getvalue()

    def _scripts(self, words: tuple[str, ...]) -> list[str]:
        return (
            [] if words[0] == "migrate-listen" else ["--search-path", f"{self.folder}/providers", "--log-dir", "none"]
        )

    def has(self) -> object:
        files = sorted((str(path), path.stat().st_mtime_ns) for path in self.folder.rglob("*") if path.is_file())
        return files, len(read_calls(self.folder / "calls"))

    def same(self, side: str, *words: str) -> str:
        """Say it, do it, and return what was printed; both must have the same steps."""
        before = self.has()
        plan: dict[str, Any] = json.loads(self.run(side, *words, "--dry-run", "--json")[0])
        assert self.has() == before, words
        log = self.folder / "log"
        printed, _ = self.run(side, *words, "--log-file", str(log))
        told = [json.loads(line) for line in log.read_text().splitlines()]
        log.unlink()
        done = [each["step"] for each in told if each["event"] == "step"]
        assert [step["step"] for step in plan["steps"]] == done, words
        assert done
        return printed

    def start(self, name: str, arguments: str, *more: str) -> str:
        monitor = self.folder / f"{name}.qmp"
        argv = [need("qemu-system-x86_64", "qemu-system-x86"), "-machine", "pc", "-accel", "tcg", "-m", "16"]
        argv += ["-nodefaults", "-display", "none", "-name", name, "-qmp", f"unix:{monitor},server=on,wait=off", *more]
        argv += shlex.split(arguments)
        log = self.folder.parent / f"{name}.log"
        self._stack.enter_context(process.start(argv, env=dict(os.environ), log_path=log))
        wait_until(monitor.exists, "QEMU listens")
        return str(monitor)

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sides]:
    folder = tmp_path / "s"
    folder.mkdir()
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    scripts = {"attach": f"printf '\\nkvm:file:{image}\\n'", "open": "exit 0", "close": "exit 0"}
    write_provider(folder / "providers", "fake", scripts, record=folder / "calls")
    made = Sides(folder, monkeypatch)
    yield made
    made.close()


def test_each_command_of_a_migration_does_what_it_said_on_both_sides(sides: Sides) -> None:
    one = sides.start("one", sides.run("here", "args", *DISK, "--vm", "one")[0])
    begin = ("migrate-begin", "--qmp", one, *DISK, "--own-controller")
    sides.same("here", *begin)
    sides.same("here", "migrate-cancel", "--qmp", one, *DISK)
    described = sides.folder.parent / "described.json"
    described.write_text(sides.same("here", *begin))
    disks = ("--disks", str(described))
    started = sides.run("there", "args", *disks, "--shared", "--vm", "two")[0]
    two = sides.start("two", started, "-S", "-incoming", "defer")
    address = sides.same("there", "migrate-listen", "--qmp", two, *disks, "--at", "tcp:127.0.0.1:0").strip()
    again, _ = sides.run("there", "migrate-listen", "--qmp", two, *disks, "--at", address, "--dry-run", "--json")
    assert json.loads(again)["steps"] == []
    sides.same("here", "migrate", "--qmp", one, *DISK, "--to", address)
    sides.same("there", "migrate-finish", "--qmp", two, *disks)
    sides.same("here", "stop", *DISK, "--vm", "one")


def test_what_a_migration_would_refuse_is_refused_with_the_same_words(sides: Sides) -> None:
    one = sides.start("one", sides.run("here", "args", *DISK, "--vm", "one")[0])
    nope = ("--disk", "provider=nope,volume=v,device=scsi-hd")
    for words in (
        ("migrate-begin", "--qmp", one, *nope),
        ("migrate", "--qmp", one, *DISK, "--to", "nonsense"),
        ("migrate", "--qmp", one, *nope, "--to", "tcp:127.0.0.1:1"),
    ):
        status = 2 if "nonsense" in words else 1
        tried, done = (sides.run("here", *words, *more, status=status)[1] for more in (("--dry-run",), ()))
        assert tried == done


def test_a_disk_that_was_there_at_the_start_is_taken_for_the_guests_own(sides: Sides) -> None:
    one = sides.start("one", sides.run("here", "args", *DISK)[0])
    sides.same("here", "unplug", "--qmp", one, "fake", "v")
