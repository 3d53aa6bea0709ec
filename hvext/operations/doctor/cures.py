"""Commands that let QEMU's user, or its chroot, have what is closed to it."""

from __future__ import annotations

import shlex
from pathlib import Path

from hvext.host.files import program_path
from hvext.host.opening import Identity


def setfacl(who: Identity, mode: str, path: str) -> str:
    """Return a command that gives a user more access to a path of its root, and nobody else."""
    if who.uid is None:
        return "run it as root, or as the user who may"
    install = "" if program_path("setfacl") else "apt-get install acl && "
    return f"{install}setfacl -m u:{who.name}:{mode} {shlex.quote(who.chroot + path)}"


def copy_into_root(who: Identity, path: str) -> str:
    """Return a command that puts a file into the chroot, as closed as it is outside."""
    public = Path(path).stat().st_mode & 0o004
    access = "-m 0644" if public else f"-m 0400 -o {who.name}" if who.uid is not None else "-m 0600"
    return f"install -D {access} {shlex.quote(path)} {shlex.quote(who.chroot + path)}"


def mount_into_root(who: Identity, folder: str) -> str:
    """Return a command that shows a folder in the chroot: for sockets and devices, which cannot be copied."""
    inside = shlex.quote(who.chroot + folder)
    return f"mkdir -p {inside} && mount --bind {shlex.quote(folder)} {inside}"
