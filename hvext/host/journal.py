"""The journal's folder: one file and one lock for each VM.

`store` replaces a file as a whole, and it is on the disk before that returns: whoever reads it sees the old text or
the new one, also after the host lost its power. `append` puts lines behind what is there: they outlive the process
that wrote them, and only lasting ones also the host, because to wait for the disk is most of what writing costs. The
lock is the kernel's (flock): it goes with the process that holds it.

Folder: ``$HVEXT_STATE_DIR``, else ``/var/lib/hvext`` for root, else ``~/.local/state/hvext``.

Source: flock(2), fsync(2), rename(2).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from hvext.errors import JournalError

_MAX_NAME_BYTES = 200
_RECORD, _LOCK, _NEW = ".json", ".lock", ".new"
#: Held for a moment by who compares the records of several VMs and writes one; no VM has this name.
_COMPARING = "%"


def state_folder() -> Path:
    """Return the journal's folder; it need not exist."""
    if chosen := os.environ.get("HVEXT_STATE_DIR"):
        return Path(chosen).absolute()
    return Path("/var/lib/hvext") if os.geteuid() == 0 else Path.home() / ".local/state/hvext"


class Lock:
    """A lock that is held; made by `JournalFolder.try_lock`."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path

    def release(self, *, remove: bool = False) -> None:
        """Let others in; with ``remove`` the lock's file goes as well. May be repeated."""
        if self._descriptor < 0:
            return
        if remove:
            # Whoever waits for it looks, once it has the lock, whether this file still has the name.
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1


class JournalFolder:
    """The records of all VMs of a host, in ``path``."""

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = Path(path).absolute() if path else state_folder()

    def texts(self, but: str | None = None) -> dict[str, str | JournalError]:
        """Return the texts of all records (``but`` one VM's) by their files' paths, or why one cannot be read.

        Raises JournalError.
        """
        without = None if but is None else self._file(but, _RECORD).name
        found: dict[str, str | JournalError] = {}
        try:
            paths = sorted(path for path in self.path.iterdir() if path.name.endswith(_RECORD) and path.name != without)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _error("read", self.path, error) from error
        for path in paths:
            # It may have been removed meanwhile.
            with contextlib.suppress(FileNotFoundError):
                try:
                    found[str(path)] = _read(path)
                except JournalError as error:
                    found[str(path)] = error
        return found

    def load(self, name: str) -> str | None:
        """Return the text of a VM's record, or None when it has none; raises JournalError."""
        try:
            return _read(self._file(name, _RECORD))
        except FileNotFoundError:
            return None

    def where(self, name: str) -> str:
        """Return the path of a VM's record."""
        return str(self._file(name, _RECORD))

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
                with new.open("w", encoding="utf-8") as file:
                    new.chmod(0o600)
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                new.replace(path)
            except BaseException:
                new.unlink(missing_ok=True)
                raise
            self._sync()
        except OSError as error:
            raise _error("write", path, error) from error

    def append(self, name: str, text: str, *, lasting: bool) -> bool:
        """Put whole lines behind a VM's record, which may not be whole after a crash; call it with the lock held.

        Returns False when there is no record. With ``lasting`` they are on the disk when this returns. Raises
        JournalError, and nothing was added.
        """
        path = self._file(name, _RECORD)
        try:
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                try:
                    _add(descriptor, text.encode(), lasting=lasting)
                finally:
                    os.close(descriptor)
                return True
        except OSError as error:
            raise _error("write", path, error) from error
        return False

    def remove(self, name: str) -> None:
        """Remove a VM's record; one that is gone is no error."""
        path = self._file(name, _RECORD)
        try:
            path.unlink(missing_ok=True)
            self._file(name, _NEW).unlink(missing_ok=True)
            self._sync()
        except OSError as error:
            raise _error("remove", path, error) from error

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
            return self._file(name, _LOCK).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    @contextlib.contextmanager
    def comparing(self) -> Iterator[None]:
        """Keep everybody else from comparing records meanwhile; for moments only."""
        path = self.path / f"{_COMPARING}{_LOCK}"
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

    def _try_lock(self, path: Path) -> Lock | None:
        try:
            self._make()
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _error("write", path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had it before may have taken the file away: then this lock is on nothing that others see.
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                _sign(descriptor)
                return Lock(descriptor, path)
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _file(self, name: str, suffix: str) -> Path:
        """Return the path of a file for a VM: any name makes one file name, and two names never the same."""
        quoted = quote(name, safe=" @+=,:")
        if len(quoted) > _MAX_NAME_BYTES:
            digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:32]
            quoted = f"{quoted[:100]}%{digest}"
        if quoted.startswith("."):
            quoted = f"%2E{quoted[1:]}"
        return self.path / f"{quoted}{suffix}"

    def _make(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _sync(self) -> None:
        """Have the folder itself on the disk: that is where a new name, or one that is gone, stands."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise _error("read", path, error) from error


def _add(descriptor: int, data: bytes, *, lasting: bool) -> None:
    size = os.fstat(descriptor).st_size
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        if lasting:
            os.fdatasync(descriptor)
    except BaseException:
        os.ftruncate(descriptor, size)
        raise


def _sign(descriptor: int) -> None:
    """Say in the lock's file who holds it, as far as the disk has room: it is only for those who wait."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}\n".encode(), 0)


def _error(what: str, path: Path, error: OSError | UnicodeDecodeError) -> JournalError:
    words = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
    return JournalError(
        f"cannot {what} the journal {path}: {words}",
        hint="nothing is done that is not written down first; HVEXT_STATE_DIR names another folder",
    )
