"""The commands that run one action of a provider."""

from __future__ import annotations

import argparse

from hvext.cli.arguments import disk, parameters, provider_host
from hvext.cli.output import print_json, print_note, print_warnings
from hvext.core.disk import Disk
from hvext.core.volume import Volume, derived_uuid
from hvext.host.provider import check_known
from hvext.operations import volumes
from hvext.operations.acts import perform


def create(arguments: argparse.Namespace) -> int:
    """Create a volume."""
    perform(volumes.create_acts(provider_host(arguments), disk(arguments), arguments.size))
    return _done(arguments, "created", size_mib=arguments.size)


def remove(arguments: argparse.Namespace) -> int:
    """Remove a volume."""
    perform(volumes.remove_acts(provider_host(arguments), disk(arguments)))
    return _done(arguments, "removed")


def grow(arguments: argparse.Namespace) -> int:
    """Grow a volume."""
    wished = disk(arguments)
    acts = volumes.grow_acts(
        provider_host(arguments), wished, old_size_mib=arguments.size, new_size_mib=arguments.new_size
    )
    perform(acts)
    word = "grown" if acts else "unchanged: it has that size already"
    _done(arguments, word, size_mib=arguments.new_size, changed=bool(acts))
    print_note(volumes.grown_words(wished, arguments.new_size) if acts else "")
    return 0


def attach(arguments: argparse.Namespace) -> int:
    """Attach and open a volume, and print what it offers."""
    acts = volumes.attach_acts(provider_host(arguments), disk(arguments), exclusive=not arguments.shared)
    (attached,) = perform(acts)
    offer = attached.attachment
    if arguments.json:
        print_json(
            {
                "disk_uuid": str(attached.disk.volume.uuid),
                "block_path": offer.block_path,
                "uris": [{"hypervisor": line.hypervisor, "uri": line.shown} for line in offer.uris],
                "warnings": list(offer.warnings),
                "chosen": attached.choice.to_json(),
            }
        )
        return 0
    print_warnings(offer.warnings)
    print(offer.block_path or "")
    for line in offer.uris:
        print(f"{line.hypervisor}:{line.shown}")
    return 0


def detach(arguments: argparse.Namespace) -> int:
    """Detach a volume."""
    wished = disk(arguments)
    perform(volumes.detach_acts(provider_host(arguments), wished))
    warnings = volumes.detach_warnings(wished)
    if arguments.json:
        return _done(arguments, "detached", warnings=list(warnings))
    print_warnings(warnings)
    return _done(arguments, "detached")


def open_volume(arguments: argparse.Namespace) -> int:
    """Open a volume."""
    ran = perform(volumes.open_acts(provider_host(arguments), disk(arguments), exclusive=not arguments.shared))
    return _done(arguments, "opened" if ran else "open: nothing to do, the provider has no open script")


def close_volume(arguments: argparse.Namespace) -> int:
    """Close a volume."""
    ran = perform(volumes.close_acts(provider_host(arguments), disk(arguments)))
    return _done(arguments, "closed" if ran else "closed: nothing to do, the provider has no close script")


def set_info(arguments: argparse.Namespace) -> int:
    """Store metadata."""
    perform(volumes.set_info_acts(provider_host(arguments), disk(arguments), arguments.metadata))
    return _done(arguments, "metadata stored")


def snapshot(arguments: argparse.Namespace) -> int:
    """Take a snapshot."""
    host, name = provider_host(arguments), arguments.snapshot_name
    perform(volumes.snapshot_acts(host, disk(arguments), name, arguments.snapshot_size))
    return _done(arguments, f"snapshot {arguments.snapshot_name} taken", snapshot=arguments.snapshot_name)


def verify(arguments: argparse.Namespace) -> int:
    """Have a provider check parameters; its script is told of no volume."""
    values = parameters(arguments)
    host = provider_host(arguments)
    # As all commands do, and with the name that may be meant: a script only says that it has no such parameter.
    check_known(host.find(arguments.provider), values)
    volume = Volume(name="none", uuid=derived_uuid(arguments.provider, "none"), parameters=values)
    volumes.verify_parameters(host, Disk(provider=arguments.provider, volume=volume))
    if arguments.json:
        print_json({"provider": arguments.provider, "state": "verified"})
    else:
        print(f"{arguments.provider}: the parameters are good")
    return 0


def _done(arguments: argparse.Namespace, what: str, **values: object) -> int:
    if arguments.json:
        state = what.partition(":")[0]
        print_json({"provider": arguments.provider, "volume": arguments.volume, "state": state, **values})
    else:
        print(f"{arguments.provider}/{arguments.volume}: {what}")
    return 0
