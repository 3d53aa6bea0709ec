from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_every_page_that_is_linked_exists() -> None:
    for page in [DOCS.parent / "README.md", *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+?\.md)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page.name} links {target}"
