"""Private files: what QEMU has to read and nobody else may, such as passwords and Ceph configurations with keys.

They are in one folder of the host and are named after the block node they are for, so that they go when it goes:
``$HVEXT_RUNTIME_DIR``, else ``/run/hvext`` for root, else ``$XDG_RUNTIME_DIR/hvext``, or ``run`` in the
folder of the user's state (``$XDG_STATE_HOME/hvext``, ``~/.local/state/hvext``).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable

from hvext.core.uri.location import PrivateFile
from hvext.errors import HvextError, InputError
from hvext.host.files import private_folder as private_folder

_MAX_BYTES = 1 << 20


def write_private(files: Iterable[PrivateFile], *, owner: int | None = None) -> None:
    """Write files with mode 0600, in place of older ones; may be repeated.

    ``owner`` is the user id that QEMU runs as, where it is not the caller's. Raises HvextError, which names the file.
    """
    for file in files:
        try:
            _write(private_folder(), file, owner)
        except OSError as error:
            name = error.filename or file.path
            raise HvextError(
                f"cannot write the private file {file.path}: {name}: {error.strerror}",
                hint="HVEXT_RUNTIME_DIR names another folder for such files",
            ) from error


def remove_private(prefix: str) -> tuple[str, ...]:
    """Remove the private files whose names begin with ``prefix``, and return their paths; none is no error."""
    removed = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        folder = private_folder()
        for path in sorted(f"{folder}/{name}" for name in os.listdir(folder) if name.startswith(prefix)):
            try:
                if os.path.isdir(path) and not os.path.islink(path):
                    import shutil

                    shutil.rmtree(path)
                else:
                    _unlink(path)
            except OSError as error:
                raise HvextError(f"cannot remove the private file {path}: {error.strerror}") from error
            removed.append(path)
    return tuple(removed)


def private_files() -> tuple[str, ...]:
    """Return the names of all private files; none where there is no folder."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return tuple(sorted(os.listdir(private_folder())))
    return ()


def read_secret_file(path: str) -> str:
    """Return the text of a file that holds one secret, without the line end behind it; raises InputError."""
    try:
        with open(path, "rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read the secret in {path}: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise InputError(f"{path} is too long for a secret: more than {_MAX_BYTES} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InputError(f"the secret in {path} is not UTF-8 text") from None
    return text.removesuffix("\n").removesuffix("\r")


def _write(folder: str, file: PrivateFile, owner: int | None) -> None:
    _make_folder(folder, None)
    parent = os.path.dirname(file.path)
    if parent != folder:
        _make_folder(parent, owner)
    if file.link is not None:
        _unlink(file.path)
        os.symlink(file.link, file.path)
        return
    # Most disks have no private files, and this loads half of the library.
    import tempfile

    # With the name of what it will be: whatever interrupts this, `remove_private` finds it.
    first = os.path.relpath(file.path, folder).partition("/")[0]
    descriptor, name = tempfile.mkstemp(prefix=f"{first}.new-", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(_contents(file))
            if owner is not None and owner != os.geteuid():
                os.fchown(descriptor, owner, -1)
        os.replace(name, file.path)
    except BaseException:
        _unlink(name)
        raise


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _make_folder(folder: str, owner: int | None) -> None:
    """Make a folder that others can pass through, but not read; refuse one that somebody else could change."""
    with contextlib.suppress(FileExistsError):
        os.makedirs(folder, mode=0o711)
        # Whatever the umask is.
        os.chmod(folder, 0o711)  # noqa: S103
        if owner is not None and owner != os.geteuid():
            os.chown(folder, owner, -1)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), 0, owner) or found.st_mode & 0o022:
        raise HvextError(
            f"{folder} is not a folder that only its owner can write to: no secrets are written there",
            hint="remove it, or name another with HVEXT_RUNTIME_DIR",
        )


def _read(path: str) -> bytes:
    """Return what a file holds that somebody else named: it has to be a file, and not without end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise HvextError(f"cannot read {path}, which the URI names: it is no regular file")
        data = stream.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise HvextError(f"cannot read {path}, which the URI names: it has more than {_MAX_BYTES} bytes")
    return data


def _contents(file: PrivateFile) -> bytes:
    before = b""
    if file.after is not None:
        try:
            before = _read(file.after)
        except OSError as error:
            if not (file.optional and isinstance(error, FileNotFoundError)):
                raise HvextError(f"cannot read {file.after}, which the URI names: {error.strerror}") from error
        if before and not before.endswith(b"\n"):
            before += b"\n"
    return before + (file.text.reveal().encode() if file.text else b"")
