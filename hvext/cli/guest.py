"""The commands on disks of a running guest."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import cast

from hvext.cli.arguments import disk, provider_host, secret_files
from hvext.cli.output import print_json, print_table, print_warnings, reporter, size_text
from hvext.cli.start import given_disks
from hvext.core.disk import parse_uuid
from hvext.core.uri import parse_uri
from hvext.errors import DiskNotFound, InputError
from hvext.host.files import opened_as
from hvext.host.provider import ProviderHost
from hvext.host.qmp import CONNECT_TIMEOUT_S
from hvext.operations import attachments
from hvext.operations.batch import PlugOutcome
from hvext.operations.unplug import Unplugged, UnplugState
from hvext.operations.vm import Vm, open_vm


def plug(arguments: argparse.Namespace) -> int:
    """Attach and plug a disk, or several; 1 when one of several could not be."""
    if arguments.disk or arguments.disks:
        return _plug_all(arguments)
    if arguments.provider is None or arguments.volume is None:
        raise InputError("no disk is named", hint="name PROVIDER and VOLUME, or several disks with --disk and --disks")
    wished = disk(arguments)
    with _vm(arguments, provider_host(arguments)) as vm:
        result = vm.plug(wished)
    if arguments.json:
        print_json(result.to_json())
        return 0
    print_warnings(result.warnings)
    word = "plugged" if result.changed else "unchanged"
    access = f" {result.access}" if result.access else ""
    print(f"{wished.volume.name}: {word} as {result.device},{access} {result.location}")
    print(f"because {result.reason}")
    return 0


def _plug_all(arguments: argparse.Namespace) -> int:
    if arguments.provider is not None or arguments.option or arguments.parameter:
        raise InputError("--disk and --disks say everything about their disks: leave out PROVIDER, VOLUME, -o and -p")
    wished = given_disks(arguments)
    with _vm(arguments, provider_host(arguments)) as vm:
        outcomes = vm.plug_all(wished)
    if arguments.json:
        print_json([outcome.to_json() for outcome in outcomes])
    else:
        for outcome in outcomes:
            _print_outcome(outcome)
    return 0 if all(outcome.plugged for outcome in outcomes) else 1


def _print_outcome(outcome: PlugOutcome) -> None:
    name, result, error = outcome.disk.volume.name, outcome.plugged, outcome.error
    if result is not None:
        print_warnings([f"{name}: {words}" for words in result.warnings])
        access = f" {result.access}" if result.access else ""
        word = "plugged" if result.changed else "unchanged"
        print(f"{name}: {word} as {result.device},{access} {result.location}")
    elif error is not None:
        print(f"{name}: failed: {error.message}")
        if error.hint:
            print(f"hint: {name}: {error.hint}", file=sys.stderr)


def unplug(arguments: argparse.Namespace) -> int:
    """Unplug a disk; 1 when the guest has not let it go."""
    wished = disk(arguments) if _names_volume(arguments) else None
    uuid = wished.volume.uuid if wished else parse_uuid(arguments.disk_uuid)
    with _vm(arguments, provider_host(arguments)) as vm:
        if wished:
            result = vm.unplug(wished, timeout_s=arguments.wait)
        else:
            result = vm.unplug_only(uuid, timeout_s=arguments.wait)
    hint = _hint(result, named=_names_volume(arguments))
    if arguments.json:
        print_json(result.to_json() | {"hint": hint})
    else:
        print_warnings(result.warnings)
        print(f"{result.device}: {result.state}" + (", volume detached" if result.detached else ""))
        if hint:
            print(f"hint: {hint}", file=sys.stderr)
    return 0 if result.finished else 1


def repoint(arguments: argparse.Namespace) -> int:
    """Move a disk to another access."""
    if (arguments.to is None) == (arguments.access is None):
        raise InputError("repoint takes either --to LOCATION or --access ACCESS")
    target = sys.stdin.read().strip() if arguments.to == "-" else arguments.to
    if target == "":
        raise InputError("there is no location on standard input")
    if _names_volume(arguments):
        wished = disk(arguments)
        uuid = wished.volume.uuid
        secrets = attachments.given_secrets(wished)
    else:
        secrets = attachments.secrets_in_files(secret_files(arguments))
        if target is None:
            raise InputError("--access needs PROVIDER and VOLUME, to ask the provider what it offers")
        uuid = parse_uuid(arguments.disk_uuid)
    host = provider_host(arguments)
    with _vm(arguments, host) as vm:
        if target is None:
            if uuid not in vm.disks():
                raise DiskNotFound(f"the guest has no disk {uuid}", hint="hvext disks lists those it has")
            offered = attachments.offer(host, wished).choice.candidates
            result = vm.repoint_to_first(uuid, [candidate.location for candidate in offered])
        else:
            result = vm.repoint(uuid, parse_uri(target, look=opened_as).with_secrets(secrets))
    if arguments.json:
        print_json(result.to_json())
    elif result.changed:
        print(f"{result.device}: moved from {result.before} to {result.after}")
    else:
        print(f"{result.device}: unchanged, it is at {result.after} already")
    return 0


def resize(arguments: argparse.Namespace) -> int:
    """Grow a disk."""
    wished = disk(arguments)
    with _vm(arguments, provider_host(arguments)) as vm:
        result = vm.resize(wished, arguments.new_size, old_size_mib=arguments.size)
    if arguments.json:
        print_json(result.to_json())
    elif result.changed:
        print(f"{result.device}: grown from {size_text(result.before_bytes)} to {size_text(result.after_bytes)}")
    else:
        print(f"{result.device}: unchanged, it has {size_text(result.after_bytes)} already")
    return 0


def disks(arguments: argparse.Namespace) -> int:
    """List the guest's disks."""
    with _vm(arguments, ProviderHost()) as vm:
        found = [running.to_json() for running in vm.disks().values()]
    if arguments.json:
        print_json(found)
        return 0
    if not found:
        print("the guest has no disks of hvext")
        return 0
    rows = [
        [
            str(row["uuid"]),
            str(row["model"] or "(no device)"),
            size_text(cast("int | None", row["size_bytes"])),
            str(row["driver"] or "-"),
            str(row["uri"] or row["filename"] or "-"),
        ]
        for row in found
    ]
    print_table(("DISK", "DEVICE", "SIZE", "DRIVER", "LOCATION"), rows)
    return 0


