"""Real shells that complete hvext's command lines."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvext.cli import main
from hvext.cli.completion import NAMED_VALUES, NAMES, completion_script
from hvext.core.options import Cache, DiskOptions, option_names
from hvext.errors import ProgramError
from tests.conftest import need
from tests.providers import write_provider

SOON_S = 30.0
Complete = Callable[[str], set[str]]

#: Calls what the script has registered, as bash does when somebody presses the tabulator key: words end at "=" as well.
BASH = """
source "$1"
words=(${2//=/ = })
[[ $2 == *' ' ]] && words+=('')
COMP_WORDS=("${words[@]}") COMP_CWORD=$((${#words[@]} - 1)) COMP_LINE=$2 COMP_POINT=${#2} COMPREPLY=()
registered=$(complete -p hvext)
[[ $registered =~ -F\\ ([^ ]+) ]] && "${BASH_REMATCH[1]}" hvext
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = "source $argv[1]; complete --do-complete=$argv[2]"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files to complete, and ``hvext`` in its ``bin``, which finds the provider ``fancy``."""
    providers, programs = tmp_path / "providers", tmp_path / "bin"
    write_provider(providers, "fancy")
    programs.mkdir()
    program = programs / "hvext"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m hvext "$@" --search-path {providers}\n')
    program.chmod(0o755)
    (tmp_path / "answers").mkdir()
    (tmp_path / "answer.txt").touch()
    return tmp_path


@pytest.fixture(params=["bash", "zsh", "fish"])
def complete(request: pytest.FixtureRequest, folder: Path) -> Iterator[Complete]:
    """What a shell offers for a line, each in turn."""
    shell: str = request.param
    program = need(shell, shell)
    script = folder / "_hvext"
    script.write_text(completion_script(shell))

    def run(argv: list[str]) -> set[str]:
        done = subprocess.run(
            argv, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=SOON_S, check=False
        )
        assert not done.stderr
        return {line.split("\t")[0] for line in done.stdout.splitlines()}

    if shell == "bash":
        yield lambda line: run([program, "--norc", "-c", BASH, "bash", str(script), line])
    elif shell == "fish":
        yield lambda line: run([program, "--no-config", "-c", FISH, str(script), line])
    else:
        zsh = Zsh(program, folder)
        yield zsh.complete
        zsh.end()


def environment(folder: Path) -> dict[str, str]:
    path = f"{folder}/bin:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(folder), "TERM": "dumb", "LC_ALL": "C.UTF-8", "HVEXT_STATE_DIR": str(folder)}


class Zsh:
    """A zsh at a terminal: it completes nowhere else."""

    def __init__(self, program: str, folder: Path) -> None:
        self._lines = 0
        self._child, self._terminal = pty.fork()
        if self._child == 0:
            os.chdir(folder)
            os.execve(program, [program, "-f", "-i"], environment(folder))  # noqa: S606
        setup = f"PS1=; fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D; setopt no_beep list_ambiguous"
        listing = "LISTMAX=1000; zstyle ':completion:*' list-colors ''; zstyle ':completion:*:descriptions' format ''"
        line = f"{setup}; {listing}; bindkey '^I' list-choices; stty cols 400 -echo; print ready\n"
        os.write(self._terminal, line.encode())
        read_until(self._terminal, "\nready")

    def complete(self, line: str) -> set[str]:
        """Type a line, and return what is listed below it."""
        self._lines += 1
        # The mark at the end is shown when the list is there: the editor is busy until then. Ctrl-U empties the line.
        mark = f" END{self._lines}"
        os.write(self._terminal, f"\x15{line}\t{mark}".encode())
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", read_until(self._terminal, mark))
        below = shown.partition("\n")[2]
        return {each.partition(" -- ")[0].strip() for row in below.splitlines() for each in re.split(r"\s{2,}", row)}

    def end(self) -> None:
        os.kill(self._child, 9)
        os.waitpid(self._child, 0)
        os.close(self._terminal)


def read_until(terminal: int, mark: str) -> str:
    text, deadline = "", time.monotonic() + SOON_S
    while mark not in text:
        assert select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0], text
        text += os.read(terminal, 65536).decode(errors="replace")
    return text


def test_a_shell_completes_commands_options_choices_files_and_providers(complete: Complete) -> None:
    assert "plug" in complete("hvext pl")
    assert {"--access", "--action-timeout"} <= complete("hvext plug --ac")
    assert {"prefer-userspace", "userspace", "kernelspace"} <= complete("hvext plug --access ")
    assert "kernelspace" in complete("hvext plug --qmp answer.txt --access k")
    assert {"answers/", "answers"} & complete("hvext explain answ")
    assert "answer.txt" in complete("hvext plug --qmp answ")
    assert "answer.txt" not in complete("hvext new-provider --folder answ")
    assert "fancy" in complete("hvext plug ")
    assert "fancy" in complete("hvext provider fa")
    assert "fancy" not in complete("hvext plug fancy ")


def test_a_command_of_two_words_has_its_own_options_and_files(complete: Complete) -> None:
    assert {"compare", "report", "fancy"} <= complete("hvext bench ")
    assert "compare" in complete("hvext bench com")
    assert "compare" not in complete("hvext plug com")
    assert {"--destroy-data", "--html"} <= complete("hvext bench --")
    offered = complete("hvext bench compare --")
    assert "--json" in offered
    assert not {"--destroy-data", "--html", "--access"} & offered
    assert "answer.txt" in complete("hvext bench compare answ")
    assert "answer.txt" in complete("hvext bench compare answer.txt answ")
    assert "--html" in complete("hvext bench report --")
    assert "answer.txt" in complete("hvext bench report --html answ")
    assert "--json" in complete("hvext bench-compare --"), "the other spelling"
    assert "--destroy-data" in complete("hvext bench fancy --")


def test_a_disk_option_is_completed_by_its_name_and_then_by_its_value(complete: Complete) -> None:
    offered = complete("hvext plug -o ")
    assert {"cache=", "device=", "iops_total_max="} <= offered
    assert "cache=none" not in offered
    assert "cache=" in complete("hvext plug --option ca")
    assert {"none", "writeback"} <= values(complete("hvext plug -o cache="))
    offered = values(complete("hvext plug -o cache=write"))
    assert {"writeback", "writethrough"} <= offered
    assert "none" not in offered
    assert "scsi-hd" in values(complete("hvext bench fancy v -o cache=none -o device="))
    # What is behind it is completed as without it.
    assert "fancy" in complete("hvext plug -o cache=none ")


def values(offered: set[str]) -> set[str]:
    """Return what is behind the sign: bash and zsh show that alone."""
    return {each.rpartition("=")[2] for each in offered}


def test_what_is_completed_of_a_disk_option_is_taken() -> None:
    assert {name.rstrip("=") for name in NAMES} == set(option_names())
    for text in NAMED_VALUES:
        name, _, value = text.partition("=")
        beside = {"discard": "unmap"} if text == "detect_zeroes=unmap" else {}
        DiskOptions.from_mapping({name: value, **beside})
    assert {text.partition("=")[2] for text in NAMED_VALUES if text.startswith("cache=")} == set(Cache)


def test_without_the_library_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(ProgramError, match="shtab, which hvext completion needs, is not installed") as caught:
        completion_script("bash")
    assert "hvext[completion]" in caught.value.hint
    assert main(["completion", "bash"]) == 1, "the command itself is right"
