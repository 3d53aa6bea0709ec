"""The site made of these pages; ``scripts/build-docs`` builds it, and takes every warning for an error."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "hvext"
version = release = version_of("hvext")
copyright = "its authors, BSD 2-clause licence"  # noqa: A001 - Sphinx calls it so

extensions = ["myst_parser", "sphinx.ext.autodoc", "reference"]
exclude_patterns = ["_build"]
# The contents may name a page that there is not (yet); a page that they do not name is still a warning.
suppress_warnings = ["toc.not_readable"]
# Links within a page and between pages name headings as GitHub does.
myst_heading_anchors = 4
myst_links_external_new_tab = False
# `name` in a docstring is a name of hvext's: shown as one, and linked where the reference has it.
default_role = "literal"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
maximum_signature_line_length = 88

html_theme = "furo"
html_title = "hvext"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"source_edit_link": "", "top_of_page_buttons": []}


def leave_the_site(app: Sphinx, page: str, source: list[str]) -> None:
    """Make links to files outside ``docs/`` downloads: they are no pages of the site, but exist in the repository."""
    here = (Path(app.srcdir) / page).parent

    def link(found: re.Match[str]) -> str:
        inside = (here / found[1]).resolve().is_relative_to(app.srcdir)
        return found[0] if inside else f"](path:{found[1]})"

    source[0] = re.sub(r"\]\((\.\./[^)#]+)\)", link, source[0])


def setup(app: Sphinx) -> None:
    """Enter what this site does by itself."""
    app.connect("source-read", leave_the_site)
