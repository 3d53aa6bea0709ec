"""A real browser without a window: what it shows of a page, and how wide that is."""

from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

from tests.conftest import need

PHONE, TABLET, DESKTOP = (390, 844), (820, 1180), (1280, 900)
#: What a page tells the one around it, and one that shows it on a phone: a window itself cannot be that narrow.
_TELL = "<script>parent.postMessage(document.documentElement.scrollWidth + ' of ' + innerWidth, '*')</script></body>"
_AROUND = """<title>?</title><script>onmessage = event => {{ document.title = event.data }}</script>
<iframe src="measured.html" width="{}" height="{}" style="border: 0"></iframe>"""


class Page(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def all(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]


def chromium(page: Path, *arguments: str, size: tuple[int, int] = PHONE) -> str:
    """Open a page without a window; return what the browser prints."""
    program = need("chromium", "chromium")
    profile = page.with_suffix(".profile")
    words = "headless no-sandbox disable-gpu disable-quic no-first-run hide-scrollbars disable-background-networking"
    words += f" disable-component-update disable-sync user-data-dir={profile} window-size={size[0]},{size[1]}"
    argv = [program, *(f"--{word}" for word in words.split()), *arguments, page.as_uri()]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def pixels(page: Path, scheme: str, size: tuple[int, int]) -> dict[tuple[int, int, int], int]:
    """Return how often each colour is on the screen, ``light`` or ``dark``; the picture is kept beside the page."""
    from PIL import Image

    picture = page.with_name(f"{page.stem}-{scheme}-{size[0]}.png")
    chosen = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    chromium(page, chosen, f"--screenshot={picture}", size=size)
    with Image.open(picture) as opened:
        assert opened.size == size
        return {colour: count for count, colour in opened.convert("RGB").getcolors(1 << 24)}


def too_wide(text: str, folder: Path, size: tuple[int, int] = PHONE) -> int:
    """Return by how many pixels a page is wider than the screen."""
    folder.joinpath("measured.html").write_text(text.replace("</body>", _TELL), encoding="utf-8")
    page = folder / "around.html"
    page.write_text(_AROUND.format(*size), encoding="utf-8")
    found = re.search(
        r"<title>(\d+) of (\d+)</title>", chromium(page, "--dump-dom", size=(size[0] + 100, size[1] + 100))
    )
    assert found is not None
    assert int(found[2]) == size[0]
    return max(0, int(found[1]) - size[0])
