"""How hvext's optional libraries are installed for the Python that runs it."""

from __future__ import annotations

import sys

from hvext.errors import ProgramError


def library_missing(library: str, who: str, extra: str, *packages: str) -> ProgramError:
    """Return the error of what needs a library that is not installed, with the cure; see `install_words`.

    It is no fault of who typed the command: the same words are right where it is installed.
    """
    return ProgramError(f"{library}, which {who}, is not installed", hint=install_words(extra, *packages))


def install_words(extra: str, *packages: str) -> str:
    """Return what installs an extra for this very interpreter; ``packages`` are Debian's with the same libraries.

    A shell often has another ``pip`` than the interpreter's, or none. Debian's packages are only seen by Debian's own
    Python, and its pip installs nothing outside of a virtual environment.
    """
    import shlex

    pip = f"{shlex.quote(sys.executable or 'python3')} -m pip install 'hvext[{extra}]'"
    debian = f"apt install {' '.join(packages)}"
    if not packages:
        return pip
    if sys.prefix != sys.base_prefix:
        return f"{pip} (this is a virtual environment: it does not see Debian's {' '.join(packages)})"
    return f"{debian} for Debian's own Python; for another, {pip}"
