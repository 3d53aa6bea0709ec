"""What all tests share: how a test says what it needs of the machine it runs on."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background, where shells ignore Ctrl-C: the programs under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def need(program_or_path: str, package: str) -> str:
    """Return where the program (a name) or file (with a slash) is; skip the test where it is missing.

    ``package`` is the Debian package that has it. With HVEXT_REQUIRE_ALL=1 the test fails instead.
    """
    if "/" in program_or_path:
        found = program_or_path if Path(program_or_path).exists() else None
    else:
        found = shutil.which(program_or_path)
    if found is not None:
        return found
    message = f"{program_or_path} not found (Debian package {package})"
    if os.environ.get("HVEXT_REQUIRE_ALL") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
