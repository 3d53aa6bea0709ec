r"""Ceph RBD images: ``rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT][:id=USER][:conf=FILE]``.

A backslash takes the next character as it is, which is how ``: @ / \`` get into names. Options other than ``id`` and
``conf`` have no field in QEMU's schema and are refused by name: silently dropping one could open another cluster.
Source: QEMU, block/rbd.c, ``qemu_rbd_parse_filename``; qemu-storage-daemon-qmp-ref(7), BlockdevOptionsRbd.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement

from hvext.core.text import checked, quoted
from hvext.core.uri.location import LibvirtSource, Location
from hvext.core.xml import checked_xml
from hvext.errors import LocationError, RenderError

SCHEMES = ("rbd",)
_OPTIONS = ("id", "conf")


@dataclass(frozen=True, slots=True, kw_only=True)
class RbdLocation(Location):
    """One image of a Ceph pool; ``user`` is the cephx id without ``client.``, ``conf`` a configuration file."""

    pool: str
    image: str
    namespace: str = ""
    snapshot: str = ""
    user: str = ""
    conf: str = ""

    def __post_init__(self) -> None:
        for what in ("pool", "image", "namespace", "snapshot", "user", "conf"):
            checked(getattr(self, what), f"RBD {what}", error=LocationError)
        if not self.pool or not self.image:
            raise LocationError("an rbd: URI needs a pool and an image", hint="write rbd:POOL/IMAGE")

    @property
    def driver(self) -> str:
        return "rbd"

    def blockdev(self) -> dict[str, object]:
        fields = ("pool", "namespace", "image", "snapshot", "conf", "user")
        return {name: getattr(self, name) for name in fields if getattr(self, name)}

    def uri(self) -> str:
        name = "/".join(_escaped(part) for part in (self.pool, self.namespace, self.image) if part)
        snapshot = f"@{_escaped(self.snapshot)}" if self.snapshot else ""
        user = f":id={_escaped(self.user)}" if self.user else ""
        conf = f":conf={_escaped(self.conf)}" if self.conf else ""
        return f"rbd:{name}{snapshot}{user}{conf}"

    @property
    def filename(self) -> str:
        # QEMU shows an rbd node with all its options; nothing simpler is equal to it.
        return "json:" + self.uri()

    def libvirt_source(self) -> LibvirtSource:
        if self.user:
            raise RenderError(
                f"libvirt XML cannot name the cephx user {quoted(self.user)} without a libvirt secret",
                hint="use the -blockdev, -drive or QMP form",
            )
        if self.namespace or "/" in self.pool + self.image:
            # libvirt 9 splits the name at its first slash and takes all the rest for the image.
            raise RenderError(
                f"libvirt XML cannot name the RBD image {quoted(self.uri())}: no namespaces, no '/' in names",
                hint="use the -blockdev, -drive or QMP form",
            )
        name = checked_xml(f"{self.pool}/{self.image}", "the RBD image's name")
        source = Element("source", {"protocol": "rbd", "name": name})
        if self.snapshot:
            SubElement(source, "snapshot", {"name": checked_xml(self.snapshot, "the RBD snapshot's name")})
        if self.conf:
            SubElement(source, "config", {"file": checked_xml(self.conf, "the Ceph configuration's path")})
        return LibvirtSource(disk_type="network", element=source)


def parse(rest: str) -> RbdLocation:
    """Return the location of ``rbd:rest``; raises LocationError."""
    spec, *options = _split(rest, ":")
    values: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if name not in _OPTIONS or not equals:
            raise LocationError(
                f"rbd: option {quoted(_plain(option))} cannot be carried over to a block node",
                hint="put it into a Ceph configuration file and name that with :conf=FILE",
            )
        if not value:
            raise LocationError(f"rbd: option {name} has no value", hint="leave it out for Ceph's default")
        values[name] = _plain(value)
    path, *snapshot = _split(spec, "@")
    if not snapshot and any(len(_split(option, "@")) > 1 for option in options):
        # QEMU looks for the snapshot in all of the text, and would read another image's name and no option.
        raise LocationError(
            f"rbd:{quoted(rest)} has '@' in an option, which QEMU takes for a snapshot's", hint="write \\@"
        )
    names = [_plain(part) for part in _split(path, "/")]
    if len(names) not in (2, 3) or len(snapshot) > 1 or not all((*names, *snapshot)):
        raise LocationError(f"rbd:{quoted(rest)} is not POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]")
    return RbdLocation(
        pool=names[0],
        namespace=names[1] if len(names) == 3 else "",
        image=names[-1],
        snapshot=_plain(snapshot[0]) if snapshot else "",
        user=values.get("id", ""),
        conf=values.get("conf", ""),
    )


def _split(text: str, separator: str) -> list[str]:
    """Split at separators that no backslash protects; escapes stay."""
    parts, start, position = [], 0, 0
    while position < len(text):
        if text[position] == "\\":
            position += 1
        elif text[position] == separator:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    return [*parts, text[start:]]


def _plain(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _escaped(text: str) -> str:
    return re.sub(r"([\\:@/=;])", r"\\\1", text)
