"""Disks whose storage asks for credentials, in every operation: secrets come with the disk and go with it.

The machines are paused: it is QEMU that logs in.
"""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hvext.core.disk import Disk
from hvext.core.value import replace
from hvext.errors import RepointRefused
from hvext.host.machine import Machine
from hvext.host.provider import ProviderHost
from hvext.operations.start import Start, start_disks, stop_disks
from hvext.operations.vm import open_vm
from tests.conftest import need
from tests.providers import write_provider
from tests.secrecy import SECRET_FOLDER, remember, secrets_in
from tests.servers.certificates import certificates
from tests.servers.iscsi import IscsiTarget, iscsi_target
from tests.servers.nbd import nbd_server
from tests.servers.vhost_user import vhost_user_server
from tests.vm.state import on_debug_monitor, state_of

if TYPE_CHECKING:
    from tests.vm.conftest import MachineFactory

pytestmark = pytest.mark.vm

MIB = 1 << 20
MOVES = 20


@pytest.fixture(scope="module")
def iscsi() -> Iterator[IscsiTarget]:
    with iscsi_target() as target:
        remember(target.password)
        target.create("vol", 16 * MIB)
        yield target


def private_files() -> list[Path]:
    folder = Path(os.environ["HVEXT_RUNTIME_DIR"])
    return [path for path in folder.rglob("*") if not path.is_dir()] if folder.exists() else []


def offered(folder: Path, attach: str, grow: str = "exit 0", **more: Any) -> tuple[ProviderHost, Disk]:
    name = f"p{uuid.uuid4().hex}"
    write_provider(folder / SECRET_FOLDER, name, {"attach": attach, "grow": grow}, "password of the server\n")
    host = ProviderHost(search_path=[str(folder / SECRET_FOLDER)], log_directory=str(folder / "provider-logs"))
    return host, Disk.from_mapping({"provider": name, "volume": "vol", **more})


def attach_uri(uri: str) -> str:
    return f"printf '\\n%s\\n' {shlex.quote('kvm:' + uri)}"


def own_objects(machine: Machine, disk: Disk) -> set[str]:
    return {name for name in state_of(machine).objects if disk.names.owns_object(name)}


@pytest.mark.parametrize("form", ["argv", "drive_argv", "commands"])
def test_a_password_reaches_a_starting_qemu_through_a_private_file_alone(
    machine: MachineFactory, iscsi: IscsiTarget, tmp_path: Path, form: str
) -> None:
    host, disk = offered(tmp_path, attach_uri(iscsi.uri_with_password("vol")), bus="rp0")
    start = start_disks(host, [disk])
    (file,) = private_files()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() == iscsi.password
    render: Callable[[Start], Any] = getattr(Start, form)
    assert not secrets_in(repr([render(start), start, start.xml(), start.disks[0].plan]).encode(), [iscsi.password])
    started = machine(start_paused=True, extra_args=() if form == "commands" else tuple(render(start)))
    if form == "commands":
        for command in start.commands():
            on_debug_monitor(started, str(command["execute"]), **dict(command["arguments"]))  # type: ignore[call-overload]
    with open_vm(str(started.qmp_path), host=host) as vm:
        (running,) = vm.disks().values()
        assert running.protocol is not None
        assert running.protocol.driver == "iscsi"
        assert running.objects == (file.name,)
        assert not vm.plug(disk).changed
    started.stop()
    assert stop_disks(host, [disk]) == []
    assert private_files() == []


def test_a_disk_moves_between_its_block_path_and_a_uri_with_a_password(
    machine: MachineFactory, iscsi: IscsiTarget, tmp_path: Path
) -> None:
    uri = iscsi.uri_with_password("vol")
    losetup = [need("losetup", "mount"), "--direct-io=on", "--show", "-f", str(iscsi.path("vol"))]
    loop = subprocess.run(losetup, capture_output=True, text=True, check=True).stdout.strip()
    try:
        host, disk = offered(tmp_path, f"echo {loop}; " + attach_uri(uri).replace("\\n", "", 1))
        started = machine(start_paused=True)
        with open_vm(str(started.qmp_path), host=host) as vm:
            assert vm.plug(disk).access == "userspace"
            assert not vm.repoint(disk.volume.uuid, uri).changed
            for move in range(MOVES):
                result = vm.repoint(disk.volume.uuid, uri if move % 2 else loop)
                assert result.changed
                assert not secrets_in(repr(result).encode(), [iscsi.password])
                objects = own_objects(started, disk)
                (running,) = vm.disks().values()
                assert running.protocol is not None
                assert objects == ({f"{running.protocol.name}-password"} if move % 2 else set())
            vm.unplug_only(disk.volume.uuid, timeout_s=1)
        started.stop()
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)
    assert private_files() == []


