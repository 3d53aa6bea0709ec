"""Attaching and detaching volumes: the provider's side of every operation.

As in Ganeti, a volume is made ready with ``attach``, then ``open``, and let go with ``detach``; ``close`` is for
migration and fencing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Event, Semaphore, Thread

from hvext.core.access import Choice, choose_access
from hvext.core.answer import Attachment
from hvext.core.disk import Disk
from hvext.core.provider import Action, Provider
from hvext.core.secret import Secret
from hvext.core.uri import Location
from hvext.core.value import value_object
from hvext.errors import AnswerError, HvextError, OperationFailed, ScriptFailed, ScriptTimeout
from hvext.host.files import opened_as
from hvext.host.private import read_secret_file, remove_private
from hvext.host.process import Cancel
from hvext.host.provider import ProviderHost
from hvext.operations import places
from hvext.operations.acts import Act

#: So many scripts run at once.
_AT_ONCE = 64
#: Returns why a location cannot be opened, or None when it can.
Obstacle = Callable[[Location], str | None]


def nothing_in_the_way(_location: Location) -> None:
    """Return that a location can be opened: for callers that do not know QEMU yet."""


@value_object
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
    provider: Provider | None = None,
    exclusive: bool | None = True,
    shared: bool = False,
    cancel: Cancel | None = None,
    obstacle: Obstacle = nothing_in_the_way,
) -> Attached:
    """Attach and open a disk's volume; ``attach`` runs exactly once. With ``exclusive`` None it is not opened.

    When the answer is unusable, the wished access is not in it, ``open`` fails, or on Ctrl-C, the volume is let go
    again before the error is raised, unless it is ``shared`` with somebody who has it attached. ``obstacle`` is as
    ``choose_access`` takes it, ``provider`` the disk's where the caller has found it already. Raises ProviderError,
    AccessError, InputError; VolumeInUse when a VM has the same storage under another name, which leaves it attached;
    OperationFailed when it could not be let go.
    """
    provider = provider or host.find(disk.provider)
    secrets = given_secrets(disk)
    try:
        attachment = host.attach(provider, disk.volume, cancel=cancel, access=disk.access)
    except BaseException as error:
        if not (shared or _refused(error)):
            _let_go_after(error, host, disk)
        raise
    # Whoever is there already keeps it: it is not let go.
    places.claim(disk, attachment, exclusive=exclusive)
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


def offer_act(host: ProviderHost, disk: Disk) -> Act:
    """Return what asks the provider of a volume that is attached what it offers; raises what ``check_attach`` does."""
    check_attach(host, disk, exclusive=None)
    name = f"ask where {disk.provider}/{disk.volume.name} can be: attach it again"
    return Act(name=name, do=lambda: offer(host, disk))


def check_attach(host: ProviderHost, disk: Disk, *, exclusive: bool | None = True) -> None:
    """Raise what ``attach`` raises before it runs a script: ProviderNotFound, ProviderInvalid, InputError."""
    provider = host.find(disk.provider)
    given_secrets(disk)
    host.check(provider, Action.ATTACH, disk.volume, access=disk.access)
    if exclusive is not None:
        host.check(provider, Action.OPEN, disk.volume, access=disk.access, exclusive=exclusive)


def detach(host: ProviderHost, disk: Disk, *, cancel: Cancel | None = None) -> None:
    """Detach a disk's volume and remove the disk's private files; may be repeated.

    Only call it when nothing uses the volume any more. Raises VolumeInUse when a VM has the same storage under another
    name, and ProviderError.

    ``close`` is not run before: it is a fence, which cuts off whoever still uses the volume; ``detach`` can refuse.
    """
    places.check_free(disk)
    try:
        host.run(host.find(disk.provider), Action.DETACH, disk.volume, cancel=cancel, access=disk.access)
        places.leave(disk)
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
    turns = Semaphore(_AT_ONCE)
    attempts: list[_Attempt] = []
    try:
        for disk in disks:
            call = partial(
                attach, host, disk, exclusive=exclusive, shared=shared(disk), cancel=cancel, obstacle=obstacle(disk)
            )
            attempt = _Attempt(disk, call, turns)
            # A single one needs no thread of its own: what Ctrl-C raises in it is raised below.
            begin = attempt.start if len(disks) > 1 else attempt.run
            begin()
            attempts.append(attempt)
        _wait(attempts)
    except BaseException as reason:
        cancel.set()
        _wait(attempts)
        if left := _undo(host, attempts, shared):
            raise OperationFailed(
                f"attaching was ended early ({type(reason).__name__}); NOT detached: {'; '.join(left)}",
                step="attach",
                left=left,
            ) from reason
        raise
    failed = [(attempt.disk, attempt.error) for attempt in attempts if attempt.error is not None]
    if not failed:
        return [attempt.attached for attempt in attempts if attempt.attached is not None]
    left = _undo(host, attempts, shared)
    for _disk, error in failed:
        if not isinstance(error, HvextError):
            raise error
    good = len(disks) - len(failed)
    raise OperationFailed(
        _not_attached(failed, len(disks))
        + (
            f"; {'the other one was' if good == 1 else f'the other {good} were'} detached again"
            if good and not left
            else ""
        )
        + (f"; NOT detached: {'; '.join(left)}" if left else ""),
        step="attach",
        undone=[
            f"attach {attempt.disk.provider}/{attempt.disk.volume.name}"
            for attempt in attempts
            if not left and not attempt.error
        ],
        left=left,
    ) from failed[0][1]


def check_all(host: ProviderHost, disks: Sequence[Disk], *, exclusive: bool | None) -> None:
    """Raise what ``attach_all`` raises for disks of which it is known, without a script, that they cannot be."""
    failed: list[tuple[Disk, BaseException]] = []
    for disk in disks:
        try:
            check_attach(host, disk, exclusive=exclusive)
        except HvextError as error:
            failed.append((disk, error))
    if failed:
        raise OperationFailed(_not_attached(failed, len(disks)), step="attach") from failed[0][1]


def _not_attached(failed: Sequence[tuple[Disk, BaseException]], n_disks: int) -> str:
    words = "; ".join(f"{disk.provider}/{disk.volume.name}: {error}" for disk, error in failed)
    return f"cannot attach {len(failed)} of {n_disks} disks: {words}"


class _Attempt(Thread):
    """The attach of one disk, in a thread of its own, and what came of it.

    Not by concurrent.futures, which loads logging: that takes as long as Python itself takes to start.
    """

    def __init__(self, disk: Disk, call: Callable[[], Attached], turns: Semaphore) -> None:
        super().__init__(name="attach")
        self.disk = disk
        self.attached: Attached | None = None
        self.error: BaseException | None = None
        self._call = call
        self._turns = turns
        # Not `join`: one that Ctrl-C interrupts takes the thread for ended (Python 3.11).
        self.done = Event()

    def run(self) -> None:
        """Attach it when it is its turn."""
        with self._turns:
            try:
                self.attached = self._call()
            except BaseException as error:
                self.error = error
            finally:
                self.done.set()


def _wait(attempts: list[_Attempt]) -> None:
    for attempt in attempts:
        attempt.done.wait()


def given_secrets(disk: Disk) -> dict[str, Secret]:
    """Return the secrets that are given with a disk, by role; those in files come before provider parameters.

    Raises InputError for a file that cannot be read.
    """
    return {**disk.secrets, **secrets_in_files(disk.secret_files)}


def secrets_in_files(files: Mapping[str, str]) -> dict[str, Secret]:
    """Return the secrets in files, by role; raises InputError."""
    return {role: Secret(read_secret_file(path)) for role, path in files.items()}


def _undo(host: ProviderHost, attempts: list[_Attempt], shared: Callable[[Disk], bool]) -> list[str]:
    """Detach what was attached; return what stays attached, in words."""
    errors = [attempt.error for attempt in attempts]
    left = [words for error in errors if isinstance(error, OperationFailed) for words in error.left]
    good = [attempt.disk for attempt in attempts if attempt.error is None and not shared(attempt.disk)]
    return left + detach_all(host, good)


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
    # Only at the end of an instance, or when something went wrong.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=min(len(disks), _AT_ONCE), thread_name_prefix="detach") as pool:
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
