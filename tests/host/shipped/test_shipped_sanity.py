"""The shipped providers against the kit that others are judged by, at its highest level, each on its real storage."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hvext.host.provider import ProviderHost
from hvext.sanity.check import Level, Verdict
from hvext.sanity.kit import Kit
from hvext.sanity.trial import Settings
from tests.sanity_page import PAGE, ground
from tests.servers.iscsi import TARGET, USER, IscsiTarget
from tests.shipped import MIB, PROVIDERS, Place, losetup

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]
REGENERATE = os.environ.get("HVEXT_REGENERATE") == "1"
HEAD = "| provider | on | passed | failed | skipped |\n|---|---|---|---|---|\n"
_START = "<!-- healthy: written by HVEXT_REGENERATE=1 pytest -m nightly tests/host/shipped/test_shipped_sanity.py -->\n"
_END = "<!-- end of healthy -->\n"


@pytest.fixture
def sample(folder: Path) -> Iterator[Settings]:
    with ground() as place:
        yield Settings(parameters={"dir": f"{place}/volumes", "run": f"{place}/run"})


@pytest.fixture
def devices(folder: Path) -> Iterator[Settings]:
    """Three devices for the provider that makes none."""
    with ExitStack() as stack:
        places = []
        for number in range(3):
            image = folder / f"image{number}"
            image.write_bytes(b"")
            os.truncate(image, 64 * MIB)
            device = losetup("--find", "--show", "--direct-io=on", str(image))
            stack.callback(subprocess.run, ["losetup", "--detach", device], check=True)
            places.append({"path": device})
        yield Settings(parameters={"adopt": "yes", "run": f"{folder}/run"}, places=tuple(places))


@pytest.fixture
def units(target: IscsiTarget, folder: Path) -> Settings:
    """Three units that are there, and the password in a file."""
    (folder / "password").write_text(target.password)
    places = []
    for number in range(3):
        target.create(f"place{number}", 64 * MIB)
        places.append({"lun": str(target.units[f"place{number}"])})
    parameters = {"portal": target.portal, "target": TARGET, "user": USER, "password_file": f"{folder}/password"}
    return Settings(parameters={**parameters, "run": f"{folder}/run"}, places=tuple(places))


def _of(place: Place) -> Settings:
    return Settings(parameters={**place.parameters, "run": str(place.run_dir)})


#: Provider, what it stands on, and the fixture with its storage.
SHIPPED = [
    ("sample", "a folder", "sample"),
    ("rbd", "Ceph with cephx", "rbd"),
    ("iscsi", "tgtd with CHAP, which makes the units", "made"),
    ("iscsi", "three units of tgtd with CHAP, `--place` each", "units"),
    ("sharedfile", "an ext4 that is mounted", "sharedfile"),
    ("blockdev", "three loop devices, `--place` each", "devices"),
]


@pytest.mark.parametrize(("name", "on", "storage"), SHIPPED, ids=[storage for _name, _on, storage in SHIPPED])
def test_a_shipped_provider_passes_under_stress(
    name: str, on: str, storage: str, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(storage)
    settings = found if isinstance(found, Settings) else _of(found)
    with Kit(ProviderHost(search_path=(str(PROVIDERS),)), name, settings, level=Level.STRESS) as kit:
        verdicts = kit.run()
    passed, skipped = (len(list(verdicts.of(verdict))) for verdict in (Verdict.PASSED, Verdict.SKIPPED))
    assert [(each.check.name, each.words) for each in verdicts.of(Verdict.FAILED)] == []
    assert verdicts.left == ()
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(_START)
    table, _, after = rest.partition(_END)
    begin = f"| `{name}` | {on} |"
    line = f"{begin} {passed} | 0 | {skipped} |"
    if REGENERATE:
        begins = [f"| `{each}` | {its} |" for each, its, _storage in SHIPPED]
        others = [row for row in table.splitlines() if row.startswith(tuple(begins)) and not row.startswith(begin)]
        rows = sorted([line, *others], key=lambda row: [row.startswith(each) for each in begins].index(True))
        PAGE.write_text(before + _START + HEAD + "".join(f"{row}\n" for row in rows) + _END + after, encoding="utf-8")
    else:
        assert line in table.splitlines()
