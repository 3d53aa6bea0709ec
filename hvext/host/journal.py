"""The journal's folder: one file and one lock for each VM.

`store` replaces a file as a whole, and it is on the disk before that returns: whoever reads it sees the old text or
the new one, also after the host lost its power. `append` puts lines behind what is there: they outlive the
process that wrote them, and `sync` has them outlive the host, which is most of what writing costs. The lock is the
kernel's (flock): it goes with the process that holds it.

Without pathlib, as in `hvext.host.files`.

Folder: ``$HVEXT_STATE_DIR``, else ``/var/lib/hvext`` for root, else ``$XDG_STATE_HOME/hvext`` or
``~/.local/state/hvext``.

Source: flock(2), fsync(2), rename(2).
"""

from __future__ import annotations

import _thread
import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator

from hvext.errors import JournalError
from hvext.host.files import absolute, user_state_folder

#: Where root's journal is.
ROOTS_FOLDER = "/var/lib/hvext"
_MAX_NAME_BYTES = 200
_RECORD, _LOCK, _NEW = ".json", ".lock", ".new"
#: What has ended, of all VMs, and what stood there before it became too long; no record has such a name.
_HISTORY, _OLDER = "history", "history.older"
#: So long may each of them be: some thousand operations.
_HISTORY_BYTES = 512 * 1024
#: Beside ASCII letters and digits, what stands in a file's name as it is.
_PLAIN = str.maketrans("", "", "_.-~ @+=,:")
#: Held for a moment by who compares the records of several VMs and writes one; no VM has this name.
_COMPARING = "%"


def state_folder() -> str:
    """Return the journal's folder; it need not exist."""
    if chosen := os.environ.get("HVEXT_STATE_DIR"):
        return absolute(chosen)
    return ROOTS_FOLDER if os.geteuid() == 0 else user_state_folder()


def closed_folder() -> str | None:
    """Return the folder of root's journal where there is one that this user cannot read, and has not chosen another."""
    if os.environ.get("HVEXT_STATE_DIR"):
        return None
    try:
        os.listdir(ROOTS_FOLDER)
    except PermissionError:
        return ROOTS_FOLDER
    except OSError:
        pass
    return None


class Lock:
    """A lock that is held; made by `JournalFolder.try_lock`."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self._path = path

    def release(self, *, remove: bool = False) -> None:
        """Let others in; with ``remove`` the lock's file goes as well. May be repeated."""
        if self._descriptor < 0:
            return
        if remove:
            # Whoever waits for it looks, once it has the lock, whether this file still has the name.
            _unlink(self._path)
        os.close(self._descriptor)
        self._descriptor = -1


