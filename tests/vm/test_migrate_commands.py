"""The commands of a migration, as two machines would run them: each in the network of its own host."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hvext.host.guest import Console, Writer
from hvext.host.machine import Machine
from tests.secrecy import SECRET_FOLDER, new_secret
from tests.vm.hosts import PROVIDER, Host, Hosts, two_hosts
from tests.vm.state import on_debug_monitor

if TYPE_CHECKING:
    from tests.vm.conftest import MachineFactory

pytestmark = pytest.mark.vm

BOOT_S = 120.0
COMMAND_S = 60.0
DISKS = {"blk": {"bus": "rp0", "iops_total": 50000}, "scsi": {"device": "scsi-hd"}}


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with two_hosts() as made:
        yield made


@dataclass
class Side:
    """One machine with hvext on it."""

    host: Host
    folder: Path

    def argv(self, command: str, *words: str) -> list[str]:
        more = []
        if command not in ("migrate-listen", "disks"):
            path = self.host.providers.search_path[0]
            more = ["--search-path", path, "--env", f"HVEXT_HOST={self.host.name}", "--log-dir", "none"]
        journal = f"HVEXT_STATE_DIR={self.host.folder}/state"
        return [*self.host.prefix, "env", journal, sys.executable, "-m", "hvext", command, *more, *words]

    def run(self, command: str, *words: str, fails: str = "", status: int = 0) -> str:
        done = subprocess.run(
            self.argv(command, *words), capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
        assert done.returncode == status, done.stderr
        assert fails in done.stderr
        return done.stdout


def _writing(machine: Machine) -> Console:
    return Console(machine.command_path, machine.console_log, alive=lambda: machine.alive)


@pytest.mark.parametrize(
    "rounds", [[True], pytest.param([False, True], marks=pytest.mark.nightly)], ids=["there", "and back"]
)
def test_two_machines_migrate_a_guest_with_a_command_each_and_one_that_is_interrupted_stays(
    hosts: Hosts, machine: MachineFactory, tmp_path: Path, rounds: list[bool]
) -> None:
    here, there = Side(hosts.one, tmp_path), Side(hosts.two, tmp_path)
    token = new_secret()
    private = tmp_path / SECRET_FOLDER
    private.mkdir(mode=0o700)
    secret = private / "token"
    secret.write_text(token)
    parameters = {"dir": str(hosts.folder / "volumes"), "api_token": token}
    disks = [{"provider": PROVIDER, "volume": name, "parameters": parameters, **DISKS[name]} for name in DISKS]
    for name in DISKS:
        here.run("create", PROVIDER, name, "--size", "64", "-p", f"dir={parameters['dir']}")
    mine, theirs = str(private / "mine.json"), tmp_path / "theirs.json"
    Path(mine).write_text(json.dumps(disks))
    options: dict[str, Any] = {"memory_mib": 128}
    # The SCSI controller is made by hvext args, on both sides.
    start = json.loads(here.run("args", "--disks", mine, "--json"))
    source = machine(prefix=here.host.prefix, extra_args=tuple(start), **options)
    _writing(source).wait_ready(BOOT_S)
    writers = [Writer(_writing(source), device) for device in ("/dev/vda", "/dev/sda")]
    for writer in writers:
        writer.start(blocks=256, rate=100)

    described = ("--disks", str(theirs), "--parameter-file", f"api_token={secret}")
    no_guest: dict[str, Any] = {"status": 1, "fails": "has no guest"}

    def prepared() -> tuple[Machine, str]:
        qmp = str(source.qmp_path)
        theirs.write_text(here.run("migrate-begin", "--qmp", qmp, "--disks", mine, "--own-controller"))
        assert token not in theirs.read_text()
        there.run("args", "--shared", "--disks", str(theirs), status=2, fails="api_token")
        arguments = json.loads(there.run("args", "--shared", *described, "--json"))
        machine_there = machine(
            prefix=there.host.prefix, start_paused=True, incoming="defer", extra_args=tuple(arguments), **options
        )
        listen = ["migrate-listen", "--qmp", str(machine_there.qmp_path), *described, "--at"]
        there.run(*listen, "nonsense", status=2, fails="no address")
        address = there.run(*listen, f"tcp:{there.host.address}:0")
        # Once is enough, and it says where.
        assert there.run(*listen, f"tcp:{there.host.address}:0") == address
        there.run("migrate-finish", "--qmp", str(machine_there.qmp_path), *described, "--wait", "0.1", **no_guest)
        return machine_there, address

    target, address = prepared()
    begun: dict[str, Any] = {"status": 1, "fails": "a migration of VM"}
    for command in ("plug", "unplug"):
        named = [PROVIDER, "blk", "-p", f"dir={parameters['dir']}", "--parameter-file", f"api_token={secret}"]
        here.run(command, "--qmp", str(source.qmp_path), *named, **begun)
    sending = subprocess.Popen(
        here.argv(
            "migrate", "--qmp", str(source.qmp_path), "--disks", mine, "--to", address.strip(), "--bandwidth", "4"
        ),
        stderr=subprocess.PIPE,
        text=True,
    )
    while on_debug_monitor(source, "query-migrate").get("ram", {}).get("transferred", 0) < 2 << 20:
        time.sleep(0.1)
    sending.send_signal(signal.SIGINT)
    _out, words = sending.communicate(timeout=COMMAND_S)
    assert sending.returncode == 130
    assert "the guest runs on here" in words
    assert on_debug_monitor(source, "query-status")["status"] == "running"
    target.stop()
    here.run("migrate-cancel", "--qmp", str(source.qmp_path), "--disks", mine, fails="open", status=1)
    hosts.forget_calls()
    there.run("stop", "--close", *described)
    assert [call[1] for call in hosts.calls() if call[2] == "blk"] == ["close", "detach"]
    here.run("migrate-cancel", "--qmp", str(source.qmp_path), "--disks", mine)
    for writer in writers:
        assert writer.verify().ok

    for with_target in rounds:
        hosts.forget_calls()
        target, address = prepared()
        words_to = ["--to", address.strip()] + (["--target-qmp", str(target.qmp_path)] if with_target else [])
        told = json.loads(here.run("migrate", "--qmp", str(source.qmp_path), "--disks", mine, "--json", *words_to))
        assert source.wait(10) == 0, "the source's QEMU goes on"
        assert (told["paused_ms"] is not None) == with_target
        assert on_debug_monitor(target, "query-status")["status"] == ("running" if with_target else "paused")
        there.run("migrate-finish", "--qmp", str(target.qmp_path), *described)
        here.run("stop", "--disks", mine)
        assert [call[:2] for call in hosts.calls() if call[2] == "blk"] == [
            (here.host.name, "open shared"),
            (there.host.name, "attach"),
            (there.host.name, "open shared"),
            (here.host.name, "close"),
            (there.host.name, "open exclusive"),
            (here.host.name, "detach"),
        ]
        source, here, there = target, there, here
        for writer in writers:
            writer.follow(_writing(source))
            verdict = writer.verify()
            assert (verdict.status.errors, verdict.bad, verdict.unreadable) == (0, 0, 0)
