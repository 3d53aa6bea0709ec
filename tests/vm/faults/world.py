"""The world in which faults strike: a QEMU behind the proxy, the counting provider, a journal that can be full."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hvext.core.audit import Kind
from hvext.core.disk import Disk
from hvext.core.stamp import check_blocks
from hvext.host.guest import Console, Writer
from hvext.host.machine import Machine
from hvext.host.provider import ProviderHost
from hvext.operations import attachments, volumes
from hvext.operations.audit import audit
from hvext.operations.recover import Recovered, recover
from hvext.operations.vm import AsyncVm, open_vm_async
from tests.conftest import need
from tests.host.oracle import absent
from tests.vm.faults.driver import Driver
from tests.vm.faults.provider import NAME, SECRET, Counted
from tests.vm.state import loops, state_of
from tests.vm.volume import wait_for_disk

#: What the faulty guests' writers do: little, so that many guests' worth of faults fit on a small machine.
WRITER: dict[str, Any] = {"threads": 2, "blocks": 64, "rate": 25, "gone_after_s": 1}
GONE_S = 30.0


@dataclass(slots=True, kw_only=True)
class World:
    """Folders, provider and driver of one session of faults; ``token`` is the volumes' secret parameter."""

    folder: Path
    state: Path
    private: Path
    counted: Counted
    driver: Driver
    token: str
    cli: bool = False
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def host(self) -> ProviderHost:
        """The provider's host without any fault's time limits."""
        return ProviderHost(search_path=(self.counted.search_path,))

    def disk(self, name: str, **options: Any) -> Disk:
        """Return a disk on the volume ``name``."""
        secret = {SECRET: self.token} if self.token else {}
        parameters = {"dir": str(self.folder / "volumes"), "run": str(self.folder / "run"), **secret}
        return Disk.from_mapping({"provider": NAME, "volume": name, "parameters": parameters, **options})

    def forget_secret(self) -> None:
        """Have volumes without a secret parameter from now on."""
        self.token = ""
        (self.folder / "token").write_text("")

    def create(self, name: str, *, size_mib: int = 64, **options: Any) -> Disk:
        """Make a volume, and return a disk on it."""
        disk = self.disk(name, **options)
        # The shipped provider knows no such parameter, and says so at create.
        volumes.create_volume(self.host, disk, size_mib)
        return disk

    def job(self, operation: str, disks: list[Disk], qmp: str = "", **values: Any) -> dict[str, Any]:
        """Return what the driver is told."""
        return {
            "operation": operation,
            "folder": str(self.folder),
            "state": str(self.state),
            "private": str(self.private),
            "search_path": self.counted.search_path,
            "qmp": qmp,
            "disks": [disk.to_mapping() for disk in disks],
            **values,
        }

    def trace(self) -> list[tuple[str, str]]:
        """Return what happened since `forget`, in order: steps, QMP commands, scripts, each with its name."""
        path = self.folder / "trace"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(kind, name) for kind, _space, name in (line.partition(" ") for line in lines)]

    def forget(self) -> None:
        """Begin anew: no trace, no fault, no calls, room for the journal."""
        for name in ("trace", "armed-qmp", "armed-script"):
            (self.folder / name).unlink(missing_ok=True)
        self.counted.forget()
        (self.state / "filler").unlink(missing_ok=True)

    def make_room(self) -> None:
        """Let the journal be written again, and no fault strike any more."""
        for name in ("armed-qmp", "armed-script"):
            (self.folder / name).unlink(missing_ok=True)
        (self.state / "filler").unlink(missing_ok=True)

    def recover(self, *words: str) -> list[str]:
        """Recover, as a program or in this process; return the outcomes."""
        if self.cli or words:
            argv = [sys.executable, "-m", "hvext", "recover", "--search-path", self.counted.search_path, *words]
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, env=os.environ)
            return re.findall(r"^\S.*?: (finished|undone|left): ", done.stdout, re.MULTILINE) + (
                [done.stderr] if done.returncode not in (0, 1) else []
            )
        found: list[Recovered] = asyncio.run(recover(self.host))
        return [str(item.outcome) if item.outcome != "left" else f"left: {item.words}" for item in found]

    def audit(self) -> list[str]:
        """Return what `hvext audit` finds, but for guests that an I/O error has stopped: that leaves nothing over."""
        found = [finding for finding in asyncio.run(audit()) if finding.kind is not Kind.STOPPED]
        return [f"{finding.kind}: {finding.words}" for finding in found]

    def on_host(self) -> dict[str, object]:
        """Return what there is on the host for these volumes."""
        return {
            "loops": sorted(" ".join(line.split()) for line in loops(self.folder)),
            "servers": sorted(_processes(f"{self.folder}/run")),
            "scripts": sorted(_processes(f"{self.counted.search_path}/{NAME}/")),
            "private": sorted(path.name for path in self.private.iterdir()) if self.private.exists() else [],
            "journal": sorted(path.name for path in self.state.iterdir() if path.name not in ("%.lock", "history")),
        }

    def attached(self, disk: Disk) -> bool:
        """Whether the storage serves a volume."""
        data = f"{self.folder}/volumes/{disk.volume.name}/"
        return any(data in line for line in loops(self.folder)) or bool(_processes(data))

    def check_blocks(self, disk: Disk, blocks: int = 64) -> None:
        """See that no block of a volume is torn."""
        with (self.folder / "volumes" / disk.volume.name / "data.raw").open("rb") as file:
            report = check_blocks(file.read(blocks * 4096), 0)
        assert report.ok, report.bad


