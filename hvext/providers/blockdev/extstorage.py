"""What the shipped providers in Python have in common: the caller's words, the lock, the tools, the last words.

Every one of them has this very file, so that its folder can be copied or linked alone. It needs Python 3.10 and nothing
else; Ganeti runs it unchanged.

Everything comes in through the environment, and only ``answer`` writes to standard output. An action that cannot be
done raises Refusal, which becomes ``PROVIDER: ACTION: what, on what, why; cure`` on standard error and exit status 1.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
#: The longest that one action waits for another one of the same volume.
LOCK_TIMEOUT_S = 60
#: How long moments are in which udev and blkid hold a device open.
RELEASE_TIMEOUT_S = 2
_NAME_LENGTH = 180
_BLKGETSIZE64 = 0x80081272


class Refusal(Exception):
    """Why an action cannot be done, in words for people, with the cure."""


def refuse(*words: object) -> NoReturn:
    """End the action with these words."""
    raise Refusal(" ".join(str(word) for word in words))


# --- What the caller said --------------------------------------------------------------------------------------------


def variable(name: str) -> str:
    """Return a variable of the environment, empty when it is not there; control characters are refused."""
    text = os.environ.get(name, "")
    if any(sign < " " or sign == "\x7f" or "\ud800" <= sign <= "\udfff" for sign in text):
        refuse(name, "has a control character in it, or bytes that are no UTF-8")
    return text


def parameter(name: str, default: str = "") -> str:
    """Return the value of a disk's parameter; an empty one counts as absent."""
    return variable(f"EXTP_{name.upper()}") or default


def needed(name: str) -> str:
    """Return the value of a parameter that has no default."""
    return parameter(name) or refuse(f"the parameter {name} is not set; parameters.list says what it is")


def choice(name: str, *values: str) -> str:
    """Return a parameter that is one of a few words; the first is the default."""
    value = parameter(name, values[0])
    if value not in values:
        refuse(f"the parameter {name} is '{value}'; it must be", " or ".join(values))
    return value


def matching(name: str, value: str, pattern: str, what: str) -> str:
    """Return the value of a parameter when all of it matches the pattern."""
    if not re.fullmatch(pattern, value, re.ASCII):
        refuse(f"the parameter {name} is '{value}'; it must be {what}")
    return value


def absolute(name: str, value: str) -> str:
    """Return the value of a parameter when it is an absolute path, without slashes at its end."""
    if not value.startswith("/"):
        refuse(f"the parameter {name} is '{value}'; it must be an absolute path")
    return value.rstrip("/") or "/"


def volume_name(name: str = "VOL_NAME", *, without: str = "") -> str:
    """Return the name of a volume; one that storage or a command line could take for something else is refused."""
    value = variable(name)
    if not value:
        refuse(name, "is not set")
    alphabet = "".join(sign for sign in "._+@:=-" if sign not in without)
    if value[0] in ".-" or not re.fullmatch(rf"[A-Za-z0-9{re.escape(alphabet)}]+", value, re.ASCII):
        refuse(
            f"{name} is '{value}'; a name has the characters A-Z a-z 0-9 {' '.join(alphabet)}",
            "and starts with none of . -",
        )
    if len(value) > _NAME_LENGTH:
        refuse(f"{name} has {len(value)} characters; a name may have {_NAME_LENGTH}")
    return value


def size_bytes(name: str) -> int:
    """Return a size, which the variable gives in MiB, in bytes."""
    value = variable(name)
    if not re.fullmatch(r"[1-9][0-9]*", value, re.ASCII):
        refuse(f"{name} is '{value}'; it must be a whole number of MiB above 0")
    if len(value) > 8:
        refuse(f"{name} is {value} MiB; more than 99999999 is not supported")
    return int(value) * MIB


def growth(name: str, now: int) -> int:
    """Return the size to grow to in bytes; refuses to shrink a volume of ``now`` bytes, and one larger than that."""
    new = size_bytes("VOL_NEW_SIZE")
    if variable("VOL_SIZE") and size_bytes("VOL_SIZE") > now:
        refuse(
            f"VOL_SIZE says that volume {name} has {variable('VOL_SIZE')} MiB, but it has {now // MIB};",
            "find out which is right",
        )
    if new < now:
        refuse(f"volume {name} has {now // MIB} MiB; {new // MIB} MiB would cut off data, and this does not shrink")
    return new


def known_parameters() -> list[str]:
    """Return the names in ``parameters.list``."""
    return [line.split(None, 1)[0] for line in (HERE / "parameters.list").read_text().splitlines() if line.strip()]


def refuse_unknown_parameters() -> None:
    """Refuse parameters that are not listed: a misspelt one would be ignored for the whole life of the volume.

    ``provider`` and ``access`` are Ganeti's own.
    """
    known = {*known_parameters(), "provider", "access"}
    for name in sorted(os.environ):
        if name.startswith("EXTP_") and name[5:].lower() not in known:
            refuse(f"unknown parameter '{name[5:].lower()}'; parameters.list says which there are")


# --- Locks -----------------------------------------------------------------------------------------------------------


class Lock:
    """A lock that its process holds, and what the one who held it last was killed in."""

    def __init__(self, descriptor: int, path: str) -> None:
        self.descriptor = descriptor
        self._path = path
        self.interrupted = os.read(descriptor, 256).decode(errors="replace")

    def begin(self, what: str) -> None:
        """Write down that something is half-made from now on."""
        self.end()
        os.pwrite(self.descriptor, what.encode(), 0)

    def end(self) -> None:
        """Nothing is half-made any more."""
        os.ftruncate(self.descriptor, 0)

    def drop(self) -> None:
        """Let go; the file stays only where something is half-made."""
        if os.fstat(self.descriptor).st_size == 0:
            os.unlink(self._path)  # noqa: PTH108
        os.close(self.descriptor)


