"""Finding ExtStorage providers and running their scripts.

A script runs in the provider's directory with no arguments, a rebuilt environment and a time limit; what it prints
goes to a log file of its own as it comes. Nothing here keeps state: what is attached, the storage knows.

Source: ganeti-extstorage-interface(7); Ganeti, lib/storage/extstorage.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

from hvext.core.answer import MAX_BYTES, Attachment, check_block_path, parse_answer
from hvext.core.environment import script_environment
from hvext.core.provider import (
    GANETI_SEARCH_PATH,
    PARAMETERS_FILE,
    Action,
    FileKind,
    Provider,
    check_provider_name,
    parse_parameters,
    script_problem,
)
from hvext.core.secret import Secret
from hvext.core.text import meant, quoted
from hvext.core.uri.mask import masked
from hvext.core.value import field, value_object
from hvext.core.volume import Volume
from hvext.errors import (
    AnswerError,
    HvextError,
    InputError,
    ProviderError,
    ProviderInvalid,
    ProviderNotFound,
    ScriptFailed,
    ScriptTimeout,
)
from hvext.host import process
from hvext.host.files import absolute, file_kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

#: Providers that come with hvext: the last place to look.
SHIPPED = os.path.dirname(os.path.dirname(os.path.realpath(__file__))) + "/providers"
DEFAULT_SEARCH_PATH = (*GANETI_SEARCH_PATH, SHIPPED)
DEFAULT_TIMEOUT_S = 60.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LOG_BYTES = 1 << 20
_LAST_LINES = 20


#: What lets a volume go is done with whatever it has; ``verify`` looks at the names itself.
_ANYHOW = frozenset({Action.DETACH, Action.CLOSE, Action.VERIFY})


@value_object
class ScriptRun:
    """What one successful run of a script left behind; ``log`` is its log file's path, or empty."""

    stdout: bytes
    stderr: str
    log: str
    duration_s: float


@value_object
class ScriptEnd:
    """A script that has ended, for those who count: ``outcome`` is ``done``, ``failed``, ``timed out`` or ``ended``.

    The last is one that was ended because its operation was, or that could not be started.
    """

    provider: str
    action: Action
    volume: Volume
    duration_s: float
    outcome: str


@value_object
class ProviderHost:
    """Where providers are looked for, and how their scripts are run.

    ``timeouts_s`` overrides ``timeout_s`` for single actions (keys are actions' names). ``log_directory`` None keeps
    no logs. ``environment`` is added to what the interface defines, for scripts that need, say, a proxy. ``on_start``
    is called with the volume and the process number of every script that was started, ``on_end`` with how each ended,
    both in the thread that runs it. With ``strict``, a parameter that a provider's ``parameters.list`` does not have is
    refused: for names that were typed, as Ganeti passes on whatever it has.
    Frozen, and safe to use from several threads.
    """

    search_path: Sequence[str] = DEFAULT_SEARCH_PATH
    timeout_s: float = DEFAULT_TIMEOUT_S
    timeouts_s: Mapping[str, float] = field(default_factory=dict)
    log_directory: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    on_start: Callable[[Volume, int], None] | None = None
    on_end: Callable[[ScriptEnd], None] | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.search_path, str):
            raise InputError("the search path is a list of directories, not one text")
        # Scripts run in the provider's directory: from there a relative path would lead elsewhere.
        object.__setattr__(self, "search_path", tuple(absolute(folder) for folder in self.search_path))
        for name in self.timeouts_s:
            if name not in tuple(Action):
                raise InputError(f"there is no action {name!r} to give a time limit to")
        for limit in (self.timeout_s, *self.timeouts_s.values()):
            if not limit > 0:
                raise InputError(f"a time limit must be above 0 seconds; got {limit}")
        for name, value in self.environment.items():
            if not name or "=" in name or "\0" in name + value:
                raise InputError(f"{quoted(f'{name}={value}')} cannot be an environment variable")

    def find(self, name: str) -> Provider:
        """Return the provider called ``name``: the first directory of that name on the search path.

        Raises ProviderNotFound, or ProviderInvalid with all that is wrong with the directory.
        """
        return load_provider(self.folder(name), name)

    def folder(self, name: str) -> str:
        """Return the first entry of the search path with a directory ``name``, valid or not.

        Raises ProviderNotFound.
        """
        check_provider_name(name)
        for folder in self.search_path:
            if file_kind(f"{folder}/{name}") is FileKind.DIRECTORY:
                return folder
        raise ProviderNotFound(
            f"there is no provider {name!r}{meant(name, self.names())}",
            hint=f"looked for its directory in {', '.join(self.search_path)}; --search-path DIR looks in another",
        )

    def names(self) -> tuple[str, ...]:
        """Return the names of all provider directories on the search path, valid or not, each once."""
        found: dict[str, None] = {}
        for folder in self.search_path:
            with contextlib.suppress(OSError):
                for entry in sorted(os.listdir(folder)):
                    with contextlib.suppress(InputError):
                        if file_kind(f"{folder}/{check_provider_name(entry)}") is FileKind.DIRECTORY:
                            found[entry] = None
        found.pop("__pycache__", None)
        return tuple(sorted(found))

    def attach(
        self, provider: Provider, volume: Volume, *, cancel: process.Cancel | None = None, **values: Any
    ) -> Attachment:
        """Run ``attach`` once and return what it offers; the block path was looked at.

        Raises AnswerError for an unusable answer (the volume may then be attached all the same), ScriptFailed,
        ScriptTimeout.
        """
        run = self.run(provider, Action.ATTACH, volume, cancel=cancel, **values)
        assert run is not None, "attach is not optional"  # noqa: S101
        try:
            attachment = parse_answer(run.stdout)
        except AnswerError as error:
            if not volume.secrets:
                raise
            raise AnswerError(masked(error.message, volume.secrets), hint=masked(error.hint, volume.secrets)) from None
        if attachment.block_path is not None:
            check_block_path(attachment.block_path, file_kind(attachment.block_path))
        return attachment

    def run(
        self, provider: Provider, action: Action, volume: Volume, *, cancel: process.Cancel | None = None, **values: Any
    ) -> ScriptRun | None:
        """Run the script of an action; return None when it is an ``open`` or ``close`` that the provider lacks.

        ``values`` are those of ``script_environment``. Raises ScriptFailed, ScriptTimeout, InputError, and
        ProviderError for a ``snapshot`` that the provider lacks: a backup that does not exist is lost data.
        """
        environment = self._environment(provider, action, volume, values)
        if environment is None:
            return None
        limit_s = self.timeouts_s.get(action, self.timeout_s)
        with _log_file(self.log_directory, action, provider, volume) as log:
            try:
                result = process.run(
                    [provider.script(action)],
                    env=environment,
                    cwd=provider.path,
                    timeout_s=limit_s,
                    # One byte more than an answer may have shows that it has more.
                    keep_bytes=MAX_BYTES + 1,
                    on_output=log.output,
                    cancel=cancel,
                    on_start=None if self.on_start is None else partial(self.on_start, volume),
                )
            except HvextError as error:
                self._tell_end(provider, action, volume, None)
                raise _start_error(provider, provider.script(action), error) from error
            log.finish()
            log.write(f"\nstatus {result.status} after {result.duration_s:.3f} s\n".encode())
        self._tell_end(provider, action, volume, result)
        if result.status != 0 or result.timed_out or result.cancelled:
            raise _script_error(provider, action, volume, result, limit_s, log.path)
        return ScriptRun(
            stdout=result.stdout,
            stderr=result.stderr.decode(errors="replace"),
            log=log.path,
            duration_s=result.duration_s,
        )

    def check(self, provider: Provider, action: Action, volume: Volume, **values: Any) -> bool:
        """Raise what ``run`` raises before it starts a script; return whether it would start one."""
        return self._environment(provider, action, volume, values) is not None

    def _environment(
        self, provider: Provider, action: Action, volume: Volume, values: Mapping[str, Any]
    ) -> dict[str, str] | None:
        """Return the environment of a script; None for an ``open`` or ``close`` that the provider lacks."""
        if action not in provider.actions:
            if action is Action.SNAPSHOT:
                raise ProviderError(
                    f"provider {provider.name!r} has no snapshot script: no snapshot was made",
                    hint="add an executable 'snapshot' to the provider",
                )
            return None
        if self.strict and action not in _ANYHOW:
            check_known(provider, volume.parameters)
        return {
            "PATH": _PATH,
            "LC_ALL": "C",
            "HOME": os.path.expanduser("~"),
            **self.environment,
            **script_environment(action, provider.name, volume, **values),
        }

    def _tell_end(self, provider: Provider, action: Action, volume: Volume, result: process.Finished | None) -> None:
        if self.on_end is None:
            return
        outcome = "done"
        if result is None or result.cancelled:
            outcome = "ended"
        elif result.timed_out or result.status:
            outcome = "timed out" if result.timed_out else "failed"
        duration_s = result.duration_s if result else 0.0
        end = ScriptEnd(provider=provider.name, action=action, volume=volume, duration_s=duration_s, outcome=outcome)
        self.on_end(end)


