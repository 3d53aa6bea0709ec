"""libvirt: a connection, its domains and its secrets. The only importer of libvirt's own library.

libvirt's calls block, and none has a time limit of its own: callers with an event loop make them in a thread. A
connection that dies is noticed after ``KEEP_ALIVE_S`` seconds, and what waits on it fails then.

Source: libvirt, API reference: virDomainAttachDeviceFlags, virDomainDetachDeviceAlias, virDomainBlockResize,
virDomainEventRegisterAny, virSecretDefineXML, virDomainQemuMonitorCommand, virDomainBlockStatsFlags; "Connection
URIs".
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import socket
import threading
import uuid as uuid_module
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element, SubElement, tostring

from hvext.core.domain import METADATA
from hvext.core.extras import library_missing
from hvext.core.secret import Secret
from hvext.core.uri.nbd_tls import CERTIFICATES
from hvext.core.value import value_object
from hvext.errors import CommandRefused, CommandTimeout, DomainError, LibvirtRefused, MonitorError

#: How often a silent connection is asked whether it lives, and how many answers may be missing.
_ASK_S, _MISSING = 5, 3
#: What libvirt's qemu.conf calls the folder of NBD's certificates, and where libvirt looks for one without.
_NBD_FOLDER, _NBD_OWN = "nbd_tls_x509_cert_dir", "/etc/pki/libvirt-nbd"
KEEP_ALIVE_S = _ASK_S * (_MISSING + 1)


class SecretKind(StrEnum):
    """What libvirt calls a secret's use: ``ceph`` for Ceph's keys, ``iscsi`` for every other password."""

    CEPH = "ceph"
    ISCSI = "iscsi"


class Removal(StrEnum):
    """What libvirt tells of a device that was asked away."""

    REMOVED = "removed"
    FAILED = "failed"


@value_object
class DomainSecret:
    """A secret that libvirt is to keep. ``usage`` names it in a disk's XML; ``kept`` tells whether on disk, too."""

    usage: str
    kind: SecretKind
    value: Secret
    base64: bool = False
    kept: bool = False

    @property
    def uuid(self) -> uuid_module.UUID:
        """Its uuid in libvirt: always the same for one usage, so that it can be defined again."""
        return uuid_module.uuid5(uuid_module.NAMESPACE_OID, f"hvext {self.kind} {self.usage}")


@contextlib.contextmanager
def connect(uri: str, *, read_only: bool = False) -> Iterator[Connection]:
    """Yield a connection to libvirt at ``uri`` (``qemu:///system``, ``qemu+ssh://HOST/system``, …).

    One that is ``read_only`` can change nothing, needs fewer rights, and asks nobody for a password. Raises
    ProgramError when libvirt's library is not installed, MonitorError when nobody answers there.
    """
    library = _library()
    try:
        opened = library.openReadOnly(_without_questions(uri)) if read_only else library.open(uri)
    except library.libvirtError as error:
        raise MonitorError(
            f"cannot connect to libvirt at {uri}: {' '.join(str(error.get_error_message()).split())}",
            hint=_connecting(uri),
        ) from error
    try:
        with contextlib.suppress(library.libvirtError):
            # Test drivers have none.
            opened.setKeepAlive(_ASK_S, _MISSING)
        yield Connection(opened, uri)
    finally:
        with contextlib.suppress(library.libvirtError):
            opened.close()


def _connecting(uri: str) -> str:
    """Return what can be done when nobody answers at a URI."""
    words = urlsplit(uri)
    if words.scheme.endswith(("+ssh", "+libssh", "+libssh2")):
        return (
            "does ssh to that host work, as the user that runs hvext, and does libvirtd (or virtqemud) run there? "
            "keyfile=, known_hosts=, no_verify=1 and socket= are parameters of the URI; virsh -c URI list tries it"
        )
    if words.path == "/session":
        return (
            "qemu:///session is the libvirtd (or virtqemud) of the user that runs hvext, below its own "
            "XDG_RUNTIME_DIR: another user's guests are not in it. virsh -c qemu:///session list starts it"
        )
    return "does libvirtd (or virtqemud) run there, and may this user use it? virsh -c URI list shows it"


def _without_questions(uri: str) -> str:
    """Return a URI with which ssh asks nobody for a password."""
    words = urlsplit(uri)
    if not words.scheme.endswith("+ssh") or "no_tty=" in words.query:
        return uri
    return words._replace(query="&".join(each for each in (words.query, "no_tty=1") if each)).geturl()


