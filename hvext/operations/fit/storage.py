"""Whether one QEMU that runs could open an access to a volume: as its user, in its root, with its drivers.

Nothing is opened for writing, no lock is taken and no server spoken to. Blocks.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from pathlib import Path

from hvext.core.capability import module_drivers
from hvext.core.finding import Finding as HostFinding
from hvext.core.finding import Severity, transport_of
from hvext.core.fit import Finding, Subject, ok, problem, unknown
from hvext.core.options import DiskOptions
from hvext.core.plan import DiskPlan
from hvext.core.record import VmRecord
from hvext.core.uri import Location
from hvext.core.uri.file import FileLocation
from hvext.core.uri.rbd import RbdLocation
from hvext.core.value import replace, value_object
from hvext.errors import HvextError, ProgramError
from hvext.host.block_users import users_of_device
from hvext.host.cache import mapped_files
from hvext.host.opening import Identity, Opened, Way, identity_of, try_paths
from hvext.host.private import private_folder
from hvext.host.proc import process_id, qemus_with
from hvext.host.process import Cancel
from hvext.operations.capabilities import binary_capabilities
from hvext.operations.doctor.ask import transport_name
from hvext.operations.doctor.cures import mount_into_root
from hvext.operations.doctor.opened import (
    AGENT,
    agent_finding,
    keyring_findings,
    module_file,
    path_finding,
    server_findings,
    try_needs,
)
from hvext.operations.doctor.paths import PathNeed, paths_of
from hvext.operations.questions import Guest

_INSTALL = "apt-get install qemu-block-extra"
#: What the storage itself may be before its volume is attached.
_NOT_YET = (errno.ENOENT, errno.ENXIO, errno.ECONNREFUSED)


@value_object
class Opener:
    """The QEMU that would open the storage: its process and who that is; None where that is not known, and ``why``.

    ``installed`` tells whether it is the QEMU that is installed here, ``loaded`` are the files of its code.
    """

    pid: int | None
    identity: Identity | None
    installed: bool = False
    loaded: frozenset[str] = frozenset()
    why: str = ""
    cure: str = ""

    @classmethod
    def of(cls, pid: int | None, *, installed: bool, offline: bool) -> Opener:
        """Look who a process is."""
        if offline:
            return cls(pid=pid, identity=None, why="--offline says not to look", cure="leave --offline out")
        if pid is None:
            return cls(
                pid=None,
                identity=None,
                why="which process QEMU is, is not told over TCP, through a proxy, and to a user who may not know",
                cure="as root on QEMU's host, name its unix socket with --qmp; or ask for any user: hvext doctor "
                "--uri URI --user USER",
            )
        try:
            identity = identity_of(pid)
        except ProgramError as error:
            return cls(pid=pid, identity=None, why=error.message, cure=error.hint)
        return cls(pid=pid, identity=identity, installed=installed, loaded=mapped_files(pid))


def of_driver(location: Location, guest: Guest, opener: Opener, about: str) -> Finding:
    """Return whether QEMU has the block driver of a location, and its module."""
    driver, capabilities = location.driver, guest.capabilities
    if not location.block_node:
        return ok(Subject.DRIVER, f"no block driver is needed: device {driver}", about=about)
    if (why := capabilities.obstacle(driver)) is not None:
        return problem(Subject.DRIVER, f"this QEMU cannot open it: {why}", _instead(driver), about=about)
    if driver not in module_drivers(capabilities.schema):
        return ok(Subject.DRIVER, f"QEMU {capabilities.version} has block driver {driver}", about=about)
    return _of_module(driver, opener, about)


def _instead(driver: str) -> str:
    return f"use a QEMU that is built with {driver}, or another access to the volume (--access kernelspace)"


def _of_module(driver: str, opener: Opener, about: str) -> Finding:
    """Return whether a driver that may be a module can be loaded; it is not tried, because that could end QEMU."""
    file = module_file(transport_of(driver))
    if file is not None and str(file) in opener.loaded:
        return ok(Subject.DRIVER, f"QEMU has loaded {file.name}, with block driver {driver}", about=about)
    if not opener.installed:
        return unknown(
            Subject.DRIVER,
            f"QEMU lists block driver {driver}; whether the module with it can be loaded is not known",
            f"{_INSTALL}, of the build of the QEMU that runs; one that was upgraded meanwhile has to be started again",
            about=about,
        )
    if driver in binary_capabilities().unloadable:
        return problem(Subject.DRIVER, f"the module with block driver {driver} cannot be loaded", _INSTALL, about=about)
    chroot = opener.identity.chroot if opener.identity is not None else ""
    if file is not None and opener.identity is not None and chroot and not Path(f"{chroot}{file}").exists():
        cure = f"{mount_into_root(opener.identity, str(file.parent))}; in the same way, the libraries that it needs"
        return problem(
            Subject.DRIVER, f"{file.name}, with block driver {driver}, is not in {chroot}", cure, about=about
        )
    return ok(Subject.DRIVER, f"the module with block driver {driver} can be loaded", about=about)


def of_memory(location: Location, guest: Guest, about: str) -> Iterator[Finding]:
    """Yield whether the guest's memory is shared, for what needs it."""
    if not location.needs_shared_memory:
        return
    if guest.shared_memory:
        yield ok(Subject.MEMORY, "the guest's memory is shared", about=about)
        return
    yield problem(
        Subject.MEMORY,
        "the server would read and write the guest's memory, which is not shared",
        "start QEMU with -object memory-backend-memfd,id=MEM,size=SIZE,share=on and -machine memory-backend=MEM, "
        "or use another access",
        about=about,
    )


