from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from hvext.errors import InputError, ProgramError
from hvext.host.machine import (
    GuestImage,
    MachineOptions,
    probe_acceleration,
    start_machine,
    start_storage_daemon,
)
from tests.conftest import need

VM_IMAGES = Path(__file__).parents[2] / "vm-images" / "out"


@pytest.fixture
def socket_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of this test's own, with a short name, for socket folders; after pytest has made its own folder."""
    root = Path(tempfile.mkdtemp(prefix="t-"))
    monkeypatch.setattr(tempfile, "tempdir", str(root))
    yield root
    shutil.rmtree(root)


@pytest.fixture
def qemu() -> str:
    return need("qemu-system-x86_64", "qemu-system-x86")


def children() -> set[int]:
    """All processes below this one, which QEMU's would be."""
    found: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        found |= {int(pid) for pid in path.read_text().split()}
    return found


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(str(path)) == 0


@pytest.mark.parametrize("board", ["none", "q35", "pc"])
def test_a_started_machine_answers_and_leaves_no_process_and_no_socket(
    qemu: str, socket_root: Path, tmp_path: Path, board: Literal["none", "q35", "pc"]
) -> None:
    before = children()
    options = MachineOptions(
        name="vm", machine=board, scsi_controllers=2, iothreads=("io0",), scsi_iothread="io0", shared_memory=True
    )
    with start_machine(options, None, tmp_path / "logs, and more") as machine:
        assert machine.alive
        assert all(connects(path) for path in (machine.qmp_path, machine.debug_qmp_path, machine.serial_path))
        assert machine.argv[0] == "qemu-system-x86_64"
    assert children() == before
    assert list(socket_root.iterdir()) == []
    assert machine.wait(1) == machine.stop() == machine.stop() == 0
    assert machine.log_path.exists()


def test_two_machines_share_a_folder_and_keep_their_logs_apart(qemu: str, socket_root: Path, tmp_path: Path) -> None:
    with (
        start_machine(MachineOptions(name="a", machine="none"), None, tmp_path) as one,
        start_machine(MachineOptions(name="a.b", machine="none"), None, tmp_path) as two,
    ):
        assert one.pid != two.pid
        assert one.log_path.exists()
        assert two.log_path.exists()
        assert one.qmp_log != two.qmp_log
        one.stop()
        assert two.alive


def test_what_qemu_says_about_a_bad_argument_is_in_the_error(qemu: str, socket_root: Path, tmp_path: Path) -> None:
    before = children()
    options = MachineOptions(name="vm", extra_args=("-device", "no-such-device"))
    with pytest.raises(ProgramError, match="'no-such-device' is not a valid device model name"):
        start_machine(options, None, tmp_path)
    assert children() == before
    assert list(socket_root.iterdir()) == []


def test_a_missing_qemu_is_named_and_leaves_nothing(socket_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="cannot start no-such-qemu"):
        start_machine(MachineOptions(name="vm", qemu="no-such-qemu"), None, tmp_path)
    assert list(socket_root.iterdir()) == []


def test_a_killed_qemu_is_reported_with_its_command_line(qemu: str, socket_root: Path, tmp_path: Path) -> None:
    with start_machine(MachineOptions(name="vm", machine="none"), None, tmp_path) as machine:
        os.kill(machine.pid, signal.SIGKILL)
        assert machine.wait(60) == -signal.SIGKILL
        assert "-name vm" in machine.failure_report()
        assert "status -9" in machine.failure_report()


def test_a_temporary_folder_too_long_for_sockets_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(ProgramError, match=r"too long for a Unix socket .*TMPDIR"):
        start_machine(MachineOptions(name="vm"), None, tmp_path)
    assert list(long.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [{"name": "a/b"}, {"name": ""}, {"accel": "hvf"}, {"root_ports": 25}, {"scsi_iothread": "io0"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_options_that_cannot_work_are_refused_before_anything_starts(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        MachineOptions(**{"name": "vm", **wrong})  # type: ignore[arg-type]


def test_a_missing_guest_image_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"vmlinuz does not exist") as caught:
        GuestImage.find(tmp_path)
    assert "in a checkout of hvext" in caught.value.hint, "pip and Debian's package have no vm-images/build"
    assert "--guest DIR" in caught.value.hint
    (tmp_path / "build").touch()
    with pytest.raises(ProgramError) as caught:
        GuestImage.find(tmp_path / "out")
    assert caught.value.hint == f"run {tmp_path}/build"


def test_a_storage_daemon_serves_when_it_is_returned_and_is_gone_afterwards(socket_root: Path, tmp_path: Path) -> None:
    need("qemu-storage-daemon", "qemu-system-common")
    before = children()
    nbd = socket_root / "nbd"
    arguments = [
        "--blockdev", "null-co,node-name=disk,size=1048576,read-zeroes=on",
        "--nbd-server", f"addr.type=unix,addr.path={nbd}",
        "--export", "nbd,id=e,node-name=disk,name=disk,writable=on",
    ]  # fmt: skip
    with start_storage_daemon(arguments, tmp_path) as daemon:
        assert daemon.alive
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(nbd))
            assert client.recv(8) == b"NBDMAGIC"
    assert children() == before
    assert not connects(nbd)
    assert list(socket_root.iterdir()) == [nbd]  # the caller's own


def test_what_a_storage_daemon_says_about_a_bad_argument_is_in_the_error(socket_root: Path, tmp_path: Path) -> None:
    need("qemu-storage-daemon", "qemu-system-common")
    with pytest.raises(ProgramError, match=r"did not start(.|\n)*no-such-driver"):
        start_storage_daemon(["--blockdev", "no-such-driver,node-name=x"], tmp_path)
    assert list(socket_root.iterdir()) == []


@pytest.mark.vm
def test_kvm_is_chosen_only_where_a_guest_boots_with_it_and_the_answer_is_kept(
    qemu: str, socket_root: Path, tmp_path: Path
) -> None:
    need(str(VM_IMAGES / "initrd.gz"), "none: run vm-images/build")
    for name in ("vmlinuz", "initrd.gz"):
        (tmp_path / name).symlink_to(VM_IMAGES / name)
    image = GuestImage.find(tmp_path)
    kept = tmp_path / "acceleration.json"
    before = children()
    accel = probe_acceleration(image, limit_s=4)
    assert accel in ("kvm", "tcg")
    assert children() == before
    assert list(socket_root.iterdir()) == []
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        assert accel == "tcg"
        return
    if accel == "kvm":
        with start_machine(MachineOptions(name="vm", accel="kvm"), image, tmp_path / "logs") as machine:
            deadline = time.monotonic() + 60
            while "GUEST-READY" not in machine.console_log.read_text():
                assert time.monotonic() < deadline
                time.sleep(0.1)

    answer = json.loads(kept.read_text())
    other = {"kvm": "tcg", "tcg": "kvm"}[accel]
    kept.write_text(json.dumps({**answer, "accel": other}))
    assert probe_acceleration(image) == other
    kept.write_text(json.dumps({**answer, "accel": other, "boot_id": "an earlier one"}))
    # Where a guest hangs on it, there is nothing to wait for.
    assert probe_acceleration(image, limit_s=4 if accel == "kvm" else 0.5) == accel
