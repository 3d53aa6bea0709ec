"""The plan of one disk: which objects, block nodes and device QEMU gets. The four renderings are made from it."""

from __future__ import annotations

from hvext.core.device import guest_device, iothread_id, scsi_controller, vhost_user_device, vhost_user_obstacle
from hvext.core.identity import DiskNames, ProtocolName
from hvext.core.node import protocol_node, raw_node, throttle_node
from hvext.core.options import Aio, DeviceModel, DiskOptions
from hvext.core.secret import Secret
from hvext.core.uri.file import FileLocation
from hvext.core.uri.location import PRIVATE_FOLDER, Companions, Location, Needs, PrivateFile
from hvext.core.value import replace, value_object
from hvext.errors import InputError


@value_object
class DiskPlan:
    """What QEMU is to be given for one disk, in the order in which it must be created.

    ``needs`` are the objects and private files of the protocol node, ``objects`` the disk's own ``object-add``
    arguments, ``chardevs`` ``chardev-add`` arguments, ``nodes`` ``blockdev-add`` arguments (each names only earlier
    ones; none behind vhost-user), ``controller`` the ``device_add`` arguments of a virtio-scsi controller that has to
    be made first (cold start only), ``device`` those of the disk.
    """

    names: DiskNames
    location: Location
    options: DiskOptions
    companions: Companions
    needs: Needs
    objects: tuple[dict[str, object], ...]
    chardevs: tuple[dict[str, object], ...] = ()
    nodes: tuple[dict[str, object], ...]
    controller: dict[str, object] | None
    device: dict[str, object]

    @property
    def top_node(self) -> dict[str, object] | None:
        """The node that the device uses; None behind vhost-user."""
        return self.nodes[-1] if self.nodes else None

    @property
    def all_objects(self) -> tuple[dict[str, object], ...]:
        """What the protocol node needs, then the disk's own objects."""
        return (*self.needs.objects, *self.objects)

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever starts QEMU has to see to."""
        if not self.location.needs_shared_memory:
            return ()
        return (
            f"{self.location.words} reads and writes the guest's memory, which must be shared: start QEMU with "
            "-object memory-backend-memfd,id=MEM,size=SIZE,share=on and -machine memory-backend=MEM",
        )

    def stored(self) -> DiskPlan:
        """Return the plan with every secret in a private file: for command lines and everything else that is shown."""
        objects = []
        files = list(self.needs.files)
        for item in self.needs.objects:
            data = item.get("data")
            if isinstance(data, Secret):
                path = f"{self.companions.folder}/{item['id']}"
                files.append(PrivateFile(path=path, text=data))
                item = {name: value for name, value in item.items() if name != "data"} | {"file": path}
            objects.append(item)
        return replace(self, needs=Needs(objects=tuple(objects), files=tuple(files)))


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
    folder: str = PRIVATE_FOLDER,
) -> DiskPlan:
    """Return the plan for a disk at ``location``.

    ``generation`` counts the protocol nodes of the disk; ``controller`` is the id of a virtio-scsi controller that
    the plan is to make for a scsi-hd, None where one exists; ``folder`` is where private files are. Raises InputError
    for options that the location cannot have.
    """
    if why := options_obstacle(location, options):
        raise InputError(f"{location.words}: {why}")
    options = replace(options, read_only=bool(options.read_only) or location.read_only)
    opened = ProtocolName(generation=generation, aio=options.aio, discard=options.discard)
    companions = Companions(node=names.protocol(opened), folder=folder)
    if not location.block_node:
        return _vhost_user_plan(names, location, options, companions)
    protocol = protocol_node(location, options, names, generation, folder)
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
        companions=companions,
        needs=location.needs(companions),
        objects=tuple(objects),
        nodes=tuple(nodes),
        controller=(scsi_controller(controller, iothread=iothread) if scsi and controller is not None else None),
        device=guest_device(options, names, str(nodes[-1]["node-name"])),
    )


def options_obstacle(location: Location, options: DiskOptions) -> str | None:
    """Return why a disk with these options cannot be at ``location``, or None when it can."""
    if location.read_only and options.read_only is False:
        return f"it can only be read ({location.driver}): leave read_only out, or set it"
    cache = options.cache_mode
    if location.buffered_only and cache.direct:
        return f"it needs the host's page cache: cache={cache} goes past it, cache=writeback does not"
    if location.direct_only and not cache.direct:
        return f"it has no page cache (driver {location.driver}): cache={cache} is not possible, cache=none is"
    if options.aio is Aio.IO_URING and not cache.direct and _is_kernel_rbd(location):
        # Found by Proxmox VE: its storage_allows_io_uring_default refuses the same.
        return (
            f"on a kernel RBD device, requests hang with aio=io_uring and cache={cache}: use cache=none or aio=threads"
        )
    return None if location.block_node else vhost_user_obstacle(options)


def _is_kernel_rbd(location: Location) -> bool:
    return isinstance(location, FileLocation) and location.path.startswith("/dev/rbd")


def _vhost_user_plan(names: DiskNames, location: Location, options: DiskOptions, companions: Companions) -> DiskPlan:
    return DiskPlan(
        names=names,
        location=location,
        options=options,
        companions=companions,
        needs=Needs(),
        objects=(),
        chardevs=(location.chardev(names.chardev),),
        nodes=(),
        controller=None,
        device=vhost_user_device(options, names),
    )
