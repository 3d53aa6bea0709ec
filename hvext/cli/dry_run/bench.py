"""What ``hvext bench`` and ``hvext tune`` would do."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hvext.bench.beside import Layer
from hvext.bench.extra import check_extra
from hvext.bench.plan import plan
from hvext.cli.arguments import disk, provider_host
from hvext.cli.bench import each, settings
from hvext.cli.dry_run.show import show
from hvext.cli.files import check_writable


def bench(arguments: argparse.Namespace) -> int:
    """Print what ``hvext bench`` would do."""
    return _show(arguments, arguments.out, arguments.html)


def tune(arguments: argparse.Namespace) -> int:
    """Print what ``hvext tune`` would do."""
    each(Layer, arguments.beside, "--beside")
    varied = "each access is one combination of options over the access that --access prefers"
    return _show(arguments, arguments.out, notes=(varied,))


def _show(arguments: argparse.Namespace, *files: str | None, notes: Sequence[str] = ()) -> int:
    wished = settings(arguments)
    for name in files:
        check_writable(name)
    check_extra(table=not arguments.json, page=bool(getattr(arguments, "html", None)))
    names = [name for name in files if name]
    return show(arguments, plan(provider_host(arguments), disk(arguments), wished, files=names, notes=notes))
