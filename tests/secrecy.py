"""A watch over the suite's secrets: none of them may show where anybody could read it.

Tests and servers hand every secret they make to ``remember``. While the suite runs, the watch keeps the command lines
of every process on the machine (looked at ten times a second) and of every process that pytest itself starts (by an
audit hook, which misses none). At the end these, the reports of all tests (captured output, logging, errors) and all
files that the tests and hvext left are searched. Secrets are looked for as they are, percent-encoded, in base64 and in
JSON.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import stat
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

#: Folders with this name hold secrets on purpose: providers that print them, files that are named on command lines.
SECRET_FOLDER = "holds-secrets"
#: Tools of servers that take a password in no other way; hvext does not run them.
_OF_SERVERS = ("tgtadm",)
_LOOK_S = 0.1
_LARGEST_FILE = 8 << 20
#: Where hvext leaves files that are not in a test's own folder.
_LEFT_BY_HVEXT = ("/var/log/hvext", "/var/cache/hvext")

_known: set[str] = set()


def remember(secret: str) -> str:
    """Return ``secret``, which is watched from now on."""
    assert len(secret) >= 8, "too short to be searched for"
    _known.add(secret)
    return secret


def new_secret() -> str:
    """Return a secret of this run; one in the sources would be found in each copy of them that a test makes."""
    return remember(secrets.token_hex(12))


def forms(secret: str) -> tuple[bytes, ...]:
    """The ways in which a secret could be written."""
    plain = secret.encode()
    written = (plain, quote(secret, safe="").encode(), base64.b64encode(plain), json.dumps(secret)[1:-1].encode())
    return tuple(dict.fromkeys(written))


def secrets_in(data: bytes, known: Sequence[str] = ()) -> list[str]:
    """The secrets that can be read in ``data``."""
    return [secret for secret in known or sorted(_known) if any(form in data for form in forms(secret))]


def files_with_secrets(folder: Path, known: Sequence[str] = ()) -> list[str]:
    """The files below a folder in which a secret can be read; private files and `SECRET_FOLDER` are left out."""
    found = []
    for path in folder.rglob("*"):
        if SECRET_FOLDER in path.parts or path.is_symlink():
            continue
        with contextlib.suppress(OSError):
            status = path.stat()
            if (
                stat.S_ISREG(status.st_mode)
                and status.st_size <= _LARGEST_FILE
                and secrets_in(path.read_bytes(), known)
            ):
                found.append(str(path))
    return found


class Watch:
    """Keeps the command lines of all processes while it runs."""

    def __init__(self) -> None:
        self._lines: set[bytes] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="secrecy", daemon=True)

    def start(self) -> None:
        sys.addaudithook(self._started)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def command_lines(self, known: Sequence[str] = ()) -> list[str]:
        """The command lines with a secret in them."""
        shown = [line for line in self._lines if secrets_in(line, known)]
        texts = [line.decode(errors="replace").replace("\0", " ") for line in shown]
        return [text for text in texts if Path(text.partition(" ")[0]).name not in _OF_SERVERS]

    def _started(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "subprocess.Popen" and not self._ended.is_set():
            words = arguments[1]
            texts = [words] if isinstance(words, str | bytes | os.PathLike) else list(words)  # type: ignore[call-overload]
            self._lines.add(b"\0".join(os.fsencode(text) for text in texts))

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_S):
            for entry in os.scandir("/proc"):
                if entry.name.isdigit():
                    with contextlib.suppress(OSError):
                        self._lines.add(Path(entry.path, "cmdline").read_bytes())


class Secrecy:
    """The pytest plugin: searches everything at the end, and lets the run fail when a secret showed."""

    def __init__(self) -> None:
        self._watch = Watch()
        self._shown: list[str] = []
        self._n_secrets = 0

    def pytest_sessionstart(self) -> None:
        self._watch.start()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        text = "\n".join([report.longreprtext, *(content for _title, content in report.sections)])
        if secrets_in(text.encode(errors="surrogateescape")):
            self._shown.append(f"what {report.nodeid} printed ({report.when})")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        self._watch.stop()
        self._shown += [f"a command line: {line}" for line in self._watch.command_lines()]
        factory = getattr(session.config, "_tmp_path_factory", None)
        folders = [Path(folder) for folder in _LEFT_BY_HVEXT]
        if factory is not None and factory._basetemp is not None:
            folders.append(factory._basetemp)
        for folder in folders:
            self._shown += [f"the file {path}" for path in files_with_secrets(folder)]
        self._n_secrets += len(_known)
        if (output := getattr(session.config, "workeroutput", None)) is not None:
            # One of several processes that share the work: the one that has them all says it.
            output["secrecy"] = {"shown": self._shown, "n_secrets": self._n_secrets}
        # The workers end in here.
        yield
        if self._shown and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over what the watch of a worker (pytest-xdist) found; one that crashed has said nothing."""
        found = getattr(node, "workeroutput", {}).get("secrecy", {"shown": [], "n_secrets": 0})
        self._shown += found["shown"]
        self._n_secrets += found["n_secrets"]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._shown:
            terminalreporter.section("secrets that can be read")
            for where in self._shown:
                terminalreporter.line(where)
        elif self._n_secrets:
            terminalreporter.line(
                f"secrecy: {self._n_secrets} secrets of the suite were looked for, and none was found"
            )


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """A watch of its own inside the block."""
    watch = Watch()
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()
