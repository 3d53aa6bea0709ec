"""Paths, keyrings, agents and servers that a location needs, opened as QEMU would: as its user, in its root.

For ``hvext doctor``, which asks for a host, and ``hvext explain --qmp``, which asks for one QEMU that runs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from hvext.core.finding import TRANSPORTS, Finding, Severity
from hvext.core.uri import Location
from hvext.core.uri.ceph import DEFAULT_CONF
from hvext.core.uri.rbd import RbdLocation
from hvext.host.opening import Identity, Opened, Way, try_paths
from hvext.host.process import Cancel
from hvext.operations.doctor.ceph import keyrings
from hvext.operations.doctor.cures import copy_into_root, mount_into_root, setfacl
from hvext.operations.doctor.paths import PathNeed, Server, servers_of
from hvext.operations.kept_capabilities import MODULE_DIR

_CONNECT_S = 2.0
_CLOSED = (errno.EACCES, errno.EPERM)
#: The module of QEMU that has a transport's drivers.
_MODULES = {"http": "curl", "ftp": "curl", "blkio": "blkio"} | {
    name: name for name in ("rbd", "iscsi", "gluster", "nfs", "ssh")
}
#: The variable of QEMU's environment that names the ssh agent's socket.
AGENT = "SSH_AUTH_SOCK"


def module_file(transport: str) -> Path | None:
    """Return the installed module of QEMU with a transport's drivers; None where there is none, or it needs none."""
    given = os.environ.get(MODULE_DIR)
    folders = [Path(given)] if given else [*Path("/usr/lib").glob("*/qemu"), Path("/usr/lib64/qemu")]
    files = [folder / f"block-{_MODULES[transport]}.so" for folder in folders if transport in _MODULES]
    return next((file for file in files if file.exists()), None)


def try_needs(
    paths: Iterable[PathNeed], identity: Identity, *, cancel: Cancel | None = None
) -> Iterator[tuple[PathNeed, Opened, Identity]]:
    """Yield what comes of each path, with who opened it: QEMU, which is ``identity``, or hvext itself.

    Paths that need not be there and are not are left out. Raises ProgramError.
    """
    every = list(dict.fromkeys(paths))
    for by_qemu, who in ((True, identity), (False, Identity())):
        these = [each for each in every if each.by_qemu is by_qemu]
        answers = try_paths([(each.path, each.way) for each in these], who, cancel=cancel)
        for need, opened in zip(these, answers, strict=True):
            if not (need.optional and opened.code == errno.ENOENT):
                yield need, opened, who


def path_finding(need: PathNeed, opened: Opened, who: Identity) -> Finding:
    """Return what to say of a path that was tried, with its cure."""
    doing = "asked the kernel who has" if need.way is Way.CONNECT else "opened"
    tried = f"{doing} {need.path} {who.words}"
    if opened.code == 0:
        found = f"somebody listens ({need.why})" if need.way is Way.CONNECT else f"it opens ({need.why})"
        return Finding(id=need.check, about=need.path, severity=Severity.OK, tried=tried, found=found)
    words = "stale: nobody listens there" if opened.code == errno.ECONNREFUSED else opened.words
    return Finding(
        id=need.check,
        about=need.path,
        severity=Severity.ERROR,
        tried=tried,
        found=f"{need.path}: {words} ({need.why})",
        cure=_cure(need, opened, who),
        transports=(need.transport,) if need.transport in TRANSPORTS else (),
    )


def _cure(need: PathNeed, opened: Opened, who: Identity) -> str:
    if opened.code in _CLOSED:
        return _allow(opened.at or need.path, need.path, need.way, who)
    if opened.code == errno.ENOENT and who.chroot and Path(need.path).exists():
        if need.way is Way.READ:
            return copy_into_root(who, need.path)
        return mount_into_root(who, str(Path(need.path).parent))
    if need.way is Way.CONNECT:
        if opened.code == errno.ENOTSOCK:
            return "name the socket of the server"
        return "start its server again: hvext attach PROVIDER VOLUME does for a volume, and prints the URI"
    if need.way is Way.READ:
        return "put the file there, or correct what names it"
    return "attach the volume: hvext attach PROVIDER VOLUME prints its path"


