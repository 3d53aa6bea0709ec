"""The frame of a page that needs nothing else: no script, no other file, no network."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

#: Colours in light and dark, and how text stands; each page adds its own.
_STYLE = """\
:root {
  --page: #f6f7f9; --card: #fff; --text: #16202c; --muted: #566373; --line: #d5dbe3; --accent: #0b5cad;
  --good: #0a6b4a; --bad: #a8381b; --good-back: #e2f3ec; --bad-back: #fbe9e3; --plain-back: #eceff3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #11161d; --card: #1a212b; --text: #e8edf3; --muted: #9fadbd; --line: #364252; --accent: #7cbcf5;
    --good: #63d3a6; --bad: #ff9f7f; --good-back: #143529; --bad-back: #44241b; --plain-back: #273140;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 78rem; margin: 0 auto; padding: 1.25rem 1rem 3rem; }
h1, h2, h3 { line-height: 1.25; text-wrap: balance; overflow-wrap: anywhere; }
p { margin: 0 0 .6rem; overflow-wrap: anywhere; }
thead th { color: var(--muted); font-weight: 600; border-bottom: 1px solid var(--line); }
dt { color: var(--muted); }
"""


def document(title: str, style: str, parts: Iterable[str]) -> str:
    """Return a page in HTML; ``title`` is text, ``style`` CSS, ``parts`` are HTML, and empty ones are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )
