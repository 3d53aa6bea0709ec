"""Looking at paths of this host, and where hvext keeps private files.

Without pathlib: what only reads an answer would load it for this, with all of urllib.parse.
"""

from __future__ import annotations

import os
import stat

from hvext.core.file_kind import FileKind
from hvext.core.uri.file import Opened
from hvext.core.uri.location import PRIVATE_FOLDER

_KINDS = {
    stat.S_IFREG: FileKind.REGULAR,
    stat.S_IFBLK: FileKind.BLOCK_DEVICE,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFCHR: FileKind.CHARACTER_DEVICE,
    stat.S_IFIFO: FileKind.FIFO,
    stat.S_IFSOCK: FileKind.SOCKET,
}


def file_kind(path: str) -> FileKind:
    """Return what is at a path; symlinks are followed."""
    try:
        # A provider has a dozen of files to look at, and a Path takes longer to make than to look at.
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return FileKind.MISSING
    except OSError:
        return FileKind.UNREADABLE
    return _KINDS[stat.S_IFMT(mode)]


def program_path(name: str) -> str | None:
    """Return the path of a program (a name on PATH, or a path) as ``shutil.which`` does; None where there is none.

    Without shutil, which loads what packs and unpacks archives.
    """
    folders = [""] if "/" in name else os.environ.get("PATH", os.defpath).split(":")
    for path in (os.path.join(folder, name) for folder in folders):
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
    return None


def opened_as(path: str) -> Opened:
    """Return the block driver for a path: block devices are ``host_device``, everything else ``file``."""
    return Opened.HOST_DEVICE if file_kind(path) is FileKind.BLOCK_DEVICE else Opened.FILE


def absolute(path: str | os.PathLike[str]) -> str:
    """Return the path from the root on, as ``pathlib`` has it: ``..`` stays, which a symlink may give a meaning."""
    given = os.fspath(path)
    whole = given if given.startswith("/") else f"{os.getcwd()}/{given}"
    return "/" + "/".join(part for part in whole.split("/") if part not in ("", "."))


def loop_backing(device: str) -> tuple[str, ...]:
    """Return where a loop device (``/dev/loop0``) begins: its file, as the kernel spells it, and the offset in bytes.

    Nothing for any other device. Source: sysfs, ``/sys/block/loopN/loop``.
    """
    if not device.startswith("/dev/loop"):
        return ()
    place = f"/sys/block/{device.removeprefix('/dev/')}/loop"
    try:
        with open(f"{place}/backing_file", errors="surrogateescape") as file, open(f"{place}/offset") as offset:
            return (f"{file.read().rstrip()} at {offset.read().strip()}",)
    except OSError:
        return ()


def resolved_path(value: str) -> str:
    """Return the one spelling of an absolute path, without symlinks and the like; any other text as it is."""
    return os.path.realpath(value) if value.startswith("/") else value


def private_folder() -> str:
    """Return the folder of private files; it need not exist."""
    if chosen := os.environ.get("HVEXT_RUNTIME_DIR"):
        return absolute(chosen)
    if os.geteuid() == 0:
        return PRIVATE_FOLDER
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        return absolute(f"{runtime}/hvext")
    return f"{user_state_folder()}/run"


def user_state_folder() -> str:
    """Return where hvext keeps the state of a user who is not root: ``$XDG_STATE_HOME/hvext``, or in the home.

    Source: XDG Base Directory Specification, which has relative paths ignored.
    """
    given = os.environ.get("XDG_STATE_HOME", "")
    return absolute(f"{given}/hvext") if given.startswith("/") else os.path.expanduser("~/.local/state/hvext")
