"""What the commands would do that run one action of a provider."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hvext.cli.arguments import disk, provider_host
from hvext.cli.dry_run.show import show
from hvext.operations import volumes
from hvext.operations.acts import Act
from hvext.operations.dry_run.planned import Planned, in_words

_FOLDER = "the provider's folder"
_JOURNAL = "the journal"


def create(arguments: argparse.Namespace) -> int:
    """Print what ``hvext create`` would do."""
    return _show(arguments, volumes.create_acts(provider_host(arguments), disk(arguments), arguments.size))


def remove(arguments: argparse.Namespace) -> int:
    """Print what ``hvext remove`` would do."""
    return _show(arguments, volumes.remove_acts(provider_host(arguments), disk(arguments)), looked_at=(_JOURNAL,))


def grow(arguments: argparse.Namespace) -> int:
    """Print what ``hvext grow`` would do."""
    host, wished = provider_host(arguments), disk(arguments)
    acts = volumes.grow_acts(host, wished, old_size_mib=arguments.size, new_size_mib=arguments.new_size)
    return _show(arguments, acts, nothing="it has that size already")


def attach(arguments: argparse.Namespace) -> int:
    """Print what ``hvext attach`` would do."""
    acts = volumes.attach_acts(provider_host(arguments), disk(arguments), exclusive=not arguments.shared)
    how = "for shared access" if arguments.shared else "exclusively"
    note = f"it is opened {how} as well, where the provider has an open script"
    return _show(arguments, acts, notes=(note,), looked_at=(_JOURNAL,))


def detach(arguments: argparse.Namespace) -> int:
    """Print what ``hvext detach`` would do."""
    wished = disk(arguments)
    acts = volumes.detach_acts(provider_host(arguments), wished)
    return _show(arguments, acts, notes=volumes.detach_warnings(wished), looked_at=(_JOURNAL,))


def open_volume(arguments: argparse.Namespace) -> int:
    """Print what ``hvext open`` would do."""
    acts = volumes.open_acts(provider_host(arguments), disk(arguments), exclusive=not arguments.shared)
    return _show(arguments, acts, nothing="the provider has no open script")


def close_volume(arguments: argparse.Namespace) -> int:
    """Print what ``hvext close`` would do."""
    acts = volumes.close_acts(provider_host(arguments), disk(arguments))
    return _show(arguments, acts, nothing="the provider has no close script")


def set_info(arguments: argparse.Namespace) -> int:
    """Print what ``hvext setinfo`` would do."""
    return _show(arguments, volumes.set_info_acts(provider_host(arguments), disk(arguments), arguments.metadata))


def snapshot(arguments: argparse.Namespace) -> int:
    """Print what ``hvext snapshot`` would do."""
    host, name = provider_host(arguments), arguments.snapshot_name
    return _show(arguments, volumes.snapshot_acts(host, disk(arguments), name, arguments.snapshot_size))


def _show(
    arguments: argparse.Namespace,
    acts: Sequence[Act],
    *,
    notes: Sequence[str] = (),
    nothing: str = "",
    looked_at: Sequence[str] = (),
) -> int:
    plan = Planned(
        operation=f"{arguments.run.partition(':')[2].replace('_', ' ')} {arguments.provider}/{arguments.volume}",
        steps=in_words(acts),
        notes=(*notes, *([nothing] if nothing and not acts else [])),
        looked_at=(_FOLDER, *looked_at),
    )
    return show(arguments, plan)
