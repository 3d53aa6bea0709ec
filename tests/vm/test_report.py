"""The page of a host: what is drawn is what is there, and a phone shows it, in light and dark."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hvext.core.disk import Disk
from hvext.operations.vm import open_vm
from tests.browser import DESKTOP, PHONE, TABLET, Page, pixels, too_wide

if TYPE_CHECKING:
    from tests.vm.conftest import MachineFactory, Storage

pytestmark = pytest.mark.vm
#: The page's colour.
LIGHT, DARK = (0xF6, 0xF7, 0xF9), (0x11, 0x16, 0x1D)


def hvext(*words: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "hvext", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def page(machine: MachineFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path) -> Path:
    """A VM with two disks, of which one was moved and one refused."""
    vm_machine = machine(start_paused=True, scsi_controllers=1)
    moved, other = create("moved", iops_total=100), create("other", device="scsi-hd")
    with open_vm(str(vm_machine.qmp_path), host=storage.host) as vm:
        vm.plug(moved)
        vm.plug(other)
        vm.repoint(moved.volume.uuid, storage.paths(moved)[0])
        vm.resize(moved, 128)
    there = tmp_path / "page.html"
    done = hvext("report", "--html", there, "--places", "--search-path", ":".join(storage.host.search_path))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("the page is in ")
    return there


def test_the_page_shows_each_disk_with_its_nodes_and_places_and_what_was_done_to_it(page: Path) -> None:
    text = page.read_text()
    assert "<h3>sample/other</h3>" in text
    graphs = text.split('<div class="graph">')[1:]
    assert len(graphs) == 2
    moved = next(graph for graph in graphs if "throttle" in graph)
    boxes = re.findall(r'<div class="box([^"]*)"><b>([^<]*)', moved)
    assert [(kind, title.strip()) for kind, title in boxes] == [
        ("", "guest device"),
        ("", "limits"),
        ("", "stays on a move"),
        (" in-use", "storage in use"),
        (" other", "could be at"),
    ]
    assert re.search(r'in-use"><b>storage in use <span class="badge kernelspace">.*/dev/loop', moved)
    assert re.search(r'could be at <span class="badge good">healthy</span></b><span>userspace</span><code>nbd', moved)
    marks = re.findall(r'<span class="mark ([^"]*)" style="left:([\d.]+)%" title="([a-z]+),', text)
    assert sorted(what for _, _, what in marks) == ["grow", "move", "plug", "plug"]
    assert all(how == "done" and 0 <= float(left) <= 100 for how, left, _ in marks)
    assert Page(text).all("src") == Page(text).all("href") == []


def test_a_browser_shows_the_page_in_light_and_dark_without_scrolling_sideways(page: Path) -> None:
    for size in (PHONE, TABLET, DESKTOP):
        for scheme, colour in (("light", LIGHT), ("dark", DARK)):
            counts = pixels(page, scheme, (size[0], 2400))
            assert counts[colour] > 10000, (size, scheme)
            assert len(counts) > 20, (size, scheme)
        assert too_wide(page.read_text(), page.parent, size) == 0, size


def test_a_report_without_a_vm_says_so_and_wrong_words_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HVEXT_STATE_DIR", str(tmp_path / "state"))
    page = tmp_path / "page.html"
    done = hvext("report", "--html", page)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines()[-1] == f"the page is in {page}"
    assert "No VM of this host has a disk" in page.read_text()
    page.unlink()
    for words, complaint in (
        (("--vm", "none"), "has no VM 'none'"),
        (("--bench", tmp_path / "none.json"), "cannot read"),
        (("--bench", __file__), "test_report.py"),
    ):
        done = hvext("report", "--html", page, *words)
        assert done.returncode == 2
        assert complaint in done.stderr
    assert "there is no folder" in hvext("report", "--html", tmp_path / "a" / "b.html").stderr
    assert not page.exists()