@lru_cache(maxsize=1)
def _library() -> Any:
    """Return libvirt's library, with its event loop running in a thread and its own messages silenced."""
    try:
        import libvirt
    except ModuleNotFoundError as error:
        raise library_missing("libvirt's Python library", "--connect needs", "libvirt") from error
    # It would print each error, also those that are expected.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    # Before the first connection: one that was opened without it has neither events nor keep-alive.
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, name="libvirt-events", daemon=True).start()
    return libvirt


def _own_name() -> str:
    """Return this host's name as libvirt tells it: with its domain, where that is known."""
    with contextlib.suppress(OSError):
        for _family, _type, _protocol, name, _address in socket.getaddrinfo(
            socket.gethostname(), None, flags=socket.AI_CANONNAME
        ):
            if name:
                return name
    return socket.gethostname()


class Connection:
    """An open connection to libvirt. Made by ``connect``; for any thread."""

    def __init__(self, opened: Any, uri: str) -> None:
        self._opened = opened
        self.uri = uri

    @property
    def is_here(self) -> bool:
        """Whether its domains run on this host, as far as URI and host name tell.

        A URI that names a host may go through a tunnel, also one that names this host: libvirt there tells its name.
        """
        if not urlsplit(self.uri).hostname:
            return True
        name = self.hostname
        return name == socket.gethostname() or name == _own_name()

    @property
    def hostname(self) -> str:
        """The name of the host that the domains run on."""
        with self._telling("tell its host's name"):
            return str(self._opened.getHostname())

    def domain(self, name: str) -> DomainHandle:
        """Return the domain with this name or uuid; raises DomainError."""
        library = _library()
        for look in (self._opened.lookupByName, self._opened.lookupByUUIDString):
            with contextlib.suppress(library.libvirtError):
                return DomainHandle(self, look(name))
        self.check()
        with self._telling("list its domains"):
            names = sorted(domain.name() for domain in self._opened.listAllDomains())
        raise DomainError(
            f"libvirt at {self.uri} has no domain {name!r}", hint=f"it has: {', '.join(names[:20]) or 'none'}"
        )

    def check(self) -> None:
        """Raise MonitorError when the connection is broken."""
        if not self._opened.isAlive():
            raise MonitorError(f"the connection to libvirt at {self.uri} broke")

    def define_secret(self, secret: DomainSecret) -> None:
        """Have libvirt know a secret; one of the same usage is replaced. Nobody can read its value from libvirt."""
        element = Element("secret", {"ephemeral": "no" if secret.kept else "yes", "private": "yes"})
        SubElement(element, "uuid").text = str(secret.uuid)
        usage = SubElement(element, "usage", {"type": str(secret.kind)})
        SubElement(usage, "name" if secret.kind is SecretKind.CEPH else "target").text = secret.usage
        text = secret.value.reveal().encode()
        if secret.base64:
            import base64

            text = base64.b64decode(text)
        with self._telling(f"define the secret {secret.usage}"):
            self._opened.secretDefineXML(tostring(element, encoding="unicode"), 0).setValue(text, 0)

    def secrets(self, prefix: str) -> tuple[str, ...]:
        """Return the usages of all secrets that begin with ``prefix``."""
        with self._telling("list its secrets"):
            usages = [str(each.usageID()) for each in self._opened.listAllSecrets(0)]
        return tuple(sorted(usage for usage in usages if usage.startswith(prefix)))

    def remove_secrets(self, prefix: str) -> tuple[str, ...]:
        """Remove all secrets whose usage begins with ``prefix`` and return their usages; none is no error."""
        removed = []
        with self._telling("remove its secrets"):
            for each in self._opened.listAllSecrets(0):
                usage = str(each.usageID())
                if usage.startswith(prefix):
                    each.undefine()
                    removed.append(usage)
        return tuple(sorted(removed))

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Raise what libvirt says in the block as hvext's errors; ``what`` was to be done."""
        library = _library()
        try:
            yield
        except library.libvirtError as error:
            code, message = int(error.get_error_code() or 0), str(error.get_error_message())
            broken = code in (library.VIR_ERR_RPC, library.VIR_ERR_NO_CONNECT, library.VIR_ERR_INVALID_CONN)
            remote = error.get_error_domain() in (library.VIR_FROM_RPC, library.VIR_FROM_REMOTE)
            if broken or remote or not self._opened.isAlive():
                raise MonitorError(f"the connection to libvirt at {self.uri} broke: {message}") from error
            if code == library.VIR_ERR_OPERATION_TIMEOUT:
                raise CommandTimeout(
                    f"libvirt did not {what} in time: {message}", hint="another operation on the domain hangs"
                ) from error
            if code == library.VIR_ERR_NO_DOMAIN:
                raise DomainError(f"libvirt cannot {what}: {message}") from error
            raise LibvirtRefused(what, code, message) from error


