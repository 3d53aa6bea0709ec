"""Block devices that others make, with the same path on all hosts. Not a byte of them is written here.

RUN/claims/MAJOR:MINOR has the name of the volume that a device is attached as on this host, so that no other volume
gets it as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from extstorage import (
    MIB,
    absolute,
    answer,
    choice,
    device_bytes,
    growth,
    is_block_device,
    locked,
    main,
    needed,
    parameter,
    refuse,
    refuse_unknown_parameters,
    size_bytes,
    users_of,
    volume_name,
    within,
)

_LOOP_SET_CAPACITY = 0x4C07
_SEEN_S = 2


class Device:
    """The device, as the parameters name it; it may not be there."""

    def __init__(self) -> None:
        self.path = absolute("path", needed("path"))
        self.run = absolute("run", parameter("run", "/run/hvext/blockdev"))
        self.adopt = choice("adopt", "no", "yes") == "yes"

    def need(self) -> None:
        """Refuse when the device is not there."""
        if not os.path.lexists(self.path):
            refuse(f"there is no {self.path}; connect the device to this host, or correct the parameter path")
        if not is_block_device(self.path):
            refuse(f"{self.path} is no block device; correct the parameter path")

    @property
    def number(self) -> str:
        """Its number, the same for all of its names."""
        number = os.stat(self.path).st_rdev  # noqa: PTH116
        return f"{os.major(number)}:{os.minor(number)}"

    @property
    def _claim(self) -> Path:
        return Path(self.run, "claims", self.number)

    def holder(self) -> str:
        """Return the volume that the device is attached as, empty when it is not."""
        return self._claim.read_text() if self._claim.exists() else ""

    def refuse_other(self, name: str) -> None:
        """Refuse when another volume has the device."""
        holder = self.holder()
        if holder and holder != name:
            refuse(
                f"{self.path} is attached on this host as volume {holder}; detach that first",
                f"(when it is lost: remove {self._claim})",
            )

    def claim(self, name: str) -> None:
        """Record that the volume has the device."""
        self._claim.parent.mkdir(exist_ok=True)
        new = self._claim.with_suffix(".new")
        new.write_text(name)
        new.replace(self._claim)

    def release(self, name: str) -> None:
        """Take back the record of a volume, also when the device has another number now, or none."""
        for each in Path(self.run, "claims").glob("*"):
            if each.read_text() == name:
                each.unlink()
        with contextlib.suppress(OSError):
            Path(self.run, "claims").rmdir()

    def look_again(self) -> None:
        """Have the kernel ask the device how large it is: of loop devices, and of disks that SCSI knows."""
        folders = [Path(f"/sys/dev/block/{self.number}")]
        folders += sorted((folders[0] / "slaves").glob("*"))
        for folder in folders:
            if (folder / "device" / "rescan").exists():
                (folder / "device" / "rescan").write_text("1")
            if (folder / "loop").exists():
                with open(self.path, "rb", buffering=0) as opened:  # noqa: PTH123
                    fcntl.ioctl(opened, _LOOP_SET_CAPACITY)


def create() -> None:
    """Take the device over as it is."""
    refuse_unknown_parameters()
    name, device, size = volume_name(), Device(), size_bytes("VOL_SIZE")
    device.need()
    if not device.adopt:
        refuse(
            f"{device.path} is not made here, and its bytes are somebody's until they say otherwise;",
            "set adopt=yes to give it to the volume as it is",
        )
    now = device_bytes(device.path)
    if now < size:
        refuse(
            f"{device.path} has {now // MIB} MiB, less than the {size // MIB} asked for; make it larger, or ask less"
        )
    with locked(device.run, "devices"):
        device.refuse_other(name)
        if users := users_of(device.path):
            refuse(f"{device.path} is in use ({users}); end that first")


def remove() -> None:
    """Give the device back as it is."""
    name, device = volume_name(), Device()
    if not device.adopt:
        refuse(
            f"{device.path} was not made here and is not removed; set adopt=yes to give it back with all its bytes,",
            "and remove it with what made it",
        )
    if is_block_device(device.path):
        with locked(device.run, "devices"):
            if device.holder() == name:
                refuse(f"{device.path} is attached on this host; detach it first")


def grow() -> None:
    """See that the device has the size."""
    volume_name()
    device = Device()
    device.need()
    now = device_bytes(device.path)
    new = size_bytes("VOL_NEW_SIZE")
    if now >= new:
        return
    growth(device.path, now)
    device.look_again()
    if not within(_SEEN_S, lambda: device_bytes(device.path) >= new):
        refuse(
            f"{device.path} has {device_bytes(device.path) // MIB} MiB, not {new // MIB}; make it larger where it is",
            "made, have this host see that (multipath: multipathd resize map), then grow again",
        )


def attach() -> None:
    """Say where the device is."""
    name, device = volume_name(), Device()
    device.need()
    with locked(device.run, "devices"):
        device.refuse_other(name)
        device.claim(name)
    answer(device.path)


def detach() -> None:
    """Let other volumes have the device. It is the host's: nothing is taken away."""
    name, device = volume_name(), Device()
    with locked(device.run, "devices"):
        device.release(name)


def setinfo() -> None:
    """Check the words, and keep nothing."""
    volume_name()
    Device()


def verify() -> None:
    """Check the parameters, and whether the device is there."""
    refuse_unknown_parameters()
    Device().need()


if __name__ == "__main__":
    main(
        {
            "create": create,
            "remove": remove,
            "grow": grow,
            "attach": attach,
            "detach": detach,
            "setinfo": setinfo,
            "verify": verify,
        }
    )