class JournalFolder:
    """The records of all VMs of a host, in ``path``."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = absolute(path) if path else state_folder()

    def texts(self, but: str | None = None) -> dict[str, str | JournalError]:
        """Return the texts of all records (``but`` one VM's) by their files' paths, or why one cannot be read.

        Raises JournalError.
        """
        without = None if but is None else self._file(but, _RECORD)
        found: dict[str, str | JournalError] = {}
        try:
            paths = sorted(f"{self.path}/{name}" for name in os.listdir(self.path) if name.endswith(_RECORD))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _error("read", self.path, error) from error
        for path in paths:
            if path == without:
                continue
            # It may have been removed meanwhile.
            with contextlib.suppress(FileNotFoundError):
                try:
                    found[path] = _read(path)
                except JournalError as error:
                    found[path] = error
        return found

    def load(self, name: str) -> str | None:
        """Return the text of a VM's record, or None when it has none; raises JournalError."""
        try:
            return _read(self._file(name, _RECORD))
        except FileNotFoundError:
            return None

    def where(self, name: str) -> str:
        """Return the path of a VM's record."""
        return self._file(name, _RECORD)

    def store(self, name: str, text: str) -> None:
        """Write a VM's record, on the disk when this returns; call it with the VM's lock held.

        Raises JournalError, and the old one stays.
        """
        path = self._file(name, _RECORD)
        try:
            self._make()
            # Always the same name: what a crash left is written over, and only who has the lock writes.
            new = self._file(name, _NEW)
            try:
                with open(new, "w", encoding="utf-8") as file:
                    os.chmod(new, 0o600)
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(new, path)
            except BaseException:
                _unlink(new)
                raise
            self._sync()
        except OSError as error:
            raise _error("write", path, error) from error

    def append(self, name: str, text: str) -> bool:
        """Put whole lines behind a VM's record, which may not be whole after a crash; call it with the lock held.

        Returns False when there is no record. They outlive this process; ``sync`` has them outlive the host. Raises
        JournalError, and nothing was added.
        """
        path = self._file(name, _RECORD)
        try:
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                try:
                    _add(descriptor, text.encode())
                finally:
                    os.close(descriptor)
                return True
        except OSError as error:
            raise _error("write", path, error) from error
        return False

    def sync(self, name: str) -> None:
        """Return when all of a VM's record is on the disk, or it is gone; raises JournalError."""
        path = self._file(name, _RECORD)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _error("write", path, error) from error

    def remove(self, name: str) -> None:
        """Remove a VM's record; one that is gone is no error."""
        path = self._file(name, _RECORD)
        try:
            _unlink(path)
            _unlink(self._file(name, _NEW))
            self._sync()
        except OSError as error:
            raise _error("remove", path, error) from error

    def remember(self, line: str) -> None:
        """Put a line behind the history of this host, which keeps some thousand; raises JournalError."""
        path = f"{self.path}/{_HISTORY}"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line.encode())
                found = os.fstat(descriptor)
            finally:
                os.close(descriptor)
            if found.st_size > _HISTORY_BYTES:
                with contextlib.suppress(FileNotFoundError):
                    # Somebody else may have put it aside already: then this is a new one.
                    if os.stat(path).st_ino == found.st_ino:
                        os.replace(path, f"{self.path}/{_OLDER}")
        except OSError as error:
            raise _error("write", path, error) from error

    def remembered(self) -> list[str]:
        """Return the lines of the history, oldest first; raises JournalError."""
        lines: list[str] = []
        for name in (_OLDER, _HISTORY):
            with contextlib.suppress(FileNotFoundError):
                lines += _read(f"{self.path}/{name}").splitlines()
        return lines

    def try_lock(self, name: str) -> Lock | None:
        """Return the lock of a VM, or None while somebody else holds it; raises JournalError."""
        return self._try_lock(self._file(name, _LOCK))

    def is_locked(self, name: str) -> bool:
        """Return whether somebody holds a VM's lock now."""
        try:
            descriptor = os.open(self._file(name, _LOCK), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def holder(self, name: str) -> str:
        """Return what who holds a VM's lock says of itself; empty where that is not known."""
        try:
            with open(self._file(name, _LOCK), encoding="utf-8", errors="replace") as file:
                return file.read().strip()
        except OSError:
            return ""

    @contextlib.contextmanager
    def comparing(self) -> Iterator[None]:
        """Keep everybody else from comparing records meanwhile; for moments only."""
        path = f"{self.path}/{_COMPARING}{_LOCK}"
        try:
            self._make()
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _error("write", path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _try_lock(self, path: str) -> Lock | None:
        try:
            self._make()
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _error("write", path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had it before may have taken the file away: then this lock is on nothing that others see.
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                _sign(descriptor)
                return Lock(descriptor, path)
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _file(self, name: str, suffix: str) -> str:
        """Return the path of a file for a VM: any name makes one file name, and two names never the same."""
        quoted = name if _is_plain(name) else _quoted(name)
        if len(quoted) > _MAX_NAME_BYTES:
            import hashlib

            digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:32]
            quoted = f"{quoted[:100]}%{digest}"
        if quoted.startswith("."):
            quoted = f"%2E{quoted[1:]}"
        return f"{self.path}/{quoted}{suffix}"

    def _make(self) -> None:
        os.makedirs(self.path, mode=0o700, exist_ok=True)

    def _sync(self) -> None:
        """Have the folder itself on the disk: that is where a new name, or one that is gone, stands."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Sync:
    """A ``JournalFolder.sync`` that goes on beside other work; `wait` returns when all is on the disk."""

    def __init__(self, folder: JournalFolder, name: str) -> None:
        self._error: JournalError | None = None
        # A join that Ctrl-C interrupts takes its thread for ended (Python 3.11).
        self._done = threading.Event()

        def work() -> None:
            try:
                folder.sync(name)
            except JournalError as error:
                self._error = error
            finally:
                self._done.set()

        try:
            # Not threading.Thread, whose start waits until the thread runs.
            _thread.start_new_thread(work, ())
        except RuntimeError:
            # No more threads: then at once.
            work()

    def wait(self) -> None:
        """Return when it is done; raises JournalError."""
        self._done.wait()
        if self._error is not None:
            raise self._error


def _is_plain(name: str) -> bool:
    rest = name.translate(_PLAIN)
    return rest.isascii() and (rest.isalnum() or not rest)


def _quoted(name: str) -> str:
    # Hardly any VM has such a name, and this takes longer to load than all of the journal.
    from urllib.parse import quote

    return quote(name, safe=" @+=,:")


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise _error("read", path, error) from error


def _add(descriptor: int, data: bytes) -> None:
    size = os.fstat(descriptor).st_size
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except BaseException:
        os.ftruncate(descriptor, size)
        raise


def _sign(descriptor: int) -> None:
    """Say in the lock's file who holds it, as far as the disk has room: it is only for those who wait."""
    said = f"process {os.getpid()}\n".encode()
    with contextlib.suppress(OSError):
        # Most often it was the same process before, and to cut a file short takes longer than all else of a lock.
        if os.pread(descriptor, len(said) + 1, 0) != said:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, said, 0)


def _error(what: str, path: str, error: OSError | UnicodeDecodeError) -> JournalError:
    words = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
    return JournalError(
        f"cannot {what} the journal {path}: {words}",
        hint="nothing is done that is not written down first; HVEXT_STATE_DIR names another folder",
    )
