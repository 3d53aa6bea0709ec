"""Opening paths as another user, and in another root: in a child process that becomes that user first.

What permissions say is not computed: groups, ACLs, mounts and security modules have a part in it, so the kernel is
asked by really opening. A socket is not connected to in earnest, because a server may be there for one connection
only: a datagram socket is told that the type is wrong (EPROTOTYPE) where somebody has the socket, and that nobody has
it (ECONNREFUSED) otherwise.

An image's locks are only asked about (F_OFD_GETLK), as QEMU does it before it takes its own: byte 100 + N of a file is
locked by who uses permission N of it, byte 200 + N by who lets nobody else have that.

Source: unix(7), chroot(2), setgroups(2), fcntl(2), proc(5) (status, root); QEMU, block/file-posix.c,
``raw_check_lock_bytes``.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from hvext.core.value import value_object
from hvext.errors import InputError, ProgramError
from hvext.host import process
from hvext.host.process import Cancel

_LIMIT_S = 5.0


class Way(StrEnum):
    """How a path is tried."""

    #: Opened for reading; a folder is listed.
    READ = "read"
    #: Opened for reading, with the permission to write looked at: to open for writing would wake udev.
    WRITE = "write"
    #: Opened for reading and writing: for devices without data.
    USE = "use"
    #: A socket: whether somebody has it, and would be reached.
    CONNECT = "connect"
    #: A folder: whether what is in it can be reached.
    PASS = "pass"  # noqa: S105
    #: An image that a disk is to write, or only to read: whether somebody has locked it against that (EAGAIN).
    LOCK = "lock"
    LOCK_TO_READ = "lock-to-read"


@value_object
class Identity:
    """Who opens: a user with all groups, and the root folder; the caller's own where nothing is said."""

    name: str = ""
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    chroot: str = ""

    @property
    def is_own(self) -> bool:
        """Whether it is this process as it is."""
        return self.uid is None and not self.chroot

    @property
    def words(self) -> str:
        """Who that is, for people."""
        who = f"as user {self.name}" if self.uid is not None else "as this user"
        return f"{who}, in {self.chroot}" if self.chroot else who


@value_object
class Opened:
    """What came of one path: ``code`` is 0 or the error's number, ``at`` the first part of it that is in the way."""

    path: str
    code: int = 0
    at: str = ""

    @property
    def words(self) -> str:
        """What came back, for people; empty when it went well."""
        if self.code == 0:
            return ""
        where = f", at {self.at}" if self.at and self.at != self.path else ""
        return f"{os.strerror(self.code)}{where}"


def find_identity(user: str | None, chroot: str | None) -> Identity:
    """Return who ``user`` (a name or number) is, with a root folder; raises InputError."""
    uid = gid = None
    groups: tuple[int, ...] = ()
    if user is not None:
        # Both load what most commands do not need.
        import pwd

        try:
            entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
        except KeyError:
            raise InputError(f"there is no user {user!r}", hint="getent passwd lists them") from None
        user, uid, gid = entry.pw_name, entry.pw_uid, entry.pw_gid
        groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
        if uid == os.geteuid():
            uid = gid = None
    if chroot is not None:
        if not Path(chroot).is_dir():
            raise InputError(f"{chroot} is no folder that QEMU could have as its root")
        chroot = str(Path(chroot).resolve())
    if (uid is not None or chroot) and os.geteuid() != 0:
        raise InputError("only root can look with another user's eyes, or from another root", hint="run it with sudo")
    return Identity(name=user or "", uid=uid, gid=gid, groups=groups, chroot=chroot or "")


def identity_of(pid: int) -> Identity:
    """Return who a process is, with its root: that of its chroot, or of its mount namespace.

    Its capabilities, user namespace and security label are not looked at. Raises ProgramError when the process is gone,
    or this user cannot look with its eyes.
    """
    process = f"/proc/{pid}"
    try:
        lines = Path(f"{process}/status").read_text(encoding="utf-8", errors="replace").splitlines()
        fields = {name: words.split() for name, _colon, words in (line.partition(":") for line in lines)}
        # Of four ids of each kind, the last is the one that files are opened with.
        uid, gid = int(fields["Uid"][3]), int(fields["Gid"][3])
        own_root = os.readlink(f"{process}/root") == "/"  # noqa: PTH115
        own_mounts = os.readlink(f"{process}/ns/mnt") == os.readlink("/proc/self/ns/mnt")  # noqa: PTH115
    except OSError as error:
        raise ProgramError(
            f"cannot tell who process {pid} is: {error.strerror}", hint="run it as root, on the host of that process"
        ) from error
    chroot = "" if own_root and own_mounts else f"{process}/root"
    if os.geteuid() != 0 and (uid != os.geteuid() or chroot):
        raise ProgramError(
            f"only root can look with the eyes of user {_name_of(uid)}" + (", or from another root" if chroot else ""),
            hint="run it with sudo",
        )
    if uid == os.geteuid() and not chroot:
        return Identity(name=_name_of(uid))
    groups = tuple(int(word) for word in fields["Groups"])
    return Identity(name=_name_of(uid), uid=uid, gid=gid, groups=groups, chroot=chroot)


