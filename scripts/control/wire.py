"""What hvext does on the wire and in scripts, written down, and the same over a bare socket."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvext.core.disk import Disk
from hvext.errors import CommandRefused
from hvext.host import process
from hvext.host.qmp import Monitor


class Wire:
    """What hvext does on the wire: each command when it is sent, and when its answer has come."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int, dict[str, Any]]] = []
        self._plain, self._plain_all = Monitor.execute, Monitor.execute_all
        self._count = 0
        wire = self

        async def execute(self: Monitor, command: str, arguments: Any = None, **values: Any) -> Any:
            wire._count += 1
            number = wire._count
            sent = {"execute": command} | ({"arguments": arguments} if arguments else {})
            wire.log.append(("send", number, sent))
            refused = {}
            try:
                return await wire._plain(self, command, arguments, **values)
            except CommandRefused:
                refused = {"refused": True}
                raise
            finally:
                wire.log.append(("done", number, refused))

        async def execute_all(self: Monitor, *commands: tuple[str, Any]) -> list[Any]:
            numbers = []
            for command, arguments in commands:
                wire._count += 1
                numbers.append(wire._count)
                sent = {"execute": command} | ({"arguments": arguments} if arguments else {})
                wire.log.append(("send", wire._count, sent))
            answers: list[Any] = []
            try:
                answers = await wire._plain_all(self, *commands)
                return answers
            finally:
                refused = [isinstance(answer, CommandRefused) for answer in answers] or [False] * len(numbers)
                for number, was in zip(numbers, refused, strict=True):
                    wire.log.append(("done", number, {"refused": True} if was else {}))

        self._recording, self._recording_all = execute, execute_all
        self.record(on=True)

    def record(self, *, on: bool) -> None:
        """Write down, or do not: to write takes a fifth of a millisecond in a plug."""
        Monitor.execute = self._recording if on else self._plain  # type: ignore[method-assign]
        Monitor.execute_all = self._recording_all if on else self._plain_all  # type: ignore[method-assign]

    def take(self) -> list[tuple[str, int, dict[str, Any]]]:
        """Return what was sent since the last time."""
        taken, self.log = self.log, []
        return taken


class Scripts:
    """How long the provider's scripts ran; side by side, from the first one's beginning to the last one's end."""

    def __init__(self) -> None:
        self._plain = process.run
        self.spans: list[tuple[float, float]] = []

        def run(*words: Any, **values: Any) -> Any:
            begun = time.perf_counter()
            try:
                return self._plain(*words, **values)
            finally:
                self.spans.append((begun, time.perf_counter()))

        process.run = run

    def take_s(self) -> float:
        """Return the time in which at least one script ran, since the last time."""
        total, until = 0.0, 0.0
        for begun, ended in sorted(self.spans):
            total += max(0.0, ended - max(begun, until))
            until = max(until, ended)
        self.spans = []
        return total


def run_scripts(script: str, number: int) -> float:
    """Run a script so many times, 64 at once as hvext does, with nothing of hvext; return the seconds."""
    begun = time.perf_counter()
    for first in range(0, number, 64):
        running = [
            os.posix_spawn(
                script,
                [script],
                {"VOL_NAME": f"v{place}"},
                file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
            )
            for place in range(first, min(first + 64, number))
        ]
        for pid in running:
            os.waitpid(pid, 0)
    return time.perf_counter() - begun


class Bare:
    """A QMP connection of sockets and JSON, and nothing else."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rb")
        self._file.readline()
        self._deleted: set[str] = set()
        self.command({"execute": "qmp_capabilities"})

    def command(self, sent: dict[str, Any]) -> None:
        """Send one command and wait for its answer, and for the device of a device_del to be gone."""
        self.commands([sent])

    def commands(self, sent: Sequence[dict[str, Any]]) -> None:
        """Send commands in one piece and wait for all answers, and for the devices of device_del to be gone."""
        self._send(*sent)
        for _each in sent:
            self._answer()
        for each in sent:
            self._gone(each)

    def _send(self, *commands: dict[str, Any]) -> None:
        for sent in commands:
            if sent["execute"] == "device_del":
                self._deleted.discard(sent["arguments"]["id"])
        self._socket.sendall(b"".join(json.dumps(sent).encode() + b"\n" for sent in commands))

    def _answer(self) -> bool:
        """Read up to the next answer; return whether it is a refusal."""
        while True:
            found = json.loads(self._file.readline())
            if "event" not in found:
                return "error" in found
            self._heard(found)

    def _heard(self, event: dict[str, Any]) -> None:
        if event["event"] == "DEVICE_DELETED" and "device" in event["data"]:
            self._deleted.add(event["data"]["device"])

    def _gone(self, sent: dict[str, Any]) -> None:
        while sent.get("execute") == "device_del" and sent["arguments"]["id"] not in self._deleted:
            self._heard(json.loads(self._file.readline()))

    def replay(self, log: Sequence[tuple[str, int, dict[str, Any]]]) -> float:
        """Send what was recorded, each command when hvext had the same answers; return the seconds."""
        order: list[int] = []
        commands: dict[int, dict[str, Any]] = {}
        refused: dict[int, bool] = {}
        unsent: list[dict[str, Any]] = []
        begun = time.perf_counter()
        for kind, number, what in log:
            if kind == "send":
                order.append(number)
                commands[number] = what
                unsent.append(what)
                continue
            if unsent:
                # What hvext sends without an answer in between goes in one piece, as there.
                self._send(*unsent)
                unsent = []
            # Answers come in the order of the commands.
            while number not in refused:
                next_one = order[len(refused)]
                refused[next_one] = self._answer()
                self._gone(commands[next_one])
        spent = time.perf_counter() - begun
        for kind, number, what in log:
            # A bus gives its children new numbers: looks at old ones find nothing, which takes as long.
            look = commands[number]["execute"].startswith(("qom-", "query-"))
            if kind == "done" and not look and refused[number] != bool(what):
                raise SystemExit(f"what was recorded came out differently when it was sent again: {commands[number]}")
        return spent

    def remove(self, disks: Sequence[Disk]) -> None:
        """Remove disks that were plugged."""
        self.commands([{"execute": "device_del", "arguments": {"id": disk.names.device}} for disk in disks])
        nodes = [name for disk in disks for name in (disk.names.root, f"{disk.names.root}-00")]
        self.commands([{"execute": "blockdev-del", "arguments": {"node-name": name}} for name in nodes])

    def close(self) -> None:
        """End the connection."""
        self._file.close()
        self._socket.close()
