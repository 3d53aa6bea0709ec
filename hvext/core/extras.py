"""How hvext's optional libraries are installed for the Python that runs it."""

from __future__ import annotations

import sys

from hvext.core.documentation import FOLDER
from hvext.errors import ProgramError

#: Debian's packages with the libraries of each extra.
DEBIAN = {
    "libvirt": ("python3-libvirt",),
    "metrics": ("python3-prometheus-client",),
    "top": ("python3-rich",),
    "completion": ("python3-shtab",),
    "bench": ("python3-scipy", "python3-matplotlib", "python3-rich"),
}


def library_missing(library: str, who: str, extra: str) -> ProgramError:
    """Return the error of what needs a library that is not installed, with the cure; see `install_words`.

    It is no fault of who typed the command: the same words are right where it is installed.
    """
    return ProgramError(f"{library}, which {who}, is not installed", hint=install_words(extra))


def install_words(extra: str) -> str:
    """Return what installs an extra for this very interpreter; see `library_words`."""
    return library_words(f"hvext[{extra}]", *DEBIAN[extra])


def library_words(requirement: str, *packages: str, package: str = FOLDER) -> str:
    """Return what installs what pip calls ``requirement``; ``packages`` are Debian's with the same libraries.

    A shell often has another ``pip`` than the interpreter's, or none. Debian's packages are only seen by Debian's own
    Python, and its pip installs nothing outside of a virtual environment; hvext of Debian's package (``package`` is its
    folder) has no other.
    """
    import shlex

    pip = f"{shlex.quote(sys.executable or 'python3')} -m pip install {shlex.quote(requirement)}"
    debian = f"apt install {' '.join(packages)}"
    if sys.prefix != sys.base_prefix:
        return f"{pip} (this is a virtual environment: it does not see Debian's {' '.join(packages)})"
    if package.startswith("/usr/lib/") and package.rpartition("/")[0].endswith("/dist-packages"):
        return debian
    return f"{debian} for Debian's own Python; for another, {pip}"
