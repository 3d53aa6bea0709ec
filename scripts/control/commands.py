"""A start with a slow provider, the start of commands, writes of a guest whose disk is moved, and an idle watch."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from control.bench import ROOT, Bench, ms

from hvext.core.disk import Disk
from hvext.host.guest import Console, Writer
from hvext.host.machine import probe_acceleration
from hvext.host.provider import ProviderHost
from hvext.operations.attachments import detach, offer
from hvext.operations.start import forget_disks, start_disks
from hvext.operations.vm import open_vm
from hvext.operations.volumes import create_volume, remove_volume


def start(bench: Bench) -> None:
    """Attach the disks of an instance that starts, each of which takes a second."""
    times = []
    for number in range(2 if bench.quick else 5):
        disks = bench.disks(f"slow{number}-", 16, provider="slow")
        begun = time.perf_counter()
        start_disks(bench.host, disks, name=f"slow{number}")
        times.append(time.perf_counter() - begun)
        forget_disks(bench.host, disks, name=f"slow{number}")
    bench.row("start of 16 disks whose attach takes 1 s", "ms", hvext=ms(times))


def startup(bench: Bench) -> None:
    """Start `hvext explain` and `hvext args` beside a bare interpreter."""
    # A start looks at all VMs of the host: here there is none.
    os.environ["HVEXT_STATE_DIR"] = f"{bench.folder}/state-of-startup"
    answer = bench.folder / "answer"
    answer.write_text("/dev/loop0\nkvm:nbd+unix:///v?socket=/run/v/nbd.sock\n")
    disks = bench.disks("startup", 1)
    entry = str(Path(sys.executable).with_name("hvext"))
    args = [entry, "args", "--search-path", f"{bench.folder}/providers", "--log-dir", "none", "--disk",
            "provider=quick,volume=startup0"]  # fmt: skip
    cases = {
        "bare": [sys.executable, "-c", "pass"],
        "isolated": [sys.executable, "-I", "-c", "pass"],
        "explain": [entry, "explain", "--offline", str(answer)],
        "args": args,
        "args --format xml": [*args, "--format", "xml"],
        "script": [f"{bench.folder}/providers/quick/attach"],
    }
    wall: dict[str, list[float]] = {name: [] for name in cases}
    cpu: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(bench.rounds + 1):
        for name, argv in cases.items():
            wall_s, cpu_s = _started(name, argv)
            # An instance that starts has no record of the start before.
            forget_disks(bench.host, disks)
            # The first time, modules are compiled and QEMU is asked what it can do: both are kept.
            if number > 0:
                wall[name].append(wall_s)
                cpu[name].append(cpu_s)
    for name in ("explain", "args", "args --format xml"):
        apart = ms(wall["script"]) if name.startswith("args") else 0.0
        bench.row(
            f"hvext {name}", "ms", hvext=ms(wall[name]) - apart, bare=ms(wall["bare"]), isolated=ms(wall["isolated"]),
            ratio=(ms(wall[name]) - apart) / ms(wall["bare"]), cpu_ratio=ms(cpu[name]) / ms(cpu["bare"]),
            script_apart=apart,
        )  # fmt: skip


def _started(name: str, argv: Sequence[str]) -> tuple[float, float]:
    """Run a command to its end; return the seconds that it took, and those of a processor."""
    # Where Python may not keep what it compiled, each start would compile everything.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    begun = time.perf_counter()
    pid = os.posix_spawn(
        argv[0],
        argv,
        environment | {"VOL_NAME": "startup0"},
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _pid, status, used = os.wait4(pid, 0)
    wall_s = time.perf_counter() - begun
    assert status == 0, f"{name} ended with {status}"
    return wall_s, used.ru_utime + used.ru_stime


def stall(bench: Bench) -> None:
    """Move a disk under writes, and compare the longest write with what the guest has without moves."""
    moved: list[float] = []
    rested: list[float] = []
    each: list[float] = []
    host = ProviderHost()
    where = {"DIR": str(bench.folder / "sample"), "RUN": str(bench.folder / "sample-run")}
    disk = Disk.from_mapping({"provider": "sample", "volume": "stall", "parameters": where})
    create_volume(host, disk, 128)
    options = {"start_paused": False, "memory_mib": 256, "accel": probe_acceleration(bench.image)}
    try:
        with bench.machine(**options) as machine:
            console = Console(machine.command_path, machine.console_log, alive=lambda: machine.alive)
            console.wait_ready(120)
            with open_vm(str(machine.qmp_path), host=host) as vm:
                places = [vm.plug(disk).location, str(offer(host, disk).attachment.block_path)]
                time.sleep(2)
                writer = Writer(console, "/dev/" + console.run("cd /sys/block && ls -d [vs]d*")[1].split()[0])
                writer.start(blocks=1024)
                for _round in range(3 if bench.quick else 9):
                    for moves, kept in ((False, rested), (True, moved)):
                        writer.status()
                        until = time.monotonic() + 1
                        while time.monotonic() < until:
                            if moves:
                                begun = time.perf_counter()
                                vm.repoint(disk.volume.uuid, places[len(each) % 2 - 1])
                                each.append(time.perf_counter() - begun)
                            else:
                                time.sleep(0.05)
                        kept.append(writer.status().window_max_us / 1e6)
                verdict = writer.stop()
                assert verdict.ok, verdict
                vm.unplug(disk)
    finally:
        detach(host, disk)
        remove_volume(host, disk)
    bench.row(
        "longest write in a second of moves", "ms", hvext=ms(moved), without_moves=ms(rested), one_move=ms(each),
        moves=len(each),
    )  # fmt: skip


def watch(bench: Bench) -> None:
    """Watch idle QEMUs, and see what a further one costs."""
    found = {}
    numbers = (1, 5) if bench.quick else (1, 11)
    with contextlib.ExitStack() as stack:
        sockets: list[str] = []
        for number in numbers:
            while len(sockets) < number:
                name = f"w{len(sockets)}"
                machine = stack.enter_context(bench.machine(name=name, memory_mib=64, root_ports=1))
                sockets.append(str(machine.qmp_path))
            found[number] = _watched(bench, sockets)
    (few, (pss_few, cpu_few)), (more, (pss_more, cpu_more)) = found.items()
    further = more - few
    bench.row("hvext watch, alone with 1 idle VM", "KiB, CPU %", pss_kib=pss_few, cpu_percent=cpu_few)
    bench.row(
        "hvext watch, each further idle VM",
        "KiB, CPU %",
        pss_kib=(pss_more - pss_few) / further,
        cpu_percent=(cpu_more - cpu_few) / further,
    )


def _watched(bench: Bench, sockets: Sequence[str]) -> tuple[float, float]:
    words = [word for path in sockets for word in ("--qmp", path)]
    with (
        (bench.folder / "watch.log").open("ab") as log,
        subprocess.Popen(
            [sys.executable, "-m", "hvext", "watch", *words], cwd=ROOT, stdout=log, stderr=log
        ) as watching,
    ):
        try:
            time.sleep(5 if bench.quick else 15)
            before, begun = _cpu_s(watching.pid), time.monotonic()
            time.sleep(10 if bench.quick else 60)
            cpu = (_cpu_s(watching.pid) - before) / (time.monotonic() - begun) * 100
            lines = Path(f"/proc/{watching.pid}/smaps_rollup").read_text().splitlines()
            return next(float(line.split()[1]) for line in lines if line.startswith("Pss:")), cpu
        finally:
            watching.terminate()


def _cpu_s(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
