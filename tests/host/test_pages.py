"""Every block of every page is run, and prints what the page shows; those that are quick are run here."""

from __future__ import annotations

import ast

import pytest

from tests.pages.blocks import ROOT, Block, block, blocks, missing, pages
from tests.pages.run import run_session
from tests.pages.sessions import Session
from tests.pages.table import ELSEWHERE, NOT_RUN, QUICK, SESSIONS, WHOLE_PAGES

#: Words of several pages: not each of them has all.
SHARED = ("PROVIDER VOLUME", "--level guest", "--quick", "before.json after.json")


def accounted() -> list[Block]:
    """The blocks that the table has, each as often as it does."""
    found = [each for session in SESSIONS for each in session.all_blocks()]
    found += [block(page, beginning) for page, beginning in (*ELSEWHERE, *NOT_RUN)]
    return found + [each for page in WHOLE_PAGES for each in blocks(page)]


def test_every_block_of_every_page_is_run_by_a_test_or_says_why_it_is_not() -> None:
    there = [each.name for page in pages() for each in blocks(page)]
    assert len(there) > 90
    assert sorted(each.name for each in accounted()) == sorted(there)


def test_nothing_but_a_drawing_is_left_out_without_a_reason() -> None:
    commands = [(page, start) for page, start in NOT_RUN if block(page, start).language not in ("", "text")]
    assert len(commands) <= 1
    assert all(len(reason.split()) > 1 for reason in NOT_RUN.values())


@pytest.mark.parametrize("test", [*ELSEWHERE.values(), *WHOLE_PAGES.values()], ids=lambda test: test.split("::")[1])
def test_a_block_that_has_a_test_of_its_own_is_run_by_one_that_is_there(test: str) -> None:
    file, name = test.split("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}


def test_every_placeholder_that_the_table_replaces_is_on_the_page() -> None:
    for session in SESSIONS:
        text = "".join(each.text for each in session.all_blocks())
        for words in session.stands_for:
            assert words in text or words in SHARED, f"{session.name}: {words!r}"
        for start in (*session.within, *session.before):
            assert any(each.text.startswith(start) for each in session.all_blocks()), f"{session.name}: {start!r}"


def test_output_that_differs_from_the_page_is_noticed() -> None:
    printed = "a  1 MiB\nb /run/x/y.sock 7b0f4a39-6f0c-4d3c-9a51-1f4f0e2c8d11\n"
    assert missing("a 22 MiB\nb …/y.sock 00000000-6f0c-4d3c-9a51-1f4f0e2c8d11\n", printed) == []
    assert missing("a 22 MiB\n", printed, exact=True) == ["a 22 MiB"]
    assert missing("b …\na 1 MiB\n", printed) == ["a 1 MiB"]
    assert missing("c\n", printed) == ["c"]


@pytest.mark.parametrize("session", QUICK, ids=lambda session: session.name)
def test_the_blocks_of_a_page_do_what_it_says(session: Session) -> None:
    run_session(session)


def test_a_block_that_fails_is_named_by_page_and_line() -> None:
    session = Session(
        name="broken", blocks=(("docs/report.md", "hvext report "),), stands_for={"hvext report": "false"}
    )
    line = block("docs/report.md", "hvext report ").line
    with pytest.raises(AssertionError, match=f"^docs/report.md:{line}: status 1"):
        run_session(session)