def _name_of(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def try_paths(
    paths: Sequence[tuple[str, Way]], identity: Identity, *, cancel: Cancel | None = None
) -> tuple[Opened, ...]:
    """Return what comes of each absolute path; opens them in a child process, for a moment each.

    Raises ProgramError when the child cannot become that user, or does not come back in time.
    """
    if not paths:
        return ()
    ask = {
        "paths": [[path, str(way)] for path, way in paths],
        "uid": identity.uid,
        "gid": identity.gid,
        "groups": list(identity.groups),
        "chroot": identity.chroot,
    }
    argv = [sys.executable, "-I", "-S", "-c", _CHILD, json.dumps(ask)]
    # Its environment is not ours: nothing in it is needed, and Python would look at it.
    ended = process.run(argv, env={"LC_ALL": "C.UTF-8"}, timeout_s=_LIMIT_S, cancel=cancel)
    if ended.timed_out or ended.cancelled:
        raise ProgramError(f"opening {paths[0][0]} {identity.words} did not come back within {_LIMIT_S:g} s")
    if ended.status != 0:
        *_, last = ended.stderr.decode(errors="replace").strip().splitlines() or [f"status {ended.status}"]
        raise ProgramError(f"cannot open files {identity.words}: {last}")
    return tuple(Opened(path=path, code=code, at=at) for path, code, at in json.loads(ended.stdout))


def try_socket(path: str) -> Opened:
    """Return whether somebody has a unix socket: ECONNREFUSED for a stale one."""
    return try_paths([(path, Way.CONNECT)], Identity())[0]


def is_stale(opened: Opened) -> bool:
    """Return whether a socket's file is there and nobody has it."""
    return opened.code == errno.ECONNREFUSED


#: What the child runs. It imports before it changes its root; in there may be no Python.
_CHILD = """
import errno, fcntl, json, os, socket, stat, struct, sys

def connect(path):
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise OSError(errno.ENOTSOCK, "no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        # A path that is too long for a socket's address is reached from its folder.
        folder, name = os.path.split(path)
        os.chdir(folder)
        try:
            client.connect(name)
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise

def unlocked(path, writes):
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        for byte in (101, 200, *([201] if writes else [])):
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
            if struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK:
                raise BlockingIOError(errno.EAGAIN, "locked")
    finally:
        os.close(file)

def attempt(path, way):
    if way == "connect":
        return connect(path)
    if way.startswith("lock"):
        return unlocked(path, way == "lock")
    mode = os.stat(path).st_mode
    if way == "pass":
        if not os.access(path, os.X_OK):
            raise PermissionError(errno.EACCES, "not to be passed")
        return
    if stat.S_ISDIR(mode):
        os.listdir(path)
        return
    os.close(os.open(path, (os.O_RDWR if way == "use" else os.O_RDONLY) | os.O_NONBLOCK | os.O_CLOEXEC))
    if way == "write" and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "not to be written")

def in_the_way(path):
    parts = path.split("/")
    for count in range(2, len(parts) + 1):
        part = "/".join(parts[:count])
        try:
            os.stat(part)
        except OSError as error:
            # What a closed folder has in it cannot be looked at.
            return "/".join(parts[:count - 1]) or "/" if error.errno == errno.EACCES else part
    return path

ask = json.loads(sys.argv[1])
if ask["chroot"]:
    os.chroot(ask["chroot"])
    os.chdir("/")
if ask["uid"] is not None:
    os.setgroups(ask["groups"])
    os.setresgid(*[ask["gid"]] * 3)
    os.setresuid(*[ask["uid"]] * 3)
answers = []
for path, way in ask["paths"]:
    try:
        attempt(path, way)
        answers.append([path, 0, ""])
    except OSError as error:
        answers.append([path, error.errno or errno.EIO, in_the_way(path)])
print(json.dumps(answers))
"""
