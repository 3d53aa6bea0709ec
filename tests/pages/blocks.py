"""The blocks of pages, and whether what a page shows is what was printed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NUMBER = re.compile(r"\d+(\\?[.,]\d+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block of a page. ``language`` is empty for drawings, and for output without commands before it."""

    page: str
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        """Where it is, for people."""
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """All pages of the repository, as paths from its root; none of what was installed or built."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("hvext/**/*.md"), *ROOT.glob("*/*.md")]
    names = {str(path.relative_to(ROOT)) for path in found}
    return sorted(name for name in names if "/_build/" not in name and not name.startswith("."))


def blocks(page: str) -> list[Block]:
    """The blocks of a page in order, without those that Sphinx carries out."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(
            page=page,
            line=text.count("\n", 0, found.start()) + 1,
            language=found["language"],
            text=re.sub(f"^{found['indent']}", "", found["text"], flags=re.MULTILINE),
        )
        for found in _FENCE.finditer(text)
        if not found["language"].startswith("{")
    ]


def block(page: str, beginning: str) -> Block:
    """The one block of a page that begins so; raises LookupError when there is none, or more than one."""
    found = [each for each in blocks(page) if each.text.startswith(beginning)]
    if len(found) != 1:
        raise LookupError(f"{page}: {len(found)} blocks begin with {beginning!r}")
    return found[0]


def missing(shown: str, printed: str, *, exact: bool = False) -> list[str]:
    """The lines that a page shows and that were not printed in this order.

    ``…`` stands for anything, blanks for any number of blanks; unless ``exact``, a number stands for any number, and a
    uuid for any uuid.
    """
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    pattern = _exactly if exact else _pattern
    absent = []
    for line in shown.splitlines():
        if line.strip() in ("", "…"):
            continue
        place = next((number for number, text in enumerate(lines) if re.fullmatch(pattern(line), text)), None)
        if place is None:
            absent.append(line)
        else:
            lines = lines[place + 1 :]
    return absent


def _exactly(shown: str) -> str:
    return re.escape(" ".join(shown.split())).replace("…", ".*")


def _pattern(shown: str) -> str:
    return _NUMBER.sub(lambda _: r"\d+([.,]\d+)*", _exactly(_UUID.sub("…", shown)))