def _allow(at: str, path: str, way: Way, who: Identity) -> str:
    """Return a command that lets somebody pass, or open what is at the end."""
    mode = "x" if at != path else "r" if way is Way.READ else "rw"
    return setfacl(who, mode, at)


def keyring_findings(location: RbdLocation, identity: Identity, *, cancel: Cancel | None = None) -> Iterator[Finding]:
    """Yield whether a Ceph keyring can be read that the client would take; nothing where it needs none."""
    conf = location.conf or DEFAULT_CONF
    text = ""
    path = Path(identity.chroot + conf)
    # To read what is no file could take for ever; that it is not there is said already.
    if path.is_file():
        with contextlib.suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace")
    paths = keyrings(location, text)
    if not paths:
        return
    answers = try_paths([(path, Way.READ) for path in paths], identity, cancel=cancel)
    tried = f"opened {', '.join(paths)} {identity.words}"
    good = next((each.path for each in answers if each.code == 0), None)
    if good is not None:
        yield Finding(
            id="files.keyring", about=location.uri(), severity=Severity.OK, tried=tried, found=f"{good} opens"
        )
        return
    # One that is there and closed is the one that is meant.
    worst = next((each for each in answers if each.code in _CLOSED), answers[0])
    user = location.user or "admin"
    if worst.code in _CLOSED:
        cure = _allow(worst.at or worst.path, worst.path, Way.READ, identity)
    elif identity.chroot and Path(worst.path).exists():
        cure = copy_into_root(identity, worst.path)
    else:
        cure = f"ceph auth get client.{shlex.quote(user)} -o {shlex.quote(worst.path)}"
    yield Finding(
        id="files.keyring",
        about=location.uri(),
        severity=Severity.ERROR,
        tried=tried,
        found=f"{worst.path}: {worst.words}",
        cure=cure,
        transports=("rbd",),
    )


def agent_finding(path: str, identity: Identity, *, cancel: Cancel | None = None) -> Finding:
    """Return whether QEMU would have the keys to log in over SSH, if ``path`` is the agent's in its environment."""
    if not path:
        return Finding(
            id="files.agent",
            severity=Severity.WARNING,
            tried=f"looked for {AGENT} in the environment",
            found=f"{AGENT} is not set: QEMU logs in with the keys of an agent, and takes no password",
            cure='eval "$(ssh-agent)" && ssh-add, where QEMU is started',
        )
    (opened,) = try_paths([(path, Way.CONNECT)], identity, cancel=cancel)
    tried = f"asked the kernel who has {path} {identity.words}"
    if opened.code == 0:
        return Finding(id="files.agent", severity=Severity.OK, tried=tried, found="an agent listens")
    return Finding(
        id="files.agent",
        severity=Severity.WARNING,
        tried=tried,
        found=f"{path}: {opened.words}",
        cure=f'eval "$(ssh-agent)" && ssh-add, as {identity.name or "the user who runs QEMU"}',
    )


def server_findings(location: Location, transport: str) -> Iterator[Finding]:
    """Yield whether a server of the network that a location names is there; nothing where it names none."""
    servers = servers_of(location)
    if not servers:
        return
    faults = {f"{each.host}:{each.port}": _fault(each) for each in servers}
    good = [name for name, fault in faults.items() if not fault]
    tried = f"connected to {', '.join(faults)}"
    if not any(each.connect for each in servers):
        tried = f"looked for the address of {', '.join(each.host for each in servers)}; a server may be there for one "
        tried += "connection only, so none was made"
    if good:
        found = f"{good[0]} is there"
        yield Finding(id="files.server", about=location.uri(), severity=Severity.OK, tried=tried, found=found)
        return
    yield Finding(
        id="files.server",
        about=location.uri(),
        severity=Severity.ERROR,
        tried=tried,
        found="; ".join(f"{name}: {fault}" for name, fault in faults.items()),
        cure="start the server, let its port through the firewall, or correct the URI",
        transports=(transport,),
    )


def _fault(server: Server) -> str:
    try:
        if not server.connect:
            socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
            return ""
        with socket.create_connection((server.host, server.port), timeout=_CONNECT_S):
            return ""
    except TimeoutError:
        return f"it does not answer within {_CONNECT_S:g} s"
    except OSError as error:
        return error.strerror or str(error)
