"""The documentation: what it says of errors, commands and names is what there is, and no link leads nowhere."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hvext
from hvext import errors
from hvext.cli.parser import whole_parser
from hvext.core.causes import hint_for
from tests.conftest import need
from tests.host.oracle import absent

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *(page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts)]
TROUBLE = DOCS / "troubleshooting.md"
CLASSES = [name for name, each in vars(errors).items() if inspect.isclass(each) and issubclass(each, errors.HvextError)]


def entries() -> dict[str, str]:
    """The entries of the page, by the error's name."""
    _, found = TROUBLE.read_text(encoding="utf-8").split("## By name\n")
    parts = re.split(r"^### (.+)\n", found, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub and MyST make them from its headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in found}


def test_every_error_that_a_user_can_meet_has_a_cause_and_a_cure() -> None:
    assert sorted(entries()) == sorted(CLASSES)
    for name, text in entries().items():
        cause, _, cure = text.partition("\n**Cure**: ")
        assert len(cause.split()) >= 5, name
        assert len(cure.split()) >= 5, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", text)):
        if target.startswith(("http://", "https://")):
            continue
        there = page.parent / target if target else page
        assert there.exists(), f"{page.name} links {target}"
        if anchor:
            assert anchor in headings(there), f"{page.name} links {target}#{anchor}"


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each call of hvext in the shell blocks of a page."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        for line in re.sub(r"\\\n\s*|\b2(?=>)", " ", block).splitlines():
            if not re.search(r"\bhvext [a-z]", line):
                continue
            words = shlex.shlex(line, posix=True, punctuation_chars=True)
            words.whitespace_split = True
            called: list[str] | None = None
            for word in [*words, ";"]:
                if called is not None and set(word) <= set("();<>|&"):
                    yield called
                    called = None
                elif word == "hvext" or word.endswith("bin/hvext"):
                    called = []
                # A variable in lower case holds words that are the same for several commands.
                elif called is not None and not re.fullmatch(r"\$[a-z]+", word):
                    called.append(word)


def test_every_command_that_is_shown_is_one_that_hvext_takes(capsys: pytest.CaptureFixture[str]) -> None:
    shown = [(page.name, words) for page in PAGES for words in commands(page)]
    assert len(shown) > 100
    parser = whole_parser()
    wrong = []
    for page, words in shown:
        if words[:2] in (["bench", "compare"], ["bench", "report"]):
            words = ["-".join(words[:2]), *words[2:]]
        try:
            parser.parse_args(words)
        except SystemExit:
            wrong.append(f"{page}: hvext {shlex.join(words)}: {capsys.readouterr().err}")
    assert not wrong, "\n".join(wrong)


def messages() -> Iterator[str]:
    """The parts of messages that the page lists as hvext's own."""
    _, text = TROUBLE.read_text(encoding="utf-8").split("In hvext's words:")
    for row in re.findall(r"^\| (`.*?`) \|", text.split("In the words of QEMU")[0], re.MULTILINE):
        for shown in re.findall(r"`([^`]+)`", row):
            yield from (part.strip() for part in shown.split("…") if part.strip())


def test_the_messages_of_the_page_are_those_that_hvext_prints() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "hvext").rglob("*.py")))
    source = re.sub(r'"\s*f?"', "", source)
    listed = list(messages())
    assert len(listed) > 20
    assert [text for text in listed if text not in source] == []


def test_the_words_of_client_libraries_on_the_page_are_those_that_get_a_hint() -> None:
    _, text = TROUBLE.read_text(encoding="utf-8").split("In the words of QEMU")
    rows = re.findall(r"^\| `([^`]+)` \((\w+)\) \|", text, re.MULTILINE)
    assert len(rows) >= 8
    assert [words for words, driver in rows if not hint_for(driver, words)] == []


