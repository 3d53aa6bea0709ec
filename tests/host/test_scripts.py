"""What the scripts of a checkout say to whoever calls them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvext.host.machine import GuestImage, probe_acceleration
from tests.conftest import need

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "vm-images/out"
NOBODY = 65534


@pytest.fixture
def checkout() -> Iterator[Path]:
    """A folder for parts of a checkout, which every user gets to."""
    with tempfile.TemporaryDirectory(prefix="hvext-checkout-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "scripts").mkdir()
        yield folder


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


# --- setup -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("closed", ["", ".venv", "vm-images/out"])
def test_whoever_may_not_write_into_the_checkout_is_told_before_anything_is_made(checkout: Path, closed: str) -> None:
    shutil.copy(ROOT / "scripts/setup", checkout / "scripts")
    (checkout / "vm-images").mkdir()
    if closed:
        for folder in (checkout, checkout / "vm-images"):
            os.chown(folder, NOBODY, NOBODY)
        (checkout / closed).mkdir()
    done = subprocess.run(
        [checkout / "scripts/setup"],
        capture_output=True, text=True, check=False, timeout=60, user=NOBODY, group=NOBODY, extra_groups=[],
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"setup: nobody cannot write {closed or '.venv'} ({closed or '.'} is root's)")
    assert "run it as root" in line


# --- quickstart ------------------------------------------------------------------------------------------------------


@pytest.mark.vm
@pytest.mark.skipif(os.geteuid() != 0, reason="quickstart wants loop devices")
def test_quickstart_says_that_it_tries_kvm_and_what_came_of_it(checkout: Path) -> None:
    need("qemu-system-x86_64", "qemu-system-x86")
    need(str(BUILT / "initrd.gz"), "none: run vm-images/build")
    shutil.copy(ROOT / "scripts/quickstart", checkout / "scripts")
    # All is made already; of the demo, it is only looked at when it begins.
    program(checkout / "scripts/setup", "")
    program(checkout / ".venv/bin/python", f'PYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} "$@"')
    program(checkout / ".venv/bin/hvext", 'echo "the demo" >&2')
    (out := checkout / "vm-images/out").mkdir(parents=True)
    for name in ("vmlinuz", "initrd.gz"):
        (out / name).symlink_to(BUILT / name)
    done = subprocess.run([checkout / "scripts/quickstart"], capture_output=True, text=True, check=True, timeout=120)
    said = done.stderr.splitlines()
    assert "the demo" in said
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        assert not [line for line in said if "KVM" in line]
        return
    (line,) = (line for line in said if "KVM" in line)
    kept = json.loads((out / "acceleration.json").read_text())["accel"]
    came = {"kvm": "it works", "tcg": "it does not work here, emulation is used"}[kept]
    assert line == f"quickstart: trying KVM by booting a guest in it, for 8 s at most: {came}"
    assert said.index(line) < said.index("the demo")
    # The demo does not try it again.
    assert probe_acceleration(GuestImage.find(out), limit_s=0.001) == kept


# --- scripts in Python -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bench-control", "bench-storage", "showcase", "simulate-outage"])
def test_a_script_in_python_finds_what_it_needs_when_it_is_called_by_its_name(name: str) -> None:
    env = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    words = [ROOT / "scripts" / name, "--help"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")
    assert name in done.stdout


# --- build-docs ------------------------------------------------------------------------------------------------------


def test_build_docs_says_where_the_pages_are(checkout: Path) -> None:
    need(f"{sys.prefix}/bin/sphinx-build", "the extra docs")
    shutil.copy(ROOT / "scripts/build-docs", checkout / "scripts")
    (checkout / ".venv").symlink_to(sys.prefix)
    (checkout / "docs").mkdir()
    (checkout / "docs/conf.py").write_text("")
    (checkout / "docs/index.rst").write_text("Title\n=====\n")
    done = subprocess.run([checkout / "scripts/build-docs"], capture_output=True, text=True, check=True, timeout=120)
    (said,) = done.stdout.splitlines()
    folder = re.search(r"(/\S+/_build)", said)
    assert folder is not None
    assert (Path(folder[1]) / "index.html").is_file()
