"""Real Ganeti, unpacked by ``scripts/real-ganeti``, as something that can be asked."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import need
from tests.host.oracle import absent

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "vm-images/out/ganeti"
VERSIONS = ("3.0", "3.1")
_SIDE = ROOT / "tests/host/ganeti_side.py"
#: 15 MB are downloaded at the first use; a mirror may be slow.
_FETCH_S = 250.0


class Ganeti:
    """Ganeti's code of one version, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ask(self, command: str, value: object) -> Any:
        """The answer of ``ganeti_side.py``; hvext can be imported there."""
        libraries = FOLDER / "python/usr/lib/python3/dist-packages"
        done = subprocess.run(
            ["/usr/bin/python3", str(_SIDE), command],
            input=json.dumps(value),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={
                **{name: text for name, text in os.environ.items() if name.startswith("HVEXT_")},
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "PYTHONPATH": f"{self.folder}:{libraries}:{ROOT}",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="session", name="ganeti")
def _ganeti() -> dict[str, Ganeti]:
    """Ganeti by version; the test is skipped where the packages cannot be had."""
    need("apt-get", "apt")
    need("dpkg-deb", "dpkg")
    need("/usr/bin/python3", "python3")
    environment = {name: os.environ[name] for name in os.environ if name in ("PATH", "HOME") or "proxy" in name.lower()}
    made = subprocess.run(
        [str(ROOT / "scripts/real-ganeti"), str(FOLDER)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_FETCH_S,
        check=False,
    )
    if made.returncode:
        absent(f"no real Ganeti: {made.stderr}")
    return {version: Ganeti(FOLDER / version) for version in VERSIONS}