def _processes(words: str) -> list[str]:
    """The command lines of running processes with these words in them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if words in line and "hvext.cli" not in line and "-m hvext" not in line:
                    found.append(line.strip())
    return found


@contextlib.contextmanager
def world(journal: str = "128k") -> Iterator[World]:
    """A world inside the block; needs root, for the journal's small file system, whose size is ``journal``."""
    need("losetup", "mount")
    need("qemu-storage-daemon", "qemu-system-common")
    with tempfile.TemporaryDirectory(prefix="hvext-") as short, contextlib.ExitStack() as stack:
        folder = Path(short)
        state = folder / "state"
        state.mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={journal}", "hvext", str(state)], check=False
        ).returncode:
            absent("no tmpfs can be mounted here")
        stack.callback(subprocess.run, ["umount", str(state)], check=True)
        counted = Counted(folder=folder)
        counted.write()
        token = "counted-token-0815"
        (folder / "token").write_text(token)
        (folder / "volumes").mkdir()
        driver = Driver.start()
        stack.callback(driver.stop)
        made = World(
            folder=folder, state=state, private=folder / "private", counted=counted, driver=driver, token=token
        )
        stack.enter_context(_environment(HVEXT_STATE_DIR=str(state), HVEXT_RUNTIME_DIR=str(made.private)))
        yield made
        made.forget()
        for path in (folder / "volumes").glob("*"):
            attachments.detach(made.host, made.disk(path.name))


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def proxied(folder: Path) -> tuple[str, ...]:
    """Return the prefix of a machine that puts the proxy before its monitor."""
    return (sys.executable, str(Path(__file__).with_name("proxy.py")), str(folder))


@dataclass(slots=True, kw_only=True)
class Qemu:
    """One QEMU of a world; without a console nothing runs in it."""

    world: World
    machine: Machine
    console: Console | None = None
    steady: Writer | None = None
    mine: Writer | None = None

    @property
    def qmp(self) -> str:
        """The monitor for hvext: behind the proxy, where there is one."""
        proxy = self.machine.qmp_path.with_name("proxy")
        return str(proxy if proxy.exists() else self.machine.qmp_path)

    def run(self, work: Callable[[AsyncVm], Any]) -> Any:
        """Do something to the guest, without faults."""

        async def connected() -> Any:
            async with open_vm_async(self.qmp, host=self.world.host) as vm:
                return await work(vm)

        return asyncio.run(connected())

    def settle(self, disk: Disk) -> None:
        """Plug the disk that is there all the time, and let the guest write on it."""
        self.run(lambda vm: vm.plug(disk))
        if self.console is not None:
            self.steady = Writer(self.console, wait_for_disk(self.console))
            self.steady.start(**WRITER)

    def leave(self, disk: Disk) -> None:
        """Take that disk out again; every write on it is right."""
        if self.steady is not None:
            check(self.steady)
            self.steady.stop()
        self.run(lambda vm: vm.unplug(disk))

    def write(self) -> None:
        """Let the guest write on the disk under test, once it sees it."""
        if self.console is not None and self.mine is None:
            known = (self.steady.name,) if self.steady else ()
            self.mine = Writer(self.console, wait_for_disk(self.console, known=known))
            self.mine.start(**WRITER)
            deadline = time.monotonic() + GONE_S
            while self.mine.status().writes < 5:
                assert time.monotonic() < deadline, "the guest does not write"

    def gone(self) -> None:
        """See the disk under test go from the guest."""
        if self.mine is not None:
            self.mine.wait_gone(GONE_S)
            self.mine = None
        self._no_other_disk()

    def _no_other_disk(self) -> None:
        if self.console is None:
            return
        deadline = time.monotonic() + GONE_S
        known = {self.steady.name} if self.steady else set()
        while set(self.console.run("cd /sys/block && ls -d [vs]d* 2>/dev/null")[1].split()) != known:
            assert time.monotonic() < deadline, "the disk is still in the guest"

    def state(self) -> Any:
        """What QEMU has."""
        return state_of(self.machine)


def check(writer: Writer) -> None:
    """No write of the guest failed, and every acknowledged one is there."""
    verdict = writer.verify()
    assert (verdict.status.errors, verdict.bad, verdict.unreadable) == (0, 0, 0), verdict


def same_steps(names: list[str]) -> list[str]:
    """Step names without what differs from one run to the next."""
    return [
        re.sub(r"hv-[-0-9a-f]{36}|hv[a-z2-7]{26}(-[rtu])?|/dev/\S+|nbd\+unix:\S+|counted/\w+|\d+", "N", name)
        for name in names
    ]
