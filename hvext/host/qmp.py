"""The monitor of a running QEMU: the only module that knows qemu.qmp.

A QMP socket serves one client at a time; a second one is let in when the first is gone. So whoever holds the
connection is alone with QEMU, and hvext needs a monitor of its own.

Source: qemu-qmp-ref(7), qmp-spec; the qemu.qmp documentation.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

from qemu.qmp import ConnectError, EventListener, ExecInterruptedError, Message, QMPClient, QMPError
from qemu.qmp.protocol import Runstate, StateError

from hvext.core.file_kind import FileKind
from hvext.core.secret import Secret
from hvext.errors import CommandRefused, CommandTimeout, InputError, MonitorError, QemuError
from hvext.host.files import file_kind

#: How long a command may take. A command that drains a disk waits for its requests, so this is not short.
DEFAULT_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
_QUEUE_POLL_S = 0.02
#: How long QEMU may greet and then say nothing before it is taken to wait for another client.
_STUCK_S = 1.0
#: So many commands QEMU takes from its socket before it has carried one out (QMP_REQ_QUEUE_LEN_MAX).
_PIECE = 8
_ADVICE = {"Permission denied": "run as root, or as the owner of the socket"}
_NO_MONITOR = (
    "QEMU makes one with -chardev socket,id=hvext,path=PATH,server=on,wait=off -mon chardev=hvext,mode=control"
)

# qemu.qmp logs every broken connection as critical; hvext raises it.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


def parse_address(text: str) -> str | tuple[str, int]:
    """Return a QMP address as qemu.qmp takes it: a socket's path, or host and port for ``host:port``."""
    host, colon, port = text.rpartition(":")
    if colon and host and "/" not in text and port.isdecimal():
        return host.strip("[]"), int(port)
    if not text:
        raise InputError("the QMP address is empty", hint="give the path of a unix socket, or HOST:PORT")
    return text


#: A command on its way: its number, its answer, and what ends the wait for it.
_Asked = tuple[object, "asyncio.Future[Message]", asyncio.TimerHandle]


