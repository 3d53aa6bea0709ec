"""What all shipped providers have to do alike, each on its real storage."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hvext.host.provider import ProviderHost
from tests.shipped import NAME, OWN, PROVIDERS, Place, has_pattern, qemu_io, without

#: In the default run, what takes its time is done on storage that is quick.
QUICK = ["sharedfile", "blockdev", *(pytest.param(slow, marks=pytest.mark.nightly) for slow in ("rbd", "iscsi"))]


def test_a_volume_lives_from_create_to_remove_and_leaves_nothing(place: Place) -> None:
    place.do("verify")
    place.create()
    ways = place.attach()
    for pattern, (written, read) in enumerate([(ways[0], ways[-1]), (ways[-1], ways[0])], 1):
        qemu_io(written, f"write -P {pattern} 0 64k")
        assert has_pattern(read, pattern)
    place.do("setinfo", variables={"VOL_METADATA": "originstname+web"})
    place.grow(24)
    assert [qemu_io(way, "length").strip() for way in ways] == ["24 MiB"] * len(ways)
    place.grow(24)
    for way in place.attach():
        assert qemu_io(way, "length").strip() == "24 MiB"
        assert has_pattern(way, 2)
    for action in ("detach", "detach", "remove", "remove"):
        place.do(action)


@pytest.mark.parametrize("place", QUICK, indirect=True)
def test_twenty_attaches_side_by_side_give_one_answer(place: Place) -> None:
    place.create()
    with ThreadPoolExecutor(20) as pool:
        answers = set(pool.map(lambda _: place.do("attach"), range(20)))
    assert len(answers) == 1
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda _: place.do("detach"), range(20)))
    place.do("remove")


@pytest.mark.parametrize("place", QUICK, indirect=True)
@pytest.mark.parametrize("times", [1, pytest.param(12, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("action", ["create", "attach", "grow", "setinfo", "detach", "remove"])
def test_an_action_that_was_killed_anywhere_is_finished_by_repeating_it(place: Place, action: str, times: int) -> None:
    given = {"create": {"VOL_SIZE": "16"}, "grow": {"VOL_SIZE": "16", "VOL_NEW_SIZE": "24"}}
    given["setinfo"] = {"VOL_METADATA": "originstname+web"}
    variables = given.get(action, {})
    for _time in range(times):
        delay_s = random.uniform(0.02, 0.3)  # noqa: S311
        if action != "create":
            place.create()
        else:
            place.prepare(NAME, 16)
        if action in ("grow", "detach"):
            place.attach()
        if action == "grow":
            place.enlarge(NAME, 24)
        process = place.start(action, NAME, variables, {})
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=delay_s)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        elif action == "create" and process.returncode == 0:
            place.do("remove")
        repeated = place.run(action, variables=variables)
        if action == "create" and "already" in repeated.err:
            # It was through, and killed before it could say so.
            place.do("remove")
            repeated = place.run(action, variables=variables)
        assert (repeated.status, repeated.err) == (0, "")
        if action != "remove":
            (*_, way) = place.attach()
            qemu_io(way, "write -P 7 0 64k")
            place.do("detach")
            place.do("remove")


ODD_NAMES = ("", "../x", "a/b", ".x", "-x", "a b", "a,b", "a\nb", "é", "a'b", "a%b", "x" * 181)


def test_a_name_that_storage_would_take_for_something_else_is_refused(place: Place) -> None:
    for number, name in enumerate(ODD_NAMES):
        action = ("create", "attach", "remove")[number % 3]
        assert "VOL_NAME" in place.refuse(action, name, variables={"VOL_SIZE": "16"})


@pytest.mark.nightly
def test_names_of_all_allowed_characters_and_lengths_are_volumes_of_their_own(rbd: Place, sharedfile: Place) -> None:
    for place in (rbd, sharedfile):
        names = ["Az09._+:=-z", "x" * 180]
        for name in names:
            place.create(name, 4)
        for number, name in enumerate(names):
            qemu_io(place.attach(name)[-1], f"write -P {number} 0 64k")
        for number, name in enumerate(names):
            for way in place.attach(name):
                assert has_pattern(way, number)
            place.do("detach", name)
            place.do("remove", name)


def test_sizes_that_are_none_or_would_lose_data_are_refused(place: Place) -> None:
    for size in ("", "0", "1.5", "999999999"):
        assert "VOL_SIZE" in place.refuse("create", variables={"VOL_SIZE": size})
    place.create()
    assert "VOL_NEW_SIZE" in place.refuse("grow", variables={"VOL_NEW_SIZE": "-1"})
    if place.provider in ("rbd", "sharedfile"):
        assert "would cut off data" in place.refuse("grow", variables={"VOL_NEW_SIZE": "8"})
        assert "find out which is right" in place.refuse("grow", variables={"VOL_SIZE": "17", "VOL_NEW_SIZE": "18"})
    else:
        assert "make it larger" in place.refuse("grow", variables={"VOL_SIZE": "16", "VOL_NEW_SIZE": "18"})
        assert "less than" in place.refuse("create", variables={"VOL_SIZE": "17"})
    place.do("remove")


@pytest.mark.parametrize("place", QUICK, indirect=True)
def test_a_misspelt_parameter_is_named_before_a_volume_is_made(place: Place) -> None:
    assert "unknown parameter 'colour'" in place.refuse("verify", colour="1")
    assert "unknown parameter 'colour'" in place.refuse("create", variables={"VOL_SIZE": "16"}, colour="1")
    place.create()
    place.attach(retired="yes", access="userspace")
    place.do("detach", retired="yes")
    place.do("remove", retired="yes")


@pytest.mark.parametrize("place", QUICK, indirect=True)
@pytest.mark.parametrize("copy", [True, False], ids=["copied", "linked"])
def test_a_provider_directory_works_alone_wherever_it_is_put(place: Place, copy: bool) -> None:
    alone = place.folder / "alone"
    if copy:
        shutil.copytree(place.scripts, alone, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        alone.symlink_to(place.scripts)
    place.create()
    first = place.do("attach")
    place.scripts = alone
    assert place.do("attach") == first
    assert not copy or not (alone / "__pycache__").exists()
    place.do("detach")
    place.do("remove")


@pytest.mark.parametrize(
    ("provider", "program", "package"), [("rbd", "rbd", "ceph-common"), ("iscsi", "qemu-img", "qemu-utils")]
)
def test_a_missing_tool_is_named_with_its_package(
    request: pytest.FixtureRequest, provider: str, program: str, package: str, tmp_path: Path
) -> None:
    place: Place = request.getfixturevalue(provider)
    place.path = without(tmp_path, program)
    words = place.refuse("verify")
    assert f"the program {program} is not installed; install the package {package}" in words


def test_the_file_that_all_have_is_the_same_in_all() -> None:
    assert len({(PROVIDERS / provider / "extstorage.py").read_bytes() for provider in OWN}) == 1


def test_hvext_finds_all_shipped_providers_valid_with_their_parameters() -> None:
    host = ProviderHost(search_path=[str(PROVIDERS)])
    assert {*OWN, "sample"} == set(host.names())
    for name in OWN:
        provider = host.find(name)
        lines = (PROVIDERS / name / "parameters.list").read_text().splitlines()
        assert [each.name for each in provider.parameters] == [line.split()[0] for line in lines]


def test_a_built_package_has_every_file_of_every_provider_and_they_can_be_run(tmp_path: Path) -> None:
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    argv = [sys.executable, "-c", build, str(tmp_path)]
    done = subprocess.run(argv, cwd=PROVIDERS.parents[1], check=True, capture_output=True, text=True)
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        packed = {entry.filename: entry.external_attr >> 16 & 0o111 for entry in wheel.infolist()}
    for path in filter(Path.is_file, PROVIDERS.glob("*/*")):
        assert packed[f"hvext/providers/{path.parent.name}/{path.name}"] == path.stat().st_mode & 0o111
