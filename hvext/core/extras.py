"""How hvext's optional libraries are installed for the Python that runs it."""

from __future__ import annotations

import sys


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
