"""What somebody meets who has just come: the first commands, on a machine that lacks something."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hvext.cli.demo import _folder, _own_places
from hvext.core.extras import DEBIAN
from hvext.errors import HvextError
from hvext.host.files import private_folder
from hvext.host.journal import state_folder
from tests.providers import write_provider

ROOT = Path(__file__).parents[2]
NOBODY = 65534
#: Loads all of hvext while it can be read, and goes on as somebody who may use no loop device.
AS_NOBODY = f"""
import contextlib, importlib, os, pkgutil, sys
import hvext.cli
for each in pkgutil.walk_packages(hvext.__path__, "hvext."):
    # Some need what an extra brings.
    with contextlib.suppress(ImportError, SystemExit):
        if not each.name.endswith("__main__") and not each.name.startswith("hvext.providers"):
            importlib.import_module(each.name)
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
sys.exit(hvext.cli.main(["demo", "--guest", "/nonexistent"]))
"""


def control(field: str) -> set[str]:
    """The packages in a field of the recipe for Debian packages."""
    text = (ROOT / "packaging/debian/control").read_text(encoding="utf-8")
    found = re.search(rf"^{field}:((?:.*\n)(?: .*\n)*)", text, re.MULTILINE)
    assert found is not None
    return set(re.findall(r"[a-z][a-z0-9.+-]+", re.sub(r"\([^)]*\)", "", found[1])))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_whoever_may_use_no_loop_device_is_told_before_anything_is_installed() -> None:
    # Where everybody gets to, which the checkout need not be.
    with tempfile.TemporaryDirectory() as name:
        (scripts := Path(name) / "scripts").mkdir()
        Path(name).chmod(0o755)
        shutil.copy(ROOT / "scripts/quickstart", scripts)
        done = subprocess.run(
            [scripts / "quickstart"],
            capture_output=True, text=True, check=False, timeout=60, user=NOBODY, group=NOBODY, extra_groups=[],
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "may not use loop devices" in done.stderr
    assert "hint: run it as root: sudo scripts/quickstart" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_whoever_may_use_no_loop_device_is_told_before_a_guest_is_booted() -> None:
    argv = [sys.executable, "-c", AS_NOBODY]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "you may not use /dev/loop-control" in done.stderr
    assert "hint: run it as root" in done.stderr


def test_the_demo_writes_nothing_into_the_journal_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVEXT_STATE_DIR", "/the/hosts")
    monkeypatch.delenv("HVEXT_RUNTIME_DIR", raising=False)
    with _own_places(tmp_path):
        assert Path(state_folder()).is_relative_to(tmp_path)
        assert Path(private_folder()).is_relative_to(tmp_path)
    assert os.environ["HVEXT_STATE_DIR"] == "/the/hosts"
    assert "HVEXT_RUNTIME_DIR" not in os.environ


def test_a_demo_that_fails_leaves_the_logs_that_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    with _folder(None) as well:
        assert well.is_dir()
    assert not well.exists()
    with pytest.raises(HvextError), _folder(None) as folder:
        raise HvextError("failed")
    assert folder.is_dir()
    assert str(folder) in capsys.readouterr().err
    folder.rmdir()


def test_the_folder_for_logs_of_scripts_can_be_named_for_all_commands(tmp_path: Path) -> None:
    write_provider(tmp_path, "loud", {"create": "echo said >&2"})
    argv = [sys.executable, "-m", "hvext", "create", "loud", "v", "--size", "1", "--search-path", str(tmp_path)]
    for number, (name, more) in enumerate([("all", []), ("none", []), ("all", ["--log-dir", str(tmp_path / "one")])]):
        named = "none" if name == "none" else str(tmp_path / f"{name}{number}")
        subprocess.run([*argv, *more], env={**os.environ, "HVEXT_LOG_DIR": named}, check=True, timeout=60)
    assert [path.name.split("-")[0] for path in (tmp_path / "all0").iterdir()] == ["create"]
    assert len(list((tmp_path / "one").iterdir())) == 1, "the option goes before the environment"
    assert not (tmp_path / "all2").exists()
    assert not (tmp_path / "none").exists()


def test_what_builds_packages_is_what_the_setup_for_it_installs() -> None:
    text = (ROOT / "scripts/setup").read_text(encoding="utf-8")
    installed = set(" ".join(re.findall(r"^building\+?=\(([^)]*)\)", text, re.MULTILINE)).split())
    wanted = control("Build-Depends") - {"debhelper-compat", "python3"} | {"debhelper", "build-essential", "dpkg-dev"}
    assert wanted == installed


def test_the_package_suggests_what_a_benchmark_asks_for() -> None:
    wanted = set(DEBIAN["bench"])
    assert len(wanted) == 3
    assert wanted <= control("Suggests")
