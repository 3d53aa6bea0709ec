"""The test guest from the host: a shell in it, and the disk writer that runs in it.

QEMU writes everything the guest prints on its console to a log file, whether anybody is connected or not, and that file
is read here. Commands go to a second serial port, on which the guest prints nothing. The console's own socket is left
alone: QEMU 7.2 writes a byte into the log once more each time that a client's full socket makes it wait.
"""

from __future__ import annotations

import base64
import contextlib
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

from hvext.core.value import value_object
from hvext.errors import ProgramError

_POLL_S = 0.02
#: QEMU takes what is sent unless its main loop hangs.
_SEND_S = 30.0


class Console:
    """The console of a guest that takes commands on a serial port of their own, as vm-images/init does.

    ``command_path`` is that port's Unix socket, ``console_log`` the log file of the console's chardev. ``alive`` tells
    whether the machine still runs, so that nobody waits for one that ended.
    """

    def __init__(self, command_path: Path, console_log: Path, *, alive: Callable[[], bool] = lambda: True) -> None:
        self._command_path = command_path
        self._console_log = console_log
        self._alive = alive

    def mark(self) -> int:
        """Return the present end of what the guest printed, for ``since``."""
        try:
            return self._console_log.stat().st_size
        except FileNotFoundError:
            return 0

    def text(self, since: int = 0) -> str:
        """Return all that the guest printed since the mark, with plain line ends."""
        try:
            with self._console_log.open("rb") as log:
                log.seek(since)
                return log.read().decode(errors="replace").replace("\r", "")
        except FileNotFoundError:
            return ""

    def wait_for(self, pattern: str, timeout_s: float, *, since: int = 0) -> re.Match[str]:
        """Return the first match in the complete lines printed since the mark (``^`` and ``$`` match at each line).

        Raises ProgramError with the last lines when the time is over or the machine ended.
        """
        found = self._search(pattern, timeout_s, since)
        if found is None:
            state = f"within {timeout_s} s" if self._alive() else "before the machine ended"
            raise ProgramError(f"the guest did not print {pattern!r} {state}; its last lines:\n{self._last_lines()}")
        return found

    def wait_ready(self, timeout_s: float, *, since: int = 0) -> float:
        """Wait until the guest has booted (again, with a mark) and return its uptime then, in seconds.

        Raises ProgramError as `wait_for` does.
        """
        return float(self.wait_for(r"GUEST-READY ([\d.]+)$", timeout_s, since=since)[1])

    def run(self, command: str, timeout_s: float = 30.0) -> tuple[int, str]:
        """Run a shell script in the guest; return its exit status and what it printed (both streams).

        The output comes in one piece at the end, encoded, so that other programs' lines and kernel messages are no
        part of it. A program left running in the background should have its output redirected. Calls from several
        threads wait for each other.

        Raises ProgramError when it takes longer (it then still runs, and later commands wait for it) or the machine
        ended.
        """
        tag = f"RUN-{secrets.token_hex(4)}"
        ask = f'echo "{tag} $(cat /tmp/.status) $(base64 -w 0 /tmp/.output) ."\n'
        since = self.mark()
        deadline = time.monotonic() + timeout_s
        with self._connected(timeout_s) as line:
            _send(line, _script(command) + ask)
            # The socket stays open until the answer is there: QEMU drops what a client that left had sent last.
            while (printed := self._search(rf"{tag}.*$", deadline - time.monotonic(), since)) is not None:
                answer = re.fullmatch(rf"{tag} (\d+) ([A-Za-z0-9+/=]*) \.", printed[0])
                if answer is not None:
                    return int(answer[1]), base64.b64decode(answer[2]).decode(errors="replace")
                since = self.mark()  # a kernel message broke the line
                _send(line, ask)
        state = f"within {timeout_s} s" if self._alive() else "before the machine ended"
        raise ProgramError(f"the guest did not finish {command!r} {state}; its last lines:\n{self._last_lines()}")

    def _search(self, pattern: str, timeout_s: float, since: int) -> re.Match[str] | None:
        compiled = re.compile(pattern, re.MULTILINE)
        deadline = time.monotonic() + timeout_s
        while True:
            last_look = time.monotonic() >= deadline or not self._alive()
            complete, newline, _rest = self.text(since).rpartition("\n")
            found = compiled.search(complete + newline)
            if found is not None or last_look:
                return found
            time.sleep(_POLL_S)

    def _last_lines(self) -> str:
        return "\n".join(self.text().splitlines()[-10:])

    @contextlib.contextmanager
    def _connected(self, timeout_s: float) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(timeout_s)
            try:
                line.connect(str(self._command_path))
            except OSError as error:
                raise ProgramError(f"cannot reach the guest's shell {self._command_path}: {error}") from error
            yield line


def _script(command: str) -> str:
    """What to type to run the command: encoded, so that nothing in it can confuse the shell that reads it."""
    encoded = base64.encodebytes(command.encode()).decode()
    run = "sh /tmp/.script >/tmp/.output 2>&1; echo $? >/tmp/.status"
    return f"base64 -d >/tmp/.script <<'.'\n{encoded}.\n{run}\n"


def _send(line: socket.socket, text: str) -> None:
    line.settimeout(_SEND_S)
    try:
        line.sendall(text.encode())
    except OSError as error:
        raise ProgramError(f"the connection to the guest's shell broke: {error}") from error