class _Client(QMPClient):
    """The library's client, which sends commands itself, and without its log of messages, which it makes for nobody.

    The library hands each command from task to task through queues, and turns it into text three times; with a timer
    for each, that takes as long as QEMU takes for many a command. `ask` writes it at once.

    QEMU may send an event before its answer to ``qmp_capabilities``, and the library would take it for that answer: a
    guest whose storage fails could not be connected to. What was meant for a client that left before it had read it
    can come before the greeting.
    """

    _greeted = False

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._answers: dict[object, asyncio.Future[Message]] = {}
        self._unsent: list[bytes] = []
        self._holding = 0

    def begin(self, command: str, arguments: object, *, limit_s: float, oob: bool) -> _Asked:
        """Send a command, for ``answer``; raises QMPError as the library."""
        if self.runstate is not Runstate.RUNNING:
            raise ExecInterruptedError("Disconnected")
        number = self._get_exec_id()
        message: dict[str, object] = {"exec-oob" if oob else "execute": command, "id": number}
        if arguments is not None:
            message["arguments"] = arguments
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Message] = loop.create_future()
        self._put(json.dumps(message).encode() + b"\n", loop)
        self._answers[number] = answer
        return number, answer, loop.call_later(limit_s, _give_up, answer)

    def forget(self, asked: _Asked | QMPError) -> None:
        """Wait for an answer no more."""
        if not isinstance(asked, QMPError):
            number, answer, timer = asked
            timer.cancel()
            answer.cancel()
            del self._answers[number]

    async def answer(self, asked: _Asked) -> Message:
        """Return QEMU's answer to a command, also a refusal; raises TimeoutError, and QMPError as the library."""
        number, answer, timer = asked
        try:
            return await answer
        finally:
            timer.cancel()
            del self._answers[number]

    def _put(self, data: bytes, loop: asyncio.AbstractEventLoop) -> None:
        """Send a command; those that follow it before its answer, a few in one piece: QEMU wakes up for each piece."""
        self._unsent.append(data)
        if self._holding:
            return
        if not self._answers or len(self._unsent) >= _PIECE:
            self._send_rest()
        elif len(self._unsent) == 1:
            loop.call_soon(self._send_rest)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Send what is asked in the block in one piece, at its end."""
        self._holding += 1
        try:
            yield
        finally:
            self._holding -= 1
            if not self._holding:
                self._send_rest()

    def _send_rest(self) -> None:
        data, self._unsent = b"".join(self._unsent), []
        if self._writer is not None and data:
            self._writer.write(data)

    async def _on_message(self, msg: Message) -> None:
        answer = None if "event" in msg else self._answers.get(msg.get("id"))
        if answer is None:
            await super()._on_message(msg)
        elif not answer.done():
            answer.set_result(msg)

    async def _bh_disconnect(self) -> None:
        try:
            await super()._bh_disconnect()
        finally:
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(ExecInterruptedError("Disconnected"))

    async def _recv(self) -> Message:
        message = await super()._recv()
        while self.runstate is not Runstate.RUNNING and self._is_stray(message):
            message = await super()._recv()
        self._greeted = self._greeted or "QMP" in message
        return message

    @property
    def is_greeted(self) -> bool:
        """Whether QEMU has sent its greeting."""
        return self._greeted

    def _is_stray(self, message: Message) -> bool:
        return "event" in message or (not self._greeted and ("return" in message or "error" in message))

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


class Monitor:
    """An open QMP connection. Made by ``connect``."""

    def __init__(
        self, client: _Client, address: str, timeout_s: float, owner: int | None = None, pid: int | None = None
    ) -> None:
        self._client = client
        self._address = address
        self._timeout_s = timeout_s
        self._owner = owner
        self._pid = pid

    @property
    def owner(self) -> int | None:
        """The id of the user that QEMU runs as; None where that cannot be told (a monitor over TCP)."""
        return self._owner

    @property
    def pid(self) -> int | None:
        """QEMU's process number; None for a monitor over TCP."""
        return self._pid

    @property
    def version(self) -> str:
        """QEMU's version, from its greeting: for people, never for decisions."""
        greeting = self._client.greeting
        if greeting is None:
            return ""
        qemu = cast("Mapping[str, Any]", greeting.QMP.version["qemu"])
        return f"{qemu['major']}.{qemu['minor']}.{qemu['micro']}"

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout_s: float | None = None,
        oob: bool = False,
    ) -> Any:
        """Send one command and return what it returns.

        With ``oob`` it is carried out at once, also when QEMU's main loop hangs (``yank`` is such a command).
        A Secret in ``arguments`` is revealed to QEMU, and to nobody else. Raises CommandRefused when QEMU says no
        (nothing was changed), CommandTimeout when it says nothing in time (it may have been carried out), MonitorError
        when the connection broke (likewise).
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        return await self._answer(command, arguments, self._begin(command, arguments, limit_s, oob=oob), limit_s)

    async def execute_all(self, *commands: tuple[str, Mapping[str, object]]) -> list[Any]:
        """Send several commands at once, and return what they return; a CommandRefused stands for an answer.

        It takes no task for each. Raises what ``execute`` raises, for the first, when there are no answers to come.
        """
        limit_s, begun = self._timeout_s, []
        answers: list[Any] = []
        failed: QemuError | None = None
        for command, arguments in commands:
            begun.append((command, arguments, self._begin(command, arguments, limit_s)))
        try:
            while begun:
                command, arguments, asked = begun.pop(0)
                try:
                    answers.append(await self._answer(command, arguments, asked, limit_s))
                except CommandRefused as error:
                    answers.append(error)
                except QemuError as error:
                    failed = failed or error
        finally:
            # Those that nobody waits for any more.
            for *_command, asked in begun:
                self._client.forget(asked)
        if failed is not None:
            raise failed
        return answers

    def _begin(
        self, command: str, arguments: Mapping[str, object] | None, limit_s: float, *, oob: bool = False
    ) -> _Asked | QMPError:
        given = _revealed(arguments) if arguments else None
        try:
            return self._client.begin(command, given, limit_s=limit_s, oob=oob)
        except QMPError as error:
            return error

    async def _answer(
        self, command: str, arguments: Mapping[str, object] | None, asked: _Asked | QMPError, limit_s: float
    ) -> Any:
        try:
            if isinstance(asked, QMPError):
                raise asked
            answer = await self._client.answer(asked)
        except TimeoutError as error:
            raise CommandTimeout(
                f"QEMU at {self._address} did not answer {command} within {limit_s:g} s",
                hint="a disk whose storage does not answer can block QEMU; the command may still be carried out",
            ) from error
        except (ExecInterruptedError, StateError, QMPError, OSError, EOFError) as error:
            raise MonitorError(
                f"the connection to QEMU at {self._address} broke during {command}: {_words(error)}",
                hint="if QEMU has ended, hvext recover lets its volumes go; else repeat the command",
            ) from error
        match answer:
            case {"return": value}:
                return value
            case {"error": {"class": str(kind), "desc": str(words)}}:
                raise CommandRefused(command, arguments or {}, kind, words)
        raise MonitorError(f"QEMU at {self._address} answered {command} with what is no answer: {answer!r:.200}")

    def together(self) -> AbstractContextManager[None]:
        """Send the commands that are begun in the block in one piece, at its end: QEMU wakes up for each piece.

        Nothing that is awaited in the block may wait for their answers.
        """
        return self._client.together()

    @contextlib.contextmanager
    def events(self, *names: str, matching: Callable[[Mapping[str, Any]], bool] | None = None) -> Iterator[Events]:
        """Collect events from here on; enter before sending the command that causes them.

        ``matching`` looks at the whole event message. What is collected stays until the block ends: to listen for long,
        take what is wanted in ``matching`` itself, and return False.
        """

        def wanted(message: Message) -> bool:
            return matching is None or matching(message)

        listener = EventListener(names or None, wanted)
        self._client.register_listener(listener)
        try:
            yield Events(listener)
        finally:
            with contextlib.suppress(Exception):
                self._client.remove_listener(listener)

    async def broken(self) -> None:
        """Return when the connection has ended, whoever ended it."""
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()

    async def close(self) -> None:
        """End the connection; may be repeated."""
        with contextlib.suppress(QMPError, OSError, EOFError, StateError):
            await self._client.disconnect()


class Events:
    """Events that have arrived since the listener was registered."""

    def __init__(self, listener: EventListener) -> None:
        self._listener = listener

    async def get(self, timeout_s: float) -> Mapping[str, Any] | None:
        """Return the next event, or None when none came within ``timeout_s`` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._listener.get()
        except TimeoutError:
            return None


