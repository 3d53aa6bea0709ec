"""What ``hvext new-provider`` would do."""

from __future__ import annotations

import argparse
from pathlib import Path

from hvext.cli.dry_run.show import show
from hvext.cli.new_provider import skeleton_acts
from hvext.core.provider import check_provider_name
from hvext.operations.dry_run.planned import Planned, in_words


def new_provider(arguments: argparse.Namespace) -> int:
    """Print what ``hvext new-provider`` would do."""
    parent = Path(arguments.folder).absolute()
    acts = skeleton_acts(check_provider_name(arguments.name), arguments.language, parent)
    plan = Planned(operation=f"write provider {arguments.name}", steps=in_words(acts), looked_at=(str(parent),))
    return show(arguments, plan)
