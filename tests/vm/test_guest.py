from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hvext.core.stamp import StampFault, check_blocks, read_stamp, stamp_block
from hvext.errors import CommandRefused, ProgramError
from hvext.host.guest import Console, Writer
from hvext.host.machine import Machine
from tests.vm.state import on_debug_monitor, state_of
from tests.vm.volume import wait_for_disk

if TYPE_CHECKING:
    from tests.vm.conftest import Guest, GuestFactory

BLOCK = 4096
DISK_BLOCKS = 2048
WRITTEN_BLOCKS = 512


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(DISK_BLOCKS * BLOCK)
    return path


@contextlib.contextmanager
def plugged(guest: Guest, disk: Path, **blkdebug: Any) -> Iterator[str]:
    """The device of a virtio disk ``d0`` on the file inside the block, with an optional filter below the raw node."""

    def ask(command: str, **arguments: Any) -> None:
        on_debug_monitor(guest.machine, command, **arguments)

    nodes = ["d0-raw", *(["filter"] if blkdebug else []), "file"]
    ask("blockdev-add", driver="file", node_name="file", filename=str(disk), cache={"direct": True}, locking="off")
    if blkdebug:
        ask("blockdev-add", driver="blkdebug", node_name="filter", image="file", **blkdebug)
    ask("blockdev-add", driver="raw", node_name="d0-raw", file=nodes[1])
    ask("device_add", driver="virtio-blk-pci", id="d0", drive="d0-raw", bus="rp0")
    yield wait_for_disk(guest.console)
    if "d0" in state_of(guest.machine).devices:
        ask("device_del", id="d0")
    wait_until(lambda: "d0" not in state_of(guest.machine).devices)
    for node in nodes:
        wait_until(lambda node=node: deleted(guest.machine, node))


def deleted(machine: Machine, node: str) -> bool:
    """Delete a node, unless the device that used it has not let it go yet."""
    with contextlib.suppress(CommandRefused):
        on_debug_monitor(machine, "blockdev-del", node_name=node)
        return True
    return False


