"""The program that carries operations out and may be killed: ``python -m tests.vm.faults.driver``.

It reads one job (JSON) a line and does each in a process of its own, which it forks, so that nothing has to be
imported again. It answers each with a line: the status of that process, as waitpid gives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvext.core.disk import Disk
from hvext.core.uri import Location, parse_uri
from hvext.errors import HvextError, OperationFailed
from hvext.host.files import opened_as
from hvext.host.machine import GuestImage, Machine, MachineOptions, start_machine
from hvext.host.provider import ProviderHost
from hvext.operations import moving
from hvext.operations.start import start_disks
from hvext.operations.vm import AsyncVm, open_vm_async

#: The limit for QMP commands, and for scripts.
COMMAND_S, SCRIPT_S = 0.8, 2.5
_WHOLE_S = 60


class _Fault:
    """Strikes when the step number ``at`` begins."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self._folder = Path(job["folder"])
        self._job = job
        self._n_steps = 0

    def report(self, name: str) -> None:
        """Write a step down, and strike when it is the one."""
        with (self._folder / "trace").open("a") as trace:
            trace.write(f"step {name}\n")
        number, self._n_steps = self._n_steps, self._n_steps + 1
        if number == self._job.get("at"):
            self.strike()

    def strike(self) -> None:
        """Do what this fault does at the beginning of its step."""
        kind = self._job["fault"]
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "qemu-killed":
            os.kill(self._job["qemu"], signal.SIGKILL)
        elif kind == "journal-full":
            fill(Path(os.environ["HVEXT_STATE_DIR"]))
        for channel in ("qmp", "script"):
            if word := self._job.get(f"arm_{channel}"):
                new = self._folder / f"arming-{channel}"
                new.write_text(word)
                new.replace(self._folder / f"armed-{channel}")


def fill(folder: Path) -> None:
    """Leave no room in a small file system, and none in the last page of a record either."""
    for record in folder.glob("*.json"):
        with contextlib.suppress(OSError), record.open("ab") as file:
            file.write(b"\n" * (-record.stat().st_size % 4096))
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"x" * 4096):
            pass


def run_job(job: Mapping[str, Any]) -> None:
    """Carry one operation out, in this process, and write down what came of it."""
    folder = Path(job["folder"])
    os.environ["HVEXT_STATE_DIR"] = job["state"]
    os.environ["HVEXT_RUNTIME_DIR"] = job["private"]
    (folder / "pid").write_text(str(os.getpid()))
    fault = _Fault(job)
    if job.get("at") == -1:
        fault.strike()
    host = ProviderHost(search_path=(job["search_path"],), timeout_s=SCRIPT_S)
    disks = [Disk.from_mapping(disk) for disk in job["disks"]]
    try:
        if job["operation"] == "start":
            start_disks(host, disks, name=job.get("name"), report=fault.report)
            said: dict[str, object] = {"ok": ""}
        else:
            said = {"ok": str(asyncio.run(_in_guest(job, host, disks[0], fault)))}
    except HvextError as error:
        left = list(error.left) if isinstance(error, OperationFailed) else []
        said = {"error": type(error).__name__, "message": error.message, "left": left}
    (folder / "result").write_text(json.dumps(said))


async def _in_guest(job: Mapping[str, Any], host: ProviderHost, disk: Disk, fault: _Fault) -> object:
    async with open_vm_async(
        job["qmp"], host=host, timeout_s=COMMAND_S, connect_timeout_s=10, report=fault.report
    ) as vm:
        return await _OPERATIONS[job["operation"]](vm, disk, job)


def _locations(job: Mapping[str, Any]) -> list[Location]:
    return [parse_uri(text, look=opened_as) for text in job["targets"]]


async def _plug(vm: AsyncVm, disk: Disk, _job: Mapping[str, Any]) -> object:
    return await vm.plug(disk)


async def _plug_all(vm: AsyncVm, _disk: Disk, job: Mapping[str, Any]) -> object:
    outcomes = await vm.plug_all([Disk.from_mapping(disk) for disk in job["disks"]])
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return len(outcomes)


async def _unplug(vm: AsyncVm, disk: Disk, _job: Mapping[str, Any]) -> object:
    return (await vm.unplug(disk)).state


async def _repoint(vm: AsyncVm, disk: Disk, job: Mapping[str, Any]) -> object:
    return await vm.repoint_to_first(disk.volume.uuid, _locations(job))


async def _resize(vm: AsyncVm, disk: Disk, job: Mapping[str, Any]) -> object:
    return await vm.resize(disk, job["size_mib"])


async def _fail_over(vm: AsyncVm, disk: Disk, job: Mapping[str, Any]) -> object:
    result = await vm.fail_over(disk, _locations(job))
    await vm.resume()
    return result


@dataclass(slots=True)
class _Target:
    """The target's QEMU: it runs on when this process is killed, and a file says where it is."""

    job: Mapping[str, Any]
    started: Machine | None = None

    async def start(self, disk_arguments: list[str]) -> str:
        """Start it, and return its monitor."""
        options = self.job["machine"] | {"incoming": "defer", "name": "there", "extra_args": tuple(disk_arguments)}
        image = GuestImage.find(Path(self.job["image"]))
        folder = Path(self.job["folder"])
        self.started = await asyncio.to_thread(start_machine, MachineOptions(**options), image, folder / "there-logs")
        qmp = str(self.started.qmp_path.with_name("proxy"))
        found = {"command": str(self.started.command_path), "console": str(self.started.console_log)}
        (folder / "there").write_text(json.dumps({"pid": self.started.pid, "qmp": qmp, **found}))
        return qmp

    async def end(self) -> None:
        """End it, if it was started."""
        if self.started is not None:
            await asyncio.to_thread(self.started.stop, grace_s=0)


async def _migrate(vm: AsyncVm, disk: Disk, job: Mapping[str, Any]) -> object:
    there = ProviderHost(search_path=(job["target_search_path"],), timeout_s=SCRIPT_S)
    return await moving.migrate(
        vm,
        _Target(job),
        there,
        [disk],
        f"unix:{job['folder']}/migration",
        target_name="there",
        target_state=job["target_state"],
    )


_OPERATIONS = {
    "migrate": _migrate,
    "plug": _plug,
    "plug_all": _plug_all,
    "unplug": _unplug,
    "repoint": _repoint,
    "resize": _resize,
    "fail_over": _fail_over,
}


def serve() -> None:
    """Do the jobs that come on standard input, each in a process of its own."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.alarm(_WHOLE_S)
            status = 1
            try:
                run_job(json.loads(line))
                status = 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(os.waitpid(child, 0)[1], flush=True)


@dataclass(slots=True)
class Driver:
    """The program, from the side of a test."""

    _process: subprocess.Popen[str]

    @classmethod
    def start(cls) -> Driver:
        """Start it."""
        return cls(
            subprocess.Popen(
                [sys.executable, "-m", "tests.vm.faults.driver"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[3],
            )
        )

    def run(self, job: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Do a job; return the number of the signal that ended it (0: none), and what came of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        result = Path(job["folder"]) / "result"
        result.unlink(missing_ok=True)
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        limit = threading.Timer(2 * _WHOLE_S, self._process.kill)
        limit.start()
        try:
            status = int(self._process.stdout.readline())
        finally:
            limit.cancel()
        said = json.loads(result.read_text()) if result.exists() else {}
        assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "the driver broke"
        return (os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0), said

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=10)


if __name__ == "__main__":
    serve()
