"""The folder of private files and sockets."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Iterator

from hvext.core.finding import Finding, Severity
from hvext.host.files import private_folder
from hvext.host.opening import Identity, Way, is_stale, try_paths
from hvext.operations.doctor.ask import Ask, Needs
from hvext.operations.doctor.cures import mount_into_root, setfacl

_DEPTH = 4
_MOST = 2000


def look(ask: Ask, _needs: Needs) -> Iterator[Finding]:
    """Yield whether the folder is safe, and which sockets in it nobody has."""
    folder = private_folder()
    yield _safe(folder)
    yield from _reached(folder, ask)
    sockets = sorted(_sockets(folder))
    tried = f"asked the kernel who has each socket below {folder}"
    stale = [each.path for each in try_paths([(path, Way.CONNECT) for path in sockets], Identity()) if is_stale(each)]
    for path in stale:
        yield Finding(
            id="runtime.socket",
            about=path,
            severity=Severity.WARNING,
            tried=tried,
            found=f"{path} is stale: nobody listens, its server has ended",
            cure=f"attach the volume again, or rm {shlex.quote(path)}",
        )
    if not stale:
        found = f"{len(sockets)} sockets, all in use" if sockets else "no sockets"
        yield Finding(id="runtime.socket", severity=Severity.OK, tried=tried, found=found)


def _reached(folder: str, ask: Ask) -> Iterator[Finding]:
    """Yield that QEMU cannot get to its private files; the folder comes with the first of them."""
    who = ask.identity
    if who.is_own or not os.path.isdir(folder):  # noqa: PTH112
        return
    (opened,) = try_paths([(folder, Way.PASS)], who, cancel=ask.cancel)
    if opened.code == 0:
        return
    missing = opened.code == errno.ENOENT
    cure = mount_into_root(who, folder) if missing else setfacl(who, "x", opened.at or folder)
    yield Finding(
        id="runtime.reached",
        severity=Severity.WARNING,
        tried=f"passed through {folder} {who.words}",
        found=f"{folder}: {opened.words}; what is in there for QEMU (Ceph options, keys for TLS) cannot be read",
        cure=cure,
    )


def _safe(folder: str) -> Finding:
    tried = f"looked at the owner and mode of {folder}"
    try:
        found = os.lstat(folder)
    except FileNotFoundError:
        return Finding(id="runtime.folder", severity=Severity.OK, tried=tried, found="it is not there yet")
    except OSError as error:
        return _unsafe(tried, f"{folder}: {error.strerror}", "run it as root, or set HVEXT_RUNTIME_DIR")
    if not stat.S_ISDIR(found.st_mode):
        return _unsafe(tried, f"{folder} is no folder", f"rm {shlex.quote(folder)}")
    if found.st_uid not in (os.geteuid(), 0):
        return _unsafe(tried, f"{folder} belongs to user {found.st_uid}", f"chown root: {shlex.quote(folder)}")
    if found.st_mode & 0o022:
        words = f"{folder} has mode {stat.S_IMODE(found.st_mode):04o}: others can change what is in it"
        return _unsafe(tried, f"{words}, and no secrets are written there", f"chmod 0711 {shlex.quote(folder)}")
    mode = stat.S_IMODE(found.st_mode)
    return Finding(id="runtime.folder", severity=Severity.OK, tried=tried, found=f"{folder}, mode {mode:04o}")


def _unsafe(tried: str, found: str, cure: str) -> Finding:
    return Finding(id="runtime.folder", severity=Severity.ERROR, tried=tried, found=found, cure=cure)


def _sockets(folder: str, depth: int = _DEPTH) -> Iterator[str]:
    """Yield the sockets below a folder; links, which lead to others of them, are left out."""
    try:
        entries = list(os.scandir(folder))[:_MOST]
    except OSError:
        return
    for entry in entries:
        if entry.is_symlink():
            continue
        if entry.is_dir(follow_symlinks=False):
            if depth:
                yield from _sockets(entry.path, depth - 1)
        elif stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
            yield entry.path
