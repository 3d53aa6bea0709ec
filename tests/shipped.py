"""The shipped providers as tests run them: one action at a time, as hvext and Ganeti do."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import need

PROVIDERS = Path(__file__).parents[1] / "hvext" / "providers"
OWN = ("rbd", "iscsi", "sharedfile", "blockdev")
MIB = 1 << 20
NAME = "0a1b.ext.disk0"
WITH_TGT = "/usr/bin:/bin:/usr/sbin"
ANSWER_TIMEOUT_S = 60
"""A limit that only a hanging action reaches."""


@dataclass(frozen=True, slots=True)
class Result:
    """What an action left behind when it ended."""

    status: int
    out: str
    err: str


def larger_by_grow(_name: str, _size_mib: int) -> None:
    """Storage that the provider makes larger itself."""


@dataclass(slots=True, kw_only=True)
class Place:
    """One host's view of a provider's storage.

    ``prepare`` puts storage there for providers that adopt it, ``enlarge`` makes it larger, ``image`` gives qemu-io's
    words for a URI.
    """

    provider: str
    folder: Path
    parameters: dict[str, str]
    scripts: Path
    path: str = "/usr/bin:/bin"
    prepare: Callable[[str, int], None] = larger_by_grow
    enlarge: Callable[[str, int], None] = larger_by_grow
    image: Callable[[str], list[str]] = lambda uri: [uri]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def start(self, action: str, name: str, variables: dict[str, str], parameters: dict[str, str]) -> subprocess.Popen:
        """Start one action in a session of its own, in the cleaned environment of the contract."""
        merged = {"provider": self.provider, "run": str(self.run_dir), **self.parameters, **parameters}
        environment = {"PATH": self.path, "LC_ALL": "C", "HOME": "/", **variables}
        environment |= {f"EXTP_{key.upper()}": value for key, value in merged.items()}
        if action != "verify":
            environment["VOL_NAME"] = name
        process = subprocess.Popen(
            [f"{self.scripts}/{action}"],
            cwd=self.scripts,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(
        self, action: str, name: str = NAME, *, variables: dict[str, str] | None = None, **parameters: str
    ) -> Result:
        """Run one action to its end."""
        process = self.start(action, name, variables or {}, parameters)
        out, err = process.communicate(timeout=ANSWER_TIMEOUT_S)
        return Result(process.returncode, out, err)

    def do(self, action: str, name: str = NAME, *, variables: dict[str, str] | None = None, **parameters: str) -> str:
        """Run one action that must succeed, silently unless it is attach."""
        result = self.run(action, name, variables=variables, **parameters)
        assert (result.status, result.err) == (0, "")
        assert action == "attach" or result.out == ""
        return result.out

    def refuse(
        self, action: str, name: str = NAME, *, variables: dict[str, str] | None = None, **parameters: str
    ) -> str:
        """Run one action that must fail; returns what it says in its one line."""
        result = self.run(action, name, variables=variables, **parameters)
        assert (result.status, result.out) == (1, "")
        assert result.err.startswith(f"{self.provider}: {action}: ")
        assert result.err.count("\n") == 1
        return result.err

    def create(self, name: str = NAME, size_mib: int = 16) -> None:
        self.prepare(name, size_mib)
        self.do("create", name, variables={"VOL_SIZE": str(size_mib)})

    def grow(self, size_mib: int, name: str = NAME) -> None:
        self.enlarge(name, size_mib)
        self.do("grow", name, variables={"VOL_NEW_SIZE": str(size_mib)})

    def attach(self, name: str = NAME, **parameters: str) -> list[list[str]]:
        """The ways to the volume, as qemu-io's words: the block path if there is one, then the URIs."""
        path, *uris = self.do("attach", name, **parameters).splitlines()
        assert not path or stat.S_ISBLK(Path(path).stat().st_mode)
        assert all(uri.startswith("kvm:") for uri in uris)
        return ([[path]] if path else []) + [self.image(uri.removeprefix("kvm:")) for uri in uris]

    def tear_down(self) -> None:
        """Show that nothing is left on the host."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        assert list(self.run_dir.glob("**/*")) == []


def qemu_io(way: list[str], *commands: str) -> str:
    """Run qemu-io with O_DIRECT on a way to a volume; returns what it printed."""
    raw = [] if "--image-opts" in way else ["-f", "raw"]
    argv = ["qemu-io", *raw, "-t", "none", *(word for command in commands for word in ("-c", command)), *way]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S).stdout


def has_pattern(way: list[str], pattern: int) -> bool:
    return "verification failed" not in qemu_io(way, f"read -P {pattern} 0 64k")


def losetup(*words: str) -> str:
    argv = [need("losetup", "mount"), *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def without(folder: Path, *programs: str) -> str:
    """A PATH that has all programs of the machine but some."""
    for source in ("/usr/bin", "/usr/sbin"):
        for program in Path(source).iterdir():
            if program.name not in programs and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    return str(folder)
