"""One session, run and judged."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tests.conftest import need
from tests.pages.blocks import missing
from tests.pages.machine import throwaway_machine
from tests.pages.sessions import MARK, Session


def run_session(
    session: Session, *, environment: Mapping[str, str] | None = None, files: Mapping[str, str] | None = None
) -> str:
    """Run the blocks of a session, and return all that they printed.

    ``files`` are there from the start, by their names: for secrets, which do not belong into the environment. Raises
    AssertionError with the page and the line where a block failed, or printed something else than is shown; skips the
    test where a program is missing.
    """
    for program, package in session.needs.items():
        need(program, package)
    script, run = session.script()
    with throwaway_machine() as machine:
        for name, text in (files or {}).items():
            (machine.here / name).write_text(text, encoding="utf-8")
        status, printed = machine.run(script, environment or {}, timeout_s=session.timeout_s)
    before, *parts = re.split(rf"^{MARK}\d+\n", printed, flags=re.MULTILINE)
    if status:
        at = run[len(parts) - 1].name if 0 < len(parts) <= len(run) else "what is before or after the blocks"
        raise AssertionError(f"{at}: status {status}\n{[before, *parts][-1][-6000:]}")
    outputs = {each.name: part for each, part in zip(run, parts, strict=False)}
    # Where status 1 is an answer, that of a program that broke down is none.
    wrong = [f"{session.name}: {line}" for line in printed.splitlines() if line.startswith("Traceback (most recent")]
    last = ""
    for each in session.all_blocks():
        last = outputs.get(each.name, last)
        wrong += [
            f"{each.name}: not printed: {line}" for line in missing(session.shown(each), last, exact=session.exact)
        ]
    wrong += [f"{session.name}: nothing like {words}" for words in session.says if not re.search(words, printed)]
    assert not wrong, "\n".join([*wrong, printed])
    return printed
