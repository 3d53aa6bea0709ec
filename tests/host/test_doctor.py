"""``hvext doctor`` on this host, and on hosts where something is wrong: the faults are in ``planted``."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hvext.cli import main
from hvext.core.finding import CHECKS, SUBJECTS, TRANSPORTS
from tests.conftest import need
from tests.host.planted import PLANTED, Place, Planted, unix_socket

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="faults are planted by root")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run(place: Place, arguments: list[str], *, planted: bool = True) -> Ended:
    """Call the doctor, in this process unless the place has a wrapper; without the fault where it is not planted."""
    words = ["doctor", *arguments]
    if planted and place.wrap:
        wrap = [need(place.wrap[0], "util-linux"), *place.wrap[1:]]
        ended = subprocess.run(
            [*wrap, sys.executable, "-m", "hvext", *words],
            env=without_agent({**os.environ, **place.environment}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=ROOT,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        for name, value in place.environment.items() if planted else ():
            patch.setenv(name, value)
        return Ended(main(words), out.getvalue(), err.getvalue())


def without_agent(variables: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name != "SSH_AUTH_SOCK"}


def findings(ended: Ended) -> list[dict[str, Any]]:
    assert ended.returncode in (0, 1), ended.stderr
    report = json.loads(ended.stdout)
    errors = [each["id"] for each in report["findings"] if each["severity"] == "error"]
    assert report["ready"] == (not errors) == (ended.returncode == 0)
    return list(report["findings"])


def matching(found: list[dict[str, Any]], planted: Planted) -> list[dict[str, Any]]:
    return [
        each for each in found if each["id"] == planted.check and re.search(planted.found, each["found"], re.DOTALL)
    ]


@pytest.fixture
def place() -> Iterator[Place]:
    """A place whose paths are short enough for sockets, and which every user gets to."""
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield Place(folder=path)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.plant.__name__)
def test_a_fault_of_the_host_is_found_with_its_cure(planted: Planted, place: Place) -> None:
    planted.plant(place)
    ended = run(place, ["--json", *place.arguments])
    hits = matching(findings(ended), planted)
    assert len(hits) == 1, ended.stdout
    (hit,) = hits
    assert hit["severity"] == planted.severity
    assert re.search(planted.cure, hit["cure"]), hit["cure"]
    assert hit["tried"]
    if planted.cures:
        subprocess.run(["sh", "-c", hit["cure"]], check=True, cwd="/")
        assert not matching(findings(run(place, ["--json", *place.arguments])), planted)


@dataclass(frozen=True, slots=True)
class Whole:
    """The whole examination of this host, with what it left in the folders that it was given."""

    ended: Ended
    left: frozenset[str]
    took_s: float


@pytest.fixture(scope="module")
def whole() -> Whole:
    """One for all tests: where a guest hangs in KVM, it takes seconds."""
    with tempfile.TemporaryDirectory(prefix="doctor-") as name:
        folder = Path(name)
        variables = {each: str(folder / each) for each in ("HVEXT_STATE_DIR", "HVEXT_RUNTIME_DIR")}
        began = time.monotonic()
        ended = run(Place(folder=folder, environment={**variables, "TMPDIR": name}), ["--json"])
        return Whole(ended, frozenset(map(str, folder.rglob("*"))), time.monotonic() - began)


@pytest.fixture(scope="module")
def healthy() -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """What the doctor says where nothing was planted, for each way in which it is asked."""
    return {}


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.plant.__name__)
def test_a_host_without_the_fault_has_no_such_finding(
    planted: Planted, place: Place, healthy: dict[tuple[str, ...], list[dict[str, Any]]], whole: Whole
) -> None:
    planted.plant(place)
    words = tuple(place.healthy or place.arguments)
    if set(words[::2]) == {"--only"}:
        found = findings(whole.ended)
    else:
        if words not in healthy:
            healthy[words] = findings(run(place, ["--json", *words], planted=False))
        found = healthy[words]
    assert not [hit for hit in matching(found, planted) if hit["severity"] == planted.severity]


def test_the_doctor_says_which_transports_work_here(place: Place) -> None:
    ended = run(place, ["--json", "--only", "qemu", "--uri", "nbd://127.0.0.1/x"])
    report = json.loads(ended.stdout)
    assert [(each["name"], each["ready"]) for each in report["transports"]] == [("nbd", True)]
    unix_socket(place.folder / "s")
    ended = run(place, ["--json", "--only", "qemu", "--only", "files", "--uri", f"vhost-user:{place.folder}/s"])
    (state,) = json.loads(ended.stdout)["transports"]
    assert not state["ready"]
    assert "stale" in state["why"]


def test_paths_without_loop_devices_are_ready_and_what_they_cannot_do_is_said(place: Place) -> None:
    place.devices("loop-control")
    report = json.loads(run(place, ["--json", "--only", "qemu", "--only", "loop"]).stdout)
    states = {each["name"]: each for each in report["transports"]}
    assert (states["path"]["ready"], states["nbd"]["why"]) == (True, "")
    assert "no loop devices (loop.control)" in states["path"]["why"]


def test_what_one_package_mends_is_one_block_for_people_and_a_finding_each_for_machines(place: Place) -> None:
    next(each for each in PLANTED if each.plant.__name__ == "driver_package_missing").plant(place)
    cure = "apt-get install qemu-block-extra"
    found = [each for each in findings(run(place, ["--json", *place.arguments])) if each["cure"] == cure]
    assert len(found) > 3
    # It is planted anew by each run.
    shutil.rmtree(place.folder / "modules")
    shown = run(place, place.arguments).stdout
    assert shown.count(cure) == 1
    block = shown[: shown.index(cure)].splitlines()[-len(found) - 2 :]
    assert [line.split(maxsplit=2)[2] for line in block[:-2]] == [each["found"] for each in found]
    assert block[-2].strip() == f"tried: {found[0]['tried']}"


def test_that_no_file_is_needed_says_whose_files_are_meant(place: Place) -> None:
    place.environment["HVEXT_STATE_DIR"] = str(place.folder)
    (only,) = findings(run(place, ["--json", "--only", "files"]))
    assert f"no --uri was given, and no disk in the journal ({place.folder}) needs a file here" in only["found"]


def test_one_check_that_fails_hides_none_of_the_others(place: Place) -> None:
    place.mounted("mount -t tmpfs -o ro tmpfs /var/tmp")
    found = findings(run(place, ["--json", "--only", "aio", "--only", "limits"]))
    assert [each["id"] for each in found] == ["aio.limit", "limits.nofile", "doctor.check"]


def test_the_whole_examination_is_quick_and_leaves_nothing(whole: Whole) -> None:
    assert {each["id"].partition(".")[0] for each in findings(whole.ended)} == set(SUBJECTS)
    assert [each["name"] for each in json.loads(whole.ended.stdout)["transports"]] == list(TRANSPORTS)
    assert not whole.left
    # A few seconds; the limit is for a machine with much else to do.
    assert whole.took_s < 45


def test_no_password_is_shown(place: Place) -> None:
    uri = "iscsi://user%grandmother@127.0.0.1:1/iqn.2026-01.example:t/1"
    for words in (["--json"], []):
        ended = run(place, [*words, "--only", "files", "--uri", uri, "--uri", "nbd://u:grandmother@h/x"])
        assert ended.returncode == 1
        assert "iscsi://user%***@" in ended.stdout
        assert "grandmother" not in ended.stdout + ended.stderr


def test_a_server_that_serves_one_connection_only_is_not_disturbed(place: Place) -> None:
    server = unix_socket(place.folder / "s", stale=False)
    with server:
        found = findings(run(place, ["--json", "--only", "files", "--uri", f"nbd+unix:///v?socket={place.folder}/s"]))
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
    assert [each["severity"] for each in found if each["id"] == "files.socket"] == ["ok"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--user", "nonesuch"], "no user 'nonesuch'"),
        (["--chroot", "/nonesuch"], "/nonesuch is no folder"),
        (["--only", "nonesuch"], "no subject 'nonesuch'"),
    ],
)
def test_a_wrong_question_is_refused_before_anything_is_looked_at(place: Place, words: list[str], said: str) -> None:
    ended = run(place, words)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert said in ended.stderr


def test_warnings_count_where_they_are_asked_for(place: Place) -> None:
    place.wrap = ["prlimit", "--nofile=512:4096", "--"]
    assert run(place, ["--only", "limits"]).returncode == 0
    ended = run(place, ["--only", "limits", "--strict"])
    assert ended.returncode == 1
    assert "NOT READY: 1 warning" in ended.stdout


def hanging_qemu(place: Place) -> str:
    """A program that writes down its process, and then says nothing for ever."""
    qemu = place.folder / "qemu"
    qemu.write_text("\n".join(("#!/bin/sh", f"cd {place.folder}", "echo $$ >new", "mv new pid", "exec sleep 1000", "")))
    qemu.chmod(0o755)
    return str(qemu)


def end_left(place: Place) -> bool:
    """Whether that program still ran; it does not afterwards."""
    pid = int((place.folder / "pid").read_text())
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


@pytest.mark.nightly
def test_a_qemu_that_hangs_is_given_up(place: Place) -> None:
    found = findings(run(place, ["--json", "--only", "qemu", "--qemu", hanging_qemu(place)]))
    assert "does not tell its version" in next(each["found"] for each in found if each["id"] == "qemu.binary")
    assert not end_left(place)


def test_ctrl_c_ends_what_the_doctor_has_started(place: Place) -> None:
    qemu = hanging_qemu(place)
    words = [sys.executable, "-m", "hvext", "doctor", "--only", "acceleration", "--qemu", qemu]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as doctor:
        while not (place.folder / "pid").exists():
            assert doctor.poll() is None
            time.sleep(0.02)
        doctor.send_signal(signal.SIGINT)
        doctor.communicate(timeout=30)
    assert doctor.returncode == 130
    assert not end_left(place)


# --- The page --------------------------------------------------------------------------------------------------------


def test_the_page_lists_every_check_as_the_code_has_it() -> None:
    page = (ROOT / "docs/doctor.md").read_text()
    rows = "".join(f"| `{each.id}` | {each.what} | {each.fault} |\n" for each in CHECKS.values())
    assert f"| check | what is looked at | what is wrong |\n|---|---|---|\n{rows}\n" in page


def test_the_list_of_checks_can_be_printed() -> None:
    ended = run(Place(folder=Path("/")), ["--list", "--json"])
    assert [each["id"] for each in json.loads(ended.stdout)] == list(CHECKS)
