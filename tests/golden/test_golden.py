"""What is written for a disk stays as it is, byte for byte, until somebody means to change it.

After a change that is meant: HVEXT_REGENERATE=1 pytest tests/golden, then read the difference.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvext.core.command_line import blockdev_argv, drive_argv
from hvext.core.commands import plug_commands
from hvext.core.domain_xml import disk_xml
from hvext.core.options import DiskOptions, Placement, Throttle
from hvext.core.plan import DiskPlan
from hvext.core.uri import Location
from hvext.core.value import MISSING, fields
from hvext.errors import RenderError
from tests.golden.disks import DISKS

EXPECTED = Path(__file__).parent / "expected"
REGENERATE = os.environ.get("HVEXT_REGENERATE") == "1"


def as_lines(argv: list[str]) -> str:
    """One option and its value a line, quoted for a shell."""
    pairs = zip(argv[::2], argv[1::2], strict=True)
    return "".join(f"{shlex.join(pair)}\n" for pair in pairs)


def qmp(plan: DiskPlan) -> str:
    lines = (json.dumps(command.to_json(), ensure_ascii=False) for command in plug_commands(plan))
    return "".join(f"{line}\n" for line in lines)


def xml(plan: DiskPlan) -> str:
    try:
        return disk_xml(plan)
    except RenderError as error:
        return f"RenderError: {error}\n"


#: The files of each disk.
RENDERINGS: dict[str, Callable[[DiskPlan], str]] = {
    "argv": lambda plan: as_lines(blockdev_argv(plan)),
    "drive": lambda plan: as_lines(drive_argv(plan)),
    "qmp": qmp,
    "xml": xml,
}


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("disk", DISKS)
def test_a_disk_is_written_as_before(disk: str, rendering: str) -> None:
    path = EXPECTED / disk / rendering
    text = RENDERINGS[rendering](DISKS[disk])
    if REGENERATE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_no_file_is_left_of_a_disk_that_is_gone() -> None:
    files = {f"{path.parent.name}/{path.name}" for path in EXPECTED.glob("*/*")}
    assert files == {f"{disk}/{rendering}" for disk in DISKS for rendering in RENDERINGS}


def used(value: Any) -> set[str]:
    """The fields of a value that differ from their default."""
    names = set()
    for field in fields(value):
        default = field.default if field.default is not MISSING else None
        if field.default_factory is not MISSING:
            default = field.default_factory()
        if getattr(value, field.name) != default:
            names.add(field.name)
    return names


@pytest.mark.parametrize(
    ("kind", "pick"),
    [
        (DiskOptions, lambda plan: plan.options),
        (Throttle, lambda plan: plan.options.throttle),
        (Placement, lambda plan: plan.options.placement),
    ],
)
def test_every_option_is_seen_in_some_rendering(kind: type[Any], pick: Callable[[DiskPlan], Any]) -> None:
    seen = set().union(*(used(pick(plan)) for plan in DISKS.values()))
    assert seen == {field.name for field in fields(kind)}


@pytest.mark.parametrize("kind", sorted({kind.__name__ for kind in Location.__subclasses__()}))
def test_every_kind_of_location_is_seen_with_all_it_has(kind: str) -> None:
    locations = [plan.location for plan in DISKS.values() if type(plan.location).__name__ == kind]
    assert locations, f"no golden disk is at a {kind}"
    seen = set().union(*(used(location) for location in locations))
    assert seen == {field.name for field in fields(locations[0])}
