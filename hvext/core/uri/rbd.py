r"""Ceph RBD images: ``rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT][:NAME=VALUE…]``.

``id`` (user), ``conf``, ``key``, ``mon_host``, ``auth_supported`` and ``auth_client_required`` have fields in QEMU's
schema. ``rbd_cache`` is dropped: QEMU sets it itself, behind all options, from the cache mode of the disk. Every other
option goes into a private configuration file, see ``ceph``.
Source: QEMU, block/rbd.c; qemu-storage-daemon-qmp-ref(7), BlockdevOptionsRbd.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from typing import ClassVar, TypedDict

from hvext.core.secret import Secret, shown
from hvext.core.text import checked, quoted
from hvext.core.uri.ceph import (
    AUTH_MODES,
    DEFAULT_CONF,
    DEFAULT_USER,
    Monitor,
    check_extendable,
    check_option_value,
    option_name,
    parse_auth_modes,
    parse_monitors,
    section,
)
from hvext.core.uri.location import Companions, LibvirtSource, Location, Needs, PrivateFile, secret_object
from hvext.core.uri.rbd_syntax import join_rbd, split_rbd
from hvext.core.uri.syntax import parse_port
from hvext.core.value import value_object
from hvext.core.xml import checked_xml
from hvext.errors import LocationError, RenderError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hvext.core.uri.fields import Fields

_OTHER_FORM = "use the -blockdev, -drive or QMP form"
#: The configuration file of ``needs``, with a digest of what is in it, behind the node's name and alone.
_PRIVATE = re.compile(r"/.*-(?P<name>ceph-[0-9a-f]{16}/[^/]+)\Z", re.DOTALL)
_SHOWN = r"ceph-[0-9a-f]{16}/[^/]+\Z"


class _Options(TypedDict):
    """The options of a URI, sorted by the fields that carry them."""

    user: str
    conf: str
    key: Secret | None
    monitors: tuple[Monitor, ...]
    auth: tuple[str, ...]
    options: tuple[tuple[str, str], ...]


@value_object
class RbdLocation(Location):
    """One image of a Ceph pool.

    ``user`` is the cephx id without ``client.``, ``key`` its key in base64, ``conf`` a configuration file, ``auth`` the
    ways to log in, ``options`` further settings of the client, sorted by name. What is empty is Ceph's default.
    """

    SECRETS: ClassVar[tuple[str, ...]] = ("key",)

    pool: str
    image: str
    namespace: str = ""
    snapshot: str = ""
    user: str = ""
    conf: str = ""
    key: Secret | None = None
    monitors: tuple[Monitor, ...] = ()
    auth: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for what in ("pool", "image", "namespace", "snapshot", "user", "conf"):
            checked(getattr(self, what), f"RBD {what}", error=LocationError)
        if not self.pool or not self.image:
            raise LocationError("an rbd: URI needs a pool and an image", hint="write rbd:POOL/IMAGE")
        if self.key is not None:
            _check_key(self.key)
        if len(set(self.auth)) < len(self.auth) or not set(self.auth) <= set(AUTH_MODES):
            raise LocationError(
                f"RBD authentication {quoted(', '.join(self.auth))} is not of {', '.join(AUTH_MODES)}, each once"
            )
        if self.options:
            self._check_options()

    def _check_options(self) -> None:
        first = self.options[0][0]
        if _sorted_out(self.options)["options"] != self.options:
            raise LocationError("RBD options have twins or no order, or have fields of their own")
        if self.monitors and any(name == "mon_host" for name, _value in self.options):
            raise LocationError("RBD monitors are given twice", hint="leave mon_host out")
        for name, value in self.options:
            checked(value, f"RBD option {name}", error=LocationError)
            check_option_value(name, value)
        check_extendable(self.conf or DEFAULT_CONF, first)
        section(self.user, self.options)

    @property
    def driver(self) -> str:
        return "rbd"

    def blockdev(self, beside: Companions = Companions()) -> dict[str, object]:
        fields = {"pool": self.pool, "namespace": self.namespace, "image": self.image, "snapshot": self.snapshot}
        node: dict[str, object] = {**fields, "conf": self._conf(beside), "user": self.user}
        node["auth-client-required"] = list(self.auth)
        node["server"] = [{"host": monitor.host, "port": str(monitor.port)} for monitor in self.monitors]
        node["key-secret"] = beside.object_id("key") if self.key is not None else ""
        return {name: value for name, value in node.items() if value}

    def needs(self, beside: Companions) -> Needs:
        objects = (secret_object(beside, "key", self.key, base64=True),) if self.key is not None else ()
        if not self.options:
            return Needs(objects=objects)
        text = Secret(section(self.user, self.options))
        after = self.conf or DEFAULT_CONF
        conf = PrivateFile(path=self._conf(beside), text=text, after=after, optional=not self.conf)
        return Needs(objects=objects, files=(conf,))

    def _conf(self, beside: Companions) -> str:
        """The configuration file that QEMU reads; raises LocationError for one that nobody has."""
        if self.options:
            digest, slash, name = self._private_conf.partition("/")
            path = f"{beside.path(digest)}{slash}{name}"
            check_extendable(path, self.options[0][0])
            return path
        if re.match(_SHOWN, self.conf):
            raise LocationError(
                f"rbd: conf {quoted(self.conf)} stands for options that QEMU does not show of an open image",
                hint="give the URI that the image was opened with",
            )
        return self.conf

    @property
    def _private_conf(self) -> str:
        """The name of the private configuration file, behind folder and node; other contents give another name."""
        conf = self.conf or DEFAULT_CONF
        contents = f"{conf}\0{section(self.user, self.options)}"
        return f"ceph-{hashlib.sha256(contents.encode()).hexdigest()[:16]}/{conf.rpartition('/')[2]}"

    def uri(self, *, reveal: bool = False) -> str:
        options = [("id", self.user), ("conf", self.conf)]
        options.append(("key", shown(self.key, reveal=reveal) if self.key is not None else ""))
        options.append(("mon_host", ";".join(map(str, self.monitors))))
        options.append(("auth_client_required", ";".join(self.auth)))
        names = [name for name in (self.pool, self.namespace, self.image) if name]
        return join_rbd(names, self.snapshot, [*(option for option in options if option[1]), *self.options])

    @property
    def reported(self) -> Location:
        # QEMU leaves out how one logs in. The digest in the name of the private file tells whether that is the same.
        conf = self._private_conf if self.options else self.conf
        return self._replaced({"key": None, "auth": (), "options": (), "conf": conf})

    def libvirt_source(self, beside: Companions = Companions()) -> LibvirtSource:
        from xml.etree.ElementTree import Element, SubElement

        self._check_libvirt()
        name = checked_xml(f"{self.pool}/{self.image}", "the RBD image's name")
        source = Element("source", {"protocol": "rbd", "name": name})
        for monitor in self.monitors:
            SubElement(source, "host", {"name": monitor.host, "port": str(monitor.port)})
        if self.snapshot:
            SubElement(source, "snapshot", {"name": checked_xml(self.snapshot, "the RBD snapshot's name")})
        if self.conf:
            SubElement(source, "config", {"file": checked_xml(self.conf, "the Ceph configuration's path")})
        if self.key is not None:
            user = checked_xml(self.user or DEFAULT_USER, "the cephx user's name")
            auth = SubElement(source, "auth", {"username": user})
            SubElement(auth, "secret", {"type": "ceph", "usage": beside.object_id("key")})
        return LibvirtSource(disk_type="network", element=source)

    def _check_libvirt(self) -> None:
        if self.user and self.key is None:
            raise RenderError(
                f"libvirt XML cannot name the cephx user {quoted(self.user)} without a libvirt secret",
                hint=f"give the user's key with the URI, or {_OTHER_FORM}",
            )
        if self.namespace or "/" in self.pool + self.image:
            # libvirt 9 splits the name at its first slash and takes all the rest for the image.
            raise RenderError(
                f"libvirt XML cannot name the RBD image {quoted(self.uri())}: no namespaces, no '/' in names",
                hint=_OTHER_FORM,
            )
        if self.options:
            raise RenderError(f"libvirt XML cannot say the Ceph option {self.options[0][0]}", hint=_OTHER_FORM)
        if self.auth and (self.key is None or self.auth != AUTH_MODES):
            # libvirt says cephx and none, in this order, for a disk with a key, and nothing for one without.
            raise RenderError(
                f"libvirt XML cannot say the RBD authentication {', '.join(self.auth)}",
                hint=f"leave auth_client_required out, or {_OTHER_FORM}",
            )


def _check_key(key: Secret) -> None:
    try:
        empty = not base64.b64decode(key.reveal(), validate=True)
    except (binascii.Error, ValueError):
        empty = True
    if empty:
        # Without its cause, and without the key.
        raise LocationError("the RBD key is not base64", hint="ceph auth get-key client.USER prints it") from None


def parse(_scheme: str, rest: str) -> RbdLocation:
    """Return the location of ``rbd:rest``; raises LocationError."""
    text = split_rbd(rest)
    return RbdLocation(
        pool=text.pool,
        namespace=text.namespace,
        image=text.image,
        snapshot=text.snapshot,
        **_sorted_out(text.options),
    )


def _sorted_out(pairs: Iterable[tuple[str, str]]) -> _Options:
    """Return options by the fields that carry them; the last of twins counts, as it does for QEMU."""
    own, values = {"id": "", "conf": ""}, dict[str, str]()
    key = None
    for name, value in pairs:
        if name in own:
            own[name] = value
        elif name.strip() == "key":
            key = Secret(value)
        else:
            values[option_name(name)] = value
    _drop_cache(values)
    monitors = parse_monitors(values.get("mon_host", "")) or ()
    if monitors:
        del values["mon_host"]
    auth = _take_auth(values)
    options = tuple(sorted(values.items()))
    return _Options(user=own["id"], conf=own["conf"], key=key, monitors=monitors, auth=auth, options=options)


def _drop_cache(values: dict[str, str]) -> None:
    value = values.pop("rbd_cache", "true")
    if not re.fullmatch(r"true|false|-?[0-9]+", value, re.IGNORECASE):
        raise LocationError(f"rbd: option rbd_cache is {quoted(value)}", hint="it is true or false")


def _take_auth(values: dict[str, str]) -> tuple[str, ...]:
    """Return the ways to log in and take them out of ``values``; Ceph prefers auth_supported to the other."""
    for name in ("auth_supported", "auth_client_required"):
        if name in values:
            modes = parse_auth_modes(values[name])
            if modes is None:
                return ()
            values.pop("auth_supported", None)
            values.pop("auth_client_required", None)
            return modes
    return ()


def from_options(_driver: str, fields: Fields) -> RbdLocation:
    """Return the location of a ``json:`` description; raises LocationError.

    ``key`` is the key itself, which reaches QEMU only as a secret object.
    """
    conf = fields.text("conf") or ""
    private = _PRIVATE.match(conf)
    servers = fields.subs("server")
    monitors = tuple(Monitor(host=item.needed("host"), port=parse_port(item.needed("port"))) for item in servers)
    for item in servers:
        item.finish()
    return RbdLocation(
        pool=fields.needed("pool"),
        image=fields.needed("image"),
        namespace=fields.text("namespace") or "",
        snapshot=fields.text("snapshot") or "",
        user=fields.text("user") or "",
        conf=private["name"] if private else conf,
        key=fields.secret("key"),
        monitors=monitors,
        auth=fields.texts("auth-client-required"),
    )
