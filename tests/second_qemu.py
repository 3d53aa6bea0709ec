"""A QEMU of another version than the installed one: Debian 13's, unpacked beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hvext.host import process
from tests.conftest import need
from tests.host.oracle import absent

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "vm-images/out/qemu-trixie"
#: 75 MB are downloaded and 190 MB unpacked at the first use; a mirror may be slow.
_LIMIT_S = 900.0


@pytest.fixture(scope="session", name="second_qemu")
def _second_qemu() -> Path:
    """The folder whose ``bin`` has the programs; the test is skipped where the packages cannot be had."""
    need("apt-get", "apt")
    need("dpkg-deb", "dpkg")
    environment = {name: os.environ[name] for name in os.environ if name in ("PATH", "HOME") or "proxy" in name.lower()}
    made = process.run([str(ROOT / "scripts/second-qemu"), str(FOLDER)], env=environment, timeout_s=_LIMIT_S)
    if made.status:
        absent(f"no second QEMU: {made.stderr.decode(errors='replace')}")
    return FOLDER
