from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import socketserver
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest

from hvext.cli import main
from hvext.core.disk import Disk
from hvext.core.outage import quantile
from hvext.host import process
from hvext.host.machine import StorageDaemon, start_storage_daemon
from hvext.host.provider import ProviderHost
from hvext.host.qmp import connect
from hvext.operations.start import start_disks
from tests.conftest import need
from tests.providers import read_calls, write_provider
from tests.watching import Watcher, environment, once, wait_until, watch_argv, watching

#: A boot sector that sleeps, and reads a sector of its disk whenever it is woken with an NMI; no timer runs.
#:
#:     xor ax,ax; mov ds,ax; mov es,ax          segments
#:     mov word [8],0x7c2e; mov word [10],0     where an NMI goes: the iret at the end
#:     mov al,0x30; out 0x43,al; xor al,al; out 0x40,al; out 0x40,al     stops the timer
#:     cli; hlt; mov ax,0x201; mov cx,1; mov dx,0x80; mov bx,0x7e00; int 0x13; jmp back to cli
#:     iret
BOOT_SECTOR = (
    bytes.fromhex(
        "31c08ed88ec0c70608002e7cc7060a000000b030e64330c0e640e640faf4b80102b90100ba8000bb007ecd13ebeecf"
    ).ljust(510, b"\0")
    + b"\x55\xaa"
)
AT_ONCE = 32


