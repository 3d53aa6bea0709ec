"""Moving a disk of a domain that runs to another access, which libvirt has no call for: through QEMU's monitor.

libvirt changes the source of CD drives only; its block copy would copy a volume onto itself. So the move is refused,
unless it is asked for past libvirt. The new node gets the name that libvirt gave the old one, so that libvirt goes on
finding, growing and removing the disk; where it is now, is written into the domain's metadata and its configuration.

Source: libvirt, src/qemu/qemu_driver.c, ``qemuDomainUpdateDeviceLive``; qemu-qmp-ref(7), blockdev-reopen.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

from hvext.core.domain import DomainDisk, moved_xml, with_source
from hvext.core.domain_xml import disk_element
from hvext.core.identity import DiskNames, ProtocolName
from hvext.core.options import DiskOptions
from hvext.core.plan import plan_disk
from hvext.core.running import parse_chains
from hvext.core.uri import Location, masked
from hvext.core.uri.file import FileLocation
from hvext.core.uri.location import Companions, props
from hvext.core.value import value_object
from hvext.errors import CommandRefused, DiskNotFound, DomainError, ProgramError, QemuError, RepointRefused
from hvext.host.domain import DomainHandle
from hvext.host.opening import identity_of
from hvext.operations.domains.views import Views, look
from hvext.operations.frozen import check_requests_end
from hvext.operations.repoint import Repointed
from hvext.operations.steps import Report, Step, carry_out, silent, tidy_up
from hvext.operations.threads import in_thread

_STORAGE = r"libvirt-[0-9]+-storage\Z"
_FILES = ("file", "host_device")
_OWN_DEV = (
    "libvirt gives QEMU a /dev of its own, with the devices of the domain's XML alone. Where this one is on the host: "
    "unplug the disk and plug it with the other access, or set namespaces = [] in /etc/libvirt/qemu.conf, restart "
    "libvirtd and start the domain anew"
)


@value_object
class DomainRepointed(Repointed):
    """Where a disk was and is, and in ``warnings`` what of libvirt's view of it is not true any more."""

    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the result for machines."""
        return {**Repointed.to_json(self), "warnings": list(self.warnings)}


def refusal(names: DiskNames) -> RepointRefused:
    """Return why libvirt does not move a disk."""
    return RepointRefused(
        f"libvirt cannot move disk {names.uuid}: it has no call that changes the source of a running disk (but of CD "
        "drives), and a block copy would copy the volume onto itself",
        hint="--through-monitor moves it past libvirt, which marks the domain as tainted; or unplug it and plug it "
        "with the other access",
    )


async def repoint(
    domain: DomainHandle, names: DiskNames, location: Location, views: Views, *, report: Report = silent
) -> DomainRepointed:
    """Move a disk to ``location``, which must be the same volume, through the monitor; then look what libvirt sees.

    Raises DomainError, DiskNotFound and RepointRefused before anything is changed, OperationFailed after everything
    was undone, or when the disk is at the new place and only its name or libvirt's record of it are not right.
    """
    disk = disk_that_runs(names, views)
    move = DomainMove(domain, disk, location)
    await check_requests_end(move)
    await move.look()
    move.check()
    before = disk.where
    changed = not is_at(disk, location)
    if changed:
        await carry_out(f"move disk {names.uuid} to {location.words}", move.steps(), report=report)
        words = f"finish the move of disk {names.uuid} to {location.words}, where it is now"
        rename, record = move.last_steps(views)
        await tidy_up(words, rename, leaves=[move.spare], report=report)
        await tidy_up(words, record, leaves=["libvirt's view"], report=report)
    return DomainRepointed(
        changed=changed,
        device=disk.alias,
        before=before,
        after=location.words if changed else before,
        size_bytes=move.size_bytes,
        warnings=await move.libvirts_view() if changed else (),
    )


def disk_that_runs(names: DiskNames, views: Views) -> DomainDisk:
    """Return a disk of what runs; raises DomainError when nothing does, DiskNotFound."""
    if views.live is None:
        raise DomainError("the domain does not run: there is nothing to move", hint="virsh start")
    disk = views.live_disk(names.uuid)
    if disk is None:
        raise DiskNotFound(f"the domain has no disk {names.uuid}", hint="hvext disks lists those it has")
    return disk


def is_at(disk: DomainDisk, location: Location) -> bool:
    """Whether a disk is at a location, as far as libvirt knows."""
    return disk.location is not None and disk.location.reported == location.reported


class DomainMove:
    """One move: ``storage`` and ``top`` are the names of libvirt's nodes, ``spare`` the new node's until it has one."""

    def __init__(self, domain: DomainHandle, disk: DomainDisk, location: Location) -> None:
        self._domain = domain
        self._disk = disk
        self._location = location
        self.spare = disk.names.protocol(ProtocolName())
        self._top: Mapping[str, Any] = {}
        self._storage = ""
        self._driver = disk.driver

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Send a command to QEMU past libvirt and return its answer."""
        return await in_thread(lambda _cancel: self._domain.monitor_command(command, dict(arguments or {})))

    async def _ask(self, command: str, **arguments: Any) -> Any:
        return await self.execute(command, arguments)

    async def _chain(self) -> tuple[str, ...]:
        return parse_chains(await self._ask("query-blockstats")).get(self._disk.alias, ())

    async def _nodes(self) -> dict[str, Mapping[str, Any]]:
        return {node["node-name"]: node for node in await self._ask("query-named-block-nodes", flat=True)}

    @property
    def size_bytes(self) -> int:
        """The size that the guest sees."""
        return int(self._top["image"]["virtual-size"])

    async def look(self) -> None:
        """Find libvirt's nodes; raises RepointRefused for a disk that does not stand on two of them."""
        chain = await self._chain()
        if len(chain) != 2 or not re.match(_STORAGE, chain[1]):
            raise RepointRefused(
                f"disk {self._disk.names.uuid} does not stand on a raw node over one storage node of libvirt's: "
                f"{', '.join(chain) or 'nothing'}",
                hint="unplug it and plug it with the other access",
            )
        nodes = await self._nodes()
        self._top, self._storage = nodes[chain[0]], chain[1]
        if self.spare in nodes and self.spare not in chain:
            # Of a move that was interrupted; nobody uses it.
            await self._ask("blockdev-del", **{"node-name": self.spare})

    def check(self) -> None:
        """Raise RepointRefused for what a move cannot do."""
        self.check_place()
        location, names = self._location, self._disk.names
        if location.read_only and not self._top["ro"]:
            raise RepointRefused(f"{location.words} can only be read, and the guest writes to disk {names.uuid}")
        if not self._top["cache"]["direct"]:
            raise RepointRefused(
                f"disk {names.uuid} is not opened with cache.direct=on: after a move the guest would read stale data",
                hint="unplug it and plug it with cache=none",
            )

    def check_place(self) -> None:
        """Raise RepointRefused for a location that libvirt's nodes cannot be at."""
        location = self._location
        needs = location.needs(Companions())
        if not location.block_node:
            raise RepointRefused(f"{location.words} is served to the guest directly: a disk cannot be moved there")
        if needs.objects or needs.files:
            raise RepointRefused(
                f"{location.words} needs credentials: libvirt would not know the objects that hold them",
                hint="unplug the disk and plug it with that access",
            )

    def _node(self, name: str) -> dict[str, object]:
        """The storage node, with the options that libvirt gives it."""
        node = {
            **props(self._location, Companions()),
            "node-name": name,
            "auto-read-only": True,
            "discard": "unmap",
            "cache": {"direct": self._top["cache"]["direct"], "no-flush": self._top["cache"]["no-flush"]},
        }
        if self._location.local_aio and "io" in self._driver:
            node["aio"] = self._driver["io"]
        if name == self.spare and self._location.driver in _FILES:
            # It has the storage beside the node that comes after it for a moment.
            node["locking"] = "off"
        return node

    async def _switch(self, name: str) -> None:
        top = self._top
        options = {
            "driver": "raw",
            "node-name": top["node-name"],
            "read-only": top["ro"],
            "cache": {"direct": top["cache"]["direct"], "no-flush": top["cache"]["no-flush"]},
            "discard": self._driver.get("discard", "ignore"),
            "detect-zeroes": top["detect_zeroes"],
            "file": name,
        }
        await self._ask("blockdev-reopen", options=[options])

    async def _compare(self) -> None:
        size = (await self._nodes())[self.spare]["image"]["virtual-size"]
        if size != self.size_bytes:
            raise RepointRefused(
                f"{self._location.words} has {size} bytes, the disk has {self.size_bytes}",
                hint="the new location must be the same volume; after a grow use hvext resize",
            )

    async def _delete(self, name: str) -> None:
        if name in await self._nodes():
            await self._ask("blockdev-del", **{"node-name": name})

    def steps(self) -> list[Step]:
        """Return the steps that put the disk at its new place."""
        return [
            Step(
                name=f"open {self._location.words}",
                do=self._open,
                undo=lambda: self._delete(self.spare),
                inverse="close it again",
            ),
            Step(name="compare the sizes", do=self._compare),
            Step(
                name="switch over",
                do=lambda: self._switch(self.spare),
                undo=lambda: self._switch(self._storage),
                inverse="switch back",
            ),
        ]

    def last_steps(self, views: Views) -> tuple[Step, Step]:
        """Return the steps after the move is done, for which it is not taken back."""
        disk, location = self._disk, self._location
        return (
            Step(name="give it libvirt's name", do=self._rename, one_way=True),
            Step(
                name="write down where it is",
                do=lambda: _record(self._domain, disk, location, views),
                one_way=True,
            ),
        )

    async def _open(self) -> None:
        try:
            await self._ask("blockdev-add", **self._node(self.spare))
        except CommandRefused as error:
            path = self._location.path if isinstance(self._location, FileLocation) else ""
            if "No such file" in error.description and path.startswith("/dev/"):
                error.hint = _OWN_DEV
            elif "Permission denied" in error.description:
                error.hint = await in_thread(lambda _cancel: _denied(self._domain, path))
            raise

    async def _rename(self) -> None:
        """Open the new place under the name that libvirt knows, and use that."""
        await self._delete(self._storage)
        await self._ask("blockdev-add", **self._node(self._storage))
        await self._switch(self._storage)
        await self._delete(self.spare)

    async def libvirts_view(self) -> tuple[str, ...]:
        """Return what libvirt's view of the disk lacks now; raises QemuError when libvirt has lost the disk."""
        chain = await self._chain()
        if chain != (self._top["node-name"], self._storage):
            raise QemuError(f"disk {self._disk.names.uuid} stands on {', '.join(chain)} after its move")
        seen = await in_thread(lambda _cancel: self._domain.size_of(self._disk.target))
        if seen != self.size_bytes:
            raise QemuError(f"libvirt sees {seen} bytes of disk {self._disk.names.uuid}, which has {self.size_bytes}")
        return (
            f"libvirt goes on showing {self._disk.target} at {masked(self._disk.words)} until the domain starts anew "
            "(virsh dumpxml), and has marked the domain as tainted (custom-monitor)",
        )


