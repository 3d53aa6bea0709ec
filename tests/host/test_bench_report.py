"""The page of a benchmark: whole in itself, and readable in a real browser, on a phone, in light and dark."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from hvext.bench import report
from hvext.bench.report import html_report
from hvext.bench.result import QEMU_IMG, Level, Result
from hvext.bench.verdict import judge
from tests.benching import BLOCK, NBD, VHOST, WORKLOADS, benchmark, chances
from tests.browser import PHONE, Page, pixels, too_wide

#: Colours of the page: the page's, the first and second other access's.
LIGHT = {"page": (0xF6, 0xF7, 0xF9), "nbd": (0x00, 0x72, 0xB2), "vhost-user": (0xD5, 0x5E, 0x00)}
DARK = {"page": (0x11, 0x16, 0x1D), "nbd": (0x56, 0xB4, 0xE9), "vhost-user": (0xFF, 0x90, 0x40)}


@pytest.fixture(scope="module")
def result() -> Result:
    return benchmark(
        chances(1),
        change=lambda access, _: (0.7 if access == "nbd" else 1, 0),
        cpu={"block": 20, "nbd": 15, "vhost-user": 20},
        accesses=(BLOCK, NBD, VHOST),
        workloads=(WORKLOADS[0], WORKLOADS[3]),
        places=((Level.HOST, ""), (Level.GUEST, "virtio-blk-pci")),
        bins=True,
    )


@pytest.fixture(scope="module")
def text(result: Result) -> str:
    return html_report(result, judge(result))


@pytest.mark.parametrize(("scheme", "colours"), [("light", LIGHT), ("dark", DARK)])
def test_a_phone_shows_the_page_with_its_plots(
    scheme: str, colours: Mapping[str, tuple[int, int, int]], text: str, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text(text, encoding="utf-8")
    counts = pixels(page, scheme, (PHONE[0], 3000))
    assert counts.get(colours["page"], 0) > 20_000, "the background of this scheme"
    # Bars are full of the colour of an access; the keys of the table have some hundred pixels of it.
    assert counts.get(colours["nbd"], 0) > 4_000
    assert counts.get(colours["vhost-user"], 0) > 4_000
    assert len(counts) > 200, "text"


def test_a_phone_need_not_scroll_sideways(text: str, tmp_path: Path) -> None:
    assert too_wide(text, tmp_path) == 0


def test_long_names_make_no_phone_scroll_sideways(tmp_path: Path) -> None:
    long = replace(NBD, name="nbd-over-a-very-long-name-of-an-access", words="nbd://" + "a" * 200)
    result = benchmark(chances(2), accesses=(BLOCK, long), workloads=WORKLOADS[:1], bins=True)
    result = replace(result, volume={**result.volume, "name": "v" * 120}, notes=("n" * 150,))
    assert too_wide(html_report(result, judge(result)), tmp_path) == 0


def test_the_page_needs_nothing_but_itself(text: str) -> None:
    page = Page(text)
    assert {"script", "link", "img", "iframe", "object", "base"}.isdisjoint(tag for tag, _ in page.tags)
    wanted = page.all("src") + page.all("href") + page.all("xlink:href")
    assert all(reference.startswith(("#", "data:")) for reference in wanted)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "DejaVu Sans'" not in text, "fonts of the machine that drew"


def test_names_within_the_page_are_unique_and_found(text: str) -> None:
    page = Page(text)
    names = page.all("id")
    assert len(names) == len(set(names))
    references = set(re.findall(r"url\(#([^)]+)\)", text)) | {name[1:] for name in page.all("xlink:href")}
    assert references
    assert references <= set(names)


def test_whoever_cannot_see_gets_the_figures(result: Result, text: str) -> None:
    labels = [attributes.get("aria-label", "") for tag, attributes in Page(text).tags if tag == "svg"]
    # On each of two places: differences, requests, CPU, and a distribution for each of two workloads.
    assert len(labels) == 10
    assert sum(label.startswith("Latency of ") and "p99" in label for label in labels) == 4
    assert all("nbd" in label and re.search(r"\d", label) for label in labels)
    headings = [tag for tag, _ in Page(text).tags if tag in ("h1", "h2", "h3")]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1


def test_the_recommendation_is_on_top(result: Result, text: str) -> None:
    verdict = judge(result)
    assert "access=userspace" in text
    assert text.index(verdict.reason) < text.index("<table>") < text.index("How it was compared")
    assert text.index("In a guest, virtio-blk-pci") < text.index("<h2>On the host"), "what decides comes first"


def test_no_caption_says_more_than_the_findings_of_the_table(text: str) -> None:
    caption = next(words for words in re.findall("<figcaption>([^<]*)", text) if "95 % intervals. One" in words)
    assert "may still be chance" in caption
    assert "an interval may leave out 0 where no difference is shown" in text


def test_the_data_in_the_page_say_the_same_again(result: Result, text: str) -> None:
    found = re.search(r'href="data:application/json;base64,([^"]+)"', text)
    assert found is not None
    again = Result.read(b64decode(found[1]).decode())
    assert judge(again).to_json() == judge(result).to_json()
    assert not again.runs[0].latency_bins()


def test_data_that_are_too_many_are_left_out(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MOST_DATA_BYTES", 1000)
    assert "base64" not in html_report(result, judge(result))


def test_names_are_text_and_no_markup() -> None:
    odd = replace(NBD, name='<b>$x$ & "y"</b>', words="<script>alert(1)</script>")
    result = benchmark(chances(3), accesses=(BLOCK, odd), workloads=WORKLOADS[:1], bins=True)
    text = html_report(result, judge(result))
    page = Page(text)
    assert {"b", "script"}.isdisjoint(tag for tag, _ in page.tags)
    assert "&lt;b&gt;$x$ &amp; " in text


def test_a_level_without_distributions_or_cpu_has_its_other_plots() -> None:
    result = benchmark(chances(4), workloads=WORKLOADS[:1])
    runs = tuple(
        replace(run, raw={QEMU_IMG: {"count": 1000 + run.round, "seconds": 1.0, "depth": 1, "block_bytes": 4096}})
        for run in result.runs
    )
    result = replace(result, runs=runs)
    page = Page(html_report(result, judge(result)))
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 2
    assert "Speed against block" in json.dumps(page.all("aria-label"))


def test_reading_a_result_loads_none_of_the_heavy_libraries() -> None:
    heavy = ("scipy", "numpy", "rich", "matplotlib", "asyncio")
    code = (
        "import sys, hvext.bench.result, hvext.bench.verdict, hvext.bench.terminal, hvext.bench.report;"
        "import hvext.bench.compare;"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