@dataclass(slots=True)
class Fleet:
    """Many real guests with next to nothing in them: each reads its disk when it is told to.

    The volumes of all have two servers, ``servers``, the first one preferred.
    """

    folder: Path
    logs: Path
    size: int
    servers: list[StorageDaemon | process.Running] = field(default_factory=list)
    machines: list[process.Running] = field(default_factory=list)

    @property
    def host(self) -> ProviderHost:
        return ProviderHost(search_path=(str(self.folder / "providers"),))

    @property
    def monitors(self) -> list[Path]:
        """The monitors for the watch."""
        return [self.folder / "watch" / f"vm{number}" for number in range(self.size)]

    def serve(self, name: str) -> StorageDaemon:
        """Start a server of the volume."""
        (self.folder / name).unlink(missing_ok=True)
        words = [
            *("--blockdev", f"driver=file,node-name=f,filename={self.folder}/image,read-only=on"),
            *("--nbd-server", f"addr.type=unix,addr.path={self.folder}/{name},max-connections=0"),
            *("--export", "type=nbd,id=e,node-name=f,name=v"),
        ]
        return start_storage_daemon(words, self.logs)

    def serve_until_full(self, name: str) -> process.Running:
        """Start a server of the volume that has no space left as long as there is a file ``full``."""
        words = ["--filter=error", "-r", "-U", f"{self.folder}/{name}", "file", f"{self.folder}/image"]
        settings = ["error=ENOSPC", "error-rate=100%", f"error-file={self.folder}/full"]
        running = process.start(
            [need("nbdkit", "nbdkit"), "-f", *words, *settings], env=environment(), log_path=self.logs / "nbdkit.log"
        )
        wait_until((self.folder / name).exists, "nbdkit listens")
        return running

    def start(self, number: int) -> process.Running:
        options = {"bootindex": "1", "read_only": "on", "rerror": "stop", "werror": "stop"}
        disk = Disk.from_mapping({"provider": "fake", "volume": f"v{number}", **options})
        argv = [
            *("qemu-system-x86_64", "-name", f"vm{number}", "-machine", "pc", "-accel", "tcg,tb-size=1", "-m", "4"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"),
        ]
        for folder in ("watch", "test"):
            argv += ["-chardev", f"socket,id={folder},path={self.folder}/{folder}/vm{number},server=on,wait=off"]
            argv += ["-mon", f"chardev={folder},mode=control"]
        argv += start_disks(self.host, [disk], name=f"vm{number}").argv()
        return process.start(argv, env=environment(), log_path=self.logs / f"vm{number}.log")

    def ask(self, command: str) -> list[object]:
        """Send a command to all guests, over monitors that the watch does not use, and return the answers."""

        async def talk(number: int, turn: asyncio.Semaphore) -> object:
            async with turn, connect(f"{self.folder}/test/vm{number}") as monitor:
                return await monitor.execute(command)

        async def talk_to_all() -> list[object]:
            turn = asyncio.Semaphore(AT_ONCE)
            return list(await asyncio.gather(*(talk(number, turn) for number in range(self.size))))

        return asyncio.run(talk_to_all())

    def statuses(self) -> list[str]:
        return [answer["status"] for answer in self.ask("query-status") if isinstance(answer, dict)]

    def reads(self) -> list[int]:
        """Return how many reads of each guest have ended."""
        return [answer[0]["stats"]["rd_operations"] for answer in self.ask("query-blockstats")]  # type: ignore[index]

    def read(self) -> None:
        """Have all guests read."""
        self.ask("inject-nmi")


@pytest.fixture
def make_fleet(tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    need("qemu-system-x86_64", "qemu-system-x86")
    need("qemu-storage-daemon", "qemu-system-common")
    with contextlib.ExitStack() as stack:
        short = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hvext-")))

        def make(size: int, *, until_full: bool = False) -> Fleet:
            fleet = Fleet(short, tmp_path / "logs", size)
            stack.callback(lambda: _end(fleet))
            for folder in ("watch", "test"):
                (short / folder).mkdir()
            fleet.logs.mkdir(exist_ok=True)
            (short / "image").write_bytes(BOOT_SECTOR.ljust(1 << 20, b"\0"))
            uris = "".join(rf"\nkvm:nbd+unix:///v?socket={short}/{name}" for name in ("first", "second"))
            write_provider(short / "providers", "fake", {"attach": rf"printf '{uris}\n'"}, record=short / "record")
            first = fleet.serve_until_full("first") if until_full else fleet.serve("first")
            fleet.servers = [first, fleet.serve("second")]
            with ThreadPoolExecutor(max_workers=2) as pool:
                fleet.machines.extend(pool.map(fleet.start, range(size)))
            wait_until(lambda: all(Path(f"{short}/test/vm{number}").exists() for number in range(size)), "all start")
            # The first read is the boot itself.
            wait_until(lambda: all(number >= 1 for number in fleet.reads()), "all guests boot")
            return fleet

        yield make


def _end(fleet: Fleet) -> None:
    for machine in fleet.machines:
        machine.stop(grace_s=0)
    for server in fleet.servers:
        server.stop(grace_s=0)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024


def _said_s(watch: Watcher, event: str, since: float) -> list[float]:
    """Return when each guest had an event said, in seconds after ``since``, sorted."""
    times = [datetime.fromisoformat(notice["time"]) for notice in watch.notices() if notice["event"] == event]
    return sorted(moment.timestamp() - since for moment in times)


def _figures(name: str, values: Sequence[float]) -> str:
    p50, p99, last = (quantile(values, share) for share in (0.5, 0.99, 1))
    return f"{name}: p50 {p50:.2f} s, p99 {p99:.2f} s, last {last:.2f} s"


@pytest.mark.parametrize(
    ("size", "idle_s", "pace"),
    [
        (8, 3.0, ("--per-server", "1000")),
        pytest.param(300, 60.0, ("--per-server", "1000"), marks=[pytest.mark.nightly, pytest.mark.timeout(1800)]),
        pytest.param(300, 60.0, (), marks=[pytest.mark.nightly, pytest.mark.timeout(1800)]),
    ],
)
def test_one_watch_brings_all_guests_back_when_all_fail_at_once(
    make_fleet: Callable[..., Fleet],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    size: int,
    idle_s: float,
    pace: tuple[str, ...],
) -> None:
    fleet = make_fleet(size)
    with watching(tmp_path, "--qmp-glob", fleet.folder / "watch", "--search-path", fleet.folder / "providers", *pace,
                  "--hold", "3600") as watch:  # fmt: skip
        watch.wait_for("watching", times=size, limit_s=300)
        # Each provider is asked once, within a minute.
        wait_until(lambda: len(read_calls(fleet.folder / "record", "attach")) >= 2 * size, "all are asked", 180)
        time.sleep(1)
        pid = watch.running.pid
        before = _cpu_s(pid)
        time.sleep(idle_s)
        cpu = (_cpu_s(pid) - before) / idle_s
        idle_mib = _memory_mib(pid)
        reads = fleet.reads()
        fleet.servers[0].stop(grace_s=0)
        since = time.time()
        fleet.read()
        watch.wait_for("resumed", times=size, limit_s=600)
        wait_until(lambda: all(now > then for now, then in zip(fleet.reads(), reads, strict=True)), "all reads end")
        stopped, resumed = (_said_s(watch, event, since) for event in ("stopped", "resumed"))
        with capsys.disabled():
            print(
                f"\n{size} guests {' '.join(pace)}: {idle_mib:.0f} MiB, {cpu * 100:.1f} % of a core when idle "
                f"({cpu * 100 / size:.3f} % a guest), {_memory_mib(pid):.0f} MiB afterwards; all fail within "
                f"{stopped[-1]:.2f} s; {_figures('seen', stopped)}; {_figures('resumed', resumed)}"
            )
        assert fleet.statuses() == ["running"] * size
        assert not {"gave-up", "trouble", "unreachable"} & set(watch.events())
        assert watch.events().count("failed-over") == size
        assert watch.end() == 0


def test_storage_without_space_is_said_and_not_taken_for_dead(make_fleet: Callable[..., Fleet], tmp_path: Path) -> None:
    fleet = make_fleet(1, until_full=True)
    full = fleet.folder / "full"
    own = ("--qmp", fleet.monitors[0], "--search-path", fleet.folder / "providers")
    with watching(tmp_path, *own) as watch:
        watch.wait_for("watching")
        full.touch()
        fleet.read()
        watch.wait_for("no-space")
        assert fleet.statuses() == ["io-error"]
        assert watch.events() == ["watching", "no-space"]
        assert "hvext resume" in watch.notices()[-1]["words"]
        assert once_more(watch, tmp_path, own) == (1, ["watching", "no-space", "looked"])
    monitor = fleet.folder / "test/vm0"
    status, out, err = said("audit")
    assert (status, "stopped by an I/O error" in out, f"hvext resume --qmp {monitor}" in out) == (1, True, False)
    assert f"fake/v0 is full; make room, then hvext resume --qmp {fleet.monitors[0]}" in out
    assert (err, "nothing is left over" in out) == ("", False)
    (found,) = json.loads(said("audit", "--json", "--qmp", monitor)[1])
    assert (found["kind"], found["harmless"], str(monitor) in found["words"]) == (
        "stopped by an I/O error",
        False,
        True,
    )
    (step,) = json.loads(said("resume", "--qmp", monitor, "--dry-run", "--json")[1])["steps"]
    assert fleet.statuses() == ["io-error"]
    # There is no room yet.
    log = tmp_path / "log"
    status, out, err = said("resume", "--qmp", monitor, "--log-file", log)
    assert (status, "has stopped it again" in out, "make room" in err) == (1, True, True)
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert [each["step"] for each in told if each["event"] == "step"] == [step["step"]]
    full.unlink()
    reads = fleet.reads()
    status, out, _err = said("resume", "--qmp", monitor, "--json")
    result = json.loads(out)
    assert (status, result["state"], len(result["full"]), result["failed"]) == (0, "resumed", 1, [])
    wait_until(lambda: fleet.reads() > reads, "the read is repeated")
    assert fleet.statuses() == ["running"]
    assert said("resume", "--qmp", monitor)[:2] == (0, "VM vm0: runs already, nothing was done\n")
    assert said("audit")[1] == "nothing is left over, and nothing is unfinished\n"
    fleet.ask("stop")
    status, out, err = said("resume", "--qmp", monitor)
    assert (status, "left as it is (paused)" in out, "whoever paused it" in err) == (1, True, True)
    assert json.loads(said("resume", "--qmp", monitor, "--dry-run", "--json")[1])["steps"] == []
    assert fleet.statuses() == ["paused"]


def said(*words: object) -> tuple[int, str, str]:
    """Run a command in this process, and return its exit status, output and errors."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(word) for word in words])
    return status, out.getvalue(), err.getvalue()


def once_more(watch: Watcher, tmp_path: Path, own: Sequence[object]) -> tuple[int, list[str]]:
    """End a watch, look once, and return the exit status and what was said."""
    assert watch.end() == 0
    status, said = once(tmp_path, *own)
    return status, [notice["event"] for notice in said]


def test_a_guest_that_was_paused_while_its_disk_failed_gets_another_and_stays_paused(
    make_fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    fleet = make_fleet(1)
    reads = fleet.reads()
    own = ("--qmp", fleet.monitors[0], "--search-path", fleet.folder / "providers", "--no-fail-back")
    with watching(tmp_path, *own) as watch:
        watch.wait_for("watching")
        # Somebody pauses it while a read is under way: QEMU waits for that, and it fails.
        os.kill(fleet.servers[0].pid, signal.SIGSTOP)
        fleet.read()
        with ThreadPoolExecutor(max_workers=1) as pool:
            pausing = pool.submit(fleet.ask, "stop")
            time.sleep(0.5)
            assert not pausing.done()
            fleet.servers[0].stop(grace_s=0)
            pausing.result(timeout=60)
        watch.wait_for("failed-over")
        watch.wait_for("left-paused")
        assert fleet.statuses() == ["paused"]
        assert watch.end() == 0
    assert fleet.reads() == reads
    fleet.ask("cont")
    wait_until(lambda: fleet.reads() > reads, "the read is repeated")
    assert fleet.statuses() == ["running"]


def test_a_watch_without_a_guest_is_refused_before_anything_is_tried(tmp_path: Path) -> None:
    done = process.run(watch_argv([]), env=environment(), timeout_s=60)
    assert done.status == 2
    assert json.loads(done.stderr)["error"]["type"] == "InputError"


@pytest.mark.parametrize("words", [("--concurrent", "0.5"), ("--checks", "0"), ("--fence-command", "'")])
def test_a_setting_that_cannot_work_is_refused(words: tuple[str, str]) -> None:
    done = process.run(watch_argv(["--qmp", "/nowhere", *words]), env=environment(), timeout_s=60)
    assert done.status == 2
    assert "error" in json.loads(done.stderr)


def test_a_socket_that_is_not_there_is_said_once_or_a_typo_would_leave_a_guest_unsupervised(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    named = [str(tmp_path / "nix.watch"), str(plain), f"{tmp_path}/*.nix"]
    with watching(tmp_path, "--rescan", "0.1", "--qmp", named[0], "--qmp", named[1], "--qmp-glob", named[2]) as watch:
        watch.wait_for("unreachable", times=3)
        # Some rounds later.
        time.sleep(1)
        assert watch.end() == 0
    assert watch.events() == [*["unreachable"] * 3, "ending"]
    assert [notice["monitor"] for notice in watch.notices()[:3]] == named
    words = [notice["words"] for notice in watch.notices()]
    assert ("No such file" in words[0], "no socket" in words[1], "no socket fits" in words[2]) == (True, True, True)
    # With --once, beside a monitor that is looked at.
    status, said_once = once(tmp_path, "--qmp", named[0], "--qmp-glob", named[2])
    assert (status, sorted(notice["monitor"] for notice in said_once)) == (1, sorted(["", named[0], named[2]]))


def test_a_guest_that_cannot_be_reached_is_not_well(tmp_path: Path) -> None:
    status, said = once(tmp_path, "--qmp", tmp_path / "nobody")
    assert status == 1
    assert [notice["event"] for notice in said] == ["unreachable", "looked"]
    assert said[-1]["words"] == "1 of 1 guest not well"


def test_a_look_ends_with_what_it_has_found(make_fleet: Callable[..., Fleet], tmp_path: Path) -> None:
    fleet = make_fleet(2)
    status, said = once(tmp_path, "--qmp", fleet.monitors[0], "--qmp", fleet.monitors[1])
    assert (status, [notice["event"] for notice in said]) == (0, ["watching", "watching", "looked"])
    last = said[-1]
    assert (last["words"], last["monitor"]) == ("all is well: 2 guests, 2 disks", "")
    assert [last[name] for name in ("guests", "disks", "not_well", "failed_over")] == [2, 2, 0, 0]


def test_guests_that_come_and_go_are_found_and_dropped(make_fleet: Callable[..., Fleet], tmp_path: Path) -> None:
    fleet = make_fleet(2)
    with watching(tmp_path, "--qmp-glob", fleet.folder / "watch/vm*", "--rescan", "0.2") as watch:
        watch.wait_for("watching", times=2)
        fleet.machines[0].stop(grace_s=5)
        watch.wait_for("gone", monitor=fleet.monitors[0])
        fleet.machines[0] = fleet.start(0)
        watch.wait_for("watching", monitor=fleet.monitors[0], times=2)
        # One that is killed leaves its socket: nobody answers there until a new one has it.
        fleet.machines[1].stop(grace_s=0)
        if fleet.monitors[1].exists():
            watch.wait_for("unreachable", monitor=fleet.monitors[1])
        fleet.machines[1] = fleet.start(1)
        watch.wait_for("watching", monitor=fleet.monitors[1], times=2)
        assert watch.end() == 0


@contextlib.contextmanager
def nonsense(path: Path) -> Iterator[None]:
    """Run a monitor that greets, and answers every command with something that is no answer to it."""
    greeting = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 1}, "package": ""}, "capabilities": []}}

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(json.dumps(greeting).encode() + b"\n")
            text = ""
            while piece := self.request.recv(65536):
                text += piece.decode()
                # The client ends its commands with nothing.
                while text.strip():
                    try:
                        command, end = json.JSONDecoder().raw_decode(text := text.strip())
                    except ValueError:
                        break
                    text = text[end:]
                    value: object = {} if command["execute"] == "qmp_capabilities" else ["nonsense"]
                    answer = {"return": value} | {key: command[key] for key in command if key == "id"}
                    with contextlib.suppress(BrokenPipeError):
                        self.request.sendall(json.dumps(answer).encode() + b"\n")

    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_a_guest_that_makes_trouble_does_not_end_the_watch_of_the_others(
    make_fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    fleet = make_fleet(1)
    odd = fleet.folder / "watch" / "odd"
    own = ("--qmp-glob", fleet.folder / "watch", "--search-path", fleet.folder / "providers", "--per-server", "1000")
    with nonsense(odd), watching(tmp_path, *own) as watch:
        # It is tried again, with pauses in between.
        watch.wait_for("trouble", monitor=odd, times=2)
        fleet.servers[0].stop(grace_s=0)
        fleet.read()
        watch.wait_for("resumed", monitor=fleet.monitors[0])
        assert watch.events(odd).count("trouble") < 20
        assert watch.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_watch_that_is_ended_in_the_middle_of_a_recovery_leaves_the_guest_whole(
    make_fleet: Callable[..., Fleet], tmp_path: Path, number: signal.Signals
) -> None:
    fleet = make_fleet(6)
    own = ("--qmp-glob", fleet.folder / "watch", "--search-path", fleet.folder / "providers", "--per-server", "1000")
    with watching(tmp_path, *own) as watch:
        watch.wait_for("watching", times=6)
        fleet.servers[0].stop(grace_s=0)
        fleet.read()
        watch.wait_for("stopped", times=1)
        watch.signal(number)
        assert watch.running.wait(60) == 0, watch.log.read_text()
        assert "Traceback" not in watch.log.read_text()
    # Whatever was under way is finished or undone: another look brings the rest back.
    status, _said = once(tmp_path, *own)
    assert status == 0
    assert fleet.statuses() == ["running"] * 6