def wait_until(true: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.vm
@pytest.mark.parametrize("board", ["q35", "pc"])
def test_a_guest_boots_writes_verifiable_blocks_and_powers_off(boot: GuestFactory, disk: Path, board: str) -> None:
    node = f"driver=file,node-name=file,filename={disk},cache.direct=on,locking=off"
    guest = boot(machine=board, extra_args=("-blockdev", node, "-device", "virtio-blk-pci,drive=file"))
    writer = Writer(guest.console, "/dev/vda")
    writer.start(blocks=WRITTEN_BLOCKS, offset_blocks=16)
    wait_until(lambda: writer.status().writes >= 200)
    verdict = writer.verify()
    assert (verdict.ok, verdict.first, verdict.status.errors) == (True, (), 0)
    assert 0 < verdict.verified == verdict.blocks <= WRITTEN_BLOCKS

    last = writer.stop()
    assert last.ok
    assert last.status.writes > verdict.status.writes
    assert 0 < last.status.mean_us <= last.status.max_us
    status, text = guest.console.run(f"writer /dev/vda --check --blocks {DISK_BLOCKS}")
    assert (status, f"valid={last.verified} " in text) == (0, True)
    with pytest.raises(ProgramError, match="has ended"):
        writer.status()

    with pytest.raises(ProgramError, match="before the machine ended"):
        guest.console.run("poweroff; sleep 60", timeout_s=60)
    assert guest.machine.wait(60) == 0

    data = disk.read_bytes()
    report = check_blocks(data, 0)
    assert (report.ok, report.valid, len(report.seeds)) == (True, last.verified, 1)
    assert report.empty == DISK_BLOCKS - last.verified
    assert data[: 16 * BLOCK] == bytes(16 * BLOCK)


@pytest.mark.vm
def test_wrong_lost_and_torn_blocks_are_found_in_the_guest_and_on_the_host(share: GuestFactory, disk: Path) -> None:
    guest = share()
    with plugged(guest, disk) as device:
        writer = Writer(guest.console, device)
        writer.start(blocks=WRITTEN_BLOCKS, rate=50)
        wait_until(lambda: writer.status().writes >= 400)
        early = disk.read_bytes()
        guest.console.run("sleep 1; killall -STOP writer")
        fd = os.open(disk, os.O_WRONLY)
        try:
            now = disk.read_bytes()
            written = [number for number in range(WRITTEN_BLOCKS) if any(now[number * BLOCK : (number + 1) * BLOCK])]
            lost = [n for n in written if early[n * BLOCK :][:BLOCK] not in (now[n * BLOCK :][:BLOCK], bytes(BLOCK))]
            for number in lost:
                os.pwrite(fd, early[number * BLOCK :][:BLOCK], number * BLOCK)
            rest = [number for number in written if number not in lost]
            for number in rest[: len(rest) // 2]:
                os.pwrite(fd, b"wrong", number * BLOCK)
            for number in rest[len(rest) // 2 :]:
                os.pwrite(fd, b"torn", number * BLOCK + 2048)
        finally:
            os.close(fd)

        # It writes over a few of them before it sees the signal to stop.
        guest.console.run("(sleep 2; killall -CONT writer) >/dev/null 2>&1 &")
        verdict = writer.stop()
        assert not verdict.ok
        assert len(written) // 2 < verdict.bad <= len(written)
        assert len(verdict.first) == 4
        assert all(re.fullmatch(r"\d+:(stale|magic|checksum):\d+:\d+-\d+", bad) for bad in verdict.first)

    # A lost write leaves a good block behind: only the writer knows of it.
    data = disk.read_bytes()
    report = check_blocks(data, 0)
    assert {bad.fault for bad in report.bad} == {StampFault.MAGIC, StampFault.CHECKSUM}
    assert {bad.block for bad in report.bad} <= set(rest)
    assert len(report.bad) < verdict.bad


@pytest.mark.vm
def test_host_and_guest_agree_on_every_byte_of_a_stamp(share: GuestFactory, disk: Path) -> None:
    guest = share()
    with plugged(guest, disk) as device:
        writer = Writer(guest.console, device)
        writer.start(threads=2, blocks=32, block_size=1024)
        wait_until(lambda: writer.verify().verified == 32)
        assert writer.stop().ok
    data = disk.read_bytes()
    for number in range(32):
        block = data[number * 1024 : (number + 1) * 1024]
        stamp = read_stamp(block)
        assert stamp is not None
        assert stamp_block(stamp, block_size=1024) == block


@pytest.mark.vm
def test_failing_writes_are_counted_and_the_writer_goes_on(share: GuestFactory, disk: Path) -> None:
    broken = 10
    rule = {"event": "none", "iotype": "write", "errno": 5, "once": False, "sector": broken * BLOCK // 512}
    guest = share()
    mark = guest.console.mark()
    with plugged(guest, disk, inject_error=[rule]) as device:
        writer = Writer(guest.console, device)
        writer.start(blocks=64)
        wait_until(lambda: writer.status().errors >= 20)
        before = writer.status()
        wait_until(lambda: writer.status().writes > before.writes)
        verdict = writer.stop()
    assert verdict.status.last_error == "EIO"
    assert (verdict.ok, verdict.blocks) == (True, 64)
    lines = re.findall(rf"WRITER {writer.name} error name=EIO block=(\d+) errors=(\d+)", guest.console.text(mark))
    assert {int(block) for block, _errors in lines} == {broken}
    assert len(lines) < verdict.status.errors
    report = check_blocks(disk.read_bytes(), 0)
    assert (report.ok, report.valid) == (True, 63)


@pytest.mark.vm
def test_a_disk_unplugged_under_the_writer_ends_it_and_the_guest_lives_on(share: GuestFactory, disk: Path) -> None:
    guest = share()
    with plugged(guest, disk) as device:
        writer = Writer(guest.console, device)
        writer.start(blocks=WRITTEN_BLOCKS, gone_after_s=1)
        wait_until(lambda: writer.status().writes >= 100)
        on_debug_monitor(guest.machine, "device_del", id="d0")
        status = writer.wait_gone(60)
        assert status.errors > 0
        assert status.last_error
        assert guest.console.run(f"ls {device}")[0] != 0
        with pytest.raises(ProgramError, match="gone"):
            writer.verify()
    assert check_blocks(disk.read_bytes(), 0).ok


@pytest.mark.vm
def test_command_output_is_exact_while_others_print_on_the_console(share: GuestFactory) -> None:
    console = share().console
    mark = console.mark()
    console.run("(for i in $(seq 1 400); do printf 'noise %s\\n' $i; done) >/dev/ttyS0 2>&1 &")
    status, text = console.run("seq 1 500; echo 'a \"quoted\" line' >&2; exit 3")
    assert status == 3
    assert text == "".join(f"{number}\n" for number in range(1, 501)) + 'a "quoted" line\n'
    console.wait_for(r"noise 400$", 60, since=mark)
    assert [int(n) for n in re.findall(r"noise (\d+)$", console.text(mark), re.MULTILINE)] == list(range(1, 401))
    status, text = console.run("echo 'never closed")
    assert status != 0
    assert "unterminated" in text
    assert console.run("echo still here") == (0, "still here\n")


@pytest.mark.vm
def test_a_guest_that_is_reset_is_ready_again(share: GuestFactory) -> None:
    guest = share()
    mark = guest.console.mark()
    on_debug_monitor(guest.machine, "system_reset")
    assert guest.console.wait_ready(120, since=mark) > 0
    assert guest.console.run("true") == (0, "")
    with pytest.raises(ProgramError, match="the guest did not print 'never'"):
        guest.console.wait_for("never", 0.1)


class BrokenLineGuest(threading.Thread):
    """Answers the first time as a guest does whose kernel prints into the middle of the line, then properly."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.command_path = folder / "command"
        self.console_log = folder / "console.log"
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(self.command_path))
        self._server.listen()

    def run(self) -> None:
        with self._server, self._server.accept()[0] as client, self.console_log.open("w") as log:
            answers = ["0 YWJ[    1.2] kernel: news\r\njCg==", "0 YWJjCg=="]
            for line in client.makefile("r"):
                if asked := re.search(r'echo "(RUN-\w+) ', line):
                    log.write(f"{asked[1]} {answers.pop(0)} .\r\n")
                    log.flush()
                    if not answers:
                        return


def test_an_answer_broken_by_a_kernel_message_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = BrokenLineGuest(tmp_path)
    guest.start()
    console = Console(guest.command_path, guest.console_log)
    assert console.run("echo abc", timeout_s=30) == (0, "abc\n")
    guest.join(30)
