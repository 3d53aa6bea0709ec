"""Files and sockets that URIs and the journal name, opened as QEMU would: as its user, in its chroot."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from hvext.core.documentation import page
from hvext.core.finding import Finding, Severity
from hvext.core.uri import parse_uri, shown
from hvext.core.uri.rbd import RbdLocation
from hvext.errors import InputError
from hvext.host.files import opened_as
from hvext.host.opening import Way
from hvext.operations.doctor.ask import Ask, Needs, shipped, transport_name
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
from hvext.operations.doctor.paths import PathNeed, paths_of, paths_of_disk, rbd_of_disk, servers_of

_RESOLVER = "/etc/resolv.conf"


def look(ask: Ask, needs: Needs) -> Iterator[Finding]:
    """Yield what is found about the URIs, and about all that they and the journal name."""
    yield from _uris(ask)
    wanted = [(location, transport_name(location)) for location in needs.locations]
    images = (rbd_of_disk(disk) for disk in needs.disks if disk.disk.provider == "rbd" and shipped("rbd", ask.host))
    wanted += [(image, "rbd") for image in dict.fromkeys(images) if image is not None]
    paths = [path for location, transport in wanted for path in paths_of(location, transport)]
    paths += [path for record in needs.disks for path in paths_of_disk(record)]
    if ask.identity.chroot and any(not _is_address(each.host) for one, _name in wanted for each in servers_of(one)):
        paths.append(PathNeed(path=_RESOLVER, way=Way.READ, why="to find servers by their names"))
    if not ask.uris and not paths:
        found = f"nothing to open: no --uri was given, and no disk in the journal ({ask.folder.path}) needs a file here"
        yield Finding(id="files.uri", severity=Severity.OK, tried="looked for what names files", found=found)
    for need, opened, who in try_needs(paths, ask.identity, cancel=ask.cancel):
        yield path_finding(need, opened, who)
    for location, _transport in wanted:
        if isinstance(location, RbdLocation):
            yield from keyring_findings(location, ask.identity, cancel=ask.cancel)
    if any(transport == "ssh" for _location, transport in wanted):
        yield agent_finding(os.environ.get(AGENT, ""), ask.identity, cancel=ask.cancel)
    yield from _modules(ask, needs)
    for location, transport in wanted:
        yield from server_findings(location, transport)


def _uris(ask: Ask) -> Iterator[Finding]:
    for uri in ask.uris:
        tried = "read the URI as QEMU would"
        try:
            location = parse_uri(uri, look=opened_as)
        except InputError as error:
            cure = error.hint or f"{page('uris')} lists what there is; hvext explain shows how one is read"
            yield Finding(
                id="files.uri",
                about=shown(uri),
                severity=Severity.ERROR,
                tried=tried,
                found=error.message,
                cure=cure,
            )
            continue
        found = f"block driver {location.driver}" if location.block_node else f"device {location.driver}"
        yield Finding(id="files.uri", about=location.uri(), severity=Severity.OK, tried=tried, found=found)


def _modules(ask: Ask, needs: Needs) -> Iterator[Finding]:
    """Yield modules that QEMU cannot load any more once it is in its chroot."""
    if not ask.identity.chroot:
        return
    for name in sorted(needs.transports):
        there = module_file(name)
        if there is not None and not Path(f"{ask.identity.chroot}{there}").exists():
            shown_there = mount_into_root(ask.identity, str(there.parent))
            yield Finding(
                id="files.module",
                about=name,
                severity=Severity.WARNING,
                tried=f"looked for {there} in {ask.identity.chroot}",
                found=f"{there.name} is not in there: a disk can be had at the start, and not plugged later",
                cure=f"{shown_there}; in the same way, the libraries that it needs",
            )


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
