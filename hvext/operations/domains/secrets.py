"""The libvirt secrets of a disk: what its ``<source>`` refers to, named after the disk, and gone with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hvext.core.identity import DiskNames
from hvext.core.plan import DiskPlan
from hvext.core.secret import Secret
from hvext.errors import DomainError
from hvext.host.domain import Connection, DomainSecret, SecretKind, connect
from hvext.host.private import read_secret_file
from hvext.operations.domains.elsewhere import in_the_way
from hvext.operations.threads import in_thread


def secrets_of(plan: DiskPlan, *, kept: bool) -> Iterator[DomainSecret]:
    """Yield the secrets that the XML of a plan refers to, of a plan with its secrets or with files of them.

    ``kept`` tells whether libvirt is to know them after it was started anew, as the persistent configuration needs.
    """
    for item in plan.needs.objects:
        if item.get("qom-type") != "secret":
            continue
        value = item.get("data")
        ceph = plan.location.driver == "rbd"
        yield DomainSecret(
            usage=str(item["id"]),
            kind=SecretKind.CEPH if ceph else SecretKind.ISCSI,
            value=value if isinstance(value, Secret) else Secret(read_secret_file(str(item["file"]))),
            base64=item.get("format") == "base64",
            kept=kept,
        )


async def define_secrets(connection: Connection, plan: DiskPlan, *, kept: bool) -> None:
    """Have libvirt know the secrets of a plan; may be repeated."""

    def define(_cancel: object) -> None:
        for secret in secrets_of(plan, kept=kept):
            connection.define_secret(secret)

    await in_thread(define)


def define_for_start(uri: str, plans: Sequence[DiskPlan]) -> None:
    """Have libvirt at ``uri`` keep the secrets of disks that a domain is to start with; all of them, or none.

    Raises MonitorError, LibvirtRefused, InputError; DomainError for a place that another host has not.
    """
    with connect(uri) as connection:
        for plan in plans:
            if why := in_the_way(connection, plan.location):
                raise DomainError(f"disk {plan.names.uuid} cannot start there: {why}")
        try:
            for plan in plans:
                for secret in secrets_of(plan, kept=True):
                    connection.define_secret(secret)
        except BaseException:
            for plan in plans:
                connection.remove_secrets(plan.names.root)
            raise


async def remove_secrets(connection: Connection, names: DiskNames) -> tuple[str, ...]:
    """Remove all secrets of a disk and return their usages; may be repeated."""
    return await in_thread(lambda _cancel: connection.remove_secrets(names.root))
