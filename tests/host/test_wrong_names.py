"""What is said to who names a volume, a monitor or a journal that is not the one that is meant."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
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


MIB = 1 << 20
SCSI = ("-o", "device=scsi-hd")


@pytest.fixture
def growing(host: Host) -> Path:
    """The image of a provider whose volumes can be made larger, and moved to a copy of it."""
    image = host.folder / "growing"
    for path in (image, host.folder / "copy"):
        path.write_bytes(b"")
        os.truncate(path, 4 * MIB)
    scripts = {
        "attach": f"printf '\\nkvm:file:{image}\\n'",
        "grow": f'[ "$EXTP_POOL" = a ] && truncate -s "${{VOL_NEW_SIZE}}M" {image}',
    }
    write_provider(host.folder / "providers", "pools", scripts, "pool where it is\n")
    return image


def test_a_result_begins_with_the_volume_as_it_was_typed_and_has_the_device_behind_it(
    host: Host, growing: Path
) -> None:
    volume = ("pools", "v1", "-p", "pool=a")
    with host.start("web1"):
        status, out, _ = host.run("plug", "web1", *volume, *SCSI)
        found = re.match(r"pools/v1: plugged as (hv-\S+), userspace ", out)
        assert (status, found is not None) == (0, True), out
        assert found is not None
        began = f"pools/v1 ({found[1]}): "
        uuid = ("--disk-uuid", json.loads(host.run("disks", "web1", "--json")[1])[0]["uuid"])
        again = host.run("plug", "web1", *volume, *SCSI)[1]
        assert re.match(r"pools/v1: unchanged as hv-\S+, userspace ", again), again
        result = json.loads(host.run("plug", "web1", *volume, *SCSI, "--json")[1])
        assert (result["changed"], result["access"]) == (False, "userspace")
        copy = f"file:{host.folder}/copy"
        assert host.run("repoint", "web1", *volume, "--to", copy)[1].startswith(f"{began}moved from ")
        # What the journal knows of the disk, nobody has to type.
        assert host.run("repoint", "web1", *uuid, "--to", copy)[1].startswith(f"{began}unchanged, ")
        assert host.run("repoint", "web1", *uuid, "--to", f"file:{growing}")[1].startswith(f"{began}moved from ")
        assert host.run("resize", "web1", *volume, "--new-size", "8")[1] == f"{began}grown from 4 MiB to 8 MiB\n"
        assert host.run("resize", "web1", *volume, "--new-size", "8")[1] == f"{began}unchanged, it has 8 MiB already\n"
        assert host.run("unplug", "web1", *uuid)[1] == f"{began}unplugged\n"
        assert host.run("plug", "web1", *volume, *SCSI)[0] == 0
        assert host.run("unplug", "web1", *volume)[1] == f"{began}unplugged, volume detached\n"
        assert host.run("unplug", "web1", *volume)[1] == f"{began}absent\n"
        # Of one that nobody wrote down, there is the device alone.
        assert host.run("unplug", "web1", *uuid)[1] == f"{found[1]}: absent\n"
        several = host.run("plug", "web1", "--disk", "provider=pools,volume=v2,param.pool=a,device=scsi-hd")
        assert several[1].startswith("pools/v2: plugged as hv-")


def test_a_disk_is_grown_by_its_uuid_with_the_parameters_that_it_was_plugged_with(host: Host, growing: Path) -> None:
    with host.start("web1"):
        assert host.run("plug", "web1", "pools", "v1", "-p", "pool=a", *SCSI)[0] == 0
        uuid = ("--disk-uuid", json.loads(host.run("disks", "web1", "--json")[1])[0]["uuid"])
        planned = host.run("resize", "web1", *uuid, "--new-size", "8", "--dry-run")
        assert (planned[0], "grow pools/v1 to 8 MiB" in planned[1]) == (0, True), planned
        assert growing.stat().st_size == 4 * MIB
        grown = host.run("resize", "web1", *uuid, "--new-size", "8")
        assert (grown[0], "grown from 4 MiB to 8 MiB" in grown[1]) == (0, True), grown
        assert growing.stat().st_size == 8 * MIB


def test_who_grows_the_volume_of_a_guest_is_told_what_shows_it_the_new_size(host: Host, growing: Path) -> None:
    sizes = ("pools", "v1", "-p", "pool=a", "--size", "4", "--new-size", "8")
    with host.start("web1"):
        assert host.run("plug", "web1", "pools", "v1", "-p", "pool=a", *SCSI)[0] == 0
        status, out, err = host.run("grow", "", *sizes)
        assert (status, out) == (0, "pools/v1: grown\n")
        said = "note: the guest of VM web1 still sees the old size of pools/v1: "
        assert err.startswith(said)
        assert err.endswith(" finishes it\n")
        assert growing.stat().st_size == 8 * MIB
        # The words that are printed are those that do it.
        command, *words = shlex.split(err.removeprefix(said).removesuffix(" finishes it\n"))[1:]
        done = host.run(command, "", *words)
        assert (done[0], "grown from 4 MiB to 8 MiB" in done[1]) == (0, True), done
        assert (
            "old size" not in host.run("grow", "", "pools", "v1", "-p", "pool=b", "--size", "4", "--new-size", "4")[2]
        )
    assert host.run("recover", "")[0] == 0
    assert host.run("grow", "", *sizes)[2] == "", "a guest that has ended sees nothing"


def test_a_disk_that_the_guest_has_under_other_parameters_is_said_to_be_that(host: Host, growing: Path) -> None:
    commands = (
        ("resize", "--new-size", "8"),
        ("repoint", "--to", f"file:{growing}"),
        ("repoint", "--access", "userspace"),
    )
    with host.start("web1"):
        assert host.run("plug", "web1", "pools", "v1", "-p", "pool=a", *SCSI)[0] == 0
        for command, *words in commands:
            for dry in ((), ("--dry-run",)):
                status, _out, err = host.run(command, "web1", "pools", "v1", *words, *dry)
                assert (status, "the guest has no disk pools/v1 (" in err) == (1, True), err
                assert "hint: VM web1 has pools/v1 with other parameters (pool=a)" in err, (command, dry)
            err = host.run(command, "web1", "pools", "nosuch", *words)[2]
            assert "the guest has no disk pools/nosuch (" in err
            assert "no VM of this host has pools/nosuch, as far as its journal knows: are its name and -p right?" in err


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
        journal = f"{os.environ['XDG_STATE_HOME']}/hvext"
    for _status, _out, err in (audited, topped, noted):
        assert "/home/hvext has no VM" in err
        assert "/roots, cannot be read by this user: run it as root" in err
        assert "HVEXT_STATE_DIR" in err
    assert (audited[0], noted[1]) == (0, "[]\n")
    assert audited[1] == f"in this journal ({journal}) nothing is left over, and nothing is unfinished\n"
    assert "/home/hvext" in topped[1]
    # Who has chosen one has chosen it, and is told which.
    monkeypatch.setenv("HVEXT_STATE_DIR", f"{os.environ['XDG_STATE_HOME']}/chosen")
    with own_home():
        chosen = said("audit")
    assert ("/home/chosen has no VM" in chosen[2], "/roots" in chosen[2]) == (True, False)
