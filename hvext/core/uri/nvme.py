"""NVMe controllers that QEMU drives itself through VFIO: ``nvme://DOMAIN:BUS:DEVICE.FUNCTION/NAMESPACE``.

Nothing is percent-decoded. Without a namespace QEMU takes the first.

Stricter than QEMU, which looks for any name among the host's PCI devices: the address must be a whole one, in lower
case as the host writes it, and the namespace a number from 1.
Source: QEMU, block/nvme.c, ``nvme_parse_filename``; qemu-storage-daemon-qmp-ref(7), BlockdevOptionsNVMe.
"""

from __future__ import annotations

import re

from hvext.core.text import quoted
from hvext.core.uri.disk_source import refuse
from hvext.core.uri.location import Companions, LibvirtSource, Location
from hvext.core.value import value_object
from hvext.errors import LocationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hvext.core.uri.fields import Fields

FIRST_NAMESPACE = 1
_LAST_NAMESPACE = (1 << 31) - 1
_ADDRESS = re.compile(
    r"(?P<domain>[0-9a-f]{4,8}):(?P<bus>[0-9a-f]{2}):(?P<slot>[01][0-9a-f])\.(?P<function>[0-7])\Z", re.ASCII
)


@value_object
class NvmeLocation(Location):
    """One namespace of a controller; ``device`` is its PCI address, such as ``0000:44:00.0``."""

    device: str
    namespace: int = FIRST_NAMESPACE

    def __post_init__(self) -> None:
        if not _ADDRESS.match(self.device):
            raise LocationError(
                f"{quoted(self.device)} is no PCI address", hint="write DOMAIN:BUS:DEVICE.FUNCTION, like 0000:44:00.0"
            )
        if not FIRST_NAMESPACE <= self.namespace <= _LAST_NAMESPACE:
            raise LocationError(f"NVMe namespace {self.namespace} is not a number from {FIRST_NAMESPACE}")

    @property
    def driver(self) -> str:
        return "nvme"

    def blockdev(self, beside: Companions = Companions()) -> dict[str, object]:
        return {"device": self.device, "namespace": self.namespace}

    def uri(self, *, reveal: bool = False) -> str:
        return f"nvme://{self.device}/{self.namespace}"

    def libvirt_source(self, beside: Companions = Companions()) -> LibvirtSource:
        from xml.etree.ElementTree import Element, SubElement

        refuse({"a PCI domain of more than four digits": len(self.device.partition(":")[0]) > 4})
        source = Element("source", {"type": "pci", "managed": "yes", "namespace": str(self.namespace)})
        match = _ADDRESS.match(self.device)
        address = match.groupdict() if match else {}
        SubElement(source, "address", {name: f"0x{digits}" for name, digits in address.items()})
        return LibvirtSource(disk_type="nvme", element=source)


def parse(scheme: str, rest: str) -> NvmeLocation:
    """Return the location of ``nvme:rest``; raises LocationError."""
    match = re.fullmatch(r"//(?P<device>[^/]+)(?:/(?P<namespace>[^/]*))?", rest, re.DOTALL)
    if match is None:
        raise LocationError(
            f"nvme:{quoted(rest)} is no NVMe URI", hint="write nvme://DOMAIN:BUS:DEVICE.FUNCTION/NAMESPACE"
        )
    namespace = match["namespace"] or str(FIRST_NAMESPACE)
    if not re.fullmatch("[0-9]{1,10}", namespace):
        raise LocationError(f"NVMe namespace {quoted(namespace)} is not a number")
    return NvmeLocation(device=match["device"], namespace=int(namespace))


def parse_filename(_driver: str, filename: str) -> NvmeLocation:
    """Return the location that QEMU reports as its URI."""
    return parse("nvme", filename.removeprefix("nvme:"))


def from_options(_driver: str, fields: Fields) -> NvmeLocation:
    """Return the location of a ``json:`` description; raises LocationError."""
    namespace = fields.number("namespace", FIRST_NAMESPACE, _LAST_NAMESPACE)
    return NvmeLocation(device=fields.needed("device"), namespace=FIRST_NAMESPACE if namespace is None else namespace)
