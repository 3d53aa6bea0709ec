"""Where the pages are, for a checkout, a wheel and Debian's package."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvext.core.documentation import page, page_here

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("package", "folder"),
    [
        ("/usr/lib/python3/dist-packages/hvext", "/usr/share/doc/hvext"),
        ("/usr/local/lib/python3.11/dist-packages/hvext", "/usr/local/share/doc/hvext"),
        ("/opt/hvext/lib/python3.12/site-packages/hvext", "/opt/hvext/share/doc/hvext"),
        ("/lib/python3/dist-packages/hvext", "/share/doc/hvext"),
        ("/home/me/hvext/hvext", "docs"),
    ],
)
def test_a_page_is_where_this_hvext_has_it(package: str, folder: str) -> None:
    assert page("uris", package) == f"{folder}/uris.md"


def test_a_reader_is_given_a_path_that_leads_there_from_any_folder() -> None:
    assert page_here("uris", "/opt/hvext/lib/python3.12/site-packages/hvext") == "/opt/hvext/share/doc/hvext/uris.md"
    assert page_here("uris", "/home/me/hvext/hvext") == "/home/me/hvext/docs/uris.md"
    assert Path(page_here("uris")) == ROOT / "docs/uris.md"


def test_what_messages_name_is_there() -> None:
    for name in ("failover", "providers", "troubleshooting", "uris", "write-a-provider"):
        assert (ROOT / page(name)).is_file()
