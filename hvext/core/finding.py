"""What ``hvext doctor`` can find on a host, how bad each is, and what that means for each transport.

Every check has an id that never changes: scripts and bug reports name it. ``CHECKS`` lists them all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import StrEnum

from hvext.core.value import value_object
from hvext.errors import InputError


class Severity(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    #: It works, but slower, for fewer disks, or not for much longer; or something was left behind.
    WARNING = "warning"
    #: What was asked for, what hvext cannot do without, or what a VM of this host has, does not work.
    ERROR = "error"
    #: It is not there, and nothing that was asked for needs it.
    ABSENT = "absent"


@value_object
class Check:
    """One thing that is looked at: ``what``, and what is wrong when it is not as it should be (``fault``)."""

    id: str
    what: str
    fault: str


def _check(name: str, what: str, fault: str) -> tuple[str, Check]:
    return name, Check(id=name, what=what, fault=fault)


#: All checks by id, in the order in which they are shown. The part before the dot is the subject.
CHECKS: dict[str, Check] = dict(
    (
        _check("versions.system", "distribution, kernel, processors", "never: for the reader of a report"),
        _check("versions.python", "the Python that runs hvext", "older than 3.11"),
        _check("versions.hvext", "the installed hvext", "it is not installed as a package"),
        _check("versions.qmp", "the library qemu.qmp", "missing: no monitor can be talked to"),
        _check("qemu.binary", "the QEMU starts and describes itself", "missing, or it is no QEMU that works"),
        _check("qemu.version", "its version", "older than 7.2"),
        _check("qemu.driver", "each block driver that opens storage, its module loaded", "missing, or no module"),
        _check("qemu.device", "each device that disks are made of", "missing"),
        _check("qemu.object", "each object that URIs need: secrets, TLS credentials", "missing"),
        _check("qemu.tools", "qemu-img, qemu-io, qemu-storage-daemon", "missing"),
        _check("acceleration.tcg", "a boot sector runs under emulation", "it does not: QEMU or its firmware is broken"),
        _check("acceleration.kvm", "the same boot sector runs under KVM, in 3 s", "no KVM, or a guest hangs in it"),
        _check("loop.control", "/dev/loop-control can be opened", "no loop driver, or not shown to this container"),
        _check("loop.attach", "a free loop device takes a file and reads it back", "none is free, or none works"),
        _check("fuse.device", "/dev/fuse can be opened", "missing, or closed to this user"),
        _check("vfio.device", "/dev/vfio/vfio can be opened", "missing, or closed to QEMU's user"),
        _check("aio.io_uring", "QEMU opens a file with aio=io_uring", "forbidden by the kernel, a container or QEMU"),
        _check("aio.native", "QEMU opens a file with aio=native", "refused"),
        _check("aio.limit", "fs.aio-nr against fs.aio-max-nr", "no room for one more event loop with aio=native"),
        _check("memory.memfd", "QEMU makes memory that a vhost-user server can share", "refused"),
        _check("memory.shm", "the folder /dev/shm can be written, and has room", "missing, closed, or nearly full"),
        _check("limits.nofile", "how many files this process, and a QEMU started by it, may open", "few"),
        _check("providers.path", "the folders in which providers are looked for", "one is not readable"),
        _check("providers.provider", "each provider there keeps the rules of the interface", "missing or invalid"),
        _check(
            "providers.interpreter", "the interpreter that each script names", "missing, or a line end from Windows"
        ),
        _check("providers.tool", "the programs that each shipped provider runs", "missing"),
        _check("files.uri", "each URI can be read, and hvext opens its protocol", "it cannot"),
        _check("files.server", "the server that a URI names has an address, and takes connections", "it does not"),
        _check("files.readable", "files that QEMU reads, as its user and in its chroot", "missing, or closed to it"),
        _check("files.storage", "files and devices that QEMU writes, as its user and in its chroot", "the same"),
        _check(
            "files.socket", "sockets that QEMU connects to, as its user and in its chroot", "nobody listens; closed"
        ),
        _check("files.keyring", "a Ceph keyring that the client would take, as QEMU's user", "none can be read"),
        _check("files.agent", "the ssh agent of this environment, for ssh:// URIs", "none, or closed to QEMU's user"),
        _check("files.module", "the modules of block drivers, in QEMU's chroot", "a driver cannot be loaded in there"),
        _check("journal.folder", "the journal's folder can be written, and has room", "it cannot: nothing can be done"),
        _check("journal.record", "each VM's record can be read", "that VM cannot be worked on"),
        _check("journal.ended", "VMs of the journal whose QEMU has ended", "their volumes are still attached"),
        _check("journal.unfinished", "operations whose process is gone", "they wait for hvext recover"),
        _check(
            "runtime.folder", "the folder of private files is its owner's alone", "others could change what is there"
        ),
        _check("runtime.reached", "QEMU's user gets to that folder, from its chroot", "what is in it cannot be read"),
        _check("runtime.socket", "sockets in it have somebody behind them", "stale: left by a server that has ended"),
        _check("libvirt.daemon", "libvirt answers", "no daemon, or it refuses"),
        _check("libvirt.python", "Python's libvirt module", "missing"),
        _check("doctor.check", "a whole subject could be looked at", "the check failed itself, or took too long"),
    )
)

#: The subjects, in order.
SUBJECTS = tuple(dict.fromkeys(name.partition(".")[0] for name in CHECKS if not name.startswith("doctor.")))


@value_object
class Finding:
    """What came of one check, on one thing (``about``; empty where there is only one).

    ``tried`` and ``found`` are for people: what was done, and what came back; no secret is in them. ``cure`` is a
    command where there is one. ``transports`` are those that do not work because of it.
    """

    id: str
    severity: Severity
    tried: str
    found: str
    about: str = ""
    cure: str = ""
    transports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.id not in CHECKS:
            raise InputError(f"there is no check {self.id!r}")
        if self.severity is not Severity.OK and not self.cure:
            raise InputError(f"the finding {self.id} ({self.found}) has no cure")
        if any(name not in TRANSPORTS for name in self.transports):
            raise InputError(f"the finding {self.id} names unknown transports: {', '.join(self.transports)}")

    @property
    def subject(self) -> str:
        """The part of the id before the dot."""
        return self.id.partition(".")[0]

    def to_json(self) -> dict[str, object]:
        """Return the finding as a JSON-able mapping."""
        return {
            "id": self.id,
            "about": self.about,
            "severity": str(self.severity),
            "tried": self.tried,
            "found": self.found,
            "cure": self.cure,
            "transports": list(self.transports),
        }


@value_object
class Transport:
    """One way to storage: the block ``drivers``, QEMU ``devices`` and ``objects`` without which it does not work."""

    name: str
    words: str
    drivers: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()


def _transport(name: str, words: str, *drivers: str, **parts: tuple[str, ...]) -> tuple[str, Transport]:
    return name, Transport(name=name, words=words, drivers=drivers, **parts)


#: All transports by name, in the order in which they are shown.
TRANSPORTS: dict[str, Transport] = dict(
    (
        _transport("path", "block devices and files", "file", "host_device"),
        _transport("nbd", "NBD", "nbd"),
        _transport("nbds", "NBD with TLS", "nbd", objects=("tls-creds-x509", "tls-creds-psk")),
        _transport("rbd", "Ceph RBD", "rbd", objects=("secret",)),
        _transport("iscsi", "iSCSI", "iscsi", objects=("secret",)),
        _transport("gluster", "GlusterFS", "gluster"),
        _transport("nfs", "NFS", "nfs"),
        _transport("ssh", "SSH", "ssh"),
        _transport("http", "http and https, to read", "http", "https"),
        _transport("ftp", "ftp and ftps, to read", "ftp", "ftps"),
        _transport("nvme", "NVMe controllers", "nvme"),
        _transport("vhost-user", "vhost-user-blk servers", devices=("vhost-user-blk-pci",)),
        _transport("blkio", "libblkio", "io_uring", "nvme-io_uring", "virtio-blk-vhost-user", "virtio-blk-vhost-vdpa"),
    )
)
#: What every host has to be able to, whatever is asked for.
BASIC = ("path", "nbd")


def transport_of(driver: str, *, tls: bool = False) -> str:
    """Return the transport that a location's driver belongs to."""
    if driver == "nbd":
        return "nbds" if tls else "nbd"
    of_parts = (each.name for each in TRANSPORTS.values() if driver in (*each.drivers, *each.devices))
    # libblkio has more drivers than those that are in every build of it.
    return next(of_parts, "blkio")