@contextlib.asynccontextmanager
async def connect(
    address: str, *, timeout_s: float = DEFAULT_TIMEOUT_S, connect_timeout_s: float = CONNECT_TIMEOUT_S
) -> AsyncIterator[Monitor]:
    """Connect to the QMP monitor at a unix socket's path or ``HOST:PORT``.

    ``timeout_s`` is the limit of single commands. Raises MonitorError when nobody is there, or when the monitor keeps
    silent because another client is connected to it.
    """
    try:
        async with asyncio.timeout(connect_timeout_s):
            client, pid = await _greeted(parse_address(address))
    except TimeoutError as error:
        raise MonitorError(
            f"the QMP monitor at {address} did not greet within {connect_timeout_s:g} s",
            hint="a QMP monitor serves one client at a time: is another program connected? Give hvext its own monitor",
        ) from error
    except (ConnectError, QMPError, OSError) as error:
        words = _no_socket(address) or _words(error)
        raise MonitorError(
            f"cannot connect to the QMP monitor at {address}: {words}", hint=_ADVICE.get(words, _NO_MONITOR)
        ) from error
    owner = None if pid is None else _owner(pid)
    monitor = Monitor(client, address, timeout_s, owner, pid)
    try:
        yield monitor
    finally:
        await monitor.close()


async def _greeted(target: str | tuple[str, int]) -> tuple[_Client, int | None]:
    """Return a client that a monitor has greeted, and QEMU's process number where the socket tells it."""
    client = _Client("hvext")
    # It keeps every event that it is not asked for: in a connection that stays open, for ever.
    client.events.event_filter = lambda _message: False
    pid: int | None = None
    freeing = asyncio.create_task(_free(target, client))
    try:
        if isinstance(target, str):
            stream = await _connected(target)
            pid = struct.unpack("3i", stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            await client.connect(stream)
        else:
            await client.connect(target)
    except asyncio.CancelledError:
        await _abandon(client)
        raise
    finally:
        freeing.cancel()
    return client, pid


async def _free(target: str | tuple[str, int], client: _Client) -> None:
    """Knock at a monitor that has greeted and says nothing more, until this is cancelled.

    While QEMU starts, its main loop and the thread of its monitors both listen. A client that comes in that moment may
    wake both: one takes it, and the other waits in accept() for the next, with the whole of QEMU (one start in some
    thousands on a busy machine; 7.2).
    """
    while True:
        await asyncio.sleep(_STUCK_S)
        if client.is_greeted:
            with contextlib.suppress(OSError):
                if isinstance(target, str):
                    (await _connected(target)).close()
                else:
                    _reader, writer = await asyncio.open_connection(*target)
                    writer.close()


async def _abandon(client: _Client) -> None:
    if client.runstate is not Runstate.IDLE:
        with contextlib.suppress(QMPError, OSError, EOFError, StateError):
            await client.disconnect()


async def _connected(path: str) -> socket.socket:
    """Return a socket connected to ``path``.

    QEMU lets one client wait behind the one it serves; for the next the kernel says EAGAIN, and asyncio takes that for
    a connection under way. So this waits here.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                client.connect(path)
            except BlockingIOError:
                await asyncio.sleep(_QUEUE_POLL_S)
            else:
                return client
    except BaseException:
        client.close()
        raise


def _give_up(answer: asyncio.Future[Message]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())


def _no_socket(address: str) -> str:
    """Return in words what is at an address that is no socket; the kernel only says that it refuses the connection."""
    kind = file_kind(address)
    return "" if kind in (FileKind.SOCKET, FileKind.MISSING, FileKind.UNREADABLE) else f"this is {kind}, and no socket"


def _owner(pid: int) -> int | None:
    """Return the user id of a process: what it is now, not what it was when it made its socket."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[2]) for line in status.splitlines() if line.startswith("Uid:")), None)


_PLAIN = frozenset((str, int, bool, type(None)))


def _revealed(value: Any) -> Any:
    """Return a command's arguments as they go over the wire."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, Mapping):
        return {name: _revealed(item) for name, item in value.items()}
    return [_revealed(item) for item in value] if isinstance(value, list | tuple) else value


def _words(error: BaseException) -> str:
    """Return the words of the innermost cause: qemu.qmp wraps what the system said."""
    seen = error
    while isinstance(seen, ConnectError):
        seen = seen.exc
    if isinstance(seen, OSError) and seen.strerror:
        return seen.strerror
    return " ".join(str(seen).split()) or type(seen).__name__