def test_an_error_in_json_names_the_place_of_its_cure() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hvext", "provider", "nosuchprovider", "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    told = json.loads(done.stderr)
    assert told["man"] == "hvext-errors(7)"
    page, _, anchor = told["help"].partition("#")
    assert anchor == "providernotfound"
    assert Path(page) == ROOT / "docs/troubleshooting.md", "an absolute path: it is read from any folder"
    assert anchor in headings(Path(page))


def test_an_error_tells_a_person_where_its_cure_is() -> None:
    master, slave = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "hvext", "provider", "nosuchprovider"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=slave, check=False, timeout=60,
    )  # fmt: skip
    os.close(slave)
    said = os.read(master, 65536).decode().splitlines()
    os.close(master)
    assert done.returncode == 1
    assert said[-1] == f"see {ROOT}/docs/troubleshooting.md#providernotfound, or man hvext-errors"


def test_a_new_provider_is_told_where_the_page_is(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "hvext", "new-provider", "mine", "--folder", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.endswith(f" {ROOT}/docs/write-a-provider.md\n")


def test_whoever_has_a_package_and_no_checkout_reads_each_error_in_a_man_page(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "scripts/man-pages", str(tmp_path)], cwd=ROOT, check=True, timeout=120)
    page = tmp_path / "share/man/man7/hvext-errors.7"
    linted = subprocess.run(
        [need("mandoc", "mandoc"), "-T", "lint", "-W", "warning", str(page)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert linted.stdout + linted.stderr == ""
    shown = subprocess.run(
        [need("man", "man-db"), "-P", "cat", "-l", str(page)],
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "1000"},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    words = " ".join(shown.stdout.split())
    for name, text in entries().items():
        plain = re.sub(r"\[([^]]*)\]\(#[^)]*\)", r"\1", text).replace("**Cure**", "Cure")
        # A link to another page is its words and the page's name, or that alone.
        plain = re.sub(r"\[(?:URIs|failover|migration|recovery)\]\(([\w-]+\.md)[^)]*\)", r"\1", plain)
        plain = re.sub(r"\[([^]]*)\]\(([\w-]+\.md)[^)]*\)", r"\1 [\2]", plain)
        for part in plain.strip().split("\n\n"):
            assert " ".join(part.replace("`", "").split()) in words, name


def test_all_measured_data_can_be_found_from_the_pages() -> None:
    text = (DOCS / "data" / "index.md").read_text(encoding="utf-8")
    kept = [*(DOCS / "data").iterdir(), *(DOCS / "reports").iterdir()]
    assert [path.name for path in kept if path.suffix != ".md" and f"{path.name})" not in text] == []


@pytest.mark.nightly
def test_the_site_is_built_without_a_warning_and_has_every_name_command_and_datum(tmp_path: Path) -> None:
    if importlib.util.find_spec("sphinx") is None:
        absent("Sphinx is not installed (extra docs)")
    site = tmp_path / "site"
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-b", "html", "-E", "-W", "--keep-going", "-q", str(DOCS), str(site)],
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    names = (site / "reference-python.html").read_text(encoding="utf-8")
    assert [name for name in hvext.__all__ if f'id="hvext.{name}"' not in names] == []
    assert str(ROOT) not in names
    shown = (site / "reference-commands.html").read_text(encoding="utf-8")
    listed = re.findall(r"^    (\S+)", whole_parser().format_help().split("COMMAND\n")[1], re.MULTILINE)
    assert len(listed) > 20
    assert [name for name in listed if f'id="hvext-{name}"' not in shown] == []
    trouble = (site / "troubleshooting.html").read_text(encoding="utf-8")
    assert [name for name in CLASSES if f'id="{name.lower()}"' not in trouble] == []
    offered = {path.name for path in (site / "_downloads").rglob("*")}
    kept = [path for folder in ("data", "reports") for path in (DOCS / folder).iterdir() if path.suffix != ".md"]
    assert [path.name for path in kept if path.name not in offered] == []
