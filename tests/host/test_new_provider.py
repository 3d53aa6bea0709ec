"""``hvext new-provider``, and the example of ``docs/write-a-provider.md``: both work from the start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvext.cli import main
from hvext.cli.new_provider import write_skeleton
from hvext.core.disk import Disk
from hvext.core.volume import Volume
from hvext.errors import InputError, ScriptFailed
from hvext.host.provider import ProviderHost, load_provider
from hvext.operations import volumes
from tests.conftest import need
from tests.host.oracle import MIB, absent, short_folder

PAGE = Path(__file__).parents[2] / "docs/write-a-provider.md"
LANGUAGES = ("sh", "python")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for providers and volumes; no loop device stands on it at the end."""
    need("losetup", "util-linux")
    need("flock", "util-linux")
    if os.geteuid() != 0:
        absent("loop devices need root")
    with short_folder() as path:
        yield path
        assert str(path) not in loops()


def loops() -> str:
    argv = ["losetup", "--list", "--noheadings"]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout


def disk(folder: Path, name: str = "v1") -> Disk:
    return Disk(
        provider="mine", volume=Volume(name=name, uuid=uuid.uuid4(), parameters={"dir": str(folder / "volumes")})
    )


def sanity(folder: Path, provider: str) -> dict[str, str]:
    """The verdict of each check of ``hvext sanity --level contract``."""
    argv = ["sanity", provider, "--level", "contract", "--json", "--search-path", str(folder), "--log-dir", "none"]
    (folder / "volumes").mkdir(exist_ok=True)
    done = subprocess.run(
        ["/usr/bin/env", "PYTHONPATH=" + str(PAGE.parents[1]), *hvext(), *argv, "-p", f"dir={folder}/volumes"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    said = json.loads(done.stdout)
    assert done.returncode == 0, [check for check in said["checks"] if check["verdict"] == "failed"]
    assert said["left"] == []
    return {check["name"]: check["verdict"] for check in said["checks"]}


def hvext() -> list[str]:
    import sys

    return [sys.executable, "-m", "hvext"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_new_provider_carries_a_volume_through_its_whole_life(folder: Path, language: str) -> None:
    assert main(["new-provider", "mine", "--language", language, "--folder", str(folder)]) == 0
    host = ProviderHost(search_path=[str(folder)])
    one, copy = disk(folder), disk(folder, "v1.snap")
    volumes.verify_parameters(host, one)
    volumes.create_volume(host, one, 8)
    path = volumes.attach_volume(host, one).attachment.block_path
    assert path is not None
    assert volumes.attach_volume(host, one).attachment.block_path == path
    Path(path).write_bytes(b"kept")
    volumes.grow_volume(host, one, old_size_mib=8, new_size_mib=16)
    with Path(path).open("rb") as stream:
        assert stream.seek(0, 2) == 16 * MIB
    volumes.set_volume_info(host, one, "originstname+web1")
    volumes.close_volume(host, one)
    with pytest.raises(OSError, match="not permitted"):
        Path(path).write_bytes(b"lost")
    volumes.open_volume(host, one, exclusive=True)
    Path(path).write_bytes(b"more")
    with pytest.raises(ScriptFailed, match="attached"):
        volumes.remove_volume(host, one)
    for _ in range(2):
        volumes.detach_volume(host, one)
    volumes.snapshot_volume(host, one, "v1.snap", 16)
    other = volumes.attach_volume(host, copy).attachment.block_path
    with Path(str(other)).open("rb") as stream:
        assert stream.read(4) == b"more"
    volumes.detach_volume(host, copy)
    for each in (one, one, copy):
        volumes.remove_volume(host, each)
    with pytest.raises(ScriptFailed, match="there is no volume v1"):
        volumes.attach_volume(host, one)
    assert [path.name for path in (folder / "volumes").iterdir()] == [".lock"]


@pytest.mark.parametrize("language", ["sh", pytest.param("python", marks=pytest.mark.nightly)])
def test_a_new_provider_passes_sanity_from_the_start(folder: Path, language: str) -> None:
    write_skeleton("mine", language, folder)
    verdicts = sanity(folder, "mine")
    assert {verdicts[name] for name in ("attach-again", "grow-path", "close", "snapshot", "name-signs")} == {"passed"}


@pytest.mark.nightly
def test_the_example_of_the_page_passes_sanity(folder: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if block.startswith("#!")]
    assert example.count("\n") == 40
    links = re.search(r"for action in ([a-z ]+); do ln -s provider", text)
    line = re.search(r"is one line: `(dir [^`]*)`", text)
    assert links is not None
    assert line is not None
    provider = folder / "mini"
    provider.mkdir()
    (provider / "provider").write_text(example, encoding="utf-8")
    (provider / "provider").chmod(0o755)
    (provider / "parameters.list").write_text(line[1].replace("\n", " ") + "\n", encoding="utf-8")
    for action in links[1].split():
        (provider / action).symlink_to("provider")
    assert sanity(folder, "mini")["attach-again"] == "passed"
    checked = subprocess.run([need("shellcheck", "shellcheck"), str(provider / "provider")], check=False, timeout=60)
    assert checked.returncode == 0


def test_nothing_is_overwritten_and_no_name_leads_elsewhere(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine").mkdir()
    (folder / "mine/kept").touch()
    (folder / "link").symlink_to("nowhere")
    for name in ("mine", "link"):
        assert main(["new-provider", name, "--folder", str(folder)]) == 2
        assert "is there already" in capsys.readouterr().err
    for name in ("../other", ".", "a b", "ä", ""):
        with pytest.raises((InputError, SystemExit)):
            raise SystemExit(main(["new-provider", name, "--folder", str(folder)]))
    assert main(["new-provider", "mine", "--folder", str(folder / "missing")]) == 2
    assert sorted(path.name for path in folder.rglob("*")) == ["kept", "link", "mine"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_new_provider_is_a_valid_one_that_says_its_own_name(folder: Path, language: str) -> None:
    assert main(["new-provider", "my-Store_2", "--language", language, "--folder", str(folder), "--json"]) == 0
    provider = load_provider(str(folder), "my-Store_2")
    assert len(provider.actions) == 10
    assert [each.name for each in provider.parameters] == ["dir"]
    for path in (folder / "my-Store_2").iterdir():
        text = path.read_text(encoding="utf-8")
        assert "@NAME@" not in text
        assert "my-Store_2" in text or path.name not in ("lib.sh", "provider.py", "parameters.list")
