"""A plan as QMP commands, in the order in which they must be sent.

Source: qemu-qmp-ref(7): object-add, blockdev-add, device_add.
"""

from __future__ import annotations

from collections.abc import Mapping

from hvext.core.plan import DiskPlan
from hvext.core.value import value_object


@value_object
class Command:
    """One QMP command."""

    execute: str
    arguments: Mapping[str, object]

    def to_json(self) -> dict[str, object]:
        """Return the command as QMP takes it."""
        return {"execute": self.execute, "arguments": dict(self.arguments)}


def object_add(item: Mapping[str, object]) -> Command:
    """Return the command that makes an object."""
    return Command(execute="object-add", arguments=item)


def blockdev_add(node: Mapping[str, object]) -> Command:
    """Return the command that makes a block node."""
    return Command(execute="blockdev-add", arguments=node)


def chardev_add(chardev: Mapping[str, object]) -> Command:
    """Return the command that makes a character device."""
    return Command(execute="chardev-add", arguments=chardev)


def device_add(device: Mapping[str, object]) -> Command:
    """Return the command that plugs a device."""
    return Command(execute="device_add", arguments=device)


def plug_commands(plan: DiskPlan) -> tuple[Command, ...]:
    """Return the commands that plug the disk of a plan into a running QEMU; secrets are read from private files."""
    plan = plan.stored()
    devices = (plan.device,) if plan.controller is None else (plan.controller, plan.device)
    return (
        *(object_add(item) for item in plan.all_objects),
        *(chardev_add(chardev) for chardev in plan.chardevs),
        *(blockdev_add(node) for node in plan.nodes),
        *(device_add(device) for device in devices),
    )
