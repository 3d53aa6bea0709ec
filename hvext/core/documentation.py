"""Where whoever runs hvext has the pages of its documentation."""

from __future__ import annotations

#: The folder of the package hvext.
FOLDER = __file__.rsplit("/", 2)[0]


def page(name: str, package: str = FOLDER) -> str:
    """Return how a page is called, which is ``name`` without ``.md``, for a package in this folder.

    A wheel and Debian's package put ``hvext`` into PREFIX/lib/pythonX/site-packages (or dist-packages), and the pages
    into PREFIX/share/doc/hvext. In a checkout they are in ``docs``, and its own folder is left out: help and man pages
    are the same from each.
    """
    site = package.rpartition("/")[0]
    if site.endswith(("/site-packages", "/dist-packages")):
        return f"{site.rsplit('/', 3)[0]}/share/doc/hvext/{name}.md"
    return f"docs/{name}.md"


def page_here(name: str, package: str = FOLDER) -> str:
    """Return the absolute path of a page, for who is to open it from any folder; see ``page``."""
    found = page(name, package)
    return found if found.startswith("/") else f"{package.rpartition('/')[0]}/{found}"
