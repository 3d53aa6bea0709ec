"""Connecting to a monitor, as far as no QEMU can be made to show it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient

from hvext.errors import CommandRefused, CommandTimeout, MonitorError
from hvext.host import qmp
from hvext.host.qmp import Monitor, connect

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}
STOP = {"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 0}}


STRAY = [{"return": {}, "id": "__qmp#00009"}, {"error": {"class": "GenericError", "desc": "x"}}, STOP]


@pytest.mark.parametrize("before", [[], STRAY], ids=["nothing", "another's answers"])
async def test_what_comes_before_the_first_answer_keeps_nobody_from_connecting(before: list[object]) -> None:
    # A guest whose storage fails sends them all the time, and QEMU does so as soon as it has read qmp_capabilities.
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(*messages: object) -> None:
            writer.write(b"".join(json.dumps(message).encode() + b"\n" for message in messages))

        say(*before, GREETING)
        decoder, text = json.JSONDecoder(), ""
        while data := await reader.read(1 << 16):
            text += data.decode()
            while text.strip():
                command, end = decoder.raw_decode(text)
                text = text[end:].lstrip()
                events = [STOP, STOP] if command["execute"] == "qmp_capabilities" else []
                say(*events, {"return": {"status": "io-error"}, "id": command.get("id")})
        writer.close()

    with tempfile.TemporaryDirectory(prefix="hvext-") as folder:
        path = str(Path(folder) / "qmp")
        async with await asyncio.start_unix_server(serve, path), connect(path) as monitor:
            assert (await monitor.execute("query-status"))["status"] == "io-error"


def test_the_library_still_has_what_the_client_puts_its_own_in_the_place_of() -> None:
    # These are the library's inner parts: a version without one of them would leave hvext waiting for its answers.
    own = {name: value for name, value in vars(qmp._Client).items() if inspect.isfunction(value)}
    overridden = {name for name in own if name.startswith("_") and name != "__init__" and hasattr(QMPClient, name)}
    assert overridden == {"_recv", "_cb_inbound", "_cb_outbound", "_on_message", "_bh_disconnect"}
    for name in overridden:
        theirs = getattr(QMPClient, name)
        assert inspect.iscoroutinefunction(own[name]) == inspect.iscoroutinefunction(theirs), name
        assert list(inspect.signature(own[name]).parameters) == list(inspect.signature(theirs).parameters), name
    client = QMPClient("test")
    assert isinstance(client._get_exec_id(), str)
    assert client._get_exec_id() != client._get_exec_id()
    assert client._writer is None


@contextlib.asynccontextmanager
async def monitored(answer: Callable[[dict[str, Any]], list[object] | None], **values: Any) -> AsyncIterator[Monitor]:
    """A monitor that says what ``answer`` returns to each command, and ends the connection when that is None."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json.dumps(GREETING).encode() + b"\n")
        decoder, text = json.JSONDecoder(), ""
        while data := await reader.read(1 << 16):
            text += data.decode()
            while text.strip():
                command, end = decoder.raw_decode(text)
                text = text[end:].lstrip()
                plain = [{"return": {}, "id": command.get("id")}]
                said = plain if command["execute"] == "qmp_capabilities" else answer(command)
                if said is None:
                    writer.close()
                    return
                writer.write(b"".join(json.dumps(message).encode() + b"\n" for message in said))
        writer.close()

    with tempfile.TemporaryDirectory(prefix="hvext-") as folder:
        path = str(Path(folder) / "qmp")
        async with await asyncio.start_unix_server(serve, path), connect(path, **values) as monitor:
            yield monitor


async def test_each_of_many_commands_at_once_gets_its_own_answer() -> None:
    held: list[object] = []

    def answer(command: dict[str, Any]) -> list[object]:
        number = command["arguments"]["number"]
        refused = {"error": {"class": "GenericError", "desc": f"not {number}"}, "id": command["id"]}
        held.append(refused if number % 7 == 3 else {"return": number, "id": command["id"]})
        if len(held) < 100:
            return []
        return [STOP, *reversed(held)]

    async with monitored(answer) as monitor:
        found = await asyncio.gather(
            *(monitor.execute("ask", {"number": number}) for number in range(100)), return_exceptions=True
        )
    for number, each in enumerate(found):
        if number % 7 == 3:
            assert isinstance(each, CommandRefused)
            assert each.description == f"not {number}"
        else:
            assert each == number


async def test_an_answer_that_comes_too_late_is_not_taken_for_that_of_the_next_command() -> None:
    late: list[object] = []

    def answer(command: dict[str, Any]) -> list[object]:
        reply = {"return": command["execute"], "id": command["id"]}
        if command["execute"] == "slow":
            late.append(reply)
            return []
        return [*late, reply]

    async with monitored(answer) as monitor:
        with pytest.raises(CommandTimeout, match="did not answer slow within"):
            await monitor.execute("slow", timeout_s=0.05)
        waiting = asyncio.ensure_future(monitor.execute("slow"))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await monitor.execute("next") == "next"


async def test_a_connection_that_ends_ends_all_commands_under_way() -> None:
    async with monitored(lambda command: None if command["execute"] == "quit" else []) as monitor:
        commands = [monitor.execute("wait") for _number in range(20)] + [monitor.execute("quit")]
        async with asyncio.timeout(10):
            found = await asyncio.gather(*commands, return_exceptions=True)
            assert {type(each) for each in found} == {MonitorError}
            with pytest.raises(MonitorError, match="broke during after"):
                await monitor.execute("after")


@pytest.mark.parametrize("reply", [{}, {"error": {}}, {"error": {"class": 1, "desc": "x"}}, {"error": "no"}])
async def test_what_is_no_answer_is_not_taken_for_one(reply: dict[str, object]) -> None:
    async with monitored(lambda command: [{**reply, "id": command["id"]}]) as monitor:
        with pytest.raises(MonitorError, match="what is no answer"):
            await monitor.execute("ask")
