"""Domains of a private libvirtd: paused ones without a guest in them, and one whose guest has booted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

from hvext.host.guest import Console
from hvext.host.machine import KERNEL_ARGUMENTS, GuestImage
from tests.servers.libvirtd import Libvirtd

BOOT_LIMIT_S = 120.0


def domain_xml(name: str, *, more: str = "", boot: str = "", ports: int = 6, scsi: bool = True) -> str:
    """A q35 domain with free root ports and a virtio-scsi controller; ``boot`` and ``more`` are XML of the caller's."""
    free = "<controller type='pci' model='pcie-root-port'/>" * ports
    controller = "<controller type='scsi' index='0' model='virtio-scsi'/>" if scsi else ""
    return f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>256</memory>
<os><type arch='x86_64' machine='q35'>hvm</type>{boot}</os><features><acpi/></features>
<on_reboot>restart</on_reboot><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<controller type='pci' model='pcie-root'/>{free}{controller}
<controller type='usb' model='none'/><memballoon model='none'/>{more}</devices></domain>"""


def booting(image: GuestImage) -> str:
    """The part of ``os`` that boots the test guest."""
    return (
        f"<kernel>{escape(str(image.kernel))}</kernel><initrd>{escape(str(image.initrd))}</initrd>"
        f"<cmdline>{escape(KERNEL_ARGUMENTS)}</cmdline>"
    )


def serials(folder: Path) -> str:
    """The guest's console, which is written into a file, and the line on which it takes commands."""
    return (
        f"<serial type='file'><source path='{folder}/console.log'/></serial>"
        f"<serial type='unix'><source mode='bind' path='{folder}/command'/></serial>"
    )


@contextlib.contextmanager
def booted(daemon: Libvirtd, image: GuestImage, name: str) -> Iterator[Console]:
    """The console of a persistent domain whose guest has booted; it is ended after the block."""
    folder = daemon.folder / f"serial-{name}"
    folder.mkdir(exist_ok=True)
    daemon.define(domain_xml(name, more=serials(folder), boot=booting(image)))
    daemon.virsh("start", name)
    pid = daemon.pid_of(name)

    def alive() -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            return True
        return False

    console = Console(folder / "command", folder / "console.log", alive=alive)
    try:
        console.wait_ready(BOOT_LIMIT_S)
        yield console
    finally:
        daemon.clear()
