"""What ``hvext resume`` would do."""

from __future__ import annotations

import argparse

from hvext.cli.dry_run.guest import asked_over_monitor
from hvext.cli.dry_run.show import show
from hvext.host.provider import ProviderHost


def resume(arguments: argparse.Namespace) -> int:
    """Print what ``hvext resume`` would do."""
    return show(arguments, asked_over_monitor(arguments, ProviderHost(), lambda guest: guest.resume()))
