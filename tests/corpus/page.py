"""The list of disagreements as a part of docs/uris.md; ``python -m tests.corpus.page`` writes it anew."""

from __future__ import annotations

from pathlib import Path

from tests.corpus.disagreements import DISAGREEMENTS, LIBVIRT, LIBVIRT_SCHEMA, Verdict
from tests.corpus.uris import CORPUS

PAGE = Path(__file__).parents[2] / "docs/uris.md"
_START, _END = "<!-- disagreements: written by tests/corpus/page.py -->\n", "<!-- end of disagreements -->\n"
_TITLE = "# Storage URIs"
_INTRODUCTION = (
    "### Where hvext and QEMU part",
    "",
    f"{len(CORPUS)} texts were given to QEMU as `-drive file=`, and as `blockdev-add` with the options that hvext",
    "makes of them; what the block drivers then asked of their client libraries was written down. Apart from these",
    "rows, hvext and each QEMU either both refuse a text or both open the same storage.",
    "",
)
_LIBVIRT = (
    "### Where hvext and libvirt part",
    "",
    "All that XML can say of these texts was given to libvirt 9.0 (`domxml-to-native`), and its node compared with",
    "hvext's. libvirt writes out what is the default anyway: the port in a URL, Gluster's debug level 4, and for a",
    "Ceph key the user `admin` and the ways to log in `cephx, none`. Its schema for XML is narrower than its parser,",
    "which is right about all of these rows but the first ones.",
    "",
    "| row | text | what libvirt says |",
    "|---|---|---|",
)
#: Characters of a URI in the table.
_SHOWN = 72


def section() -> str:
    """The tables, one for each verdict: the reason, then the texts that it is about."""
    texts = {row.id: row.uri for row in CORPUS}
    lines = [*_INTRODUCTION]
    for verdict in Verdict:
        reasons = dict.fromkeys(entry.why for entry in DISAGREEMENTS if entry.verdict is verdict)
        if reasons:
            lines += [f"#### {verdict}", ""]
        for why in reasons:
            lines += [why, "", "| row | text | QEMU |", "|---|---|---|"]
            releases: dict[str, list[str]] = {}
            for entry in DISAGREEMENTS:
                if entry.verdict is verdict and entry.why == why:
                    for row in entry.ids:
                        releases.setdefault(row, []).extend(entry.releases)
            lines += [f"| {row} | {_code(texts[row])} | {', '.join(which)} |" for row, which in releases.items()]
            lines.append("")
    lines += _LIBVIRT
    for row, why in {**LIBVIRT, **LIBVIRT_SCHEMA}.items():
        lines.append(f"| {row} | {_code(texts[row])} | {why} |")
    lines.append("")
    return "\n".join(lines)


def written() -> str:
    """What the page says now; empty when it has no such part."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    return text.partition(_START)[2].partition(_END)[0]


def main() -> None:
    """Write the part into the page, behind all else when it is not there yet."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else f"{_TITLE}\n\n"
    if _START not in text:
        text += _START + _END
    before, _, rest = text.partition(_START)
    _, _, after = rest.partition(_END)
    PAGE.write_text(before + _START + section() + _END + after, encoding="utf-8")


def _code(text: str) -> str:
    shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 20]}…{text[-10:]} ({len(text)} characters)"
    plain = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in shown)
    fence = "``" if "`" in plain else "`"
    # A blank at both ends is dropped in Markdown, one of them is not.
    pad = " " if fence == "``" or plain.strip() != plain else ""
    return f"{fence}{pad}{plain}{pad}{fence}".replace("|", "\\|")


if __name__ == "__main__":
    main()
