"""The table in docs/sanity.md: what the kit says of each broken provider; ``python -m tests.sanity_page`` writes it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hvext.host.provider import ProviderHost
from hvext.sanity.check import Level, Outcome
from hvext.sanity.kit import CHECKS, Kit
from hvext.sanity.trial import Settings
from tests.broken_providers import BROKEN, PASSWORD, Broken, write_broken

PAGE = Path(__file__).parents[1] / "docs" / "sanity.md"
HEAD = "| what is done wrong | in | found by | what to change, as the kit says it |\n|---|---|---|---|\n"
_START = "<!-- written by python -m tests.sanity_page -->\n"
_END = "<!-- end -->\n"


@contextlib.contextmanager
def ground() -> Iterator[Path]:
    """A folder for a provider, with one for its volumes in it; all that serves these is taken down at the end."""
    folder = Path(tempfile.mkdtemp(prefix="sanity-", dir="/var/tmp"))
    (folder / "volumes").mkdir()
    try:
        yield folder
    finally:
        _end_processes(f"EXTP_DIR={folder}/volumes")
        listed = subprocess.run(
            ["losetup", "--noheadings", "--output", "NAME,BACK-FILE"], check=True, capture_output=True, text=True
        ).stdout
        for line in listed.splitlines():
            if str(folder) in line:
                subprocess.run(["losetup", "--detach", line.split()[0]], check=False)
        shutil.rmtree(folder)


def kit(folder: Path, name: str, level: Level, **parameters: str) -> Kit:
    """The kit for a provider in a folder of ``ground``."""
    given = {"dir": f"{folder}/volumes", **parameters}
    return Kit(ProviderHost(search_path=(str(folder),)), name, Settings(parameters=given), level=level)


def judged(broken: Broken) -> tuple[Outcome, tuple[Outcome, ...]]:
    """What comes of the check that has to find a fault, and of those that it needs."""
    with prepared(broken) as folder:
        return judged_in(folder, broken)


@contextlib.contextmanager
def prepared(broken: Broken) -> Iterator[Path]:
    """A ground with a broken provider.

    Make all that are judged side by side first: a program that is started while a script is being written inherits the
    open file for a moment, and nobody can run the script until it is closed (ETXTBSY).
    """
    with ground() as folder:
        write_broken(folder, broken)
        yield folder


def judged_in(folder: Path, broken: Broken) -> tuple[Outcome, tuple[Outcome, ...]]:
    """What comes of the check in a prepared ground."""
    wanted = next(check for check in CHECKS if check.name == broken.check)
    with kit(folder, broken.name, broken.level, password=PASSWORD) as trial:
        outcome = trial.outcome(wanted)
        return outcome, tuple(each for each in trial.outcomes if each is not outcome)


def row(broken: Broken, outcome: Outcome) -> str:
    """The line of a provider in the table."""
    cells = (broken.fault, f"`{outcome.check.script}`", f"`{outcome.check.name}`", outcome.cure)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def written() -> str:
    """What the page says now; empty when it has no such part."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    return text.partition(_START)[2].partition(_END)[0]


def main() -> None:
    """Run the kit against all providers and write the table."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_START)
    _, _, after = rest.partition(_END)
    rows = "".join(row(broken, judged(broken)[0]) for broken in BROKEN)
    PAGE.write_text(before + _START + HEAD + rows + _END + after, encoding="utf-8")


def _end_processes(marked: str) -> None:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if marked.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)


if __name__ == "__main__":
    main()