class DomainHandle:
    """A domain of a connection. Every call raises MonitorError, CommandTimeout, DomainError or LibvirtRefused."""

    def __init__(self, connection: Connection, opened: Any) -> None:
        self.connection = connection
        self._opened = opened
        self.name = str(opened.name())
        self.uuid = uuid_module.UUID(str(opened.UUIDString()))

    @property
    def is_here(self) -> bool:
        """Whether it runs on this host. Another host may have the same name: a QEMU that runs here is seen here."""
        connection = self.connection
        if not connection.is_here:
            return False
        return not urlsplit(connection.uri).hostname or not self.is_running or self.pid is not None

    @property
    def hostname(self) -> str:
        """The name of the host that it runs on."""
        return self.connection.hostname

    @property
    def is_running(self) -> bool:
        """Whether its QEMU runs, also while its guest is paused."""
        with self._telling("look at"):
            return bool(self._opened.isActive())

    @property
    def is_persistent(self) -> bool:
        """Whether libvirt keeps its configuration when it has ended."""
        with self._telling("look at"):
            return bool(self._opened.isPersistent())

    def xml(self, *, live: bool) -> str:
        """Return the XML of what runs, or of the persistent configuration; secrets are not in it."""
        with self._telling("show"):
            return str(self._opened.XMLDesc(0 if live else _library().VIR_DOMAIN_XML_INACTIVE))

    def attach(self, xml: str, *, live: bool) -> None:
        """Plug a device into what runs, or write it into the persistent configuration."""
        with self._telling("plug the disk into" if live else "write the disk into the configuration of"):
            self._opened.attachDeviceFlags(xml, self._flag(live=live))

    def update(self, xml: str) -> None:
        """Change a device in the persistent configuration."""
        with self._telling("change the configuration of"):
            self._opened.updateDeviceFlags(xml, self._flag(live=False))

    def set_moved(self, xml: str) -> None:
        """Write into the metadata of what runs where disks are that were moved past libvirt."""
        library = _library()
        kind, flag = library.VIR_DOMAIN_METADATA_ELEMENT, library.VIR_DOMAIN_AFFECT_LIVE
        with self._telling("write metadata of"):
            self._opened.setMetadata(kind, xml, "hvext", METADATA, flag)

    def detach(self, alias: str, *, live: bool) -> None:
        """Ask the guest to let a device go and return at once, or take it out of the persistent configuration."""
        with self._telling("unplug the disk from" if live else "take the disk out of the configuration of"):
            self._opened.detachDeviceAlias(alias, self._flag(live=live))

    def resize(self, target: str, size_bytes: int) -> None:
        """Have QEMU look for a new size of a disk, which its storage has already, and tell the guest."""
        with self._telling("resize a disk of"):
            self._opened.blockResize(target, size_bytes, _library().VIR_DOMAIN_BLOCK_RESIZE_BYTES)

    def size_of(self, target: str) -> int:
        """Return the size in bytes that the guest sees of a disk."""
        with self._telling("tell the size of a disk of"):
            return int(self._opened.blockInfo(target, 0)[0])

    @contextlib.contextmanager
    def removals(self, alias: str) -> Iterator[queue.SimpleQueue[Removal]]:
        """Yield a queue of what libvirt tells of a device that was asked away, in the block."""
        library, told = _library(), queue.SimpleQueue[Removal]()

        def hear(_connection: Any, _domain: Any, device: str, what: Removal) -> None:
            if device == alias:
                told.put(what)

        events = {
            library.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED: Removal.REMOVED,
            library.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED: Removal.FAILED,
        }
        register, deregister = (
            getattr(self._opened.connect(), f"domainEvent{name}Any") for name in ("Register", "Deregister")
        )
        with contextlib.ExitStack() as stack:
            for event, what in events.items():
                with self._telling("listen to"):
                    number = register(self._opened, event, hear, what)
                stack.callback(self._quietly, deregister, number)
            yield told

    @property
    def state(self) -> str:
        """What its guest is in: in QEMU's words while it runs (``paused``, ``io-error``, …), or ``shut off``."""
        library = _library()
        with self._telling("look at"):
            state, reason = self._opened.state(0)
        if (state, reason) == (library.VIR_DOMAIN_PAUSED, library.VIR_DOMAIN_PAUSED_IOERROR):
            return "io-error"
        words = {
            library.VIR_DOMAIN_RUNNING: "running",
            library.VIR_DOMAIN_BLOCKED: "running",
            library.VIR_DOMAIN_PAUSED: "paused",
            library.VIR_DOMAIN_SHUTDOWN: "shutdown",
            library.VIR_DOMAIN_PMSUSPENDED: "suspended",
            library.VIR_DOMAIN_CRASHED: "guest-panicked",
        }
        return words.get(state, "shut off")

    def failed_disks(self) -> Mapping[str, bool]:
        """Return the disks, by libvirt's names (``vda``), whose requests fail, and whether their storage is full.

        Source: virDomainGetDiskErrors; it is QEMU's io-status, which is reset when the guest is resumed.
        """
        full = _library().VIR_DOMAIN_DISK_ERROR_NO_SPACE
        with self._telling("look at the disks of"):
            return {str(target): error == full for target, error in self._opened.diskErrors(0).items()}

    def counts_of(self, target: str) -> Mapping[str, int]:
        """Return libvirt's block statistics of a disk: what QEMU counts anyway. Storage is not asked."""
        with self._telling("tell what is counted of a disk of"):
            return {name: int(number) for name, number in self._opened.blockStatsFlags(target, 0).items()}

    def monitor_command(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Send a command to QEMU's monitor past libvirt, which marks the domain as tainted; return its answer.

        Raises CommandRefused as the monitor itself does.
        """
        import libvirt_qemu

        text = json.dumps({"execute": command, "arguments": arguments or {}}, default=Secret.reveal)
        with self._telling(f"pass {command} on to the monitor of"):
            answer = json.loads(libvirt_qemu.qemuMonitorCommand(self._opened, text, 0))
        if "error" in answer:
            said = answer["error"]
            raise CommandRefused(command, arguments or {}, str(said["class"]), str(said["desc"]))
        return answer["return"]

    @property
    def pid(self) -> int | None:
        """The process of its QEMU, where that runs on this host and can be seen."""
        if not self.connection.is_here:
            return None
        wanted = f"-uuid\0{self.uuid}\0".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if wanted in (entry / "cmdline").read_bytes():
                        return int(entry.name)
        return None

    @property
    def mounts(self) -> str | None:
        """The table of mounts that its QEMU sees (mountinfo), None where that cannot be seen from here."""
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(OSError):
                return Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape")
        return None

    def nbd_certificates(self, pid: int | None) -> str:
        """Return the folder where libvirt has a domain's QEMU look for the certificates of NBD with TLS.

        As libvirt's configuration says it, of a domain on this host; ``pid`` is its QEMU's, which sees that file as
        libvirt does. Source: libvirt, qemu.conf, nbd_tls_x509_cert_dir.
        """
        root = f"/proc/{pid}/root" if pid is not None else ""
        conf = f"{root}/etc/libvirt/qemu.conf"
        if urlsplit(self.connection.uri).path == "/session":
            conf = f"{os.environ.get('XDG_CONFIG_HOME') or Path.home() / '.config'}/libvirt/qemu.conf"
        said: dict[str, str] = {}
        with contextlib.suppress(OSError):
            said = dict(re.findall(r'^\s*(\w+)\s*=\s*"([^"]*)"', Path(conf).read_text(errors="replace"), re.MULTILINE))
        if _NBD_FOLDER not in said and Path(root + _NBD_OWN).exists():
            return _NBD_OWN
        return said.get(_NBD_FOLDER) or said.get("default_tls_x509_cert_dir") or CERTIFICATES

    def _flag(self, *, live: bool) -> int:
        library = _library()
        return int(library.VIR_DOMAIN_AFFECT_LIVE if live else library.VIR_DOMAIN_AFFECT_CONFIG)

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        with self.connection._telling(f"{what} domain {self.name}"):
            yield

    def _quietly(self, call: Any, *arguments: Any) -> None:
        with contextlib.suppress(_library().libvirtError):
            call(*arguments)
