"""A QEMU that writes down what its block drivers ask of their client libraries, and never gets through to a server.

The library made of ``record/`` is preloaded into one QEMU process without a guest. A URI is opened through
``drive_add``, the monitor's ``-drive``; typed options through ``blockdev-add``. Two texts mean the same storage when
the same calls follow.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hvext.core.secret import Secret
from tests.conftest import need
from tests.host.oracle import Qmp, Refused, program, short_folder

_SOURCES = Path(__file__).with_name("record")
_NODE = "corpus"
#: The monitor cuts an argument at 1023 bytes without a word; what is longer gets a process and a ``-drive`` of its own.
_MONITOR_BYTES = 1000
_START_S = 30.0


@dataclass(frozen=True)
class Call:
    """One call into a client library: its name and its arguments, in the order in which they were written."""

    name: str
    arguments: tuple[tuple[str, object], ...]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments)})"


@dataclass(frozen=True)
class Record:
    """What QEMU did with one text: the calls it made, and what it said in the end."""

    calls: tuple[Call, ...]
    message: str
    #: Whether it got as far as the call at which storage would have been opened.
    reached: bool
    #: The node, when no outside storage was needed to open it.
    opened: str | None = None
    died: bool = False

    @property
    def taken(self) -> bool:
        """Whether QEMU took the text for storage that it can look for."""
        return self.reached or self.opened is not None

    def __str__(self) -> str:
        if self.died:
            return f"DIED: {self.message}"
        if self.opened is not None:
            return f"OPENED: {self.opened}"
        calls = "; ".join(map(str, self.calls))
        return f"calls: {calls} -> {self.message}" if self.reached else f"refused: {self.message} [{calls}]"


def build_shim(folder: Path) -> Path:
    """Compile the library that is preloaded into QEMU."""
    compiler = need("gcc", "gcc")
    library = folder / "record.so"
    argv = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(library)]
    subprocess.run([*argv, *map(str, sorted(_SOURCES.glob("*.c"))), "-ldl", "-pthread"], check=True)
    return library


@dataclass
class Recorder:
    """One running QEMU; after a crash the next question starts another."""

    argv: list[str]
    folder: Path
    _log: Path
    _monitor: Qmp | None = None
    _processes: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def as_uri(self, text: str, *, direct: bool = True) -> Record:
        """What QEMU makes of the text as ``-drive file=TEXT,format=raw,if=none,cache=none`` (or ``writeback``).

        A ``json:`` text names its format itself; ``format=raw`` would replace the driver that it names.
        """
        if "\0" in text:
            return Record(calls=(), message="no argument holds a NUL", reached=False)
        form = "" if text.startswith("json:") else "format=raw,"
        options = f"if=none,id={_NODE},cache={'none' if direct else 'writeback'},{form}file=" + text.replace(",", ",,")
        if len(options.encode()) > _MONITOR_BYTES:
            return self._own_process(options)
        return self._recorded(lambda monitor: self._drive_add(monitor, options))

    def as_node(
        self, options: Mapping[str, Any], *, objects: Sequence[Mapping[str, Any]] = (), direct: bool = True
    ) -> Record:
        """What QEMU makes of ``blockdev-add``; ``objects`` are added first and deleted behind it.

        Secrets in either are revealed to it.
        """
        # As -drive does: storage that can only be read becomes a disk that can only be read.
        node = {"auto-read-only": True, "cache": {"direct": direct, "no-flush": False}, **options}
        return self._recorded(lambda monitor: self._blockdev_add(monitor, _revealed(node), _revealed(objects)))

    def as_drive(self, options: str, *, objects: Sequence[Mapping[str, Any]] = ()) -> Record:
        """What QEMU makes of ``-drive OPTIONS``, which has no id; ``objects`` are added first and deleted behind it."""
        options = f"id={_NODE},{options}"

        def ask(monitor: Qmp) -> str | None:
            with contextlib.ExitStack() as stack:
                for properties in _revealed(objects):
                    monitor.execute("object-add", **properties)
                    stack.callback(monitor.execute, "object-del", id=properties["id"])
                return self._drive_add(monitor, options)

        return self._recorded(ask)

    def close(self) -> None:
        self._processes.close()
        self._monitor = None

    def _drive_add(self, monitor: Qmp, options: str) -> str | None:
        answer = monitor.execute("human-monitor-command", **{"command-line": f'drive_add 0 "{_escaped(options)}"'})
        if answer.strip() != "OK":
            raise Refused(_without_warnings(answer))
        (node,) = [
            device["inserted"]["image"]["filename"]
            for device in monitor.execute("query-block")
            if device["device"] == _NODE and "inserted" in device
        ] or [None]
        monitor.execute("human-monitor-command", **{"command-line": f"drive_del {_NODE}"})
        return node or ""

    def _blockdev_add(
        self, monitor: Qmp, options: Mapping[str, Any], objects: Sequence[Mapping[str, Any]]
    ) -> str | None:
        with contextlib.ExitStack() as stack:
            for properties in objects:
                monitor.execute("object-add", **properties)
                stack.callback(monitor.execute, "object-del", id=properties["id"])
            monitor.execute("blockdev-add", **{**options, "node-name": _NODE})
            raw = {"driver": "raw", "node-name": f"{_NODE}-raw", "file": _NODE, "cache": options["cache"]}
            raw["auto-read-only"] = True
            stack.callback(monitor.execute, "blockdev-del", **{"node-name": _NODE})
            monitor.execute("blockdev-add", **raw)
            stack.callback(monitor.execute, "blockdev-del", **{"node-name": f"{_NODE}-raw"})
            (node,) = [
                node["image"]["filename"]
                for node in monitor.execute("query-named-block-nodes")
                if node["node-name"] == f"{_NODE}-raw"
            ]
            return str(node)

    def _recorded(self, ask: Callable[[Qmp], str | None]) -> Record:
        monitor = self._running()
        start = self._log.stat().st_size
        opened, message, died = None, "", False
        try:
            opened = ask(monitor)
        except Refused as error:
            message = str(error)
        except (OSError, ValueError) as error:
            message, died = f"QEMU ended: {error}", True
            self._processes.close()
            self._monitor = None
        return self._record(start, message, opened=opened, died=died)

    def _record(self, start: int, message: str, *, opened: str | None = None, died: bool = False) -> Record:
        with self._log.open("rb") as log:
            log.seek(start)
            lines = [_plain(json.loads(line)) for line in log]
        calls = tuple(
            Call(
                str(line["call"]),
                tuple((name, value) for name, value in line.items() if name not in ("call", "stop")),
            )
            for line in lines
        )
        return Record(
            calls=calls,
            message=message,
            reached=any("stop" in line for line in lines),
            opened=opened,
            died=died,
        )

    def _running(self) -> Qmp:
        if self._monitor is None:
            path = self.folder / "qmp"
            path.unlink(missing_ok=True)
            argv = [*self.argv, "-S", "-qmp", f"unix:{path},server=on,wait=off"]
            self._processes.enter_context(program(argv, path.exists))
            self._monitor = _connected(path)
            self._processes.callback(self._monitor.close)
        return self._monitor

    def _own_process(self, options: str) -> Record:
        start = self._log.stat().st_size
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                [*self.argv, "-monitor", "stdio", "-drive", options],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=self.folder,
            )
            process.communicate(b"quit\n", timeout=_START_S)
            output.seek(0)
            said = output.read().decode(errors="replace")
        # Each line is behind the program's name and the option that it is about.
        said = re.sub(f"(?m)^[^:\n]+: -drive {re.escape(options)}: ", "", said)
        died = process.returncode < 0
        opened = said if process.returncode == 0 else None
        return self._record(start, _without_warnings(said), opened=opened, died=died)


@contextlib.contextmanager
def recorder(qemu: str, shim: Path) -> Iterator[Recorder]:
    """A recording QEMU inside the block; ``qemu`` is the program or a wrapper of it."""
    with short_folder() as folder:
        log = folder / "calls"
        log.touch()
        environment = [f"PATH={os.environ['PATH']}", f"HOME={folder}", "USER=corpus", f"HVEXT_RECORD={log}"]
        argv = ["env", "-i", *environment, f"LD_PRELOAD={shim}", qemu]
        argv += ["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"]
        running = Recorder(argv=argv, folder=folder, _log=log)
        try:
            yield running
        finally:
            running.close()


def _connected(path: Path) -> Qmp:
    """The monitor; its socket is there a moment before anybody listens."""
    deadline = time.monotonic() + _START_S
    while True:
        try:
            return Qmp(path)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _escaped(text: str) -> str:
    """As the monitor reads a string between double quotes."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(plain, escaped)
    return text


def _without_warnings(said: str) -> str:
    """What was said of the failure: QEMU 10 adds that some drivers are deprecated."""
    return "\n".join(line for line in said.strip().splitlines() if not line.startswith("warning: "))


def _revealed(value: Any) -> Any:
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, Mapping):
        return {name: _revealed(item) for name, item in value.items()}
    return [_revealed(item) for item in value] if isinstance(value, list | tuple) else value


def _plain(line: dict[str, Any]) -> dict[str, Any]:
    """The line with its byte strings as text."""
    return {
        name: value.encode("latin-1").decode(errors="surrogateescape") if isinstance(value, str) else value
        for name, value in line.items()
    }
