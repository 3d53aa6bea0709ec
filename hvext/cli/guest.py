"""The commands on disks of a running guest."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import cast
from uuid import UUID

from hvext.cli.arguments import disk, provider_host, secret_files
from hvext.cli.output import print_hint, print_json, print_warnings, reporter, size_text
from hvext.cli.start import given_disks
from hvext.core.disk import Disk, parse_uuid
from hvext.core.uri import parse_uri
from hvext.errors import DiskNotFound, InputError
from hvext.host.files import opened_as
from hvext.host.journal import JournalFolder
from hvext.host.provider import ProviderHost
from hvext.host.qmp import CONNECT_TIMEOUT_S
from hvext.operations import attachments, volumes
from hvext.operations.acts import perform
from hvext.operations.batch import PlugOutcome
from hvext.operations.records import read_records, record_with
from hvext.operations.unplug import Unplugged, UnplugState
from hvext.operations.vm import Vm, open_vm
from hvext.operations.whose import end_told, whose_volume

#: The hint of all errors about a disk that the guest has not.
_LISTED = "hvext disks lists those it has"
_ALL_VMS = "hvext top shows the disks of all VMs of this host, which it finds by itself; hvext report draws them"


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
    print(f"{_words(wished)}: {word} as {result.device},{access} {result.location}")
    print(f"because {result.reason}")
    return 0


def check_alone(arguments: argparse.Namespace) -> None:
    """Raise InputError when one disk is named beside ``--disk`` and ``--disks``."""
    if arguments.provider is not None or arguments.option or arguments.parameter:
        raise InputError("--disk and --disks say everything about their disks: leave out PROVIDER, VOLUME, -o and -p")


def _plug_all(arguments: argparse.Namespace) -> int:
    check_alone(arguments)
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
    name, result, error = _words(outcome.disk), outcome.plugged, outcome.error
    if result is not None:
        print_warnings([f"{name}: {words}" for words in result.warnings])
        access = f" {result.access}" if result.access else ""
        word = "plugged" if result.changed else "unchanged"
        print(f"{name}: {word} as {result.device},{access} {result.location}")
    elif error is not None:
        print(f"{name}: failed: {error.message}")
        print_hint(f"{name}: {error.hint}" if error.hint else "")


def unplug(arguments: argparse.Namespace) -> int:
    """Unplug a disk; 1 when the guest has not let it go."""
    wished = disk(arguments) if names_volume(arguments) else None
    uuid = wished.volume.uuid if wished else parse_uuid(arguments.disk_uuid)
    words = _words(wished) if wished else _known_words(uuid)
    with _vm(arguments, provider_host(arguments)) as vm:
        if wished:
            result = vm.unplug(wished, timeout_s=arguments.wait)
        else:
            result = vm.unplug_only(uuid, timeout_s=arguments.wait)
    hint = _hint(result, wished)
    if arguments.json:
        print_json(result.to_json() | {"hint": hint})
    else:
        print_warnings(result.warnings)
        print(f"{_named(words, result.device)}: {result.state}" + (", volume detached" if result.detached else ""))
        print_hint(hint)
    return 0 if result.finished else 1


def repoint(arguments: argparse.Namespace) -> int:
    """Move a disk to another access."""
    check_place(arguments)
    target = given_place(arguments)
    wished = disk(arguments) if names_volume(arguments) else None
    if wished:
        uuid = wished.volume.uuid
        secrets = attachments.given_secrets(wished)
    else:
        secrets = attachments.secrets_in_files(secret_files(arguments))
        if target is None:
            raise InputError("--access needs PROVIDER and VOLUME, to ask the provider what it offers")
        uuid = parse_uuid(arguments.disk_uuid)
    words = _words(wished) if wished else _known_words(uuid)
    host = provider_host(arguments)
    with _vm(arguments, host) as vm, absence_told(wished):
        if target is None:
            assert wished is not None  # noqa: S101
            if uuid not in vm.disks():
                raise DiskNotFound(f"the guest has no disk {uuid}", hint=_LISTED)
            (answer,) = perform([attachments.offer_act(host, wished)], report=reporter(verbose=arguments.verbose))
            offered = answer.choice.candidates
            result = vm.repoint_to_first(uuid, [candidate.location for candidate in offered])
        else:
            result = vm.repoint(uuid, parse_uri(target, look=opened_as).with_secrets(secrets))
    if arguments.json:
        print_json(result.to_json())
    elif result.changed:
        print(f"{_named(words, result.device)}: moved from {result.before} to {result.after}")
    else:
        print(f"{_named(words, result.device)}: unchanged, it is at {result.after} already")
    return 0


def check_place(arguments: argparse.Namespace) -> None:
    """Raise InputError unless a move's place is given in one way."""
    if (arguments.to is None) == (arguments.access is None):
        raise InputError("repoint takes either --to LOCATION or --access ACCESS")


def given_place(arguments: argparse.Namespace) -> str | None:
    """Return the text of ``--to``, from standard input where that is meant; None without it. Raises InputError."""
    if arguments.to == "":
        raise InputError("--to is empty: it takes a URI or an absolute path", hint="was a shell variable not set?")
    if arguments.to != "-":
        return cast("str | None", arguments.to)
    if text := sys.stdin.read().strip():
        return text
    raise InputError("there is no location on standard input")


