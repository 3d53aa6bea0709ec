"""The same steps over QMP and over libvirt: after each, the guest sees the same, and so does the caller."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from hvext.core.disk import Disk
from hvext.errors import HvextError, OperationFailed
from hvext.host.guest import Console
from hvext.host.machine import GuestImage
from hvext.operations import volumes
from hvext.operations.domains.vm import open_domain
from hvext.operations.vm import open_vm
from tests.servers.libvirtd import libvirtd
from tests.vm.libvirt_guests import booted
from tests.vm.state import on_debug_monitor
from tests.vm.volume import SEEN_S

if TYPE_CHECKING:
    from tests.vm.conftest import GuestFactory, Storage

pytestmark = pytest.mark.vm

#: What the guest says of its disks: kind, serial, size, whether read-only, write cache, and what it begins with.
_LOOK = r"""
cd /sys/block; for d in [vs]d*; do [ -e "$d" ] || continue
[ -e $d/device/rescan ] && echo 1 >$d/device/rescan
serial=$(cat $d/serial 2>/dev/null || tail -c +5 $d/device/vpd_pg80 2>/dev/null)
sum=$(head -c 65536 /dev/$d | md5sum | cut -c1-8)
echo "${d%?} ${serial:--} $(cat $d/size $d/ro $d/queue/write_cache | tr '\n' ' ') $sum"
done | sort
"""


@dataclass
class Side:
    """One way to the guest, with what came of each step."""

    vm: Any
    console: Console
    reset: Callable[[], Any]
    storage: Storage
    seen: list[tuple[str, str, str]] = field(default_factory=list)

    def disk(self, name: str) -> Disk:
        return self.storage.disk(name, **DISKS[name])


Step = Callable[[Side], str]

#: The disks of the scenario, with their options.
DISKS: dict[str, dict[str, Any]] = {
    "uri": {"serial": "on-uri"},
    "path": {"device": "scsi-hd", "access": "kernelspace", "serial": "on-path"},
    "ro": {"read_only": True, "serial": "read-only"},
    "slow": {"access": "kernelspace", "iops_total": 500, "serial": "slow", "discard": "unmap"},
    "through": {"device": "scsi-hd", "cache": "directsync", "serial": "through"},
    "missing": {},
}


def plug(name: str) -> Step:
    def step(side: Side) -> str:
        done = side.vm.plug(side.disk(name))
        return f"changed={done.changed} access={done.access}"

    return step


def unplug(name: str) -> Step:
    def step(side: Side) -> str:
        done = side.vm.unplug(side.disk(name), timeout_s=30)
        return f"{done.state} detached={done.detached}"

    return step


def resize(name: str, mib: int) -> Step:
    def step(side: Side) -> str:
        done = side.vm.resize(side.disk(name), mib)
        return f"{done.before_bytes} {done.after_bytes} grown={done.volume_grown}"

    return step


def write(serial: str, letter: str) -> Step:
    def step(side: Side) -> str:
        found = f"grep -qs '^{serial}$' $d/serial || grep -qs '{serial}' $d/device/vpd_pg80"
        write = f"yes {letter} | dd of=/dev/$d bs=64k count=2 iflag=fullblock conv=fsync"
        status, _text = side.console.run(f"cd /sys/block; for d in [vs]d*; do if {found}; then {write}; exit; fi; done")
        return f"written={status == 0}"

    return step


def reset(side: Side) -> str:
    mark = side.console.mark()
    side.reset()
    side.console.wait_ready(120, since=mark)
    return "booted"


STEPS: list[tuple[str, Step]] = [
    ("plug a disk on a URI", plug("uri")),
    ("write to it", write("on-uri", "a")),
    ("plug a SCSI disk on a block device", plug("path")),
    ("write to it", write("on-path", "b")),
    ("grow it", resize("path", 96)),
    ("plug what is plugged", plug("uri")),
    ("plug a volume that is not there", plug("missing")),
    ("shrink", resize("path", 64)),
    ("unplug the disk on a URI", unplug("uri")),
    ("unplug it again", unplug("uri")),
    ("plug it again", plug("uri")),
    ("unplug all", unplug("path")),
    ("and the last one", unplug("uri")),
]
#: Those that the default run leaves out, before the last two.
MORE: list[tuple[str, Step]] = [
    ("plug a read-only disk", plug("ro")),
    ("write to that", write("read-only", "c")),
    ("grow a read-only disk", resize("ro", 96)),
    ("plug a disk with limits", plug("slow")),
    ("write to it", write("slow", "d")),
    ("grow it", resize("slow", 80)),
    ("grow it to what it has", resize("slow", 80)),
    ("plug a disk without a write cache", plug("through")),
    ("write to it", write("through", "e")),
    ("reset the guest", reset),
    ("write after the reset", write("on-path", "f")),
    ("unplug the read-only disk", unplug("ro")),
    ("grow a disk that is gone", resize("ro", 128)),
    ("unplug the disk with limits", unplug("slow")),
    ("plug the grown one again", plug("slow")),
    ("unplug it", unplug("slow")),
    ("unplug the disk without a write cache", unplug("through")),
]


def walk(side: Side, steps: list[tuple[str, Step]]) -> None:
    """Do the steps, and take down after each what came of it and what the guest sees then."""
    for name in DISKS:
        if name != "missing":
            volumes.create_volume(side.storage.host, side.disk(name), 64)
    expected = 0
    for name, step in steps:
        try:
            came = step(side)
        except HvextError as error:
            cause = error.__cause__ if isinstance(error, OperationFailed) else error
            came = f"{type(error).__name__} caused by {type(cause).__name__}"
        expected += came.startswith("changed=True") - came.startswith("unplugged")
        side.seen.append((name, came, look(side.console, expected)))


def look(console: Console, number: int) -> str:
    """What the guest says of its disks once it has that many."""
    deadline = time.monotonic() + SEEN_S
    while True:
        seen = console.run(_LOOK)[1]
        if len(seen.splitlines()) == number:
            return seen
        assert time.monotonic() < deadline, f"the guest has not {number} disks: {seen}"
        time.sleep(0.1)


@contextlib.contextmanager
def over_libvirt(storage: Storage, image: GuestImage) -> Iterator[Side]:
    with (
        libvirtd() as daemon,
        booted(daemon, image, "scenario") as console,
        open_domain(daemon.uri, "scenario", host=storage.host) as vm,
    ):
        yield Side(vm, console, lambda: daemon.virsh("reset", "scenario"), storage)


@pytest.mark.parametrize(
    "steps", [STEPS, pytest.param([*STEPS[:-2], *MORE, *STEPS[-2:]], marks=pytest.mark.nightly)], ids=["short", "all"]
)
def test_the_same_steps_over_qmp_and_over_libvirt_show_the_guest_the_same(
    share: GuestFactory, storage: Storage, guest_image: GuestImage, steps: list[tuple[str, Step]]
) -> None:
    assert len(steps) in (len(STEPS), 30)
    lent = share()
    with open_vm(str(lent.machine.qmp_path), host=storage.host) as vm:
        qmp = Side(vm, lent.console, lambda: on_debug_monitor(lent.machine, "system_reset"), storage)
        walk(qmp, steps)
    for name in DISKS:
        if name != "missing":
            volumes.remove_volume(storage.host, qmp.disk(name))
    with over_libvirt(storage, guest_image) as libvirt:
        walk(libvirt, steps)
    for one, other in zip(qmp.seen, libvirt.seen, strict=True):
        assert one == other
    assert len({state for _name, _came, state in qmp.seen}) > len(steps) // 3