@value_object
class WriterStatus:
    """What the writer counted since it started; times in microseconds of the guest's clock.

    That clock stands still while the machine is paused: a pause for a failover is in none of these times.

    ``window_max_us`` is the longest write since the last line about its status, ``inflight_us`` the age of the oldest
    write that has not returned yet. ``errors`` is exact, ``last_error`` its name (``EIO``) or empty.
    """

    writes: int
    errors: int
    last_error: str
    max_us: int
    window_max_us: int
    inflight_us: int
    total_us: int
    elapsed_us: int

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> Self:
        """Read the fields of one of the writer's lines; raises ProgramError when one is missing."""
        numbers = {name: _number(fields, name) for name in cls.__annotations__ if name != "last_error"}
        last_error = fields.get("last_error", "")
        return cls(last_error="" if last_error == "none" else last_error, **numbers)

    @property
    def mean_us(self) -> float:
        """The mean time of a write."""
        return self.total_us / self.writes if self.writes else 0.0


@value_object
class WriterVerdict:
    """What reading back every block that was ever written gave.

    ``first`` describes the first few of the ``bad`` and ``unreadable`` blocks:
    ``block:reason:found sequence:lowest-highest sequence allowed``.
    """

    status: WriterStatus
    blocks: int
    verified: int
    bad: int
    unreadable: int
    first: tuple[str, ...]

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> Self:
        """Read the fields of one of the writer's lines; raises ProgramError when one is missing."""
        first = fields.get("first", "none")
        return cls(
            status=WriterStatus.from_fields(fields),
            blocks=_number(fields, "blocks"),
            verified=_number(fields, "verified"),
            bad=_number(fields, "bad"),
            unreadable=_number(fields, "unreadable"),
            first=() if first == "none" else tuple(first.split(",")),
        )

    @property
    def ok(self) -> bool:
        """Whether every block could be read and was right."""
        return not self.bad and not self.unreadable


class Writer:
    """The disk writer in the guest, on one device such as ``/dev/vda``.

    All methods raise ProgramError when the writer does not answer in time, or has ended.
    """

    def __init__(self, console: Console, device: str) -> None:
        self._console = console
        self.device = device
        self.name = device.rpartition("/")[2]
        self._pid = 0
        self._started_at = 0

    def start(
        self,
        *,
        threads: int = 4,
        blocks: int = 1024,
        block_size: int = 4096,
        offset_blocks: int = 0,
        rate: int = 0,
        gone_after_s: int = 5,
        timeout_s: float = 30.0,
    ) -> None:
        """Start writing: ``rate`` writes a second in each thread (0: as fast as it goes), until `stop`."""
        self._started_at = self._console.mark()
        options = f"--threads {threads} --blocks {blocks} --block-size {block_size} --offset {offset_blocks}"
        command = f"writer {self.device} {options} --rate {rate} --gone-after {gone_after_s}"
        self._console.run(f"{command} </dev/null >/dev/ttyS0 2>&1 &", timeout_s)
        self._pid = _number(self._answer("started", timeout_s, self._started_at), "pid")

    def follow(self, console: Console) -> None:
        """Speak to the writer over another console from now on: its guest was migrated, and it writes on."""
        self._console = console
        self._started_at = 0

    def status(self, timeout_s: float = 30.0) -> WriterStatus:
        """Return the counts so far, and start a new latency window."""
        return WriterStatus.from_fields(self._signal("USR1", "status", timeout_s))

    def verify(self, timeout_s: float = 60.0) -> WriterVerdict:
        """Pause all threads, read back every block ever written, go on, and return what was found."""
        return WriterVerdict.from_fields(self._signal("USR2", "verify", timeout_s))

    def stop(self, timeout_s: float = 60.0) -> WriterVerdict:
        """Stop writing, read everything back, end the writer, and return what was found."""
        return WriterVerdict.from_fields(self._signal("TERM", "stopped", timeout_s))

    def wait_gone(self, timeout_s: float = 30.0) -> WriterStatus:
        """Wait until the writer has seen that its device was taken away, and has ended; return its counts."""
        return WriterStatus.from_fields(self._answer("gone", timeout_s, self._started_at))

    def _signal(self, signal_name: str, event: str, timeout_s: float) -> dict[str, str]:
        since = self._console.mark()
        status, text = self._console.run(f"kill -{signal_name} {self._pid}", timeout_s)
        if status:
            lines = [line for line in self._console.text().splitlines() if f"WRITER {self.name} " in line]
            raise ProgramError(f"the writer on {self.device} has ended ({text.strip()}): {lines[-1] if lines else ''}")
        return self._answer(event, timeout_s, since)

    def _answer(self, event: str, timeout_s: float, since: int) -> dict[str, str]:
        """Wait for the writer's line about ``event``; one about its end ends the waiting."""
        found = self._console.wait_for(
            rf"WRITER {re.escape(self.name)} ({event}|gone|failed|stopped) (.*)$", timeout_s, since=since
        )
        if found[1] != event:
            raise ProgramError(f"the writer on {self.device} ended: {found[0]}")
        return dict(part.partition("=")[::2] for part in found[2].split())


def _number(fields: Mapping[str, str], name: str) -> int:
    try:
        return int(fields[name])
    except (KeyError, ValueError) as error:
        raise ProgramError(f"the writer's line has no number {name}: {dict(fields)}") from error
