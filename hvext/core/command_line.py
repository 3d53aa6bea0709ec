"""A plan as QEMU's command line: ``-object``, ``-blockdev`` and ``-device`` in JSON, or legacy ``-drive`` strings.

Source: qemu(1); QEMU, util/keyval.c: in ``key=value`` lists a comma in a value is doubled, everything else stands as
it is. JSON needs no such care.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from hvext.core.plan import DiskPlan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def blockdev_argv(plan: DiskPlan) -> list[str]:
    """Return the arguments in JSON: ``-object``, ``-blockdev`` and ``-device`` with one value each.

    Secrets are read from the private files of ``plan.stored()``.
    """
    argv = _before_nodes(plan)
    for node in plan.nodes:
        argv += ["-blockdev", _json(node)]
    for device in (plan.controller, plan.device):
        if device is not None:
            argv += ["-device", _json(device)]
    return argv


def drive_argv(plan: DiskPlan) -> list[str]:
    """Return the arguments in the legacy form: one ``-drive`` for all the nodes, and ``-device`` strings.

    The raw node still has its name, so the disk can be re-pointed. Nodes made by ``-drive`` belong to it: they go
    with the device.
    """
    argv = _before_nodes(plan)
    guest = plan.device
    if plan.top_node is not None:
        drive = {"if": "none", "id": plan.names.drive, **_nested(plan, plan.top_node)}
        argv += ["-drive", ",".join(_pairs(drive))]
        guest = guest | {"drive": plan.names.drive}
    for device in (plan.controller, guest):
        if device is not None:
            name = device["driver"]
            rest = _pairs({key: value for key, value in device.items() if key != "driver"})
            argv += ["-device", ",".join([str(name), *rest])]
    return argv


def option_text(values: Mapping[str, object]) -> str:
    """Return ``key=value,…`` of a mapping: nested ones as dotted keys, lists by number, commas doubled."""
    return ",".join(_pairs(values))


def _before_nodes(plan: DiskPlan) -> list[str]:
    # In JSON for both forms: the limits of a throttle group have only experimental names outside it.
    argv = [word for item in plan.stored().all_objects for word in ("-object", _json(item))]
    for chardev in plan.chardevs:
        argv += ["-chardev", ",".join(_chardev_pairs(chardev))]
    return argv


def _chardev_pairs(chardev: Mapping[str, Any]) -> list[str]:
    """Return a socket as ``-chardev`` takes it, which is flatter than ``chardev-add`` and knows no JSON."""
    data = chardev["backend"]["data"]
    values = {"id": chardev["id"], "path": data["addr"]["data"]["path"], "reconnect": data["reconnect"]}
    return ["socket", *_pairs(values)]


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _nested(plan: DiskPlan, top: Mapping[str, object]) -> dict[str, object]:
    """Return the top node with the nodes below it in place of their names."""
    by_name = {str(node["node-name"]): node for node in plan.nodes}

    def expand(node: Mapping[str, object]) -> dict[str, object]:
        return {key: expand(by_name[str(value)]) if key == "file" else value for key, value in node.items()}

    return expand(top)


def _pairs(values: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Yield ``key=value`` with nested mappings as dotted keys and commas doubled."""
    for key, value in values.items():
        if isinstance(value, list):
            yield from _pairs({str(index): item for index, item in enumerate(value)}, f"{prefix}{key}.")
        elif isinstance(value, Mapping):
            yield from _pairs(value, f"{prefix}{key}.")
        elif isinstance(value, bool):
            yield f"{prefix}{key}={'on' if value else 'off'}"
        else:
            yield f"{prefix}{key}={str(value).replace(',', ',,')}"
