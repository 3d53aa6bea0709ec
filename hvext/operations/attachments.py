"""Attaching and detaching volumes: the provider's side of every operation.

As in Ganeti, a volume is made ready with ``attach``, then ``open``, and let go with ``detach``; ``close`` is for
migration and fencing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from hvext.core.access import Choice, choose_access
from hvext.core.answer import Attachment
from hvext.core.disk import Disk
from hvext.core.provider import Action, Provider
from hvext.core.secret import Secret
from hvext.core.uri import Location
from hvext.errors import AnswerError, HvextError, OperationFailed, ScriptFailed, ScriptTimeout
from hvext.host.files import opened_as
from hvext.host.private import read_secret_file, remove_private
from hvext.host.process import Cancel
from hvext.host.provider import ProviderHost

#: Returns why a location cannot be opened, or None when it can.
Obstacle = Callable[[Location], str | None]


def nothing_in_the_way(_location: Location) -> None:
    """Return that a location can be opened: for callers that do not know QEMU yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """A disk whose volume is attached: what the provider offers, and the order in which it is to be tried."""

    disk: Disk
    provider: Provider
    attachment: Attachment
    choice: Choice


def attach(
    host: ProviderHost,
    disk: Disk,
    *,
    exclusive: bool | None = True,
    shared: bool = False,
    cancel: Cancel | None = None,
    obstacle: Obstacle = nothing_in_the_way,
) -> Attached:
    """Attach and open a disk's volume; ``attach`` runs exactly once. With ``exclusive`` None it is not opened.

    When the answer is unusable, the wished access is not in it, ``open`` fails, or on Ctrl-C, the volume is let go
    again before the error is raised, unless it is ``shared`` with somebody who has it attached. ``obstacle`` is as
    ``choose_access`` takes it. Raises ProviderError, AccessError, InputError; OperationFailed when it could not be let
    go.
    """
    provider = host.find(disk.provider)
    secrets = given_secrets(disk)
    try:
        attachment = host.attach(provider, disk.volume, cancel=cancel, access=disk.access)
    except BaseException as error:
        if not (shared or _refused(error)):
            _let_go_after(error, host, disk)
        raise
    try:
        choice = choose_access(attachment, disk.access, look=opened_as, obstacle=obstacle, secrets=secrets)
        if exclusive is not None:
            host.run(provider, Action.OPEN, disk.volume, cancel=cancel, access=disk.access, exclusive=exclusive)
    except BaseException as error:
        if not shared:
            _let_go_after(error, host, disk)
        raise
    return Attached(disk=disk, provider=provider, attachment=attachment, choice=choice)


def offer(
    host: ProviderHost, disk: Disk, *, obstacle: Obstacle = nothing_in_the_way, cancel: Cancel | None = None
) -> Attached:
    """Ask the provider of a volume that is attached what it offers: ``attach`` again, which is idempotent.

    Whatever comes back, the volume stays attached. Raises ProviderError, AccessError.
    """
    provider = host.find(disk.provider)
    attachment = host.attach(provider, disk.volume, cancel=cancel, access=disk.access)
    choice = choose_access(attachment, disk.access, look=opened_as, obstacle=obstacle, secrets=given_secrets(disk))
    return Attached(disk=disk, provider=provider, attachment=attachment, choice=choice)


def detach(host: ProviderHost, disk: Disk, *, cancel: Cancel | None = None) -> None:
    """Detach a disk's volume and remove the disk's private files; may be repeated.

    Only call it when nothing uses the volume any more.

    ``close`` is not run before: it is a fence, which cuts off whoever still uses the volume; ``detach`` can refuse.
    """
    try:
        host.run(host.find(disk.provider), Action.DETACH, disk.volume, cancel=cancel, access=disk.access)
    finally:
        # QEMU has read them when it started.
        remove_private(disk.names.root)


