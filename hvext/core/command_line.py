"""A plan as QEMU's command line: ``-object``, ``-blockdev`` and ``-device`` in JSON, or legacy ``-drive`` strings.

Source: qemu(1); QEMU, util/keyval.c: in ``key=value`` lists a comma in a value is doubled, everything else stands as
it is. JSON needs no such care.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from hvext.core.plan import DiskPlan


def blockdev_argv(plan: DiskPlan) -> list[str]:
    """Return the arguments in JSON: ``-object``, ``-blockdev`` and ``-device`` with one value each."""
    argv = _object_argv(plan)
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
    drive = {"if": "none", "id": plan.names.drive, **_nested(plan)}
    argv = _object_argv(plan)
    argv += ["-drive", ",".join(_pairs(drive))]
    for device in (plan.controller, plan.device | {"drive": plan.names.drive}):
        if device is not None:
            name = device["driver"]
            rest = _pairs({key: value for key, value in device.items() if key != "driver"})
            argv += ["-device", ",".join([str(name), *rest])]
    return argv


def _object_argv(plan: DiskPlan) -> list[str]:
    # In JSON for both forms: the limits of a throttle group have only experimental names outside it.
    return [word for item in plan.objects for word in ("-object", _json(item))]


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _nested(plan: DiskPlan) -> dict[str, object]:
    """Return the top node with the nodes below it in place of their names."""
    by_name = {str(node["node-name"]): node for node in plan.nodes}

    def expand(node: Mapping[str, object]) -> dict[str, object]:
        return {key: expand(by_name[str(value)]) if key == "file" else value for key, value in node.items()}

    return expand(plan.top_node)


def _pairs(values: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Yield ``key=value`` with nested mappings as dotted keys and commas doubled."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _pairs(value, f"{prefix}{key}.")
        elif isinstance(value, bool):
            yield f"{prefix}{key}={'on' if value else 'off'}"
        else:
            yield f"{prefix}{key}={str(value).replace(',', ',,')}"
