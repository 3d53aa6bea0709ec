"""The only door through which hvext starts a program: `run` for one that ends, `start` for one that stays.

Programs get a list argv, a rebuilt environment, no standard input and a session of their own. `run` has a time limit:
when it passes (or the caller is interrupted), the whole process group is ended and what was printed so far is kept.
`start` sends output to a file and returns at once; `Running.stop` ends the whole group.

A program that ends while a grandchild still holds its standard output (a daemon that did not close it) is finished all
the same: what is in the pipes is read, and nobody waits for the daemon.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from hvext.core.value import value_object
from hvext.errors import ProgramError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

#: How long after the end of a program its pipes are still read, when somebody else keeps them open.
_LINGER_S = 0.2
_CHUNK = 65536
#: How long the kernel may take to take down a killed program (a QEMU gives back its guest's memory).
_REAP_S = 20.0


class _Kept:
    """The first and the last bytes of a stream, with the number of bytes left out between them."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._head = bytearray()
        self._tail = bytearray()
        self.dropped_bytes = 0

    def add(self, chunk: bytes) -> None:
        room = self._limit - len(self._head)
        self._head += chunk[:room]
        self._tail += chunk[room:] if room < len(chunk) else b""
        excess = len(self._tail) - self._limit
        if excess > 0:
            del self._tail[:excess]
            self.dropped_bytes += excess

    def value(self) -> bytes:
        if not self.dropped_bytes:
            return bytes(self._head + self._tail)
        return bytes(self._head) + f"\n[… {self.dropped_bytes} bytes left out …]\n".encode() + bytes(self._tail)


@value_object
class Finished:
    """How a program ended.

    ``status`` is the exit status, or minus the number of the signal that ended it. ``stdout`` and ``stderr`` hold what
    was printed; where a stream was longer than twice ``keep_bytes``, its middle is left out and
    ``dropped_bytes`` says how much.
    """

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes
    timed_out: bool
    cancelled: bool
    duration_s: float
    dropped_bytes: int


class Cancel:
    """A switch that another thread may throw to end a running program early."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask for the end; may be repeated."""
        self._event.set()

    @property
    def is_set(self) -> bool:
        """Whether the end was asked for."""
        return self._event.is_set()


def end_group(pid: int, *, grace_s: float = 0.5) -> None:
    """End the process group led by ``pid``: SIGTERM, and SIGKILL after ``grace_s`` seconds for what is still there.

    May be repeated; a group that is gone is no error.
    """
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 0.0)):
        try:
            os.killpg(pid, number)
        except (ProcessLookupError, PermissionError):
            return
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if not _group_alive(pid):
                return
            time.sleep(0.01)


