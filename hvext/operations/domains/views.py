"""What runs of a domain, and its persistent configuration: which of them there are, and which are meant."""

from __future__ import annotations

import uuid as uuid_module

from hvext.core.domain import Domain, DomainDisk, parse_domain
from hvext.core.value import value_object
from hvext.errors import DomainError
from hvext.host.domain import DomainHandle
from hvext.operations.threads import in_thread


@value_object
class Scope:
    """Which views of a domain are to be changed."""

    live: bool
    config: bool


@value_object
class Views:
    """Both views of a domain at one moment: ``live`` is None while it does not run, ``config`` when it is transient."""

    live: Domain | None
    config: Domain | None

    @property
    def present(self) -> tuple[Domain, ...]:
        """Those that there are."""
        return tuple(view for view in (self.live, self.config) if view is not None)

    def live_disk(self, uuid: uuid_module.UUID) -> DomainDisk | None:
        """Return the disk as it runs, or None."""
        return self.live.disks.get(uuid) if self.live is not None else None

    def config_disk(self, uuid: uuid_module.UUID) -> DomainDisk | None:
        """Return the disk as it is configured, or None."""
        return self.config.disks.get(uuid) if self.config is not None else None

    def has(self, uuid: uuid_module.UUID) -> bool:
        """Whether any of them has the disk."""
        return any(uuid in view.disks for view in self.present)

    def scope(self, *, live: bool = False, config: bool = False) -> Scope:
        """Return which views a caller means; one who names none means those that there are.

        Raises DomainError for a view that there is not.
        """
        if live and self.live is None:
            raise DomainError(
                "the domain does not run, and what runs was to be changed",
                hint="virsh start, or leave --live out: the persistent configuration is changed then",
            )
        if config and self.config is None:
            raise DomainError(
                "the domain is transient: it has no persistent configuration",
                hint="virsh define, or leave --config out",
            )
        if live or config:
            return Scope(live=live, config=config)
        return Scope(live=self.live is not None, config=self.config is not None)


async def look(domain: DomainHandle) -> Views:
    """Return both views of a domain as they are now."""
    return await in_thread(lambda _cancel: look_now(domain))


def look_now(domain: DomainHandle) -> Views:
    """Return both views of a domain as they are now, for callers in a thread."""
    live = parse_domain(domain.xml(live=True)) if domain.is_running else None
    config = parse_domain(domain.xml(live=False)) if domain.is_persistent else None
    return Views(live=live, config=config)
