"""Every error that hvext raises on purpose.

The tree::

    HvextError                     tried what, on what, what came back; a hint where the cure is known
    ├── InputError                 a value from the caller that cannot be right
    │   ├── LocationError          a URI or path that cannot be read
    │   └── UnsupportedLocation    a URI that is understood but cannot be opened this way
    ├── RenderError                one of the four renderings cannot say what the plan asks for
    ├── ProviderError
    │   ├── ProviderNotFound
    │   ├── ProviderInvalid        a directory that breaks a rule of the interface
    │   ├── ScriptFailed           exit status not 0, or killed by a signal
    │   ├── ScriptTimeout          the time limit passed; the process group was ended
    │   └── AnswerError            what attach printed is neither a block device nor a URI
    ├── AccessError                the wished access is not among what the provider offers
    ├── VolumeInUse                a VM of this host has the volume
    ├── JournalError               the journal of a VM cannot be read or written, or another process holds it
    ├── ProgramError               a program of the host (not a provider script) failed
    ├── QemuError
    │   ├── CapabilityError        this QEMU cannot do what is asked: nothing was sent
    │   ├── MonitorError           no QMP monitor there, busy, or the connection broke
    │   ├── CommandRefused         QEMU answered with an error: nothing was changed
    │   ├── LibvirtRefused         libvirt answered with an error: that call changed nothing
    │   ├── DomainError            no such libvirt domain, or not in the state that the operation needs
    │   └── CommandTimeout         no answer in time: the command may have been carried out
    ├── PlugError                  the guest has no place for the disk, or it is in the way of another
    ├── DiskNotFound               the running guest has no such disk
    ├── RepointRefused             moving this disk would lose data or cannot work
    ├── FailoverRefused            a failover of this disk cannot work, or would make QEMU hang: nothing was done
    ├── FailoverFailed             no other storage could be used: the disk is as it was, and may be tried again
    ├── FenceFailed                nothing proves that the old storage cannot be written any more
    ├── CannotCut                  QEMU cannot break the connection to this storage
    ├── MigrationRefused           migrating this guest would lose data or cannot work
    └── OperationFailed            a step failed; says which, why, and what was undone
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class HvextError(Exception):
    """Something hvext was asked to do did not happen.

    ``message`` says what was tried, on what and what came back; ``hint`` (may be empty) says what to do about it.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def to_json(self) -> dict[str, object]:
        """Return type, message and hint as a JSON-able mapping."""
        return {"type": type(self).__name__, "message": self.message, "hint": self.hint}


class InputError(HvextError):
    """A value from the caller that cannot be right."""


class LocationError(InputError):
    """A URI or path that cannot be read; the message quotes the part that is wrong."""


class UnsupportedLocation(InputError):
    """A URI that is understood as one, but that cannot be opened this way (unknown or removed protocol)."""


class RenderError(HvextError):
    """One of the renderings (argv, drive, QMP, libvirt XML) cannot say what the plan asks for."""


class ProviderError(HvextError):
    """Something about an ExtStorage provider."""


class ProviderNotFound(ProviderError):
    """No directory of that name on the search path."""


class ProviderInvalid(ProviderError):
    """A provider directory that breaks a rule of the interface; ``problems`` lists them all."""

    def __init__(self, message: str, *, problems: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class ScriptFailed(ProviderError):
    """A provider's script ended with a status that is not 0, or was killed by a signal.

    ``status`` is the exit status, negative for a signal's number; ``log`` is the path of the log file or empty.
    """

    def __init__(self, message: str, *, status: int, log: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.log = log


class ScriptTimeout(ProviderError):
    """A provider's script ran into its time limit; its whole process group was ended."""

    def __init__(self, message: str, *, log: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log


class AnswerError(ProviderError):
    """What ``attach`` printed cannot be used; the message names the line."""


class AccessError(HvextError):
    """The wished access (userspace or kernelspace) is not among what the provider offers."""


class VolumeInUse(HvextError):
    """A volume that a VM of this host has cannot be detached or removed: nothing was done."""


class JournalError(HvextError):
    """The journal of a VM cannot be read, written or locked: nothing was done."""


class ProgramError(HvextError):
    """A program of the host that hvext started (QEMU, losetup, …) failed; carries its last words."""


class QemuError(HvextError):
    """Something about a running QEMU."""


class CapabilityError(QemuError):
    """QEMU cannot do what is asked: it lacks the command, driver, device or option. Nothing was sent to it."""


class MonitorError(QemuError):
    """No QMP monitor at that address, one that is busy with another client, or a connection that broke."""


class CommandRefused(QemuError):
    """QEMU answered a command with an error: that command changed nothing.

    ``command`` and ``arguments`` are what was sent, ``error_class`` and ``description`` what came back.
    """

    def __init__(self, command: str, arguments: Mapping[str, object], error_class: str, description: str) -> None:
        super().__init__(f"QEMU refused {command}: {description}")
        self.command = command
        self.arguments = dict(arguments)
        self.error_class = error_class
        self.description = description


class LibvirtRefused(QemuError):
    """libvirt answered a call with an error: that call changed nothing.

    ``code`` is libvirt's number of the error (``VIR_ERR_…``), ``description`` what it said.
    """

    def __init__(self, what: str, code: int, description: str, *, hint: str = "") -> None:
        super().__init__(f"libvirt cannot {what}: {description}", hint=hint)
        self.code = code
        self.description = description

    def to_json(self) -> dict[str, object]:
        """Return the error with libvirt's number of it."""
        return {**super().to_json(), "code": self.code}


class DomainError(QemuError):
    """libvirt has no such domain, or it is not in the state that the operation needs: nothing was changed."""


class CommandTimeout(QemuError):
    """QEMU did not answer a command in time: it may or may not have been carried out."""


class PlugError(HvextError):
    """The guest has no place for the disk, or something is in the way; nothing was changed."""


class DiskNotFound(HvextError):
    """The running guest has no such disk."""


class RepointRefused(HvextError):
    """Moving this disk to that location would lose data or cannot work; nothing was changed."""


class FailoverRefused(HvextError):
    """A failover of this disk cannot work, or would make all of QEMU hang; nothing was done."""


class FailoverFailed(HvextError):
    """None of the candidates could take the place of dead storage.

    Everything was undone: the disk stands where it stood, and its guest is as it was (paused, where an I/O error had
    paused it). It may be tried again. ``passed_over`` says of each candidate why.
    """

    def __init__(self, message: str, *, passed_over: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.passed_over = tuple(passed_over)

    def to_json(self) -> dict[str, object]:
        """Return the error with the reason of each candidate."""
        return {**super().to_json(), "passed_over": list(self.passed_over)}


class FenceFailed(HvextError):
    """Nothing proves that storage which does not answer cannot write any more: the disk stays as it is."""


class CannotCut(HvextError):
    """QEMU has no way to break the connection to this storage; nothing was done."""


class MigrationRefused(HvextError):
    """Migrating this guest to that target would lose data or cannot work; nothing was sent."""


class OperationFailed(HvextError):
    """A step of an operation failed.

    ``step`` is the name of the step, ``undone`` the steps that were undone afterwards, and ``left`` what could not
    be undone, each with its reason. ``__cause__`` is the step's own error.
    """

    def __init__(
        self, message: str, *, step: str, undone: Sequence[str] = (), left: Sequence[str] = (), hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.step = step
        self.undone = tuple(undone)
        self.left = tuple(left)

    def to_json(self) -> dict[str, object]:
        """Return the error with its step, and what was and was not undone."""
        return {**super().to_json(), "step": self.step, "undone": list(self.undone), "left": list(self.left)}