@value_object
class TransportState:
    """Whether a transport works on this host, and why not."""

    transport: Transport
    ready: bool
    why: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the state as a JSON-able mapping."""
        return {"name": self.transport.name, "words": self.transport.words, "ready": self.ready, "why": self.why}


def transport_states(
    findings: Iterable[Finding], names: Collection[str] = tuple(TRANSPORTS)
) -> tuple[TransportState, ...]:
    """Return whether each of the transports works: it does when no fault was found that touches it."""
    faults: dict[str, list[str]] = {}
    for finding in findings:
        if finding.severity is not Severity.OK:
            for name in finding.transports:
                faults.setdefault(name, []).append(_short(finding))
    return tuple(
        TransportState(transport=each, ready=name not in faults, why="; ".join(dict.fromkeys(faults.get(name, ()))))
        for name, each in TRANSPORTS.items()
        if name in names
    )


def _short(finding: Finding) -> str:
    return f"{finding.found} ({finding.id})"


def is_ready(findings: Iterable[Finding], *, strict: bool = False) -> bool:
    """Return whether a host is ready: nothing is in error, and with ``strict`` there are no warnings either."""
    bad = (Severity.ERROR, Severity.WARNING) if strict else (Severity.ERROR,)
    return not any(finding.severity in bad for finding in findings)


def by_cure(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Return findings in groups, each at the place of its first: faults that one cure mends are one group."""
    groups: dict[str, list[Finding]] = {}
    ordered: list[list[Finding]] = []
    for finding in findings:
        if finding.severity is Severity.OK:
            ordered.append([finding])
        elif finding.cure in groups:
            groups[finding.cure].append(finding)
        else:
            ordered.append(groups.setdefault(finding.cure, [finding]))
    return ordered


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings in the order of ``CHECKS``; those of one check stay as they came."""
    place = {name: number for number, name in enumerate(CHECKS)}
    return sorted(findings, key=lambda finding: place[finding.id])