def of_reach(
    plan: DiskPlan, opener: Opener, records: Mapping[str, VmRecord], cancel: Cancel, *, about: str, volume: str
) -> Iterator[Finding]:
    """Yield whether QEMU gets to all that its plan names, and whether somebody else has it.

    ``volume`` is the volume's name as ``hvext attach`` takes it.
    """
    location, who = plan.location, opener.identity
    if who is None or opener.pid is None:
        return
    try:
        for each in _of_paths(plan, who, volume, cancel):
            yield replace(each, about=about)
        transport = transport_name(location)
        found = list(server_findings(location, transport))
        if isinstance(location, RbdLocation):
            found += keyring_findings(location, who, cancel=cancel)
        if transport == "ssh":
            found.append(agent_finding(_of_environment(opener.pid, AGENT), who, cancel=cancel))
        for fault in found:
            yield replace(_as_reach(fault, who), about=about)
        if isinstance(location, FileLocation):
            for each in _of_lock(location, plan.options, opener, records, cancel):
                yield replace(each, about=about)
    except HvextError as error:
        yield unknown(Subject.REACH, error.message, error.hint or "run it as root, on QEMU's host", about=about)


def _of_paths(plan: DiskPlan, who: Identity, volume: str, cancel: Cancel) -> Iterator[Finding]:
    location = plan.location
    needs = list(paths_of(location, transport_name(location)))
    if plan.needs.files and Path(private_folder()).is_dir():
        needs.append(PathNeed(path=private_folder(), way=Way.PASS, why="hvext's private files"))
    for need, opened, opener in try_needs(needs, who, cancel=cancel):
        hidden = opener.chroot and Path(need.path).exists()
        if need.way not in (Way.READ, Way.PASS) and opened.code in _NOT_YET and not hidden:
            yield unknown(
                Subject.REACH,
                f"{need.path}: {_not_there(opened)} ({need.why}); attach is to see to that",
                f"hvext attach {volume}, and look again",
            )
        else:
            yield _as_reach(path_finding(need, opened, opener), opener)


def _not_there(opened: Opened) -> str:
    return "nobody listens there" if opened.code == errno.ECONNREFUSED else opened.words


def _as_reach(found: HostFinding, who: Identity) -> Finding:
    """Return a finding of the doctor as one about an access."""
    # It may be the user who asks: here it is QEMU's that matters.
    words = f"{found.found}, {who.words if who.uid is not None or not who.name else f'as user {who.name}'}"
    if found.severity is Severity.OK:
        return ok(Subject.REACH, f"{found.about}: {words}" if found.about else words)
    return (problem if found.severity is Severity.ERROR else unknown)(Subject.REACH, words, found.cure)


def _of_environment(pid: int, name: str) -> str:
    """Return a variable of a process's environment; empty where it has none."""
    try:
        text = Path(f"/proc/{pid}/environ").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    pairs = (word.partition("=") for word in text.split("\0"))
    return next((value for key, _equals, value in pairs if key == name), "")


def _of_lock(
    location: FileLocation, options: DiskOptions, opener: Opener, records: Mapping[str, VmRecord], cancel: Cancel
) -> Iterator[Finding]:
    who, path = opener.identity, location.path
    assert who is not None  # noqa: S101
    reads = bool(options.read_only) or location.read_only
    (opened,) = try_paths([(path, Way.LOCK_TO_READ if reads else Way.LOCK)], who, cancel=cancel)
    if opened.code == errno.EAGAIN:
        holders = [_holder(pid, opener, records) for pid in qemus_with(f"{who.chroot}{path}")]
        yield problem(
            Subject.LOCK,
            f"{path} is locked by {' and '.join(holders) or 'another program'}: QEMU would not open it",
            "unplug it there, or end that program first; two can have it only where neither writes",
        )
        return
    if opened.code:
        # That it does not open is said already.
        return
    used = () if reads else users_of_device(f"{who.chroot}{path}")
    if used:
        words = f"the host itself uses {path}: {', '.join(used)}"
        yield problem(Subject.LOCK, words, "let go of it first: umount, swapoff, vgchange -an, …")
    else:
        yield ok(Subject.LOCK, f"nobody has locked {path}")


def _holder(pid: int, opener: Opener, records: Mapping[str, VmRecord]) -> str:
    if pid == opener.pid:
        return "this QEMU itself, for another disk"
    process = process_id(pid)
    named = next((record.name for record in records.values() if process and record.process == process), "")
    return f"VM {named} (process {pid})" if named else f"QEMU process {pid}"
