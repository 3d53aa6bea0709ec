"""What is said to who names a volume, a monitor or a journal that is not the one that is meant."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hvext.cli import main
from hvext.host import process
from tests.conftest import need
from tests.providers import write_provider
from tests.watching import wait_until

_NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Host:
    """A provider and QEMUs in which nothing runs: they let a disk go without being asked."""

    folder: Path

    def start(self, name: str) -> process.Running:
        argv = [need("qemu-system-x86_64", "qemu-system-x86"), "-S", "-machine", "pc", "-accel", "tcg", "-m", "16"]
        argv += ["-nodefaults", "-display", "none", "-name", name, "-device", "virtio-scsi-pci,id=scsi0"]
        argv += ["-qmp", f"unix:{self.folder}/{name},server=on,wait=off"]
        started = process.start(argv, env=dict(os.environ), log_path=self.folder / f"{name}.log")
        wait_until((self.folder / name).exists, "QEMU listens")
        return started

    def run(self, command: str, name: str, *words: str) -> tuple[int, str, str]:
        where = ["--qmp", f"{self.folder}/{name}"] if name else []
        more = ["--search-path", f"{self.folder}/providers", "--log-dir", "none"]
        return said(command, *where, *words, *more)


def said(*words: str) -> tuple[int, str, str]:
    """Run a command in this process, and return its exit status, output and errors."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(words))
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    image = tmp_path / "image"
    image.write_bytes(b"")
    os.truncate(image, 1 << 20)
    write_provider(tmp_path / "providers", "fake", {"attach": f"printf '\\nkvm:file:{image}\\n'"}, record=tmp_path)
    return Host(tmp_path)


def test_a_disk_on_a_bus_without_hot_plug_is_not_let_go_and_its_cure_is_said(host: Host) -> None:
    status, words, _ = host.run("args", "", "--disk", "provider=fake,volume=v1", "--json")
    assert status == 0
    argv = [need("qemu-system-x86_64", "qemu-system-x86"), "-S", "-machine", "q35", "-accel", "tcg", "-m", "16"]
    argv += ["-nodefaults", "-name", "web1", *json.loads(words)]
    argv += ["-display", "none", "-qmp", f"unix:{host.folder}/web1,server=on,wait=off"]
    with process.start(argv, env=dict(os.environ), log_path=host.folder / "web1.log"):
        wait_until((host.folder / "web1").exists, "QEMU listens")
        status, _, err = host.run("unplug", "web1", "fake", "v1")
    assert (status, "Bus 'pcie.0' does not support hotplugging" in err) == (1, True), err
    assert "\nhint: what is on that bus stays until the guest ends" in err


def test_a_volume_that_the_guest_has_not_is_said_to_be_anothers_or_nobodys(host: Host) -> None:
    with host.start("web1") as web1, host.start("db1"):
        assert host.run("plug", "web1", "fake", "v1", "-o", "device=scsi-hd")[0] == 0
        status, out, err = host.run("unplug", "db1", "fake", "nosuch")
        assert (status, "absent" in out, "no VM of this host has fake/nosuch" in err) == (0, True, True)
        status, out, err = host.run("unplug", "db1", "fake", "v1")
        assert (status, "absent" in out, "VM web1 has fake/v1: name its monitor" in err) == (0, True, True)
        assert "hvext detach" not in err
        result: Any = json.loads(host.run("unplug", "db1", "fake", "v1", "--json")[1])
        assert (result["state"], "VM web1 has fake/v1" in result["hint"]) == ("absent", True)
        # What is told of is left alone.
        assert "hv-" in host.run("disks", "web1")[1] or "scsi-hd" in host.run("disks", "web1")[1]
        web1.stop(grace_s=0)
        assert "VM web1 had fake/v1, and has ended: hvext recover" in host.run("unplug", "db1", "fake", "v1")[2]
        for words in (["unplug", "fake", "v1"], ["unplug", "fake", "v1", "--dry-run"], ["disks"], ["disks", "--stats"]):
            command, *others = words
            status, _out, err = host.run(command, "web1", *others)
            assert (status, "VM web1 has ended: hvext recover lets the volumes go" in err) == (1, True), words
            assert "-chardev" not in err
        resumed = said("resume", "--qmp", f"{host.folder}/web1")
        assert (resumed[0], "VM web1 has ended" in resumed[2]) == (1, True)
        # Of a monitor that no VM had, nothing is known.
        assert "-chardev" in host.run("unplug", "nobody", "fake", "v1")[2]
        assert host.run("recover", "")[0] == 0


def test_a_list_of_disks_of_no_guest_is_told_which_commands_find_the_guests_themselves(host: Host) -> None:
    status, out, err = host.run("disks", "")
    assert (status, out, "hvext top" in err, "hvext report" in err) == (2, "", True, True)
    assert len(err.splitlines()) == 2


@pytest.fixture
def own_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """A user who is not root, in the block of what this returns, with a home of their own; and root's journal."""
    with tempfile.TemporaryDirectory(prefix="hvext-") as folder:
        Path(folder).chmod(0o755)
        roots = Path(folder, "roots")
        roots.mkdir(mode=0o700 if os.geteuid() == 0 else 0)
        monkeypatch.setattr("hvext.host.journal.ROOTS_FOLDER", str(roots))
        monkeypatch.setenv("XDG_STATE_HOME", f"{folder}/home")
        monkeypatch.setenv("HVEXT_RUNTIME_DIR", f"{folder}/run")
        monkeypatch.delenv("HVEXT_STATE_DIR")

        @contextlib.contextmanager
        def user() -> Iterator[None]:
            before = os.geteuid()
            if before == 0:
                os.seteuid(_NOBODY)
            try:
                yield
            finally:
                os.seteuid(before)

        yield user
        monkeypatch.undo()


def test_who_cannot_read_roots_journal_is_told_so_and_not_that_all_is_empty(
    own_home: Callable[[], contextlib.AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What it loads, a user may not be able to read.
    assert said("audit")[0] == said("top", "--once", "--interval", "0.01")[0] == 0
    with own_home():
        audited, topped = said("audit"), said("top", "--once", "--interval", "0.01")
        noted = said("audit", "--json")
    for _status, _out, err in (audited, topped, noted):
        assert "/home/hvext has no VM" in err
        assert "/roots, cannot be read by this user: run it as root" in err
        assert "HVEXT_STATE_DIR" in err
    assert (audited[0], noted[1]) == (0, "[]\n")
    assert "/home/hvext" in topped[1]
    # Who has chosen one has chosen it, and is told which.
    monkeypatch.setenv("HVEXT_STATE_DIR", f"{os.environ['XDG_STATE_HOME']}/chosen")
    with own_home():
        chosen = said("audit")
    assert ("/home/chosen has no VM" in chosen[2], "/roots" in chosen[2]) == (True, False)
