"""The conformance kit: every fault is found and named, nobody healthy is blamed, and nothing of others is touched."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import pytest

from hvext.core.answer import parse_answer
from hvext.core.provider import Action
from hvext.core.volume import Volume
from hvext.errors import InputError
from hvext.host.private import private_files
from hvext.host.provider import SHIPPED, ProviderHost
from hvext.sanity import storage
from hvext.sanity.check import Level, Verdict
from hvext.sanity.kit import CHECKS, Verdicts
from hvext.sanity.report import junit, summary
from tests.broken_providers import (
    BROKEN,
    HEALTHY,
    LATE,
    PARAMETERS,
    PASSWORD,
    Broken,
    write_broken,
    write_healthy,
)
from tests.conftest import need
from tests.host.oracle import absent
from tests.providers import write_provider
from tests.sanity_page import HEAD, ground, judged_in, kit, prepared, row, written
from tests.secrecy import new_secret, watching

SOON_S = 120.0
BY_NAME = {broken.name: broken for broken in BROKEN}
#: Killed scripts and 20 attaches at once take their time.
QUICK = [broken for broken in BROKEN if broken.level is not Level.STRESS]
SLOW = [broken for broken in BROKEN if broken.level is Level.STRESS]


@pytest.fixture(autouse=True)
def _tools() -> None:
    need("losetup", "mount")
    need("flock", "util-linux")
    need("qemu-io", "qemu-utils")
    if os.geteuid() != 0:
        absent("only root makes loop devices")


@pytest.fixture
def place() -> Iterator[Path]:
    with ground() as folder:
        yield folder


def run_all(folder: Path, name: str, level: Level, **parameters: str) -> Verdicts:
    with kit(folder, name, level, **parameters) as trial:
        return trial.run()


def failed(verdicts: Verdicts) -> list[tuple[str, str]]:
    return [(outcome.check.name, outcome.check.script) for outcome in verdicts.of(Verdict.FAILED)]


def found(broken: Broken, folder: Path) -> None:
    outcome, before = judged_in(folder, broken)
    assert [(each.check.name, each.words) for each in before if each.verdict is Verdict.FAILED] == []
    assert outcome.verdict is Verdict.FAILED, outcome.words
    assert outcome.check.script == broken.script
    assert outcome.cure
    assert row(broken, outcome) in written(), "docs/sanity.md: python -m tests.sanity_page writes the table anew"
    for run in outcome.runs:
        assert PASSWORD not in json.dumps(run.to_json())


# --- Broken and healthy providers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("some", [QUICK[start::4] for start in range(4)], ids=["1", "2", "3", "4"])
def test_every_fault_is_found_by_its_check_with_what_to_change(some: list[Broken]) -> None:
    with contextlib.ExitStack() as grounds, ThreadPoolExecutor(2) as pool:
        places = [(broken, grounds.enter_context(prepared(broken))) for broken in some]
        for broken, future in [(broken, pool.submit(found, broken, folder)) for broken, folder in places]:
            try:
                future.result()
            except AssertionError as error:
                raise AssertionError(f"{broken.name}: {error}") from error


@pytest.mark.nightly
@pytest.mark.parametrize("broken", SLOW, ids=lambda broken: broken.name)
def test_a_fault_that_shows_under_stress_is_found(broken: Broken) -> None:
    with prepared(broken) as folder:
        found(broken, folder)


@pytest.mark.parametrize("name", ["noise", "detach-all", "cut-at-dot"])
def test_one_fault_is_one_failure_and_all_else_is_checked(place: Path, name: str) -> None:
    broken = BY_NAME[name]
    write_broken(place, broken)
    verdicts = run_all(place, name, broken.level, password=PASSWORD)
    assert failed(verdicts) == [(broken.check, broken.script)]
    assert len(verdicts.outcomes) == len([check for check in CHECKS if broken.level.has(check.level)])


@pytest.mark.nightly
@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_one_fault_is_one_failure_at_the_highest_level(place: Path, broken: Broken) -> None:
    write_broken(place, broken)
    assert failed(run_all(place, broken.name, Level.STRESS, password=PASSWORD)) == [(broken.check, broken.script)]


def test_a_healthy_provider_is_blamed_for_nothing_and_leaves_nothing(place: Path) -> None:
    write_healthy(place)
    verdicts = run_all(place, "healthy", Level.STRESS, password=PASSWORD)
    assert failed(verdicts) == []
    assert verdicts.left == ()
    skipped = {outcome.check.name: outcome.words for outcome in verdicts.of(Verdict.SKIPPED)}
    assert set(skipped) == {"open", "open-shared", "close", "close-fence", "killed-open", "killed-close"}
    assert skipped["open"] == "it needs an open script"
    assert [path.name for path in (place / "volumes").iterdir()] == ["lock"]


def test_the_sample_provider_keeps_the_contract(place: Path) -> None:
    _sample(place, Level.CONTRACT)


@pytest.mark.nightly
def test_the_sample_provider_keeps_the_contract_under_stress(place: Path) -> None:
    _sample(place, Level.STRESS)


def _sample(place: Path, level: Level) -> None:
    need("qemu-storage-daemon", "qemu-system-common")
    (place / "sample").symlink_to(f"{SHIPPED}/sample")
    verdicts = run_all(place, "sample", level, run=f"{place}/run")
    assert failed(verdicts) == []
    assert verdicts.left == ()
    assert {outcome.check.name for outcome in verdicts.of(Verdict.SKIPPED)} == {"secrets-argv", "secrets-output"}


def test_a_server_that_is_late_is_blamed_on_attach_and_on_no_name(place: Path) -> None:
    write_provider(place, "late", {**HEALTHY, **LATE}, PARAMETERS)
    # What is left after a detach is the business of a check of its own; without it, it shows among the names.
    result = json.loads(hvext(place, "late", "--level", "contract", "--skip", "detach-leaves-nothing", "--json").stdout)
    found = {check["name"]: (check["verdict"], check["words"]) for check in result["checks"]}
    assert found["attach-uri"][0] == "failed"
    assert found["name-ganeti"] == ("skipped", "because attach-uri failed")


def test_a_detach_that_waits_for_whoever_uses_the_volume_is_right_and_gets_its_end(place: Path) -> None:
    write_healthy(place)
    with kit(place, "healthy", Level.DATA) as trial:
        outcome = trial.outcome(next(check for check in CHECKS if check.name == "detach-in-use"))
        assert outcome.verdict is Verdict.PASSED, outcome.words
        assert trial.trial.notes == ["detach of a volume in use waits until nobody has it open (path)"]
        assert trial.trial.watch.of() == ()


def test_the_page_has_a_row_for_every_broken_provider() -> None:
    assert len(BROKEN) >= 25
    assert written().startswith(HEAD)
    lines = written().removeprefix(HEAD).splitlines()
    assert [line.split(" | ")[0] for line in lines] == [f"| {broken.fault}" for broken in BROKEN]


# --- What it may and may not do --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unquoted", pytest.param("remove-all", marks=pytest.mark.nightly)])
def test_no_volume_of_anybody_else_is_touched(place: Path, name: str) -> None:
    write_healthy(place)
    if name in BY_NAME:
        write_broken(place, BY_NAME[name])
    host = ProviderHost(search_path=(str(place),))
    uuid_of_mine = uuid.UUID("0a1b2c3d-0000-4000-8000-00000000000f")
    mine = Volume(name=f"{uuid_of_mine}.ext.disk0", uuid=uuid_of_mine, parameters={"dir": f"{place}/volumes"})
    host.run(host.find("healthy"), Action.CREATE, mine, size_mib=4)
    bytes_of_mine = place / "volumes" / mine.name
    bytes_of_mine.write_bytes(b"mine" * 1024)
    before = (bytes_of_mine.stat().st_ino, bytes_of_mine.stat().st_mtime_ns)
    with kit(place, name, Level.CONTRACT) as running:
        running.run()
        words = [word for run in running.trial.runs for word in run.volume.split()]
    assert all(running.trial.token in word for word in words), "what a shell makes of a name may be somebody's"
    assert bytes_of_mine.read_bytes() == b"mine" * 1024
    assert (bytes_of_mine.stat().st_ino, bytes_of_mine.stat().st_mtime_ns) == before


ADOPTING = {
    "create": '[ -b "$EXTP_PATH" ]',
    "attach": 'echo "$EXTP_PATH"',
    "grow": '[ $(($(blockdev --getsize64 "$EXTP_PATH") >> 20)) -ge "$VOL_NEW_SIZE" ]',
    "verify": "! env | grep -q EXTP_HVSANITY",
}


def test_a_provider_that_makes_no_storage_is_given_places_that_are_there(place: Path) -> None:
    write_provider(place, "adopting", ADOPTING, "path the device\ndir not used\n")
    words = ["adopting", "--level", "contract", "--json"]
    for number in range(2):
        image = place / f"image{number}"
        image.write_bytes(b"")
        os.truncate(image, 80 << 20)
        argv = ["losetup", "--find", "--show", str(image)]
        device = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
        words += ["--place", f"path={device}"]
    result = json.loads(hvext(place, *words).stdout)
    verdicts = {check["name"]: (check["verdict"], check["words"]) for check in result["checks"]}
    assert [name for name, (verdict, _words) in verdicts.items() if verdict == "failed"] == []
    assert verdicts["two-volumes"][0] == verdicts["grow"][0] == "passed"
    assert verdicts["attach-unknown"] == (
        "skipped",
        "it needs a create that makes volumes: those of --place are there before",
    )
    assert verdicts["name-ganeti"] == (
        "skipped",
        "it takes more volumes at a time than there are places (--place): 2",
    )


def test_what_another_provider_cannot_clean_up_is_told(place: Path) -> None:
    write_broken(place, BY_NAME["leak"])
    verdicts = run_all(place, "leak", Level.CONTRACT, password=PASSWORD)
    assert failed(verdicts) == [("detach-leaves-nothing", "detach")]
    assert any(words.startswith("the device /dev/loop") for words in verdicts.left)
    assert "LEFT BEHIND" in summary(verdicts)


def test_new_files_in_a_watched_folder_are_left_over_and_what_is_skipped_is_shown(place: Path) -> None:
    healthy = write_healthy(place)
    (healthy / "setinfo").write_text(f"#!/bin/sh\necho x >{place}/watched/cache\n")
    (place / "watched").mkdir()
    words = ["--level", "contract", "--watch", f"{place}/watched", "--skip", "verify-unknown", "--json"]
    done = hvext(place, "healthy", *words)
    assert done.returncode == 1
    result = json.loads(done.stdout)
    checks = {check["name"]: check for check in result["checks"]}
    assert checks["leftovers"]["verdict"] == "failed"
    assert f"{place}/watched/cache" in checks["leftovers"]["words"]
    assert (checks["verify-unknown"]["verdict"], checks["verify-unknown"]["words"]) == ("skipped", "asked for")
    assert result["failed"] == 1
    assert result["times_s"]["attach"]["runs"] > 10


def test_a_parameter_that_is_a_secret_is_in_no_evidence_and_no_report(place: Path) -> None:
    write_broken(place, BY_NAME["password-printed"])
    verdicts = run_all(place, "password-printed", Level.CONTRACT, password=PASSWORD)
    assert failed(verdicts) == [("secrets-output", "grow")]
    for text in (summary(verdicts), junit(verdicts), json.dumps(verdicts.to_json())):
        assert PASSWORD not in text


class _Storage(BaseHTTPRequestHandler):
    """A web server with a volume of 1 MiB, for those who know the password."""

    asked: ClassVar[list[str | None]] = []

    def do_HEAD(self) -> None:
        self.asked.append(self.headers["Authorization"])
        self.send_response(200 if self.asked[-1] else 401)
        self.send_header("WWW-Authenticate", "Basic")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(1 << 20))
        self.end_headers()

    def log_message(self, *_words: object) -> None:
        pass


def test_the_password_in_a_uri_reaches_qemu_and_no_command_line() -> None:
    need("/usr/lib/x86_64-linux-gnu/qemu/block-curl.so", "qemu-block-extra")
    password = new_secret()
    with HTTPServer(("127.0.0.1", 0), _Storage) as server, watching() as watch:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        offered = f"\nkvm:http://me:{password}@127.0.0.1:{server.server_port}/volume"
        (way,) = storage.ways(parse_answer(offered.encode()))[0]
        assert storage.size_mib(way) == 1
        assert password not in way.words
        assert watch.command_lines([password]) == []
        server.shutdown()
    assert base64.b64encode(f"me:{password}".encode()).decode() in str(_Storage.asked[-1])
    assert not [name for name in private_files() if name.startswith("sanity-")]


# --- The command -----------------------------------------------------------------------------------------------------


def hvext(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "hvext", "sanity", *words]
    argv += ["--search-path", str(place), "-p", f"dir={place}/volumes"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=SOON_S, check=False)


@pytest.mark.parametrize(
    ("script", "happened", "change"),
    [
        ("#!/bin/sh\r\nexit 0\r\n", "its first line is '#!/bin/sh", "have lines end with a line feed alone"),
        ("#!/bin/sh\nsleep 60\n", "was ended after its limit of 0.5 s", "have it end: a program in it waits"),
    ],
    ids=["crlf", "hangs"],
)
def test_a_script_that_does_not_begin_or_end_is_told_what_keeps_it_from_that(
    place: Path, script: str, happened: str, change: str
) -> None:
    provider = write_healthy(place)
    (provider / "create").write_bytes(script.encode())
    done = hvext(place, "healthy", "--level", "contract", "--timeout", "0.5")
    said = " ".join(done.stdout.split())
    assert (done.returncode, "FAIL create" in said) == (1, True)
    assert happened in said
    assert f"in create: {change}" in said or change in said
    # It is not tried with each variable that it could miss.
    assert said.count("run ") < 20


def test_the_command_says_what_to_change_and_writes_junit(place: Path) -> None:
    write_broken(place, BY_NAME["relative-path"])
    done = hvext(place, "relative-path", "--level", "contract", "--junit", f"{place}/result.xml")
    assert done.returncode == 1, done.stderr
    assert "FAIL  attach-answer" in done.stdout
    assert "what to change" in done.stdout
    assert "in attach: the path must be absolute: print /dev/ before the name" in " ".join(done.stdout.split())
    assert "exit status 0" in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("skip")]
    told = [line for line in lines if line.endswith(" checks: because attach-answer failed; --verbose lists them")]
    assert len(told) == 1
    assert "because attach-answer failed" not in done.stdout.replace(told[0], "")
    suite = ElementTree.parse(place / "result.xml").getroot()[0]  # noqa: S314
    assert suite.attrib["failures"] == "1"
    cases = {case.attrib["name"]: case for case in suite.iter("testcase")}
    assert len(cases) == len([check for check in CHECKS if check.level is Level.CONTRACT])
    failure = cases["attach-answer"].find("failure")
    assert failure is not None
    assert "relative-path/attach" in (failure.text or "")
    skipped = cases["detach"].find("skipped")
    assert skipped is not None
    assert skipped.attrib["message"] == "because attach-answer failed"
    of_each = hvext(place, "relative-path", "--level", "contract", "--verbose").stdout
    assert of_each.count("because attach-answer failed") == int(told[0].split()[1])


@pytest.mark.parametrize(
    ("words", "status"),
    [(["no-such"], 1), (["healthy", "--skip", "no-such"], 2), (["healthy", "--size", "0"], 2), ([], 2)],
)
def test_wrong_use_is_told_and_runs_nothing(place: Path, words: list[str], status: int) -> None:
    write_healthy(place)
    done = hvext(place, *words)
    assert done.returncode == status
    assert done.stderr.startswith("hvext: ")
    assert not list((place / "volumes").iterdir())


@pytest.mark.parametrize("words", [["-p", "dri=/x"], ["--place", "path=/x", "--place", "dri=/x"]])
def test_a_misspelt_parameter_is_no_fault_of_the_provider_and_makes_no_volume(place: Path, words: list[str]) -> None:
    write_healthy(place)
    if words[0] == "--place":
        with (place / "healthy/parameters.list").open("a") as file:
            file.write("path what there is\n")
    done = hvext(place, "healthy", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("hvext: provider 'healthy' has no parameter 'dri'; did you mean dir?\n")
    assert not list((place / "volumes").iterdir())


def test_the_list_names_every_check_with_the_place_where_its_rule_stands(place: Path) -> None:
    done = hvext(place, "--list", "--level", "stress", "--json")
    rows = json.loads(done.stdout)
    assert [each["name"] for each in rows] == [check.name for check in CHECKS]
    assert all(each["source"] and each["says"] for each in rows)
    names = [each["name"] for each in rows]
    assert all(set(each["after"]) <= set(names[: names.index(each["name"])]) for each in rows)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_volumes_are_removed_when_the_command_is_interrupted(place: Path, number: signal.Signals) -> None:
    healthy = write_healthy(place)
    attach = (healthy / "attach").read_text()
    (healthy / "attach").write_text(attach + f"touch {place}/attached\nsleep 30\n")
    words = ["sanity", "healthy", "--search-path", str(place), "-p", f"dir={place}/volumes", "--log-dir", "none"]
    running = subprocess.Popen(
        [sys.executable, "-m", "hvext", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        deadline = time.monotonic() + SOON_S
        while not (place / "attached").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        running.send_signal(number)
        printed = running.communicate(timeout=SOON_S)[0]
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130, printed
    assert [path.name for path in (place / "volumes").iterdir()] == ["lock"]
    assert str(place) not in subprocess.run(["losetup", "--list"], capture_output=True, text=True, check=True).stdout


def test_a_provider_that_is_not_there_is_no_verdict() -> None:
    with pytest.raises(InputError, match="no provider"):
        kit(Path("/nowhere"), "none", Level.CONTRACT)


# --- The pytest plug-in ----------------------------------------------------------------------------------------------


def test_an_authors_own_suite_has_a_test_for_each_check(place: Path, pytester: pytest.Pytester) -> None:
    write_broken(place, BY_NAME["crlf"])
    pytester.makepyfile("def test_of_the_authors_own():\n    pass\n")
    result = pytester.runpytest_subprocess(
        "-p", "hvext-sanity", "--extstorage-provider", "crlf", "--extstorage-search-path", str(place),
        "--extstorage-parameter", f"dir={place}/volumes", "--extstorage-level", "contract",
        "-k", "authors or answer or setinfo or close",
    )  # fmt: skip
    result.assert_outcomes(passed=2, failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*FAIL  attach-answer: *", "*what to change*"])
    assert [path.name for path in (place / "volumes").iterdir()] == ["lock"]


def test_the_plug_in_does_nothing_unless_a_provider_is_named(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_of_the_authors_own():\n    pass\n")
    result = pytester.runpytest_subprocess("-p", "hvext-sanity", "-v")
    result.assert_outcomes(passed=1)
