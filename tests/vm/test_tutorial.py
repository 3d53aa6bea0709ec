"""The tutorial, run as a newcomer would: a clone of the tree, and every block of the page in one shell."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.host.oracle import absent, short_folder
from tests.pages.blocks import ROOT, blocks, missing

PAGE = "docs/tutorial.md"
MARK = "=== block "


def steps() -> list[tuple[str, str]]:
    """The commands of the page, each block with the output below it (empty where the page shows none)."""
    found: list[tuple[str, str]] = []
    for each in blocks(PAGE):
        if each.language == "sh":
            found.append((each.text, ""))
        else:
            found[-1] = (found[-1][0], each.text)
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for the clone; whatever still runs or is attached in it at the end is ended."""
    with short_folder() as path:
        yield path
        running, loops = left_in(path)
        for pid in running:
            os.kill(pid, signal.SIGKILL)
        for device in loops:
            subprocess.run(["losetup", "--detach", device], check=False, timeout=60)


def left_in(folder: Path) -> tuple[list[int], list[str]]:
    """The processes that name the folder in their arguments, and the loop devices on files in it."""
    running = [pid for pid, words in processes() if str(folder) in words]
    return running, [line.split()[0] for line in loop_devices() if str(folder) in line]


def processes() -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue


def loop_devices() -> list[str]:
    argv = ["losetup", "--list", "--raw", "--noheadings", "--output", "NAME,BACK-FILE"]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()


def clone_source(folder: Path) -> Path:
    """A repository with the files of this tree as they are now."""
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(argv, cwd=ROOT, capture_output=True, check=True, timeout=60).stdout.decode().split("\0")
    source = folder / "source"
    for name in names:
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
            (source / name).chmod((ROOT / name).stat().st_mode)
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in (["init", "--quiet"], ["add", "--all"], [*who, "commit", "--quiet", "--message", "as it is"]):
        subprocess.run(["git", *words], cwd=source, check=True, timeout=60)
    return source


@pytest.mark.nightly
@pytest.mark.vm
@pytest.mark.timeout(1800)
def test_a_newcomer_who_types_the_tutorial_gets_what_it_shows(folder: Path) -> None:
    for program, package in (("git", "git"), ("qemu-system-x86_64", "qemu-system-x86"), ("losetup", "util-linux")):
        need(program, package)
    if os.geteuid() != 0:
        absent("loop devices need root")
    page = steps()
    assert len(page) >= 14
    script = "set -e\n"
    for number, (commands, _output) in enumerate(page):
        script += f"echo '{MARK}{number}'\n{commands}"
    script = script.replace("git clone URL", f"git clone --quiet {clone_source(folder)}")
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    (folder / "script").write_text(script, encoding="utf-8")
    with (folder / "output").open("wb") as output:
        ran = subprocess.run(
            ["bash", "script"],
            cwd=folder, env={**environment, "LANG": "C.UTF-8"}, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, check=False, timeout=1700,
        )  # fmt: skip
    printed = (folder / "output").read_text(encoding="utf-8")
    assert ran.returncode == 0, printed[-4000:]
    parts = re.split(rf"^{MARK}\d+\n", printed, flags=re.MULTILINE)[1:]
    assert len(parts) == len(page)
    wrong = [(line, part) for (_, shown), part in zip(page, parts, strict=True) for line in missing(shown, part)]
    assert not wrong
    assert left_in(folder) == ([], [])
    assert not (folder / "hvext" / "tour").exists()