def _group_alive(pgid: int) -> bool:
    """Whether any process of the group is more than a zombie."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat") as file:
                text = file.read()
        except OSError:
            continue
        state, _ppid, group = text.rpartition(")")[2].split()[:3]
        if int(group) == pgid and state != "Z":
            return True
    return False


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    timeout_s: float,
    cwd: str | None = None,
    keep_bytes: int = 1 << 18,
    on_output: Callable[[str, bytes], None] | None = None,
    cancel: Cancel | None = None,
    on_start: Callable[[int], None] | None = None,
) -> Finished:
    """Run a program to its end and return how it ended.

    ``env`` is the whole environment. ``on_start`` is called with the number of its process (and process group) once it
    runs, ``on_output`` with ``"stdout"`` or ``"stderr"`` and each piece as it comes. Whatever goes wrong here (time
    limit, ``cancel``, KeyboardInterrupt, an error in one of these functions) ends the program's whole process group
    first.

    Raises ProgramError when the program cannot be started at all.
    """
    started = time.monotonic()
    interrupts = _Interrupts()
    try:
        child = subprocess.Popen(
            list(argv),
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except BaseException as error:
        interrupts.release()
        if isinstance(error, OSError):
            raise ProgramError(f"cannot start {argv[0]}: {error.strerror}") from error
        raise
    kept = {"stdout": _Kept(keep_bytes), "stderr": _Kept(keep_bytes)}

    def take(name: str, chunk: bytes) -> None:
        kept[name].add(chunk)
        if on_output is not None:
            on_output(name, chunk)

    timed_out = cancelled = False
    try:
        with child:
            try:
                interrupts.release()
                if on_start is not None:
                    on_start(child.pid)
                ended = _pump(child, take, started + timeout_s, cancel)
                cancelled = not ended and cancel is not None and cancel.is_set
                timed_out = not ended and not cancelled
                if not ended:
                    end_group(child.pid)
                    _pump(child, take, time.monotonic() + _LINGER_S, None)
            except BaseException:
                end_group(child.pid)
                raise
            finally:
                for pipe in (child.stdout, child.stderr):
                    if pipe is not None:
                        pipe.close()
    finally:
        status = child.wait()
    return Finished(
        argv=tuple(argv),
        status=status,
        stdout=kept["stdout"].value(),
        stderr=kept["stderr"].value(),
        timed_out=timed_out,
        cancelled=cancelled,
        duration_s=time.monotonic() - started,
        dropped_bytes=sum(stream.dropped_bytes for stream in kept.values()),
    )


class _Interrupts:
    """SIGINT held from here until ``release``: a program is started meanwhile, which nobody could end yet."""

    def __init__(self) -> None:
        self._came = False
        self._handler: object = None
        # In other threads than the main one there is none.
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):
                self._handler = handler
                signal.signal(signal.SIGINT, self._note)

    def _note(self, _number: int, _frame: object) -> None:
        self._came = True

    def release(self) -> None:
        """Answer SIGINT as before, also one that came meanwhile; may be repeated."""
        handler, self._handler = self._handler, None
        if callable(handler):
            signal.signal(signal.SIGINT, handler)
            if self._came:
                signal.raise_signal(signal.SIGINT)


def _pump(
    child: subprocess.Popen[bytes], take: Callable[[str, bytes], None], deadline: float, cancel: Cancel | None
) -> bool:
    """Hand on what the child prints until it has ended; False when the deadline or ``cancel`` came first."""
    exited_at: float | None = None
    # Without selectors, which a short command would load for this alone.
    poll = select.poll()
    watched: dict[int, str] = {}
    for name, pipe in (("stdout", child.stdout), ("stderr", child.stderr)):
        if pipe is not None and not pipe.closed:
            os.set_blocking(pipe.fileno(), False)
            watched[pipe.fileno()] = name
    # The end of the process wakes the loop by itself; only a `cancel` from another thread has to be looked for.
    pidfd = os.pidfd_open(child.pid) if child.returncode is None else -1
    try:
        if pidfd >= 0:
            watched[pidfd] = "exit"
        for fd in watched:
            poll.register(fd, select.POLLIN)
        while watched:
            now = time.monotonic()
            if exited_at is not None and now >= exited_at + _LINGER_S:
                break
            if now >= deadline or (cancel is not None and cancel.is_set):
                return child.poll() is not None
            until = deadline if exited_at is None else exited_at + _LINGER_S
            for fd, _events in poll.poll(1000 * min(until - now, 0.05 if cancel is not None else 3600.0)):
                if fd == pidfd:
                    exited_at = time.monotonic()
                elif _read_some(fd, watched[fd], take):
                    continue
                poll.unregister(fd)
                del watched[fd]
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    return True


def _read_some(fd: int, name: str, take: Callable[[str, bytes], None]) -> bool:
    """Read one piece; False at the end of the stream."""
    try:
        chunk = os.read(fd, _CHUNK)
    except BlockingIOError:
        return True
    if chunk:
        take(name, chunk)
    return bool(chunk)


class Running:
    """A long-running program that `start` started; as a context manager it ends with the block.

    Its process group is ended before the program itself is reaped, so that the group's number cannot have gone to
    somebody else by then.
    """

    def __init__(self, argv: Sequence[str], child: subprocess.Popen[bytes], log_path: Path) -> None:
        self.argv = tuple(argv)
        self.log_path = log_path
        self._child = child

    @property
    def pid(self) -> int:
        """The number of the process, and of its process group."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether the program itself still runs."""
        return self.status is None

    @property
    def status(self) -> int | None:
        """The exit status, minus the number of the signal that ended it, or None while it runs."""
        if self._child.returncode is not None:
            return self._child.returncode
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def wait(self, timeout_s: float) -> int | None:
        """Return the status once the program has ended by itself, or None when it has not within ``timeout_s``."""
        if self._child.returncode is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                select.select([pidfd], [], [], timeout_s)
            finally:
                os.close(pidfd)
        return self.status

    def log_tail(self, n_bytes: int = 4096) -> str:
        """Return the end of what this program and earlier ones with the same log file printed; at most ``n_bytes``."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - n_bytes))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def stop(self, *, grace_s: float = 2.0) -> int:
        """End the whole process group (SIGTERM, after ``grace_s`` SIGKILL) and return the status; may be repeated.

        Raises ProgramError when even SIGKILL does not end the program (it hangs in the kernel).
        """
        if self._child.returncode is None:
            end_group(self.pid, grace_s=grace_s)
            try:
                self._child.wait(timeout=_REAP_S)
            except subprocess.TimeoutExpired as error:
                raise ProgramError(f"{self.argv[0]} (pid {self.pid}) does not end on SIGKILL") from error
        return self._child.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def start(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log_path: Path,
    cwd: str | None = None,
    pass_fds: Sequence[int] = (),
) -> Running:
    """Start a long-running program and return it; what it prints is appended to ``log_path``.

    ``env`` is the whole environment; ``pass_fds`` are kept open under their numbers.

    Raises ProgramError when the program or its log file cannot be opened.
    """
    try:
        with log_path.open("ab") as log:
            child = subprocess.Popen(
                list(argv),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=pass_fds,
            )
    except OSError as error:
        raise ProgramError(f"cannot start {argv[0]}: {error.filename or argv[0]}: {error.strerror}") from error
    return Running(argv, child, log_path)
