"""Where whoever runs hvext has the pages of its documentation."""

from __future__ import annotations

#: The folder of the package hvext.
_PACKAGE = __file__.rsplit("/", 2)[0]


def page(name: str, package: str = _PACKAGE) -> str:
    """Return the path of a page, which is ``name`` without ``.md``, for a package in this folder.

    A wheel and Debian's package put ``hvext`` into PREFIX/lib/pythonX/site-packages (or dist-packages), and the pages
    into PREFIX/share/doc/hvext. In a checkout they are in ``docs``.
    """
    site = package.rpartition("/")[0]
    if site.endswith(("/site-packages", "/dist-packages")):
        return f"{site.rsplit('/', 3)[0]}/share/doc/hvext/{name}.md"
    return f"docs/{name}.md"