@contextlib.contextmanager
def locked(run: str, key: str) -> Iterator[Lock]:
    """Hold the lock of ``key`` on this host; a killed process holds none.

    The file is taken away by whoever holds its lock: one that waited for a file that is gone looks for the next.
    """
    import hashlib

    try:
        os.makedirs(run, mode=0o700, exist_ok=True)  # noqa: PTH103
    except OSError as error:
        refuse(f"cannot make the folder {run} ({error.strerror}); set run to a place where this user may write")
    path = f"{run}/{hashlib.sha256(key.encode()).hexdigest()[:16]}.lock"
    lock = Lock(lock_file(path), path)
    try:
        yield lock
    finally:
        lock.drop()


def lock_file(path: str) -> int:
    """Open a file, made when it is not there, and return its descriptor with the lock held.

    Raises FileNotFoundError when its folder is not there.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _wait_for_lock(descriptor, path, deadline)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(descriptor)):  # noqa: PTH116
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _wait_for_lock(descriptor: int, path: str, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                refuse(f"another action has held {path} for {LOCK_TIMEOUT_S} s; look for it in ps, end it, repeat")
            time.sleep(0.02)


# --- Tools and devices -----------------------------------------------------------------------------------------------


class Done:
    """What a tool left behind when it ended."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    @property
    def words(self) -> str:
        """The last line that it printed to standard error, and its exit status."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        return f"{lines[-1] if lines else 'it said nothing'} (exit status {self.status})"


def find_program(name: str) -> str | None:
    """Return where a program is, also when PATH leaves out the administrator's folders."""
    import shutil

    return shutil.which(name, path=f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin")


def run_tool(program: str, package: str, *words: str, timeout_s: float, lock: Lock | None = None) -> Done:
    """Run a program to its end; one that is missing or too slow is refused.

    It holds the lock with us: when this action is killed, the next one of the volume waits until the tool has ended.
    """
    import subprocess

    found = find_program(program) or refuse(f"the program {program} is not installed; install the package {package}")
    try:
        done = subprocess.run(
            [found, *words],
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            pass_fds=(lock.descriptor,) if lock else (),
            check=False,
        )
    except subprocess.TimeoutExpired:
        refuse(f"{program} {words[0]} did not end within {timeout_s:g} s and was killed; is the storage there? repeat")
    return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def within(seconds: float, ready: Callable[[], bool]) -> bool:
    """Return whether something gets true within some seconds."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def device_bytes(path: str) -> int:
    """Return the size of a block device."""
    with open(path, "rb", buffering=0) as device:  # noqa: PTH123
        size = bytearray(8)
        fcntl.ioctl(device, _BLKGETSIZE64, size)
    return int.from_bytes(size, sys.byteorder)


def is_block_device(path: str) -> bool:
    """Return whether the path is a block device, links followed."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)  # noqa: PTH116
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise


def users_of(path: str) -> str:
    """Return who has a file or block device in use on this host, in words; empty when nobody that we can see."""
    real = os.path.realpath(path)
    there = os.stat(real)  # noqa: PTH116
    pids = sorted(_who_has_open(real, there), key=int)
    return ", ".join([*(f"process {pid} {_name_of(pid)}" for pid in pids), *claims_of(path)])


def claims_of(path: str) -> list[str]:
    """Return where a block device is mounted, and what it is a part of, in words."""
    there = os.stat(path)  # noqa: PTH116
    if not stat.S_ISBLK(there.st_mode):
        return []
    number = f"{os.major(there.st_rdev)}:{os.minor(there.st_rdev)}"
    mounts = map(str.split, Path("/proc/self/mountinfo").read_text().splitlines())
    mounted = [f"mounted on {words[4]}" for words in mounts if words[2] == number]
    return mounted + [f"part of {name}" for name in _entries(f"/sys/dev/block/{number}/holders")]


def _who_has_open(real: str, there: os.stat_result) -> Iterator[str]:
    # The name is compared first: to look at every open file of a host would hang on other storage that hangs.
    for pid in filter(str.isdigit, _entries("/proc")):
        if pid == str(os.getpid()):
            continue
        for number in _entries(f"/proc/{pid}/fd"):
            link = f"/proc/{pid}/fd/{number}"
            with contextlib.suppress(OSError):
                name = os.readlink(link)  # noqa: PTH115
                if name.endswith(real[real.rfind("/") :]) and os.path.samestat(os.stat(link), there):  # noqa: PTH116
                    yield pid
                    break


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except OSError:
        return []


def _name_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "(gone)"


# --- The action ------------------------------------------------------------------------------------------------------

_stdout = sys.stdout


def answer(path: str, *uris: str) -> None:
    """Print what ``attach`` says: the block device or an empty line, and the URIs for KVM."""
    _stdout.write("".join(f"{line}\n" for line in [path, *(f"kvm:{uri}" for uri in uris)]))
    _stdout.flush()


def main(actions: Mapping[str, Callable[[], None]]) -> None:
    """Run the action that the first argument names, and end with its status."""
    action = sys.argv[1]
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda which, _frame: sys.exit(128 + which))
    os.umask(0o077)
    os.chdir("/")  # hold no folder busy
    sys.stdout = sys.stderr  # nothing but the answer
    try:
        actions[action]()
    except (Refusal, OSError) as error:
        sys.stderr.write(f"{HERE.name}: {action}: {error}\n")
        sys.exit(1)
