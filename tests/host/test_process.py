from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hvext.errors import ProgramError
from hvext.host import process

ENV = {"PATH": os.environ["PATH"]}
#: Far above what anything here takes, far below the sleeps in the scripts.
SOON_S = 20.0


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


def running(pid: int) -> bool:
    """Whether the process does more than wait for somebody to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def pid_in(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def test_both_streams_and_the_status_of_a_failing_script_are_returned() -> None:
    ended = process.run(sh("echo out; echo err >&2; exit 3"), env=ENV, timeout_s=60)
    assert (ended.status, ended.stdout, ended.stderr) == (3, b"out\n", b"err\n")
    assert (ended.timed_out, ended.cancelled, ended.dropped_bytes) == (False, False, 0)
    assert 0 < ended.duration_s < 60


def test_a_script_killed_by_a_signal_is_told_from_one_that_failed() -> None:
    assert process.run(sh("kill -KILL $$"), env=ENV, timeout_s=60).status == -signal.SIGKILL


def test_a_script_sees_only_the_environment_it_was_given_and_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVEXT_SECRET", "leaked")
    ended = process.run(sh('cat; echo "$VOL_NAME $HVEXT_SECRET."'), env={**ENV, "VOL_NAME": "disk"}, timeout_s=60)
    assert ended.stdout == b"disk .\n"


def test_a_missing_program_is_named() -> None:
    with pytest.raises(ProgramError, match="cannot start no-such-program: No such file"):
        process.run(["no-such-program"], env=ENV, timeout_s=60)


def test_a_daemon_that_keeps_the_output_open_does_not_delay_its_script() -> None:
    ended = process.run(sh("sleep 100 & echo $!"), env=ENV, timeout_s=90)
    daemon = int(ended.stdout)
    try:
        assert (ended.status, ended.timed_out) == (0, False)
        assert ended.duration_s < SOON_S
        assert running(daemon)
    finally:
        os.kill(daemon, signal.SIGKILL)


def test_a_script_over_its_time_is_ended_with_its_children_and_what_it_said_is_kept() -> None:
    ended = process.run(sh("sleep 100 & echo $!; wait"), env=ENV, timeout_s=0.5)
    assert ended.timed_out
    assert ended.duration_s < SOON_S
    assert ended.status == -signal.SIGTERM
    assert not running(int(ended.stdout))


def test_a_script_that_ignores_the_polite_signal_is_ended_all_the_same() -> None:
    ended = process.run(sh("trap '' TERM; echo started; while :; do sleep 1; done"), env=ENV, timeout_s=0.5)
    assert (ended.timed_out, ended.status, ended.stdout) == (True, -signal.SIGKILL, b"started\n")
    assert ended.duration_s < SOON_S


def test_endless_output_is_cut_in_the_middle_and_the_loss_is_counted() -> None:
    ended = process.run(sh("echo first; head -c 3000000 /dev/zero; echo last"), env=ENV, timeout_s=60, keep_bytes=1000)
    assert ended.stdout.startswith(b"first\n")
    assert ended.stdout.endswith(b"last\n")
    assert f"{ended.dropped_bytes} bytes left out".encode() in ended.stdout
    assert ended.dropped_bytes == len(b"first\n") + 3000000 + len(b"last\n") - 2000
    assert len(ended.stdout) < 2200


def test_output_is_handed_on_as_it_comes() -> None:
    seen: list[tuple[str, bytes]] = []
    process.run(
        sh("echo one; sleep 0.3; echo two >&2"), env=ENV, timeout_s=60, on_output=lambda *piece: seen.append(piece)
    )
    assert seen == [("stdout", b"one\n"), ("stderr", b"two\n")]


def test_an_error_while_output_is_handled_leaves_no_script_behind() -> None:
    pids: list[int] = []

    def fail(_name: str, piece: bytes) -> None:
        pids.append(int(piece))
        raise RuntimeError("the handler broke")

    with pytest.raises(RuntimeError, match="the handler broke"):
        process.run(sh("sleep 100 & echo $!; wait"), env=ENV, timeout_s=90, on_output=fail)
    assert not running(pids[0])


def test_a_cancelled_script_is_ended_with_its_children() -> None:
    cancel = process.Cancel()
    timer = threading.Timer(0.5, cancel.set)
    timer.start()
    ended = process.run(sh("sleep 100 & echo $!; wait"), env=ENV, timeout_s=90, cancel=cancel)
    timer.join()
    assert (ended.cancelled, ended.timed_out) == (True, False)
    assert ended.duration_s < SOON_S
    assert not running(int(ended.stdout))


def test_ctrl_c_leaves_no_script_behind(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    program = (
        "import os, sys; from hvext.host import process; "
        f"process.run(['sh', '-c', 'sleep 100 & echo $! >{pid_file}; wait'], env=dict(os.environ), timeout_s=90)"
    )
    root = Path(__file__).parents[2]
    caller = subprocess.Popen([sys.executable, "-c", program], cwd=root, stderr=subprocess.PIPE)
    try:
        child = pid_in(pid_file)
        caller.send_signal(signal.SIGINT)
        _out, err = caller.communicate(timeout=SOON_S)
        assert b"KeyboardInterrupt" in err
        wait_until(lambda: not running(child))
    finally:
        caller.kill()
        caller.wait()


def test_an_interrupt_while_a_program_is_started_leaves_none_behind(tmp_path: Path) -> None:
    # The program interrupts who starts it, before that one knows its process.
    program = (
        "import os, sys; from hvext.host import process\n"
        "for number in range(30):\n"
        "    script = f'kill -INT $PPID; echo $$ >{sys.argv[1]}/{number}; exec sleep 100'\n"
        "    try:\n"
        "        process.run(['sh', '-c', script], env=dict(os.environ), timeout_s=90)\n"
        "    except KeyboardInterrupt:\n"
        "        continue\n"
        "    sys.exit('it was not interrupted')\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=root, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    # One that was ended at once has written nothing.
    assert [path for path in tmp_path.iterdir() if (text := path.read_text()) and running(int(text))] == []


def test_a_server_runs_until_it_is_stopped_and_its_log_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("from the last time\n")
    server = process.start(sh("echo out; echo err >&2; exec sleep 100"), env=ENV, log_path=log)
    try:
        wait_until(lambda: "err" in server.log_tail())
        assert (server.alive, server.status, server.wait(0.01)) == (True, None, None)
        assert running(server.pid)
    finally:
        assert server.stop() == -signal.SIGTERM
    assert (server.alive, server.status, server.wait(0.01)) == (False, -signal.SIGTERM, -signal.SIGTERM)
    assert server.stop() == -signal.SIGTERM
    assert server.log_tail() == "from the last time\nout\nerr\n"
    assert server.log_tail(4) == "err\n"
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_a_stopped_server_takes_its_children_along_even_when_it_ended_before(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with process.start(sh(f"sleep 100 & echo $! >{pid_file}; exit 7"), env=ENV, log_path=tmp_path / "log") as server:
        child = pid_in(pid_file)
        assert server.wait(SOON_S) == 7
        assert running(child)
    assert server.stop() == 7
    assert not running(child)


def test_an_error_in_the_block_stops_the_server(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        process.start(["sleep", "100"], env=ENV, log_path=tmp_path / "log") as server,
    ):
        raise RuntimeError
    assert not server.alive


def test_a_server_that_ignores_the_polite_signal_is_stopped(tmp_path: Path) -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 1; done"
    with process.start(sh(script), env=ENV, log_path=tmp_path / "log") as server:
        wait_until(lambda: "ready" in server.log_tail())
        assert server.stop(grace_s=0.2) == -signal.SIGKILL


def test_a_server_gets_its_descriptors_folder_and_environment_and_no_others(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as pipe:  # noqa: PTH123 - a descriptor, not a path
        try:
            server = process.start(
                sh(f'echo hello >/proc/self/fd/{write_end}; echo "$(pwd) $NAME $HOME."; ls /proc/self/fd; cat'),
                env={**ENV, "NAME": "value"},
                log_path=tmp_path / "log",
                cwd=str(tmp_path),
                pass_fds=[write_end],
            )
        finally:
            os.close(write_end)
        with server:
            assert pipe.read() == b"hello\n"
            assert server.wait(SOON_S) == 0
    lines = server.log_tail().splitlines()
    assert lines[0] == f"{tmp_path} value ."
    assert str(write_end) in lines[1:]
    assert str(read_end) not in lines[1:]


def test_a_server_or_log_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"cannot start no-such-server: .*No such file"):
        process.start(["no-such-server"], env=ENV, log_path=tmp_path / "log")
    with pytest.raises(ProgramError, match=r"cannot start sleep: .*missing/log: No such file"):
        process.start(["sleep", "1"], env=ENV, log_path=tmp_path / "missing" / "log")
