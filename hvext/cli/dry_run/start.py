"""What ``hvext args`` would do."""

from __future__ import annotations

import argparse

from hvext.cli.arguments import provider_host
from hvext.cli.dry_run.show import show
from hvext.cli.start import check_format, given_disks
from hvext.operations.dry_run.planned import Planned, in_words
from hvext.operations.start import Starting

_ATTACH = "the arguments are made of what attach prints, and printed then; hvext stop lets the volumes go"
_SECRETS = "secrets that the XML refers to are defined in libvirt at {}, where what attach prints has any"


def args(arguments: argparse.Namespace) -> int:
    """Print what ``hvext args`` would do."""
    host = provider_host(arguments)
    disks = given_disks(arguments)
    check_format(arguments)
    work = Starting(host, disks, exclusive=not arguments.shared, name=arguments.vm)
    work.check()
    how = "for shared access" if arguments.shared else "exclusively"
    notes = [f"volumes are opened {how} as well, where the provider has an open script", _ATTACH]
    if arguments.connect is not None:
        notes.append(_SECRETS.format(arguments.connect))
    plan = Planned(
        operation="start with " + ", ".join(f"{disk.provider}/{disk.volume.name}" for disk in disks),
        steps=in_words(work.acts()),
        notes=tuple(notes),
        looked_at=("the provider's folder", "the journal"),
    )
    return show(arguments, plan)
