"""The plan of one disk: which objects, block nodes and device QEMU gets. The four renderings are made from it."""

from __future__ import annotations

from dataclasses import dataclass

from hvext.core.device import guest_device, iothread_id, scsi_controller
from hvext.core.identity import DiskNames
from hvext.core.node import protocol_node, raw_node, throttle_node
from hvext.core.options import DeviceModel, DiskOptions
from hvext.core.uri.location import Location


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """What QEMU is to be given for one disk, in the order in which it must be created.

    ``objects`` are ``object-add`` arguments, ``nodes`` ``blockdev-add`` arguments (each names only earlier ones),
    ``controller`` the ``device_add`` arguments of a virtio-scsi controller that has to be made first (cold start
    only), ``device`` those of the disk.
    """

    names: DiskNames
    location: Location
    options: DiskOptions
    objects: tuple[dict[str, object], ...]
    nodes: tuple[dict[str, object], ...]
    controller: dict[str, object] | None
    device: dict[str, object]

    @property
    def top_node(self) -> dict[str, object]:
        """The node that the device uses."""
        return self.nodes[-1]


def controller_iothread(controller: str) -> str:
    """Return the id of the iothread that is made together with a controller."""
    return f"{controller}-iothread"


def plan_disk(
    names: DiskNames,
    location: Location,
    options: DiskOptions,
    *,
    generation: int = 0,
    controller: str | None = None,
) -> DiskPlan:
    """Return the plan for a disk at ``location``.

    ``generation`` counts the protocol nodes of the disk; ``controller`` is the id of a virtio-scsi controller that
    the plan is to make for a scsi-hd, None where one exists.
    """
    protocol = protocol_node(location, options, names, generation)
    nodes = [protocol, raw_node(options, names, str(protocol["node-name"]))]
    objects: list[dict[str, object]] = []
    if options.throttle.limits:
        objects.append({"qom-type": "throttle-group", "id": names.throttle_group, "limits": options.throttle.limits})
        nodes.append(throttle_node(options, names))
    scsi = options.device is DeviceModel.SCSI_HD
    iothread = iothread_id(options, names)
    if scsi and controller is not None and options.iothread == "auto":
        # It outlives the disk, as the controller does that runs in it.
        iothread = controller_iothread(controller)
    if options.iothread == "auto":
        objects.append({"qom-type": "iothread", "id": iothread})
    return DiskPlan(
        names=names,
        location=location,
        options=options,
        objects=tuple(objects),
        nodes=tuple(nodes),
        controller=(scsi_controller(controller, iothread=iothread) if scsi and controller is not None else None),
        device=guest_device(options, names, str(nodes[-1]["node-name"])),
    )
