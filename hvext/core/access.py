"""Which access to a volume is used: a URI that QEMU opens itself, or the block path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType

from hvext.core.answer import Attachment
from hvext.core.options import DiskOptions
from hvext.core.secret import Secret
from hvext.core.text import quoted
from hvext.core.uri import Location, parse_uri, shown
from hvext.core.uri.file import FileLocation, Opened
from hvext.core.value import value_object
from hvext.errors import AccessError, InputError

_NO_SECRETS: Mapping[str, Secret] = MappingProxyType({})


class Access(StrEnum):
    """What the caller wishes."""

    PREFER_USERSPACE = "prefer-userspace"
    USERSPACE = "userspace"
    KERNELSPACE = "kernelspace"


@value_object
class Candidate:
    """One way to open the volume.

    ``access`` is USERSPACE or KERNELSPACE; ``text`` is the URI or the path as the provider printed it, without its
    secrets.
    """

    access: Access
    text: str
    location: Location

    def to_json(self) -> dict[str, str]:
        """Return access and ``uri`` or ``path``."""
        return {"access": str(self.access), ("uri" if self.access is Access.USERSPACE else "path"): self.text}


@value_object
class Choice:
    """The candidates in the order in which they are to be tried, and why the first one is first.

    ``skipped`` says of every URI that cannot be used, why.
    """

    candidates: tuple[Candidate, ...]
    reason: str
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.candidates:
            raise AccessError("there is no way to open the volume")

    @property
    def chosen(self) -> Candidate:
        """The first candidate."""
        return self.candidates[0]

    def options_at(self, location: Location, options: DiskOptions) -> DiskOptions:
        """Return the options of a disk at one of the candidates.

        With others, an I/O error stops the guest. Behind vhost-user QEMU cannot see to that, and cannot move the disk
        either. At its only place a disk uses the cache that the storage's client has: a failover, which would lose
        what is in it, leads nowhere.
        """
        if not location.block_node:
            return options
        places = [candidate for candidate in self.candidates if candidate.location.block_node]
        if len(places) > 1:
            return options.stopping()
        return options.caching() if location.own_cache else options

    def to_json(self) -> dict[str, str]:
        """Return the chosen access with its reason."""
        return {**self.chosen.to_json(), "reason": self.reason}


def choose_access(
    attachment: Attachment,
    access: Access = Access.PREFER_USERSPACE,
    *,
    hypervisor: str = "kvm",
    look: Callable[[str], Opened] | None = None,
    obstacle: Callable[[Location], str | None] = lambda _location: None,
    secrets: Mapping[str, Secret] = _NO_SECRETS,
) -> Choice:
    """Return the candidates for ``access`` in order, the preferred one first.

    ``look`` tells whether a path is a file or a device (default: by its name). ``obstacle`` returns why the QEMU at
    hand cannot open a location, or None when it can. ``secrets`` (by role) are given to locations that can have one
    and bring none. Raises AccessError when nothing is left that ``access`` allows.
    """
    uris, skipped = _userspace(attachment, hypervisor, look, obstacle, secrets)
    paths = _kernelspace(attachment)
    if access is Access.KERNELSPACE:
        if not paths:
            raise AccessError(
                "access=kernelspace was asked for, but the provider printed no block device path",
                hint="use access=userspace or prefer-userspace, or let attach print the path in line 1",
            )
        return Choice(candidates=paths, reason="access=kernelspace asks for the block path")
    if access is Access.USERSPACE:
        if not uris:
            raise AccessError(
                f"access=userspace was asked for, but {_why_no_uri(hypervisor, skipped)}",
                hint="use access=kernelspace or prefer-userspace" if paths else "",
            )
        return Choice(candidates=uris, reason="access=userspace asks for a URI" + _but(skipped), skipped=skipped)
    if uris:
        reason = f"the provider offers {_count(len(uris))} that QEMU can open itself{_but(skipped)}"
        return Choice(candidates=uris + paths, reason=reason, skipped=skipped)
    if not paths:
        raise AccessError(f"{_why_no_uri(hypervisor, skipped)}, and there is no block device path either")
    return Choice(candidates=paths, reason=f"{_why_no_uri(hypervisor, skipped)}; using the block path", skipped=skipped)


def _userspace(
    attachment: Attachment,
    hypervisor: str,
    look: Callable[[str], Opened] | None,
    obstacle: Callable[[Location], str | None],
    secrets: Mapping[str, Secret],
) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    candidates: list[Candidate] = []
    skipped: list[str] = []
    for uri in attachment.uris_for(hypervisor):
        try:
            location = parse_uri(uri, look=look).with_secrets(secrets)
        except InputError as error:
            skipped.append(f"{quoted(shown(uri))} cannot be used: {error}")
            continue
        if why := obstacle(location):
            skipped.append(f"{quoted(shown(uri))} cannot be used here: {why}")
            continue
        candidates.append(Candidate(access=Access.USERSPACE, text=shown(uri), location=location))
    return tuple(candidates), tuple(skipped)


def _kernelspace(attachment: Attachment) -> tuple[Candidate, ...]:
    if attachment.block_path is None:
        return ()
    location = FileLocation(path=attachment.block_path, opened=Opened.HOST_DEVICE)
    return (Candidate(access=Access.KERNELSPACE, text=attachment.block_path, location=location),)


def _why_no_uri(hypervisor: str, skipped: tuple[str, ...]) -> str:
    return "; ".join(skipped) if skipped else f"the provider printed no {hypervisor}: URI"


def _count(number: int) -> str:
    return "a URI" if number == 1 else f"{number} URIs"


def _but(skipped: tuple[str, ...]) -> str:
    return f" ({'; '.join(skipped)})" if skipped else ""
