"""``--dry-run`` over ``--connect``: what it says of which view is what libvirt is told then; until then, nothing."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from hvext.cli import main
from hvext.core.disk import Disk
from tests.servers.libvirtd import Libvirtd
from tests.vm.state import loops
from tests.vm.test_libvirt import daemon as daemon
from tests.vm.test_libvirt import has, nodes, paused, records, secrets, xml
from tests.watching import wait_until

if TYPE_CHECKING:
    from tests.vm.conftest import Storage

pytestmark = pytest.mark.vm
paused = paused


class Commands:
    """Commands on a disk of the domain ``g``."""

    def __init__(self, daemon: Libvirtd, storage: Storage, disk: Disk) -> None:
        self.daemon = daemon
        self.storage = storage
        self.named = [disk.provider, disk.volume.name]
        for name, value in disk.volume.parameters.items():
            self.named += ["-p", f"{name}={value}"]
        self.where = ["--connect", daemon.uri, "--domain", "g", "--log-dir", "none"]
        self.where += ["--search-path", ":".join(storage.host.search_path)]

    def run(self, command: str, *words: str, status: int = 0) -> tuple[str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            done = main([command, *self.where, *self.named, *words])
        assert done == status, err.getvalue()
        return out.getvalue(), err.getvalue()

    def plan(self, command: str, *words: str) -> Any:
        """Say it; nothing may be another than before."""
        before = self.has()
        plan = json.loads(self.run(command, *words, "--dry-run", "--json")[0])
        assert self.has() == before, command
        return plan

    def same(self, command: str, *words: str) -> Any:
        """Say it, do it, and return what was said: both must have the same steps."""
        plan = self.plan(command, *words)
        done = [line.strip() for line in self.run(command, *words, "-v")[1].splitlines() if line.startswith("  ")]
        assert [step["step"] for step in plan["steps"]] == done, command
        assert done
        return plan

    def has(self) -> object:
        both = [xml(self.daemon, live=live) for live in (True, False)]
        return both, loops(self.storage.folder), secrets(self.daemon), records()


def test_what_is_said_is_what_libvirt_is_told_in_each_view(
    paused: Libvirtd, storage: Storage, create: Callable[..., Disk]
) -> None:
    disk = create(device="scsi-hd", access="kernelspace")
    run = Commands(paused, storage, disk)
    options = ("-o", "device=scsi-hd", "--access", "kernelspace")
    before = nodes(paused)
    only = run.plan("plug", *options, "--config")
    assert [step["step"] for step in only["steps"]][2:] == ["write it into the persistent configuration"]
    both = run.same("plug", *options)
    assert "/ADDRESS-THAT-ATTACH-PRINTS" in both["xml"]
    assert f"ua-{disk.names.device}" in both["xml"]
    assert has(paused, disk) == (True, True)
    assert run.plan("plug", *options)["steps"] == []
    run.same("resize", "--new-size", "96")
    tried, done = (run.run("repoint", "--to", "/dev/null", *more, status=1) for more in (("--dry-run",), ()))
    assert tried == done
    kept = run.plan("unplug", "--config")
    assert "stays attached" in kept["notes"][0]
    gone = run.same("unplug")
    assert gone["steps"][0]["inverse"] == "put it back there"
    assert (nodes(paused), has(paused, disk)) == (before, (False, False))


def test_a_disk_that_was_taken_out_past_hvext_is_said_and_left_until_it_is_recovered(
    paused: Libvirtd, storage: Storage, create: Callable[..., Disk]
) -> None:
    disk = create(device="scsi-hd", access="kernelspace")
    run = Commands(paused, storage, disk)
    run.run("plug", "-o", "device=scsi-hd", "--access", "kernelspace")
    for view in ("--live", "--config"):
        paused.virsh("detach-device-alias", "g", disk.names.alias, view)
    wait_until(lambda: has(paused, disk) == (False, False), "the disk is gone")
    words = ["recover", "--log-dir", "none", "--search-path", ":".join(storage.host.search_path)]
    before = run.has()
    (plan,) = json.loads(printed(*words, "--dry-run", "--json"))
    assert run.has() == before
    assert [step["step"] for step in plan["steps"]] == [f"detach {disk.provider}/{disk.volume.name}"]
    assert "volume detached" in printed(*words)
    assert not loops(storage.folder)


def printed(*words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(list(words)) == 0
    return out.getvalue()
