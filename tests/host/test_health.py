"""Storage is looked at in a process of its own: real servers that answer, refuse, and keep silent."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvext.core.disk import Disk
from hvext.core.health import HealthState
from hvext.core.uri import parse_uri
from hvext.errors import FenceFailed, InputError, ProgramError
from hvext.host.files import opened_as
from hvext.host.private import private_folder
from hvext.operations.fence import CommandFence, raise_fence
from hvext.operations.health import check_health
from tests.conftest import need
from tests.host.oracle import MIB
from tests.servers.iscsi import iscsi_target
from tests.servers.nbd import NbdServer, nbd_server
from tests.servers.program import Service, running

LIMIT_S = 1.0


@pytest.fixture
def server() -> Iterator[NbdServer]:
    need("qemu-io", "qemu-utils")
    with nbd_server() as made:
        made.create("vol", MIB)
        yield made


async def state(uri: str) -> HealthState:
    return (await check_health(None, parse_uri(uri, look=opened_as), limit_s=LIMIT_S)).state


async def test_storage_is_healthy_refused_or_silent(server: NbdServer, tmp_path: Path) -> None:
    uri = server.uri("vol")
    assert await state(uri) is HealthState.HEALTHY
    refused = await check_health(None, parse_uri(server.uri("none")))
    assert refused.state is HealthState.REFUSED
    assert "export not available" in refused.words
    server.freeze()
    began = time.monotonic()
    assert await state(uri) is HealthState.SILENT
    assert time.monotonic() - began < 10 * LIMIT_S
    server.thaw()
    server.kill()
    assert await state(uri) is HealthState.REFUSED
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    assert await state(str(image)) is HealthState.HEALTHY


async def test_storage_that_can_be_opened_but_not_read_is_refused(tmp_path: Path) -> None:
    nbdkit = need("nbdkit", "nbdkit")
    socket = tmp_path / "s"
    argv = [nbdkit, "--foreground", "--unix", str(socket), "--filter=error", "memory", "1M", "error=EIO"]
    argv += ["error-pread-rate=100%"]
    with running(Service(argv, folder=tmp_path, name="nbdkit", marks=[socket])):
        found = await check_health(None, parse_uri(f"nbd+unix:///?socket={socket}"))
    assert found.state is HealthState.REFUSED
    assert "Input/output error" in found.words


async def test_secrets_of_a_look_are_in_no_command_line_and_nothing_is_left() -> None:
    need("qemu-io", "qemu-utils")
    with iscsi_target() as target:
        target.create("vol", MIB)
        location = parse_uri(target.uri_with_password("vol"))
        assert (await check_health(None, location)).healthy
        wrong = parse_uri(target.uri_with_password("vol", password=target.password[::-1]))
        found = await check_health(None, wrong)
        assert found.state is HealthState.REFUSED
        assert "Authentication" in found.words
        # A silent target keeps the process waiting: long enough to look at it.
        target.freeze()
        looking = asyncio.create_task(check_health(None, location, limit_s=LIMIT_S))
        seen = []
        while not looking.done():
            seen += [text for text in command_lines() if b"qemu-io" in text]
            await asyncio.sleep(0.02)
        target.thaw()
        assert (await looking).state is HealthState.SILENT
    assert seen
    assert not any(target.password.encode() in text for text in seen)
    assert not left_files()


def left_files() -> list[Path]:
    return list(Path(private_folder()).glob("probe-*"))


def command_lines() -> Iterator[bytes]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield (entry / "cmdline").read_bytes()


async def test_a_look_that_is_cancelled_leaves_no_process(server: NbdServer) -> None:
    server.freeze()
    looking = asyncio.create_task(check_health(None, parse_uri(server.uri("vol"))))
    await asyncio.sleep(0.3)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    assert not [text for text in command_lines() if b"qemu-io" in text and str(server.socket).encode() in text]


async def test_what_nobody_could_look_at_is_not_called_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no block node"):
        await check_health(None, parse_uri("vhost-user:/socket"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ProgramError, match="qemu-io not found"):
        await check_health(None, parse_uri("nbd://127.0.0.1/"))


async def test_a_fence_command_is_told_what_to_fence(tmp_path: Path) -> None:
    disk = Disk.from_mapping({"provider": "sample", "volume": "v.ext.disk0"})
    told = tmp_path / "told"
    fence = CommandFence(argv=("sh", "-c", f'env >"{told}"; echo "$MORE"'), environment={"MORE": "x"})
    await raise_fence(fence, disk, parse_uri("iscsi://user%secret-word@host/target/1"))
    lines = dict(line.partition("=")[::2] for line in told.read_text().splitlines())
    own = {name: value for name, value in lines.items() if name.startswith("HVEXT_")}
    assert own == {
        "HVEXT_PROVIDER": "sample",
        "HVEXT_VOLUME": "v.ext.disk0",
        "HVEXT_UUID": str(disk.names.uuid),
        "HVEXT_LOCATION": "iscsi://user@host:3260/target/1",
    }
    with pytest.raises(FenceFailed, match="no fence"):
        await raise_fence(None, disk, None)
    with pytest.raises(InputError, match="list of words"):
        CommandFence(argv="reboot")


async def test_a_fence_has_to_end_a_server_of_this_host(server: NbdServer) -> None:
    disk = Disk.from_mapping({"provider": "sample", "volume": "v"})
    location = parse_uri(server.uri("vol"))
    server.freeze()
    with pytest.raises(FenceFailed, match="still is there"):
        await raise_fence(CommandFence(argv=("true",)), disk, location)
    await raise_fence(CommandFence(argv=("true",), leaves_server=True), disk, location)
    await raise_fence(CommandFence(argv=("kill", "-KILL", str(server.service.pid))), disk, location)
