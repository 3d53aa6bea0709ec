"""The watch over the suite's secrets finds every one that is planted."""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.secrecy import SECRET_FOLDER, Secrecy, files_with_secrets, secrets_in, watching


@pytest.fixture
def planted() -> str:
    return f"planted/{secrets.token_hex(8)}=="


@pytest.mark.parametrize(
    "form", [str, lambda text: quote(text, safe=""), lambda text: base64.b64encode(text.encode()).decode(), json.dumps]
)
def test_a_secret_is_found_in_every_form(planted: str, form: Callable[[str], str]) -> None:
    assert secrets_in(f"x {form(planted)} y".encode(), [planted]) == [planted]
    assert secrets_in(b"x y", [planted]) == []


def test_a_secret_on_the_command_line_of_a_child_is_found(planted: str) -> None:
    with watching() as watch:
        subprocess.run([sys.executable, "-c", "pass", planted], check=True)
    # As it was started, and perhaps as it was seen running.
    found = watch.command_lines([planted])
    assert found
    assert all(planted in line for line in found)


def test_a_secret_on_the_command_line_of_a_grandchild_is_found(planted: str, tmp_path: Path) -> None:
    # A child's arguments are seen as it starts; here they do not have it.
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\nsleep 1 || echo {planted}\nexec sh -c 'sleep 1 && true' {planted}\n")
    script.chmod(0o755)
    with watching() as watch:
        subprocess.run([str(script)], check=True)
    assert any("sleep 1 && true" in found for found in watch.command_lines([planted]))


def test_a_secret_in_a_log_or_state_file_is_found(planted: str, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "attach.log").write_text(f"kvm:iscsi://u%{planted}@h/t/1\n")
    (tmp_path / SECRET_FOLDER).mkdir()
    (tmp_path / SECRET_FOLDER / "attach").write_text(planted)
    (tmp_path / "clean").write_text("nothing")
    assert files_with_secrets(tmp_path, [planted]) == [str(tmp_path / "logs" / "attach.log")]


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["one process", "worker"])
def test_a_secret_that_a_test_prints_fails_the_run(
    planted: str, pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    path = Path(__file__).parents[2]
    pytester.makeconftest(
        f"import sys; sys.path.insert(0, {str(path)!r})\n"
        "from tests.secrecy import Secrecy\n"
        "def pytest_configure(config): config.pluginmanager.register(Secrecy(), 'secrecy')\n"
    )
    pytester.makepyfile(
        "from tests.secrecy import remember\n"
        f"def test_it():\n    print('password is', remember({planted!r}))\n"
        "def test_other(tmp_path):\n"
        f"    (tmp_path / 'state.json').write_text({planted!r})\n"
    )
    result = pytester.runpytest_subprocess(*workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*what test_a_secret_*test_it printed*", "*state.json*"])


def test_the_watch_runs_over_this_very_suite(request: pytest.FixtureRequest) -> None:
    assert isinstance(request.config.pluginmanager.get_plugin("hvext-secrecy"), Secrecy)
