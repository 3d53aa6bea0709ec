"""What the installed QEMU can open and plug."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hvext.core.capability import STORAGE_DRIVERS, Capabilities
from hvext.core.finding import TRANSPORTS, Finding, Severity, transport_of
from hvext.errors import CapabilityError, ProgramError
from hvext.host.files import program_path
from hvext.operations.capabilities import binary_capabilities
from hvext.operations.doctor.ask import Ask, Needs
from hvext.operations.doctor.trial import check_program

_OLDEST = (7, 2)
#: Devices of hvext's disks that belong to no one transport.
_DEVICES = ("virtio-blk-pci", "scsi-hd", "virtio-scsi-pci")
_TOOLS = (
    ("qemu-img", "qemu-utils", "resizes and benchmarks need it"),
    ("qemu-io", "qemu-utils", "hvext watch looks at storage with it"),
    ("qemu-storage-daemon", "qemu-system-common", "network storage is opened with it first, so that QEMU cannot hang"),
)


def look(ask: Ask, needs: Needs) -> Iterator[Finding]:
    """Yield what is found about the QEMU: itself, then its parts."""
    tried = f"started {ask.qemu} without a machine, and asked it over QMP"
    cure = "apt-get install qemu-system-x86, or name another QEMU system emulator with --qemu"
    try:
        check_program(ask.qemu, ask.cancel)
        found = binary_capabilities(ask.qemu)
    except ProgramError as error:
        yield Finding(
            id="qemu.binary",
            severity=Severity.ERROR,
            tried=tried,
            found=error.message,
            cure=cure,
            transports=needs.shown,
        )
        return
    yield Finding(
        id="qemu.binary", severity=Severity.OK, tried=tried, found=f"QEMU {found.version}, {program_path(ask.qemu)}"
    )
    yield _version(found)
    yield from _drivers(found, needs)
    yield from _devices(found, needs)
    yield from _objects(found, needs)
    yield from _tools()


def _version(found: Capabilities) -> Finding:
    numbers = tuple(int(number) for number in re.findall(r"\d+", found.version)[:2])
    tried = "read the greeting of its monitor"
    if numbers and numbers < _OLDEST:
        return Finding(
            id="qemu.version",
            severity=Severity.WARNING,
            tried=tried,
            found=f"QEMU {found.version} is older than any that hvext is tested with",
            cure="use QEMU 7.2 or later",
        )
    return Finding(id="qemu.version", severity=Severity.OK, tried=tried, found=f"QEMU {found.version}")


def _drivers(found: Capabilities, needs: Needs) -> Iterator[Finding]:
    tried = "had QEMU load each, and open nothing"
    good: list[str] = []
    missing: dict[tuple[tuple[str, ...], bool], list[str]] = {}
    for driver in STORAGE_DRIVERS:
        names = (transport_of(driver), "nbds") if driver == "nbd" else (transport_of(driver),)
        touched = tuple(name for name in names if name in needs.shown)
        if touched and found.obstacle(driver) is not None:
            missing.setdefault((touched, driver in found.unloadable), []).append(driver)
        elif touched:
            good.append(driver)
    for (touched, packaged), drivers in missing.items():
        listed = ", ".join(drivers)
        words = f"the module for {listed} cannot be loaded" if packaged else f"it has no block driver {listed}"
        built = listed
        if touched == ("blkio",):
            # io_uring stands for two things, of which the other one may work here: see the checks of aio.
            built = "libblkio"
            words += " (of libblkio; aio=io_uring does without it)" if "io_uring" in drivers else " (of libblkio)"
        yield Finding(
            id="qemu.driver",
            about=listed,
            severity=needs.missing(*touched),
            tried=tried,
            found=words,
            cure="apt-get install qemu-block-extra" if packaged else f"use a QEMU that is built with {built}",
            transports=touched,
        )
    if good:
        yield Finding(id="qemu.driver", severity=Severity.OK, tried=tried, found=", ".join(good))


def _devices(found: Capabilities, needs: Needs) -> Iterator[Finding]:
    tried = "asked QEMU for the device's properties"
    wanted = dict.fromkeys(_DEVICES, tuple(name for name in needs.shown if name != "vhost-user"))
    wanted |= {device: (name,) for name in needs.shown for device in TRANSPORTS[name].devices}
    missing = [device for device in wanted if device not in found.devices]
    for device in missing:
        yield Finding(
            id="qemu.device",
            about=device,
            severity=needs.missing(*wanted[device]),
            tried=tried,
            found=f"it has no device {device}",
            cure="apt-get install qemu-system-x86, or use a QEMU that is built with it",
            transports=wanted[device] if device != "scsi-hd" and device != "virtio-scsi-pci" else (),
        )
    if good := [device for device in wanted if device not in missing]:
        yield Finding(id="qemu.device", severity=Severity.OK, tried=tried, found=", ".join(good))


def _objects(found: Capabilities, needs: Needs) -> Iterator[Finding]:
    tried = "read QEMU's schema"
    wanted: dict[str, list[str]] = {}
    for name in needs.shown:
        for kind in TRANSPORTS[name].objects:
            wanted.setdefault(kind, []).append(name)
    good = []
    for kind, names in wanted.items():
        try:
            found.check_object({"qom-type": kind, "id": "doctor"})
        except CapabilityError as error:
            yield Finding(
                id="qemu.object",
                about=kind,
                severity=needs.missing(*names),
                tried=tried,
                found=error.message,
                cure=f"use a QEMU that is built with {kind}",
                transports=tuple(names),
            )
        else:
            good.append(kind)
    if good:
        yield Finding(id="qemu.object", severity=Severity.OK, tried=tried, found=", ".join(good))


def _tools() -> Iterator[Finding]:
    tried = "looked for them on PATH"
    missing = [each for each in _TOOLS if program_path(each[0]) is None]
    for program, package, why in missing:
        yield Finding(
            id="qemu.tools",
            about=program,
            severity=Severity.WARNING,
            tried=tried,
            found=f"there is no {program}: {why}",
            cure=f"apt-get install {package}",
        )
    if not missing:
        yield Finding(id="qemu.tools", severity=Severity.OK, tried=tried, found=", ".join(each[0] for each in _TOOLS))