@pytest.mark.parametrize("option", ["--secret", "--parameter-file"])
def test_the_command_line_moves_a_disk_with_a_password_from_a_file(
    machine: MachineFactory, iscsi: IscsiTarget, tmp_path: Path, option: str
) -> None:
    without = iscsi.uri_with_password("vol").replace(f"%{iscsi.password}", "")
    # What cannot be moved to comes first.
    lines = f"\nkvm:vhost-user:/nonexistent/socket\nkvm:{without}\n"
    host, disk = offered(tmp_path, f"printf %s {shlex.quote(lines)}")
    password = tmp_path / SECRET_FOLDER / "password"
    password.write_text(iscsi.password + "\n")
    started = machine(start_paused=True)
    path = f"file:{iscsi.path('vol')}"
    more = [option, f"password={password}", "--search-path", str(tmp_path / SECRET_FOLDER), "--log-dir", "none"]

    def hvext(*words: str) -> str:
        argv = [sys.executable, "-m", "hvext", "repoint", "--qmp", str(started.qmp_path), disk.provider, "vol"]
        done = subprocess.run([*argv, *words, *more], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert not secrets_in((done.stdout + done.stderr).encode(), [iscsi.password])
        return done.stdout

    with open_vm(str(started.qmp_path), host=host) as vm:
        vm.plug(replace(disk, secret_files={"password": str(password)}))
        vm.repoint(disk.volume.uuid, path)
    assert "moved from" in hvext("--to", without)
    with open_vm(str(started.qmp_path), host=host) as vm:
        vm.repoint(disk.volume.uuid, path)
    assert "moved from" in hvext("--access", "userspace")
    started.stop()


def test_a_disk_behind_tls_grows(machine: MachineFactory, tmp_path: Path) -> None:
    with certificates() as authority, nbd_server(tcp=True, certificates=authority) as server:
        server.create("vol", 16 * MIB)
        uri = server.uri("vol").replace("nbd", "nbds", 1) + f"?tls-certificates={authority.client}"
        grow = f'truncate -s "${{VOL_NEW_SIZE}}M" {shlex.quote(str(server.path("vol")))}'
        host, disk = offered(tmp_path, attach_uri(uri), grow)
        started = machine(start_paused=True)
        with open_vm(str(started.qmp_path), host=host) as vm:
            vm.plug(disk)
            assert vm.resize(disk, 32).after_bytes == 32 * MIB
            (running,) = vm.disks().values()
            assert running.protocol is not None
            assert own_objects(started, disk) == {f"{running.protocol.name}-tls"}
        started.stop()


def test_a_disk_behind_vhost_user_is_listed_and_not_moved(machine: MachineFactory, tmp_path: Path) -> None:
    with vhost_user_server() as server:
        server.create("vol", 16 * MIB)
        uri = f"vhost-user:{server.socket('vol')}"
        host, disk = offered(tmp_path, attach_uri(uri))
        started = machine(start_paused=True, shared_memory=True)
        with open_vm(str(started.qmp_path), host=host) as vm:
            assert vm.plug(disk).location == uri
            (running,) = vm.disks().values()
            assert (running.to_json()["uri"], running.node_names) == (uri, ())
            with pytest.raises(RepointRefused, match="vhost-user"):
                vm.repoint(disk.volume.uuid, "/dev/loop0")
        started.stop()


def test_a_vhost_user_disk_can_be_given_at_start(machine: MachineFactory, tmp_path: Path) -> None:
    with vhost_user_server() as server:
        server.create("vol", 16 * MIB)
        host, disk = offered(tmp_path, attach_uri(f"vhost-user:{server.socket('vol')}"), bus="rp0")
        start = start_disks(host, [disk])
        assert any("share=on" in warning for warning in start.disks[0].warnings)
        started = machine(start_paused=True, shared_memory=True, extra_args=tuple(start.argv()))
        with open_vm(str(started.qmp_path), host=host) as vm:
            assert not vm.plug(disk).changed
        started.stop()
