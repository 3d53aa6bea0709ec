"""hvext's disks of a domain, for people and machines."""

from __future__ import annotations

import contextlib
import uuid as uuid_module

from hvext.core.domain import DomainDisk
from hvext.core.value import value_object
from hvext.errors import QemuError
from hvext.host.domain import DomainHandle
from hvext.operations.domains.views import look_now


@value_object
class ListedDisk:
    """One disk of a domain: how it runs and how it is configured, None where it does not or is not.

    ``size_bytes`` is what the guest sees, None while it does not run.
    """

    live: DomainDisk | None
    config: DomainDisk | None
    size_bytes: int | None

    def to_json(self) -> dict[str, object]:
        """Return the disk under the names that ``RunningDisk.to_json`` has, and in which views it is."""
        views: dict[str, object] = {
            "size_bytes": self.size_bytes,
            "live": self.live is not None,
            "persistent": self.config is not None,
        }
        disk = self.live or self.config
        return {**disk.to_json(), **views} if disk else views


def list_disks(domain: DomainHandle) -> dict[uuid_module.UUID, ListedDisk]:
    """Return hvext's disks in either view of a domain, by uuid."""
    views = look_now(domain)
    found = {}
    for uuid in dict.fromkeys(uuid for view in views.present for uuid in view.disks):
        live = views.live_disk(uuid)
        size = None
        if live is not None:
            # It may have gone meanwhile; a disk behind vhost-user has no size here.
            with contextlib.suppress(QemuError):
                size = domain.size_of(live.target)
        found[uuid] = ListedDisk(live=live, config=views.config_disk(uuid), size_bytes=size)
    return found