def check_known(provider: Provider, names: Collection[str]) -> None:
    """Raise InputError for a parameter that the provider does not declare: misspelt, it would mean another volume."""
    known = [each.name for each in provider.parameters]
    unknown = sorted({name.upper() for name in names} - {name.upper() for name in known})
    if unknown:
        given = next(name for name in names if name.upper() == unknown[0])
        raise InputError(
            f"provider {provider.name!r} has no parameter {given!r}{meant(given, known)}",
            hint=f"its {PARAMETERS_FILE} has: {', '.join(known) or 'none'}",
        )


def load_provider(folder: str, name: str) -> Provider:
    """Return the provider in ``folder/name``; raises ProviderInvalid with everything that is wrong with it."""
    path = f"{folder}/{check_provider_name(name)}"
    problems = []
    actions = set()
    for action in Action:
        kind = file_kind(f"{path}/{action!s}")
        problem = script_problem(action, kind, executable=os.access(f"{path}/{action!s}", os.X_OK))
        if problem:
            problems.append(problem)
        elif kind is FileKind.REGULAR:
            actions.add(action)
    text = ""
    kind = file_kind(f"{path}/{PARAMETERS_FILE}")
    if kind is not FileKind.REGULAR:
        problems.append(f"{PARAMETERS_FILE} {'is missing' if kind is FileKind.MISSING else 'is ' + kind.value}")
    else:
        try:
            with open(f"{path}/{PARAMETERS_FILE}", encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{PARAMETERS_FILE} cannot be read: {error}")
    if problems:
        raise ProviderInvalid(f"provider {name!r} in {folder} is not valid: {'; '.join(problems)}", problems=problems)
    return Provider(name=name, path=path, actions=frozenset(actions), parameters=parse_parameters(text))


class _Log:
    """A log file of bounded size, or nothing at all; secrets do not get into it."""

    def __init__(self, path: str, stream: IO[bytes] | None, secrets: Sequence[Secret] = ()) -> None:
        self.path = path
        self._stream = stream
        self._secrets = secrets
        self._room = _LOG_BYTES
        self._begun: dict[str, bytes] = {}

    def write(self, text: bytes) -> None:
        if self._stream is not None:
            try:
                self._stream.write(text)
            except OSError:
                # A full disk under the logs must not end a script in the middle of its work.
                self._stream = None

    def output(self, stream_name: str, chunk: bytes) -> None:
        """Write what a stream has printed, in whole lines: a secret may come in two pieces."""
        lines, end, rest = (self._begun.get(stream_name, b"") + chunk).rpartition(b"\n")
        if len(rest) > MAX_BYTES:
            lines, rest = lines + end + rest, b""
        self._begun[stream_name] = rest
        self._bounded(lines + end)

    def finish(self) -> None:
        """Write the lines that were begun and never ended; may be repeated."""
        for name, rest in self._begun.items():
            self._begun[name] = b""
            self._bounded(rest)

    def _bounded(self, text: bytes) -> None:
        if text and self._room > 0:
            shown = masked(text.decode(errors="surrogateescape"), self._secrets).encode(errors="surrogateescape")
            self.write(shown[: self._room])
            self._room -= len(shown)
            if self._room <= 0:
                self.write(f"\n[more than {_LOG_BYTES} bytes; the rest is left out]\n".encode())


@contextlib.contextmanager
def _log_file(directory: str | None, action: Action, provider: Provider, volume: Volume) -> Iterator[_Log]:
    """Open the log of one run, named as Ganeti names it: ``<action>-<provider>-<volume>-<time>.log``."""
    if directory is None:
        yield _Log("", None)
        return
    # A command that keeps no logs needs no dates.
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    stamp = now.strftime("%Y-%m-%d_%H_%M_%S_%f")
    path = f"{directory}/{action}-{provider.name}-{_short(volume.name)}-{stamp}-{os.getpid()}.log"
    try:
        os.makedirs(directory, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise ProviderError(
            f"cannot write the log {path}: {error.strerror}",
            hint="--log-dir DIR or HVEXT_LOG_DIR names another folder; --log-dir none keeps no logs",
        ) from error
    with os.fdopen(descriptor, "wb", buffering=0) as stream:
        log = _Log(path, stream, volume.secrets)
        log.write(f"{now.isoformat()} {provider.script(action)} for volume {volume.name}\n".encode())
        try:
            yield log
        finally:
            log.finish()


def _short(name: str) -> str:
    """Volume names may fill a whole file name; leave room for the rest of it."""
    return name.encode()[:120].decode(errors="ignore")


def _start_error(provider: Provider, script: str, error: HvextError) -> ProviderError:
    cause = error.__cause__
    if not isinstance(cause, OSError) or cause.errno not in (errno.ENOENT, errno.ENOEXEC):
        return ProviderError(f"provider {provider.name!r}: {error.message}")
    hint = "the script's first line must name an interpreter that exists (#!/bin/sh)"
    first = _first_line(script)
    if first.endswith("\r"):
        hint = "its lines end as on Windows, with a carriage return (CRLF): sed -i 's/\\r$//' takes it away"
    words = f"its first line is {first!r}" if first else "it is empty, or has an empty first line"
    return ProviderError(f"provider {provider.name!r}: {error.message}; {words}", hint=hint)


def _first_line(script: str) -> str:
    """Return the beginning of a script's first line; empty for one that is not there."""
    with contextlib.suppress(OSError), open(script, "rb") as file:
        return file.read(100).partition(b"\n")[0].decode(errors="replace")
    return ""


def _script_error(
    provider: Provider, action: Action, volume: Volume, result: process.Finished, limit_s: float, log: str
) -> ProviderError:
    what = f"{action!s} of provider {provider.name!r}"
    if action is not Action.VERIFY:
        what += f" for volume {volume.name!r}"
    words = "".join(
        f"; last lines of {name}: {lines}"
        for name, lines in (
            ("stderr", masked(_last_lines(result.stderr), volume.secrets)),
            ("stdout", masked(_last_lines(result.stdout), volume.secrets)),
        )
        if lines
    )
    hint = f"the whole output is in {log}" if log else ""
    if result.cancelled:
        return ScriptTimeout(f"{what} was ended because the operation was cancelled{words}", log=log, hint=hint)
    if result.timed_out:
        return ScriptTimeout(f"{what} was ended after its limit of {limit_s:g} s{words}", log=log, hint=hint)
    ended = f"ended with status {result.status}"
    if result.status < 0:
        ended = f"was killed by {_signal_name(-result.status)}"
    return ScriptFailed(f"{what} {ended}{words or '; it printed nothing'}", status=result.status, log=log, hint=hint)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        # Most real-time signals have no name.
        return f"signal {number}"


def _last_lines(output: bytes) -> str:
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-_LAST_LINES:])