def _denied(domain: DomainHandle, path: str) -> str:
    """Return what to do where QEMU may not open a path or, where it is empty, a socket; for a thread."""
    who = "libvirt's QEMU"
    # It may run on another host, or have ended.
    if (pid := domain.pid) is not None:
        with contextlib.suppress(ProgramError):
            who = f"this QEMU, which runs as {identity_of(pid).name},"
    if path:
        return (
            f"{who} may not open it: libvirt gives QEMU the right to a path only where it plugs the disk itself. "
            "Unplug the disk, and plug it with the other access"
        )
    return (
        f"{who} has to have the right to write to the socket, and to search all folders that lead there: change their "
        "owner, group or mode, or take --access kernelspace"
    )


async def _record(domain: DomainHandle, disk: DomainDisk, location: Location, views: Views) -> None:
    """Write into the metadata of what runs, and into the persistent configuration, where a disk is now."""
    plan = plan_disk(disk.names, location, DiskOptions())
    source = disk_element(plan)
    config = views.config_disk(disk.names.uuid)
    moved = (await look(domain)).live

    def write(_cancel: object) -> None:
        domain.set_moved(moved_xml({**(moved.moved if moved else {}), disk.names.uuid: location.uri()}))
        if config is not None:
            domain.update(with_source(config.xml, source))

    await in_thread(write)
