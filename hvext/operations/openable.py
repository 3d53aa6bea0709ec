"""Whether a QEMU can open a location for a disk: known from its schema, before anything is done."""

from __future__ import annotations

from collections.abc import Callable

from hvext.core.identity import DiskNames
from hvext.core.options import DiskOptions
from hvext.core.plan import DiskPlan, options_obstacle, plan_disk
from hvext.core.uri import Location
from hvext.errors import CapabilityError, InputError
from hvext.host.private import private_folder
from hvext.operations.attachments import Obstacle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hvext.core.capability import Capabilities


def openable(
    capabilities: Capabilities | None,
    names: DiskNames,
    options: DiskOptions,
    *,
    shared_memory: bool | None = None,
    keep: Callable[[DiskPlan], None] | None = None,
) -> Obstacle:
    """Return what finds out why a disk with these names and options cannot be opened at a location.

    ``capabilities`` are those of the QEMU in question, None when it is not known. ``shared_memory`` tells whether the
    guest's memory is shared; None when that is not known yet (cold start). ``keep`` is given each
    plan that this QEMU can have.
    """

    def obstacle(location: Location) -> str | None:
        if why := options_obstacle(location, options):
            return why
        if location.needs_shared_memory and shared_memory is False:
            return (
                "the server would read and write the guest's memory, and this guest's memory is not shared "
                "(memory-backend-memfd,share=on)"
            )
        if capabilities is None:
            return None
        if why := capabilities.obstacle(location.driver) if location.block_node else None:
            return why
        try:
            plan = plan_disk(names, location, options, folder=private_folder())
            check_plan(capabilities, plan)
        except (CapabilityError, InputError) as error:
            return str(error)
        if keep is not None:
            keep(plan)
        return None

    return obstacle


def check_plan(capabilities: Capabilities, plan: DiskPlan) -> None:
    """Raise CapabilityError, which names the field, when QEMU does not know something that a plan gives it."""
    for item in plan.all_objects:
        capabilities.check_object(item)
    for chardev in plan.chardevs:
        capabilities.check_chardev(chardev)
    for node in plan.nodes:
        capabilities.check_node(node)
    for device in (plan.controller, plan.device):
        if device is not None:
            capabilities.check_device(device)
