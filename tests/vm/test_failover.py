"""Storage that dies under a guest that writes, and other storage that takes its place."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest

from hvext.host.guest import WriterVerdict
from hvext.host.qmp import Monitor
from hvext.operations.capabilities import query_capabilities
from hvext.operations.fence import CommandFence
from hvext.operations.repoint import repoint
from tests.vm.failing import (
    Outage,
    Setting,
    SettingFactory,
    check_verdict,
    die,
    fail_over_and_resume,
    freeze,
    woken_up,
)
from tests.vm.state import state_of

pytestmark = pytest.mark.vm
ROUNDS = 100


def server_killed(setting: Setting) -> Outage:
    return die(setting, [setting.path], setting.ways.kill)


def socket_removed(setting: Setting) -> Outage:
    # The first candidate is where it was: nobody is there any more, and the second is taken.
    outage = die(setting, [setting.uri, setting.path], setting.ways.remove_socket)
    assert len(outage.result.passed_over) == 1
    return outage


def server_frozen(setting: Setting) -> Outage:
    fence = CommandFence(argv=setting.ways.fence(), leaves_server=True)
    return freeze(setting, [setting.path], fence)


def path_dead(setting: Setting) -> Outage:
    return die(setting, [setting.path, setting.uri], setting.ways.kill_path)


FAILURES: dict[str, tuple[Callable[[Setting], Outage], dict[str, Any]]] = {
    "server-killed": (server_killed, {}),
    "server-frozen-and-woken": (server_frozen, {"tcp": True}),
    "socket-removed": (socket_removed, {}),
    "block-path-dead": (path_dead, {"mortal_path": True}),
}


def survive(setting: Setting, failure: str) -> tuple[Outage, WriterVerdict]:
    """Plug the disk, let its storage fail under writes, and look at every block."""
    before = state_of(setting.guest.machine)
    setting.plug()
    if failure == "block-path-dead":
        setting.move(setting.path)
    writer = setting.started_writer()
    time.sleep(0.2)
    outage = FAILURES[failure][0](setting)
    time.sleep(0.3)
    # It carries out what it had received, if it can.
    verdict = woken_up(setting, writer) if failure == "server-frozen-and-woken" else writer.stop()
    check_verdict(setting, verdict)
    setting.unplug()
    assert state_of(setting.guest.machine) == before
    return outage, verdict


#: What every failure strikes; on the second QEMU nightly.
_NIGHTLY = pytest.mark.nightly
SETTINGS = [
    pytest.param(False, "virtio-blk-pci", False, id="installed-qemu-virtio-blk-pci-main-loop"),
    pytest.param(False, "virtio-blk-pci", True, id="installed-qemu-virtio-blk-pci-iothread"),
    pytest.param(False, "scsi-hd", False, id="installed-qemu-scsi-hd-main-loop"),
    pytest.param(False, "scsi-hd", True, id="installed-qemu-scsi-hd-iothread"),
    pytest.param(True, "virtio-blk-pci", False, id="second-qemu-virtio-blk-pci-main-loop", marks=_NIGHTLY),
    pytest.param(True, "virtio-blk-pci", True, id="second-qemu-virtio-blk-pci-iothread", marks=_NIGHTLY),
    pytest.param(True, "scsi-hd", False, id="second-qemu-scsi-hd-main-loop", marks=_NIGHTLY),
    pytest.param(True, "scsi-hd", True, id="second-qemu-scsi-hd-iothread", marks=_NIGHTLY),
]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize(("other", "device", "iothread"), SETTINGS)
def test_no_acknowledged_write_is_lost_when_storage_fails(
    setting: SettingFactory,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    other: bool,
    device: str,
    iothread: bool,
    failure: str,
) -> None:
    qemu = str(request.getfixturevalue("second_qemu") / "bin/qemu-system-x86_64") if other else ""
    made = setting(device=device, iothread=iothread, qemu=qemu, **FAILURES[failure][1])
    outage, verdict = survive(made, failure)
    with capsys.disabled():
        print(
            f"\n{'10.0' if other else '7.2'} {device}{' iothread' if iothread else ''}, {failure}: stopped for "
            f"{outage.stopped_ms:.1f} ms, {verdict.status.writes} writes, {verdict.status.errors} errors, "
            f"{verdict.verified}/{verdict.blocks} blocks right"
        )


def test_a_hundred_failovers_and_ways_back_on_one_guest(
    setting: SettingFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    made = setting()
    before = state_of(made.guest.machine)
    made.plug()
    writer = made.started_writer()
    stopped_ms = []
    began = time.monotonic()

    async def rounds(monitor: Monitor) -> None:
        await query_capabilities(monitor)
        for _round in range(ROUNDS):
            with monitor.events("STOP", "RESUME") as events:
                made.ways.kill()
                stopped_ms.append((await fail_over_and_resume(made, monitor, events, [made.path])).stopped_ms)
            made.ways.restart()
            assert (await repoint(monitor, made.disk.names, made.uri)).changed

    made.run(rounds)
    elapsed_s = time.monotonic() - began
    verdict = writer.stop()
    check_verdict(made, verdict)
    made.unplug()
    assert state_of(made.guest.machine) == before
    with capsys.disabled():
        print(
            f"\n{ROUNDS} failovers and ways back in {elapsed_s:.1f} s: stopped for "
            f"{statistics.median(stopped_ms):.1f} ms (median), {max(stopped_ms):.1f} ms (longest), "
            f"{verdict.status.writes} writes, {verdict.status.errors} errors"
        )
