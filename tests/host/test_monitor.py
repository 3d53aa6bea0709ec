"""Connecting to a monitor, as far as no QEMU can be made to show it."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

import pytest

from hvext.host.qmp import connect

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
