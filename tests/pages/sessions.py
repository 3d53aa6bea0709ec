"""Which blocks of which pages are run one after the other, on which ground; and the few that are not run, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.pages.blocks import Block, block
from tests.pages.grounds import FUNCTIONS

#: Behind it stands the number of a block, on a line of its own.
MARK = "=== block "


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Blocks that are run in one shell, as somebody would who reads the page.

    ``blocks`` are pages and how a block begins. A block of output is compared with what the block before it printed.
    ``stands_for`` says what words of the page are here, ``within`` what a block is put into (``BLOCK`` is where): a
    file, another language. ``before`` is shell in front of a block; an output that has some is compared with what that
    printed. ``says`` are patterns that have to be printed, ``after`` is shell that has to succeed.
    With ``answers`` status 1 is an answer, as it is of `hvext audit`; with ``exact`` the numbers that a page shows are
    those that are printed. ``needs`` are programs that a host may lack, with their Debian packages.
    """

    name: str
    blocks: tuple[tuple[str, str], ...]
    ground: str = ""
    stands_for: Mapping[str, str] = field(default_factory=dict)
    within: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, str] = field(default_factory=dict)
    says: tuple[str, ...] = ()
    after: str = ""
    answers: bool = False
    exact: bool = False
    timeout_s: float = 250.0
    needs: Mapping[str, str] = field(default_factory=dict)

    def script(self) -> tuple[str, list[Block]]:
        """The shell script, and the blocks that are run in it, in order."""
        run = [each for each in self.all_blocks() if not self.is_output(each) or self._of(self.before, each)]
        parts = [FUNCTIONS, "set -e\nset -o pipefail\n", self.ground]
        if self.answers:
            parts.append("set +e\ntrap 'status=$?; [ $status = 1 ] || exit $status' ERR\n")
        for number, each in enumerate(run):
            parts.append(f"echo '{MARK}{number}'\n{self._of(self.before, each)}{self._shell(each)}")
        parts.append(f"echo '{MARK}{len(run)}'\nset -e\n{self.after}")
        return "\n".join(parts), run

    def all_blocks(self) -> list[Block]:
        """The blocks; raises LookupError when a page does not have one."""
        return [block(page, beginning) for page, beginning in self.blocks]

    def shown(self, each: Block) -> str:
        """What a block says that is printed: all of an output, and what follows the command in one that has both."""
        if each.language == "" and each.text.startswith("$ "):
            return each.text.partition("\n")[2]
        return each.text if self.is_output(each) else ""

    def is_output(self, each: Block) -> bool:
        """Whether a block shows what was printed, and nothing that can be run."""
        return each.language in ("", "text") and not each.text.startswith("$ ") and not self._of(self.within, each)

    def _shell(self, each: Block) -> str:
        if self.is_output(each):
            return ""
        text = each.text
        if each.language == "" and text.startswith("$ "):
            text = text[2:].splitlines()[0] + "\n"
        if around := self._of(self.within, each):
            text = around.replace("BLOCK", text)
        elif each.language == "python":
            text = f"page-python <<'PYTHON'\n{text}PYTHON\n"
        for words, here in self.stands_for.items():
            text = text.replace(words, here)
        return text

    @staticmethod
    def _of(table: Mapping[str, str], each: Block) -> str:
        return next((text for start, text in table.items() if each.text.startswith(start)), "")
