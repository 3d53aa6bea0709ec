"""What a provider has on this host: devices, mounts, processes and files that belong to the volumes of a trial.

A thing belongs to a volume when the volume's name, or the trial's token, is in its own: a loop device by the file
behind it, a device-mapper device by its name, a process by ``VOL_NAME`` in its environment, which every program that a
script starts inherits. Things that are only new on the host belong to whoever else uses it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

#: Where programs leave sockets, locks and pid files, and how deep they are looked for.
_COMMON = ("/run", "/var/lock", "/tmp", "/var/tmp")  # noqa: S108
_COMMON_DEPTH = 2
#: No folder of a provider is looked at deeper, or for longer, than that.
_DEPTH = 8
_MOST = 200_000
#: Names of the device below /sys/block/NAME.
_NAMED_BY = ("loop/backing_file", "dm/name", "device/name", "pid")


class Watch:
    """Looks for what has a token; ``folders`` are the provider's, ``but`` is a folder of ours."""

    def __init__(self, token: str, folders: tuple[str, ...], but: str) -> None:
        self._token = token
        self._folders = folders
        self._but = but
        self._before: frozenset[str] = frozenset()

    def remember(self, folders: tuple[str, ...]) -> None:
        """Remember all that is in folders which nobody else uses meanwhile."""
        self._before = frozenset(path for folder in folders for path in self._walk(folder, _DEPTH))

    def new_files(self, folders: tuple[str, ...]) -> tuple[str, ...]:
        """Return what has come into the folders since ``remember``, in words."""
        found = {path for folder in folders for path in self._walk(folder, _DEPTH)} - self._before
        return tuple(f"the file {path}" for path in sorted(found))

    def serving(self, name: str = "") -> tuple[str, ...]:
        """Return the devices, mounts and processes of a volume (of all of them without a name), in words."""
        wanted = name or self._token
        return (*_devices(wanted), *_nodes(wanted), *_mounts(wanted), *_processes(wanted))

    def files(self, name: str = "") -> tuple[str, ...]:
        """Return the files of a volume, or of all of them, in words."""
        wanted = name or self._token
        found = {path for folder in self._folders for path in self._walk(folder, _DEPTH) if wanted in _base(path)}
        for folder in _COMMON:
            found |= {path for path in self._walk(folder, _COMMON_DEPTH) if wanted in _base(path)}
        return tuple(f"the file {path}" for path in sorted(found))

    def of(self, name: str = "") -> tuple[str, ...]:
        """Return everything that belongs to a volume, or to the trial, in words."""
        return (*self.serving(name), *self.files(name))

    def _walk(self, folder: str, depth: int) -> Iterator[str]:
        left = _MOST
        waiting = [(os.path.normpath(folder), depth)]
        while waiting:
            place, deeper = waiting.pop()
            with contextlib.suppress(OSError), os.scandir(place) as entries:
                for entry in entries:
                    left -= 1
                    if left < 0:
                        return
                    if entry.path == self._but:
                        continue
                    yield entry.path
                    if deeper > 1 and entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.path, deeper - 1))


def processes_of(name: str) -> list[int]:
    """Return the processes with a text in a volume's name of their environment that run, ours left out."""
    own = os.getpid()
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == own:
            continue
        with contextlib.suppress(OSError):
            words = Path(entry.path, "environ").read_bytes().split(b"\0")
            named = [word for word in words if word.startswith((b"VOL_NAME=", b"VOL_UUID="))]
            if any(name.encode() in word for word in named) and _runs(entry.path):
                found.append(int(entry.name))
    return found


def holds_pipe(pid: int) -> bool:
    """Return whether a process has a pipe as its standard output or standard error."""
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if str(Path(f"/proc/{pid}/fd/{number}").readlink()).startswith("pipe:"):
                return True
    return False


def command_of(pid: int) -> str:
    """Return what a process was started as, for people; empty when it is gone."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return words.strip()[:200]
    return ""


def _runs(process: str) -> bool:
    with contextlib.suppress(OSError):
        return Path(process, "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def _processes(wanted: str) -> list[str]:
    return [f"process {pid} ({Path(command_of(pid).partition(' ')[0]).name})" for pid in processes_of(wanted)]


def _devices(wanted: str) -> list[str]:
    found = []
    for entry in sorted(Path("/sys/block").iterdir()):
        for name in _NAMED_BY:
            with contextlib.suppress(OSError):
                text = (entry / name).read_text().strip()
                if wanted in _plain(text):
                    found.append(f"the device /dev/{entry.name} ({text})")
    with contextlib.suppress(OSError):
        mapped = sorted(Path("/sys/bus/rbd/devices").iterdir())
        found += [f"the device /dev/rbd{entry.name}" for entry in mapped if wanted in (entry / "name").read_text()]
    return found


def _nodes(wanted: str) -> list[str]:
    found = []
    for place, _folders, names in os.walk("/dev"):
        if place != "/dev/fd":
            found += [f"the entry {place}/{name}" for name in names if wanted in _plain(name)]
    return found


def _mounts(wanted: str) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    return [f"the mount on {line.split()[4]}" for line in lines if wanted in _plain(line)]


def _plain(name: str) -> str:
    """Return a name as it was given: device-mapper doubles the hyphens in it."""
    return name.replace("--", "-")


def _base(path: str) -> str:
    return path.rpartition("/")[2]