def _names_volume(arguments: argparse.Namespace) -> bool:
    """Whether the disk is named by provider and volume (else by its uuid)."""
    if arguments.provider is not None and arguments.volume is not None:
        return True
    if arguments.provider is not None or not arguments.disk_uuid:
        raise InputError("name the disk by PROVIDER and VOLUME, or by --disk-uuid")
    return False


def _hint(result: Unplugged, *, named: bool) -> str:
    if result.state is UnplugState.ABSENT:
        left = "its volume was left alone; hvext detach lets it go, if no other guest uses it"
        return left if named else ""
    if result.state is UnplugState.REJECTED:
        return "the guest refused to let it go; nothing was removed"
    if result.state is UnplugState.PENDING:
        return (
            "the guest has not let it go yet; nothing was removed, and the volume stays attached. Run the same command "
            "again; a guest that is paused or never answers lets go when it runs or is reset"
        )
    return ""


@contextlib.contextmanager
def _vm(arguments: argparse.Namespace, host: ProviderHost) -> Iterator[Vm]:
    report = reporter(verbose=arguments.verbose)
    limit_s = arguments.qmp_timeout
    greeting_s = min(limit_s, CONNECT_TIMEOUT_S)
    with open_vm(
        arguments.qmp,
        host=host,
        timeout_s=limit_s,
        connect_timeout_s=greeting_s,
        report=report,
        name=arguments.vm,
    ) as vm:
        yield vm
