"""A plan as libvirt's ``<disk>`` element.

libvirt names nodes and chooses PCI slots itself, so these are not in it; the device keeps its id, with the ``ua-``
that libvirt asks of aliases that are not its own. A scsi-hd keeps its SCSI id and LUN.
Source: libvirt, "Domain XML format", section "Hard drives, floppy disks, CDROMs".
"""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from hvext.core.options import DeviceModel, DiskOptions, ErrorPolicy
from hvext.core.plan import DiskPlan
from hvext.errors import RenderError

_ERROR_POLICY = {
    ErrorPolicy.REPORT: "report",
    ErrorPolicy.STOP: "stop",
    ErrorPolicy.ENOSPC: "enospace",
    ErrorPolicy.IGNORE: "ignore",
}
_IOTHREAD = r"iothread(?P<number>[1-9][0-9]{0,8})\Z"
_CONTROLLER = r"scsi(?P<number>0|[1-9][0-9]{0,8})\Z"
#: QEMU_SERIAL_PARAM_ACCEPTED_CHARS of libvirt, without the blank.
_SERIAL = r"[A-Za-z0-9_.+-]+\Z"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def disk_element(plan: DiskPlan, index: int = 0) -> Element:
    """Return the ``<disk>`` element; ``index`` counts the disks of one bus and gives ``vda``, ``vdb`` and so on.

    Raises RenderError, which names the feature, for what libvirt cannot say.
    """
    options = plan.options
    source = plan.location.libvirt_source(plan.companions)
    disk = Element("disk", {"type": source.disk_type, "device": "disk"})
    disk.append(_driver(plan))
    disk.append(source.element)
    scsi = options.device is DeviceModel.SCSI_HD
    target = {"dev": target_name("sd" if scsi else "vd", index), "bus": "scsi" if scsi else "virtio"}
    SubElement(disk, "target", target)
    if options.throttle.limits:
        disk.append(_iotune(options))
    if options.read_only:
        SubElement(disk, "readonly")
    if options.serial is not None:
        SubElement(disk, "serial").text = _serial(options.serial)
    if options.bootindex is not None:
        SubElement(disk, "boot", {"order": str(options.bootindex)})
    SubElement(disk, "alias", {"name": f"ua-{plan.names.device}"})
    address = _address(options)
    if address is not None:
        disk.append(address)
    return disk


def disk_xml(plan: DiskPlan, index: int = 0) -> str:
    """Return ``disk_element`` as indented text, behind the SCSI controller that the plan makes, if it makes one.

    Of a SCSI disk without one, libvirt would make a controller of its own choice (lsilogic).
    """
    elements = [disk_element(plan, index)]
    if plan.controller is not None:
        match = re.match(_CONTROLLER, str(plan.controller["id"]))
        number = match["number"] if match else "0"
        elements.insert(0, Element("controller", {"type": "scsi", "index": number, "model": "virtio-scsi"}))
    for element in elements:
        indent(element)
    return "".join(tostring(element, encoding="unicode") + "\n" for element in elements)


def target_name(prefix: str, index: int) -> str:
    """Return the name of the disk with this index: ``vda`` to ``vdz``, then ``vdaa``."""
    name = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, len(_LETTERS))
        name = _LETTERS[letter] + name
    return prefix + name


def _driver(plan: DiskPlan) -> Element:
    options = plan.options
    if not plan.location.block_node:
        return Element("driver", {"name": "qemu", "type": "raw"})
    driver = Element("driver", {"name": "qemu", "type": "raw", "cache": str(options.cache_mode)})
    if options.aio is not None and plan.location.local_aio:
        driver.set("io", str(options.aio))
    if options.werror is not None:
        driver.set("error_policy", _ERROR_POLICY[options.werror])
    if options.rerror is not None or options.werror is not None:
        # Without it, libvirt would use error_policy for reads as well; QEMU's own default is to report.
        driver.set("rerror_policy", _ERROR_POLICY[options.rerror or ErrorPolicy.REPORT])
    driver.set("discard", str(options.discard))
    driver.set("detect_zeroes", str(options.detect_zeroes))
    if options.iothread is not None:
        driver.set("iothread", _iothread_number(options))
    if options.queues is not None:
        driver.set("queues", str(options.queues))
    return driver


def _iothread_number(options: DiskOptions) -> str:
    """Return the number by which libvirt knows an iothread: 1 for ``iothread1``."""
    if options.device is DeviceModel.SCSI_HD:
        raise RenderError(
            "libvirt XML sets the iothread of a SCSI disk at its <controller>, not at the disk",
            hint="leave iothread out, and give the controller one in the domain's XML",
        )
    match = re.match(_IOTHREAD, str(options.iothread))
    if match is None:
        raise RenderError(
            f"libvirt XML cannot name the iothread {options.iothread!r}: libvirt calls its iothreads iothread1, "
            "iothread2, …",
            hint="use one of those names",
        )
    return match["number"]


def _serial(serial: str) -> str:
    if not re.match(_SERIAL, serial):
        raise RenderError(
            f"libvirt XML cannot say the serial {serial!r}: libvirt refuses most punctuation, and puts a backslash "
            "before a blank",
            hint="use letters, digits and _ . + -",
        )
    return serial


def _iotune(options: DiskOptions) -> Element:
    iotune = Element("iotune")
    for name, value in options.throttle.limits.items():
        SubElement(iotune, _iotune_name(name)).text = str(value)
    return iotune


def _iotune_name(name: str) -> str:
    """``bps-total-max-length`` is ``total_bytes_sec_max_length``; ``iops-size`` is ``size_iops_sec``."""
    unit, kind, *rest = name.split("-")
    return "_".join([kind, {"bps": "bytes", "iops": "iops"}[unit], "sec", *rest])


def _address(options: DiskOptions) -> Element | None:
    place = options.placement
    if options.device is not DeviceModel.SCSI_HD or (place.bus, place.scsi_id, place.lun) == (None, None, None):
        return None
    if place.scsi_id is None or place.lun is None:
        raise RenderError(
            "libvirt XML cannot say a part of a SCSI address: it takes what is missing for 0",
            hint="give scsi_id and lun (bus is scsi0 unless given), or none of the three",
        )
    match = re.match(_CONTROLLER, place.bus or "scsi0")
    if match is None:
        raise RenderError(
            f"libvirt XML cannot name the SCSI controller {place.bus!r}: libvirt calls them scsi0, scsi1, …",
            hint="use one of those names, or leave the address to libvirt",
        )
    return Element(
        "address",
        {
            "type": "drive",
            "controller": match["number"],
            "bus": "0",
            "target": str(place.scsi_id),
            "unit": str(place.lun),
        },
    )
