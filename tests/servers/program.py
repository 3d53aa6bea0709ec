"""How a server's programs are started, found ready, killed, frozen and ended; and the tools that speak to them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hvext.host import process

#: Names the server's folder in the environment of everything that a server starts.
MARK = "HVEXT_TEST_SERVER"

_READY_S = 30.0
_POLL_S = 0.01
_REAP_S = 0.2
_TOOL_S = 60.0


class ServerError(Exception):
    """A server did not get ready, or one of its tools failed."""


def environment(folder: Path | str, **more: str) -> dict[str, str]:
    """The environment of a server and of its tools: nothing of the caller's but PATH, which gets /usr/sbin."""
    path = os.environ.get("PATH", "/usr/bin:/bin")
    return {"PATH": f"{path}:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8", "HOME": str(folder), MARK: str(folder), **more}


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on, from a range that the kernel gives to no outgoing connection."""
    for _try in range(1000):
        port = random.randrange(20000, 32000)  # noqa: S311
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((address, port))
            return port
    raise ServerError(f"no free port on {address}")


def free_address(port: int) -> str:
    """A loopback address where nobody has this port, for servers that insist on it."""
    for _try in range(1000):
        address = f"127.0.{random.randrange(1, 255)}.{random.randrange(1, 255)}"  # noqa: S311
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((address, port))
            return address
    raise ServerError(f"port {port} is taken on all loopback addresses")


def listens(port: int, address: str = "127.0.0.1") -> bool:
    """Whether something takes connections there."""
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def tool(argv: Sequence[str], env: Mapping[str, str], *, timeout_s: float = _TOOL_S) -> str:
    """Run a program to its end and return what it printed; raises ServerError when it fails."""
    done = process.run(argv, env=env, timeout_s=timeout_s)
    printed = done.stdout.decode(errors="replace")
    if done.status or done.timed_out:
        raise ServerError(f"{argv} failed ({done.status}): {printed}{done.stderr.decode(errors='replace')}")
    return printed


def wait_until(what: str, ready: Callable[[], bool], *, timeout_s: float = _READY_S) -> None:
    """Wait until ``ready`` is true; raises ServerError, which names ``what``, when it does not get true."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise ServerError(f"{what} is not ready after {timeout_s:g} s")
        time.sleep(_POLL_S)


def descendants(pid: int) -> list[int]:
    """The process, its children, their children and so on, parents first."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found


class Service:
    """One program of a server, which a test may kill, freeze and start again.

    It is ready when ``ready`` says so and all ``marks`` exist: files or sockets that the program makes, which are taken
    away before each start.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        folder: Path,
        name: str,
        marks: Sequence[Path] = (),
        ready: Callable[[], bool] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.argv = tuple(argv)
        self.name = name
        self._marks = tuple(marks)
        self._ready = ready
        self._env = environment(folder, **(env or {}))
        self._log = folder / f"{name}.log"
        self._running: process.Running | None = None

    @property
    def pid(self) -> int:
        """The number of the process; raises ServerError when it has not been started."""
        if self._running is None:
            raise ServerError(f"{self.name} was not started")
        return self._running.pid

    @property
    def alive(self) -> bool:
        """Whether the program runs."""
        return self._running is not None and self._running.alive

    def start(self) -> None:
        """Start the program and return when it is ready.

        Raises ServerError with its last words when it does not get ready; it is ended then.
        """
        for path in self._marks:
            path.unlink(missing_ok=True)
        self._running = process.start(self.argv, env=self._env, log_path=self._log)
        try:
            wait_until(self.name, self._is_ready)
        except BaseException as error:
            self.kill()
            if isinstance(error, ServerError):
                raise ServerError(f"{error}: {self._running.log_tail()}") from error
            raise

    def _is_ready(self) -> bool:
        if not self.alive:
            raise ServerError(f"{self.name} ended")
        return all(path.exists() for path in self._marks) and (self._ready is None or self._ready())

    def stop(self, *, grace_s: float = 10.0) -> None:
        """Ask the program to end, wait for it, and kill what is left after ``grace_s`` seconds; may be repeated."""
        if self._running is not None and self.alive:
            self.thaw()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            self._running.wait(grace_s)
        self.kill()

    def kill(self) -> None:
        """End the program and all its children at once, as a crash would; may be repeated."""
        if self._running is None:
            return
        if self.alive and self._signal(signal.SIGKILL, children_only=True):
            # unshare reaps the child that it forked and ends; without it the dead child would be somebody else's.
            self._running.wait(_REAP_S)
        self._running.stop(grace_s=0)

    def freeze(self) -> None:
        """Stop the program and its children where they are: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen program go on."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Start the program again, at the same addresses; kills it first when it still runs."""
        self.kill()
        self.start()

    def _signal(self, number: signal.Signals, *, children_only: bool = False) -> int:
        """Send a signal to the program and all below it; returns how many got it."""
        pids = descendants(self.pid)[1 if children_only else 0 :] if self.alive else []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return len(pids)


@contextlib.contextmanager
def running(service: Service) -> Iterator[Service]:
    """Run the service inside the block; it is killed at its end."""
    try:
        service.start()
        yield service
    finally:
        service.kill()
