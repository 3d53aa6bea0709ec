"""``--dry-run`` of the commands without a guest: what it says is what is done then, and until then nothing is."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hvext.cli import main
from hvext.cli.parser import whole_parser
from tests.providers import read_calls, write_provider
from tests.watching import wait_until

ROOT = Path(__file__).parents[2]
#: Commands that change nothing: of QEMU, of storage, of the journal, of files.
READS = {
    *("providers", "provider", "verify", "explain", "audit", "top", "bench-compare", "doctor", "capabilities"),
    "completion",
}
SCRIPTS = ("attach", "open", "close", "snapshot")


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a command."""

    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with a provider that writes down how it is called, and a journal that is not there yet."""

    folder: Path

    def run(self, *words: str, status: int | None = 0) -> Done:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            done = Done(main(self.argv(*words)), out.getvalue(), err.getvalue())
        assert status is None or done.status == status, done
        return done

    def argv(self, *words: str) -> list[str]:
        return [*words, *([] if words[0] == "new-provider" else ["--search-path", f"{self.folder}/providers"])]

    def plan(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--dry-run", "--json").stdout)

    def steps(self, *words: str) -> list[str]:
        """Do it, and return the names of the steps that were done."""
        log = self.folder / "log"
        self.run(*words, "--log-file", str(log))
        told = [json.loads(line) for line in log.read_text().splitlines()]
        log.unlink()
        return [each["step"] for each in told if each["event"] == "step"]

    def has(self) -> object:
        """Everything that there is, also the scripts that ran."""
        return sorted((str(path), path.lstat().st_mtime_ns) for path in self.folder.rglob("*"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name, folder in (("HVEXT_STATE_DIR", "state"), ("HVEXT_RUNTIME_DIR", "run"), ("HOME", "home")):
        monkeypatch.setenv(name, f"{tmp_path}/{folder}")
    monkeypatch.chdir(tmp_path)
    volume = tmp_path / "volume"
    volume.write_bytes(bytes(1 << 20))
    scripts = dict.fromkeys(SCRIPTS, "exit 0") | {"attach": f"printf '\\nkvm:file:{volume}\\n'"}
    write_provider(tmp_path / "providers", "fake", scripts, record=tmp_path / "calls")
    write_provider(tmp_path / "providers", "plain")
    return Place(tmp_path)


def commands() -> dict[str, argparse.ArgumentParser]:
    (choices,) = (a.choices for a in whole_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(choices)


def said_without() -> dict[str, str]:
    """What the documentation says of commands that change something and have no ``--dry-run``."""
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    _, _, table = text.partition("| without `--dry-run` |")
    rows = re.findall(r"^\| (`.*?) \| (.+) \|$", table.partition("\n\n")[0], re.M)
    return {name.replace(" ", "-"): why for names, why in rows for name in re.findall(r"`([a-z -]+)`", names)}


def test_each_command_that_changes_something_can_be_tried_first_or_the_page_says_why_not() -> None:
    made, without = commands(), said_without()
    have = {name for name, parser in made.items() if "--dry-run" in parser._option_string_actions}
    assert have | READS | set(without) == set(made)
    assert not have & READS
    assert not have & set(without)
    assert not READS & set(without)
    assert all(len(why) > 20 for why in without.values())


def test_each_command_that_has_it_has_a_function_of_its_own_for_it() -> None:
    for name, parser in commands().items():
        if "--dry-run" in parser._option_string_actions:
            module, _, function = parser.get_default("run").partition(":")
            assert callable(getattr(importlib.import_module(f"hvext.cli.dry_run.{module}"), function)), name


DISK = ("--disk", "provider=fake,volume=v")
COMMANDS = (
    ("create", "fake", "v", "--size", "1"),
    ("attach", "fake", "v"),
    ("open", "fake", "v", "--shared"),
    ("close", "fake", "v"),
    ("grow", "fake", "v", "--size", "1", "--new-size", "2"),
    ("setinfo", "fake", "v", "--metadata", "originstname+g"),
    ("snapshot", "fake", "v", "--snapshot-name", "s", "--snapshot-size", "1"),
    ("detach", "fake", "v"),
    ("args", *DISK, "--vm", "g"),
    ("stop", *DISK, "--vm", "g", "--close"),
    ("remove", "fake", "v"),
)


def test_what_is_said_is_what_is_done_and_until_then_nothing_is(place: Place) -> None:
    for words in COMMANDS:
        before = place.has()
        planned = place.plan(*words)
        assert place.has() == before, words
        done = place.steps(*words)
        assert [step["step"] for step in planned["steps"]] == done, words
        assert done, words
        # Each is undone by something, or it says that it is not.
        assert all(step["inverse"] or step["one_way"] for step in planned["steps"]), words
    ran = [call.action for call in read_calls(place.folder / "calls")]
    assert ran == ["create", "attach", "open", "open", "close", "grow", "setinfo", "snapshot", "detach", "attach",
                   "open", "close", "detach", "remove"]  # fmt: skip


REFUSED: tuple[tuple[str, ...], ...] = (
    ("create", "nope", "v", "--size", "1"),
    ("create", "fake", "v", "--size", "0"),
    ("attach", "fake", "v", "-p", "9=x"),
    ("grow", "fake", "v", "--size", "2", "--new-size", "1"),
    ("snapshot", "plain", "v", "--snapshot-name", "s", "--snapshot-size", "1"),
    ("args", "--disk", "provider=nope,volume=v"),
    ("args", *DISK, *DISK),
    ("args", *DISK, "--connect", "qemu:///system"),
    ("stop", "--disk", "provider=nope,volume=v"),
    ("recover", "--vm", "nobody"),
    ("watch", "--once", "--qmp-glob", "/nowhere/*"),
)


@pytest.mark.parametrize("words", REFUSED, ids=lambda words: " ".join(words[:3]))
def test_what_would_be_refused_is_refused_with_the_same_words(place: Place, words: tuple[str, ...]) -> None:
    tried, done = (place.run(*words, *more, status=None) for more in (("--dry-run",), ()))
    assert (tried.status, tried.stderr) == (done.status, done.stderr)
    assert tried.status in (1, 2)


def test_what_is_done_already_has_no_steps_and_says_why(place: Place) -> None:
    for words, why in (
        (("grow", "fake", "v", "--size", "1", "--new-size", "1"), "has that size"),
        (("open", "plain", "v"), "no open script"),
        (("close", "plain", "v"), "no close script"),
    ):
        plan = place.plan(*words)
        assert plan["steps"] == []
        assert why in plan["notes"][0]


def test_a_new_provider_is_said_file_by_file_and_not_written(place: Place) -> None:
    before = place.has()
    made, filled = place.plan("new-provider", "mine")["steps"]
    assert place.has() == before
    place.run("new-provider", "mine")
    assert made["step"] == f"make {place.folder}/mine"
    files = filled["step"].removeprefix("write ").split(", ")
    assert sorted(files) == sorted(path.name for path in (place.folder / "mine").iterdir())
    again = [place.run("new-provider", "mine", *more, status=2).stderr for more in (("--dry-run",), ())]
    assert again[0] == again[1]


def test_what_a_crash_left_is_said_and_left_until_it_is_recovered(place: Place) -> None:
    attach = place.folder / "providers/fake/attach"
    attach.write_text(attach.read_text() + "\nsleep 60\n")
    with subprocess.Popen([sys.executable, "-m", "hvext", *place.argv("args", *DISK, "--vm", "g")]) as starting:
        wait_until(lambda: bool(read_calls(place.folder / "calls", "attach")), "attach runs")
        time.sleep(0.2)
        starting.send_signal(signal.SIGKILL)
    before = place.has()
    (planned,) = place.plan("recover")
    assert place.has() == before
    assert [step["step"] for step in planned["steps"]] == place.steps("recover") == ["detach fake/v"]
    assert place.plan("recover") == []


def test_a_benchmark_that_would_destroy_data_says_so_before(place: Place) -> None:
    before = place.has()
    read = place.plan("bench", "fake", "v", "--quick")
    lost = place.plan("tune", "fake", "v", "--quick", "--destroy-data", "--span", "1M", "--out", "result.json")
    assert place.has() == before
    assert "only read" in read["notes"][0]
    assert "LOST" in lost["notes"][0]
    assert not any(step["one_way"] for step in read["steps"])
    assert next(step["step"] for step in lost["steps"] if step["one_way"]).endswith("1 MiB from the beginning")
    assert read["steps"][0]["step"] == "attach fake/v"
    assert read["steps"][-1]["step"] == "detach fake/v"