def attach_all(
    host: ProviderHost,
    disks: list[Disk],
    *,
    exclusive: bool | None = True,
    obstacle: Callable[[Disk], Obstacle] = lambda _disk: nothing_in_the_way,
    shared: Callable[[Disk], bool] = lambda _disk: False,
) -> list[Attached]:
    """Attach all disks side by side and return them in the same order; ``obstacle`` gives that of each disk.

    When one fails, or on Ctrl-C, all the others are detached again, but those that somebody else has attached, too
    (``shared``). Raises OperationFailed that names every disk
    that failed, and every one that stays attached.
    """
    if not disks:
        return []
    cancel = Cancel()
    futures: list[Future[Attached]] = []
    with ThreadPoolExecutor(max_workers=min(len(disks), 64), thread_name_prefix="attach") as pool:
        try:
            futures.extend(
                pool.submit(
                    attach,
                    host,
                    disk,
                    exclusive=exclusive,
                    shared=shared(disk),
                    cancel=cancel,
                    obstacle=obstacle(disk),
                )
                for disk in disks
            )
            wait(futures)
        except BaseException as reason:
            cancel.set()
            wait(futures)
            if left := _undo(host, disks, futures, shared):
                raise OperationFailed(
                    f"attaching was ended early ({type(reason).__name__}); NOT detached: {'; '.join(left)}",
                    step="attach",
                    left=left,
                ) from reason
            raise
    failed = [(disk, error) for disk, future in zip(disks, futures, strict=True) if (error := future.exception())]
    if not failed:
        return [future.result() for future in futures]
    left = _undo(host, disks, futures, shared)
    for _disk, error in failed:
        if not isinstance(error, HvextError):
            raise error
    good = len(disks) - len(failed)
    words = "; ".join(f"{disk.provider}/{disk.volume.name}: {error}" for disk, error in failed)
    raise OperationFailed(
        f"cannot attach {len(failed)} of {len(disks)} disks: {words}"
        + (f"; the other {good} were detached again" if good and not left else "")
        + (f"; NOT detached: {'; '.join(left)}" if left else ""),
        step="attach",
        undone=[
            f"attach {disk.provider}/{disk.volume.name}"
            for disk, future in zip(disks, futures, strict=True)
            if not left and not future.exception()
        ],
        left=left,
    ) from failed[0][1]


def given_secrets(disk: Disk) -> dict[str, Secret]:
    """Return the secrets that are given with a disk, by role; those in files come before provider parameters.

    Raises InputError for a file that cannot be read.
    """
    return {**disk.secrets, **secrets_in_files(disk.secret_files)}


def secrets_in_files(files: Mapping[str, str]) -> dict[str, Secret]:
    """Return the secrets in files, by role; raises InputError."""
    return {role: Secret(read_secret_file(path)) for role, path in files.items()}


def _undo(
    host: ProviderHost, disks: list[Disk], futures: list[Future[Attached]], shared: Callable[[Disk], bool]
) -> list[str]:
    """Detach what was attached; return what stays attached, in words."""
    errors = [future.exception() for future in futures]
    left = [words for error in errors if isinstance(error, OperationFailed) for words in error.left]
    return left + detach_all(
        host,
        [disk for disk, error in zip(disks, errors, strict=False) if error is None and not shared(disk)],
    )


def detach_all(host: ProviderHost, disks: list[Disk]) -> list[str]:
    """Detach disks side by side; return what went wrong, in words."""

    def let_go(disk: Disk) -> str | None:
        try:
            detach(host, disk)
        except HvextError as error:
            return f"{disk.provider}/{disk.volume.name}: {error}"
        return None

    if not disks:
        return []
    with ThreadPoolExecutor(max_workers=min(len(disks), 64), thread_name_prefix="detach") as pool:
        return [words for words in pool.map(let_go, disks) if words]


def _refused(error: BaseException) -> bool:
    """Whether ``attach`` said no, or never ran: then nothing is attached."""
    killed = isinstance(error, ScriptFailed) and error.status < 0
    return isinstance(error, HvextError) and not killed and not isinstance(error, AnswerError | ScriptTimeout)


def _let_go_after(error: BaseException, host: ProviderHost, disk: Disk) -> None:
    """Detach after ``error``; raises OperationFailed when that fails."""
    try:
        detach(host, disk)
    except HvextError as second:
        first = error.message if isinstance(error, HvextError) else type(error).__name__
        raise OperationFailed(
            f"{first}; and it could not be detached again: {second.message}",
            step="attach",
            left=[f"{disk.provider}/{disk.volume.name}"],
            hint=second.hint,
        ) from error
