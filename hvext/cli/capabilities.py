"""``hvext capabilities``: what a QEMU can open and plug."""

from __future__ import annotations

import argparse

from hvext.cli.output import print_json, print_table
from hvext.core.capability import DEVICE_TYPES, STORAGE_DRIVERS, Capabilities, module_drivers
from hvext.operations.capabilities import binary_capabilities, running_capabilities

_UNTRIED = "may need a module, which is not tried while a guest runs"


def capabilities(arguments: argparse.Namespace) -> None:
    """Print the block drivers and devices that hvext uses, and whether a QEMU has them."""
    if arguments.qmp is not None:
        found = running_capabilities(arguments.qmp)
        untried = frozenset(module_drivers(found.schema))
    else:
        found = binary_capabilities(arguments.qemu)
        untried = frozenset()
    entries = [*_drivers(found, untried), *_devices(found)]
    if arguments.json:
        print_json({"binary": found.binary or None, "version": found.version, "capabilities": entries})
        return
    print(f"QEMU {found.version}" + (f", {found.binary}" if found.binary else ""))
    rows = [(str(each["kind"]), str(each["name"]), _word(each), str(each["reason"] or "")) for each in entries]
    print_table(("KIND", "NAME", "USABLE", "REASON"), rows)


def _drivers(found: Capabilities, untried: frozenset[str]) -> list[dict[str, str | bool | None]]:
    entries = []
    for name in STORAGE_DRIVERS:
        reason = _UNTRIED if name in untried else found.obstacle(name)
        usable = None if name in untried else reason is None
        entries.append({"kind": "driver", "name": name, "usable": usable, "reason": reason})
    return entries


def _devices(found: Capabilities) -> list[dict[str, str | bool | None]]:
    return [
        {
            "kind": "device",
            "name": name,
            "usable": name in found.devices,
            "reason": None if name in found.devices else "it has no such device",
        }
        for name in DEVICE_TYPES
    ]


def _word(entry: dict[str, str | bool | None]) -> str:
    usable = entry["usable"]
    return "?" if usable is None else "yes" if usable else "no"
