"""The parts of the site that are made from the code: every command with its arguments, and every public name."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import hvext
from hvext.cli.parser import whole_parser
from hvext.core.value import MISSING, fields

_WIDTH = "88"
_PACKAGE = str(Path(hvext.__file__).parent)
#: Sections of the page about Python, and where the names in them are at home; the first that fits is taken.
_SECTIONS = {
    "Volumes and providers": ("hvext.host.provider", "hvext.core.volume", "hvext.operations.volumes",
                              "hvext.operations.attachments", "hvext.core.answer", "hvext.core.access"),
    "Locations": ("hvext.core.uri", "hvext.core.secret"),
    "Disks": ("hvext.core.disk", "hvext.core.options", "hvext.core.value"),
    "Starting an instance": ("hvext.operations.start",),
    "Running guests": ("hvext.operations.vm", "hvext.core.running"),
    "What a QEMU can do": ("hvext.core.capability", "hvext.operations.capabilities"),
    "After a crash": ("hvext.operations.audit", "hvext.core.audit", "hvext.operations.recover"),
    "Migration": ("hvext.operations.moving", "hvext.operations.migrate", "hvext.operations.sending"),
    "Failover and supervision": ("hvext.operations.failover", "hvext.operations.fence", "hvext.operations.watch",
                                 "hvext.core.supervision", "hvext.core.schedule", "hvext.core.hysteresis"),
    "Results": ("hvext.operations",),
    "Errors": ("hvext.errors",),
}  # fmt: skip


class Commands(SphinxDirective):
    """``hvext-commands``: a section for each command, with what its ``--help`` prints."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        os.environ["COLUMNS"] = _WIDTH
        return [node for name, parser in sorted(commands()) for node in self._section(name, parser)]

    def _section(self, name: str, parser: argparse.ArgumentParser) -> list[nodes.Node]:
        lines = [f"hvext {name}", "-" * (len(name) + 6), "", ".. code-block:: text", ""]
        lines += [f"   {line}".rstrip() for line in parser.format_help().splitlines()]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


class PublicNames(SphinxDirective):
    """``hvext-names``: every name of ``hvext.__all__`` with its docstring, in sections."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        lines: list[str] = []
        for title, names in sections().items():
            lines += ["", title, "-" * len(title), ""]
            for name in names:
                lines += [*_directive(name, getattr(hvext, name)), ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command with its parser."""
    for action in whole_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def sections() -> dict[str, list[str]]:
    """Return the public names by the title of their section; each is in one."""
    found: dict[str, list[str]] = {title: [] for title in _SECTIONS}
    for name in hvext.__all__:
        home = hvext._HOMES[name]
        title = next(t for t, homes in _SECTIONS.items() if any(f"{home}.".startswith(f"{h}.") for h in homes))
        found[title].append(name)
    return found


def _directive(name: str, thing: object) -> list[str]:
    if not isinstance(thing, type):
        return [f".. autofunction:: hvext.{name}"]
    lines = [f".. autoclass:: hvext.{name}{_signature(thing)}", "   :members:"]
    return [*lines, "   :undoc-members:"] if issubclass(thing, Enum) else lines


def _signature(kind: type) -> str:
    """Return how a value is made, which its one ``__init__`` for all does not tell; empty for other classes."""
    try:
        every = fields(kind)
    except TypeError:
        return ""
    types = {
        name: text for base in reversed(kind.__mro__) for name, text in vars(base).get("__annotations__", {}).items()
    }
    given = []
    for each in every:
        default = ""
        if each.default is not MISSING:
            shown = str(each.default) if isinstance(each.default, Enum) else repr(each.default)
            default = f" = {shown.replace(_PACKAGE, '…/hvext')}"
        elif each.default_factory is not MISSING:
            default = f" = {each.default_factory.__name__}()"
        given.append(f"{each.name}: {types[each.name]}{default}")
    return f"(*, {', '.join(given)})" if given else "()"


def setup(app: Sphinx) -> dict[str, bool]:
    """Enter the two directives."""
    app.add_directive("hvext-commands", Commands)
    app.add_directive("hvext-names", PublicNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