def resize(arguments: argparse.Namespace) -> int:
    """Grow a disk."""
    wished = disk_to_grow(arguments)
    with _vm(arguments, provider_host(arguments)) as vm, absence_told(wished):
        result = vm.resize(wished, arguments.new_size, old_size_mib=arguments.size)
    if arguments.json:
        print_json(result.to_json())
    elif result.changed:
        sizes = f"from {size_text(result.before_bytes)} to {size_text(result.after_bytes)}"
        print(f"{_named(_words(wished), result.device)}: grown {sizes}")
    else:
        print(f"{_named(_words(wished), result.device)}: unchanged, it has {size_text(result.after_bytes)} already")
    return 0


def disk_to_grow(arguments: argparse.Namespace) -> Disk:
    """Return the disk of a resize; one that is named by its uuid, as the journal has it. Raises InputError."""
    if names_volume(arguments):
        return disk(arguments)
    uuid = parse_uuid(arguments.disk_uuid)
    found = volumes.known_disk(uuid)
    if found is None:
        raise InputError(
            f"the journal of this host has no disk {uuid}: name its PROVIDER and VOLUME as well",
            hint="the provider grows the volume first, so it has to be known which one it is",
        )
    return found


@contextlib.contextmanager
def absence_told(wished: Disk | None) -> Iterator[None]:
    """Have who names a disk that the guest has not told of the volume, and of those that may be meant."""
    try:
        yield
    except DiskNotFound as error:
        if wished is None:
            raise
        hint = error.hint
        if hint == _LISTED:
            hint = "; ".join(volumes.detach_warnings(wished)) or whose_volume(wished)
        uuid = str(wished.volume.uuid)
        raise DiskNotFound(error.message.replace(uuid, f"{_words(wished)} ({uuid})"), hint=hint) from error


def _words(wished: Disk) -> str:
    return f"{wished.provider}/{wished.volume.name}"


def _known_words(uuid: UUID) -> str:
    """Return the volume of a disk that is named by its uuid; empty where the journal has none."""
    record = record_with(uuid, read_records(JournalFolder()))
    return record.disks[uuid].words if record else ""


def _named(words: str, device: str) -> str:
    """Return how a disk is called in a result: by its volume, and its device in QEMU."""
    return f"{words} ({device})" if words else device


def disks(arguments: argparse.Namespace) -> int:
    """List the guest's disks."""
    if arguments.qmp is None and arguments.connect is None:
        raise InputError("no guest is named: --qmp SOCKET, or --connect URI and --domain NAME", hint=_ALL_VMS)
    if arguments.connect is not None:
        from hvext.cli import libvirt

        return libvirt.disks(arguments)
    # Not loaded by who does something to a disk.
    from hvext.cli.observe import disks_listed

    check_without_libvirt(arguments)
    return disks_listed(arguments)


def names_volume(arguments: argparse.Namespace) -> bool:
    """Whether the disk is named by provider and volume (else by its uuid)."""
    if arguments.provider is not None and arguments.volume is not None:
        return True
    if arguments.provider is not None or not arguments.disk_uuid:
        raise InputError("name the disk by PROVIDER and VOLUME, or by --disk-uuid")
    return False


def _hint(result: Unplugged, wished: Disk | None) -> str:
    if result.state is UnplugState.ABSENT:
        return f"the guest does not have it, and nothing was done; {whose_volume(wished)}" if wished else ""
    if result.state is UnplugState.REJECTED:
        return "the guest refused to let it go; nothing was removed"
    if result.state is UnplugState.PENDING:
        return (
            "the guest has not let it go yet; nothing was removed, and the volume stays attached. Run the same command "
            "again; a guest that is paused or never answers lets go when it runs or is reset"
        )
    return ""


def check_without_libvirt(arguments: argparse.Namespace) -> None:
    """Raise InputError for what goes with ``--connect`` alone."""
    if arguments.domain or arguments.live or arguments.config or getattr(arguments, "through_monitor", False):
        raise InputError("--domain, --live, --config and --through-monitor go with --connect")


@contextlib.contextmanager
def _vm(arguments: argparse.Namespace, host: ProviderHost) -> Iterator[Vm]:
    if arguments.connect is not None:
        from hvext.cli.libvirt import given_domain

        with given_domain(arguments, host) as domain:
            yield cast("Vm", domain)
        return
    check_without_libvirt(arguments)
    report = reporter(verbose=arguments.verbose)
    limit_s = arguments.qmp_timeout
    greeting_s = min(limit_s, CONNECT_TIMEOUT_S)
    opening = open_vm(
        arguments.qmp,
        host=host,
        timeout_s=limit_s,
        connect_timeout_s=greeting_s,
        report=report,
        name=arguments.vm,
    )
    with contextlib.ExitStack() as stack:
        with end_told(arguments.qmp):
            vm = stack.enter_context(opening)
        yield vm
