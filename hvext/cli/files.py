"""The files that commands write and read for people: results of benchmarks, and pages."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from pathlib import Path

from hvext.bench.result import Result
from hvext.errors import HvextError, InputError

#: How the name of a file ends that is to be packed: fio's whole output is large.
_PACKED = ".gz"


def read_result(name: str) -> Result:
    """Return the benchmark in a file; raises InputError."""
    try:
        kept = Path(name).read_bytes()
        return Result.read((gzip.decompress(kept) if name.endswith(_PACKED) else kept).decode())
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror or error}") from error
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {name}: {error}", hint="it is no result that hvext bench has written") from error
    except InputError as error:
        raise InputError(f"{name}: {error.message}", hint=error.hint) from error


def check_writable(name: str | None) -> None:
    """Raise InputError now for a file that could not be written later: what it is for takes its time."""
    if name == "-":
        raise InputError(
            "- is no name of a file here: standard output has the rest of what the command says",
            hint="/dev/stdout for a pipe, ./- for a file that is called so",
        )
    if name and not Path(name).absolute().parent.is_dir():
        raise InputError(f"cannot write {name}: there is no folder {Path(name).absolute().parent}")


def write_whole(name: str | None, text: str) -> None:
    """Write a file, which is there as a whole or as it was; without a name nothing. Raises HvextError.

    What is no ordinary file (a pipe, a terminal) is written into.
    """
    check_writable(name)
    if not name:
        return
    # A link stays one: /dev/stdout is a link to a file where standard output is.
    path = Path(name)
    path = path.resolve() if path.is_file() else path
    whole = path.is_file() or not path.exists()
    new = path.with_name(f".{path.name}.new")
    kept = f"{text}\n".encode()
    try:
        if whole:
            new.write_bytes(gzip.compress(kept, mtime=0) if name.endswith(_PACKED) else kept)
            new.replace(path)
        else:
            path.write_bytes(kept)
    except OSError as error:
        # What there was room for is of no use to anybody.
        with contextlib.suppress(OSError):
            new.unlink()
        raise HvextError(f"cannot write {name}: {error.strerror}") from error
