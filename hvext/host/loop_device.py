"""Whether loop devices work: one is given a file, read, and taken back. Source: loop(4), losetup(8)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hvext.errors import ProgramError
from hvext.host import process
from hvext.host.files import program_path

CONTROL = "/dev/loop-control"
_BLOCK = 4096
_LIMIT_S = 5.0


def open_control() -> None:
    """Return when the loop driver can be asked for devices; raises OSError."""
    os.close(os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC))


def attach_once() -> str:
    """Attach a small file to a free loop device, compare what it reads, detach it; return the device.

    Where none was free, the kernel makes one, which stays: somebody may be about to take it. Raises ProgramError with
    the words of losetup.
    """
    losetup = program_path("losetup") or program_path("/usr/sbin/losetup")
    if losetup is None:
        raise ProgramError("losetup not found", hint="apt-get install mount")
    data = os.urandom(_BLOCK)
    with tempfile.NamedTemporaryFile(prefix="hvext-", dir="/var/tmp") as file:
        file.write(data)
        file.flush()
        # Not to be interrupted: the device has to be known to be given back.
        device = _run(losetup, "--find", "--show", "--read-only", file.name).strip()
        try:
            with Path(device).open("rb", buffering=0) as stream:
                if stream.read(_BLOCK) != data:
                    raise ProgramError(f"{device} reads something else than the file that was attached to it")
        except OSError as error:
            raise ProgramError(f"{device} was given a file, and cannot be read: {error.strerror}") from error
        finally:
            _run(losetup, "--detach", device)
    return device


def _run(*argv: str) -> str:
    ended = process.run(argv, env={"PATH": os.defpath, "LC_ALL": "C"}, timeout_s=_LIMIT_S)
    if ended.status != 0:
        said = " ".join(ended.stderr.decode(errors="replace").split())
        raise ProgramError(said or f"{argv[0]} ended with status {ended.status}")
    return ended.stdout.decode()
