"""``hvext explain``: what would be done with an answer of ``attach``; nothing is done.

Whether the disk fits into a guest that runs (``--qmp``) is in ``hvext.cli.fit``, with all that this has to load.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from uuid import UUID

from hvext.cli.output import print_json, print_warnings
from hvext.cli.words import options
from hvext.core.access import Access, choose_access
from hvext.core.answer import Attachment, check_block_path, parse_answer
from hvext.core.command_line import blockdev_argv, drive_argv
from hvext.core.device import SHARED_CONTROLLER
from hvext.core.domain_xml import disk_xml
from hvext.core.identity import DiskNames, derived_uuid, parse_uuid
from hvext.core.options import DeviceModel, DiskOptions, Placement
from hvext.core.plan import options_obstacle, plan_disk
from hvext.core.uri import Location, masked
from hvext.core.value import replace
from hvext.errors import AccessError, InputError, RenderError
from hvext.host.files import file_kind, opened_as, private_folder

_QEMU = "kvm"


def explain(arguments: argparse.Namespace) -> int:
    """Print what an attach answer offers, what is chosen and why, and all renderings of it; or whether it fits."""
    if arguments.qmp is not None:
        from hvext.cli.fit import fit

        return fit(arguments, parse_answer(_read(arguments.answer)) if arguments.answer is not None else None)
    _check_alone(arguments)
    answer = _read(arguments.answer)
    attachment = parse_answer(answer)
    look = None
    if not arguments.offline:
        look = opened_as
        if attachment.block_path is not None:
            check_block_path(attachment.block_path, file_kind(attachment.block_path))
    result: dict[str, object] = {"attachment": described(attachment)}
    access = Access(arguments.access)
    if arguments.hypervisor.lower() != _QEMU:
        result["chosen"] = _for_other_hypervisor(attachment, access, arguments.hypervisor)
        result |= {
            "blockdev": [],
            "objects": [],
            "chardevs": [],
            "files": [],
            "controller": None,
            "device": None,
            "argv": [],
            "drive": [],
            "xml": None,
            "notes": [],
        }
    else:
        uuid = parse_uuid(arguments.disk_uuid) if arguments.disk_uuid else _uuid(attachment)
        choice = choose_access(attachment, access, look=look, obstacle=_obstacle(DiskNames(uuid), arguments))
        result["chosen"] = choice.to_json()
        location = choice.chosen.location
        result |= _renderings(DiskNames(uuid), location, choice.options_at(location, options(arguments)))
    if arguments.json:
        print_json(result)
    else:
        _print_words(result, attachment)
    return 0


def _uuid(attachment: Attachment) -> UUID:
    """Return a uuid for the disk, always the same for one answer; no secret has a part in it."""
    uris = [f"{line.hypervisor}:{line.shown}" for line in attachment.uris]
    return derived_uuid("explain", "\n".join([attachment.block_path or "", *uris]))


def _obstacle(names: DiskNames, arguments: argparse.Namespace) -> Callable[[Location], str | None]:
    """Return what finds out why a location cannot be opened: by its options, and by ``--qemu`` where one is named."""
    wished = options(arguments)
    if arguments.qemu is None:
        return lambda location: options_obstacle(location, wished)
    from hvext.operations.kept_capabilities import disk_capabilities
    from hvext.operations.openable import openable

    return openable(disk_capabilities(arguments.qemu), names, wished)


def _read(name: str) -> bytes:
    try:
        if name == "-":
            return sys.stdin.buffer.read()
        # Not by pathlib, see hvext.host.files.
        with open(name, "rb") as file:  # noqa: PTH123
            return file.read()
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from error


def _check_alone(arguments: argparse.Namespace) -> None:
    """Raise InputError for what is missing, or means nothing, when no guest is asked."""
    given = (arguments.volume, arguments.parameter, arguments.parameter_file, arguments.secret, arguments.vm)
    if any(given) or arguments.search_path is not None:
        raise InputError(
            "--volume, -p, --parameter-file, --secret, --search-path and --vm say which disk fits into which guest",
            hint="name the guest's monitor: --qmp SOCKET",
        )
    if arguments.answer is None:
        raise InputError(
            "no answer of attach is named",
            hint="name the file that has it ('-': standard input), or a guest with --qmp",
        )


def described(attachment: Attachment) -> dict[str, object]:
    """Return for machines what a provider offers."""
    return {
        "block_path": attachment.block_path,
        "uris": [{"hypervisor": line.hypervisor, "uri": line.shown} for line in attachment.uris],
        "warnings": list(attachment.warnings),
    }


def _for_other_hypervisor(attachment: Attachment, access: Access, hypervisor: str) -> dict[str, str]:
    """Choose for a hypervisor that is not QEMU: its URI is handed on as it is."""
    uris = attachment.uris_for(hypervisor)
    if access is not Access.KERNELSPACE and uris:
        return {"access": "userspace", "uri": masked(uris[0]), "reason": f"the first URI for {hypervisor}, as it is"}
    if access is not Access.USERSPACE and attachment.block_path:
        return {"access": "kernelspace", "path": attachment.block_path, "reason": f"no URI for {hypervisor} is used"}
    raise AccessError(f"the provider offers nothing for {hypervisor} with access={access}")


def _renderings(names: DiskNames, location: Location, wished: DiskOptions) -> dict[str, object]:
    controller = None
    if wished.device is DeviceModel.SCSI_HD and wished.placement.bus is None:
        # As at instance start: the first SCSI disk brings its controller.
        controller = SHARED_CONTROLLER
        place = wished.placement
        wished = replace(wished, placement=Placement(bus=controller, scsi_id=place.scsi_id or 0, lun=place.lun or 0))
    plan = plan_disk(names, location, wished, controller=controller, folder=private_folder()).stored()
    notes = list(plan.notes)
    xml = None
    try:
        xml = disk_xml(plan)
    except RenderError as error:
        notes.append(str(error))
    return {
        "blockdev": list(plan.nodes),
        "objects": list(plan.all_objects),
        "chardevs": list(plan.chardevs),
        "files": [file.path for file in plan.needs.files],
        "controller": plan.controller,
        "device": plan.device,
        "argv": blockdev_argv(plan),
        "drive": drive_argv(plan),
        "xml": xml,
        "notes": notes,
    }


def _print_words(result: dict[str, object], attachment: Attachment) -> None:
    print_warnings(attachment.warnings)
    print(f"block path  {attachment.block_path or '(none)'}")
    for line in attachment.uris:
        print(f"uri         {line.hypervisor}: {line.shown}")
    chosen = result["chosen"]
    assert isinstance(chosen, dict)  # noqa: S101
    print(f"chosen      {chosen['access']}: {chosen.get('uri') or chosen.get('path')}")
    print(f"because     {chosen['reason']}")
    for title, key in (("argv", "argv"), ("drive", "drive")):
        words = result[key]
        if isinstance(words, list) and words:
            print(f"\n{title}:")
            for option, value in zip(words[::2], words[1::2], strict=True):
                print(f"  {option} {shlex.quote(value)}")
    if result["xml"]:
        print(f"\nlibvirt XML:\n{result['xml']}", end="")
    notes = result["notes"]
    if isinstance(notes, list):
        print_warnings(notes)
