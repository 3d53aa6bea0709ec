"""What QEMU says of itself, for two versions of it, compared with what it then does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvext.core.capability import STORAGE_DRIVERS, Capabilities, trial_node
from hvext.core.commands import Command, plug_commands
from hvext.errors import CapabilityError, ProgramError
from hvext.host import cache
from hvext.host.machine import Machine, MachineOptions, start_machine
from hvext.operations.capabilities import binary_capabilities, running_capabilities
from hvext.operations.kept_capabilities import disk_capabilities
from tests.conftest import need
from tests.golden.disks import DISKS
from tests.host.oracle import Qmp, Refused

ROOT = Path(__file__).parents[2]
Counted = tuple[Path, Callable[[], int]]
MODULES = "/usr/lib/x86_64-linux-gnu/qemu"
#: What Debian's qemu-block-extra brings, for every version.
EXTRA = {"rbd", "iscsi", "nfs", "ssh", "http", "https", "ftp", "ftps"}


@pytest.fixture(scope="session", params=["installed", "second"])
def qemu(request: pytest.FixtureRequest) -> str:
    """The path of a QEMU, one after the other."""
    if request.param == "installed":
        return need("qemu-system-x86_64", "qemu-system-x86")
    return str(request.getfixturevalue("second_qemu") / "bin/qemu-system-x86_64")


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with kept answers: one of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("QEMU_MODULE_DIR", raising=False)
    return tmp_path / "cache/hvext"


@pytest.fixture(scope="session")
def capabilities(qemu: str, tmp_path_factory: pytest.TempPathFactory) -> Capabilities:
    """What each QEMU says, asked once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return binary_capabilities(qemu)


@pytest.fixture(scope="session")
def running(qemu: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A QEMU without a machine."""
    with start_machine(
        MachineOptions(name="asked", machine="none", qemu=qemu), None, tmp_path_factory.mktemp("m")
    ) as it:
        yield it


@pytest.fixture(scope="session")
def monitor(running: Machine) -> Iterator[Qmp]:
    made = Qmp(running.debug_qmp_path)
    yield made
    made.close()


def check(capabilities: Capabilities, command: Command) -> None:
    checks: dict[str, Callable[[Mapping[str, object]], None]] = {
        "object-add": capabilities.check_object,
        "chardev-add": capabilities.check_chardev,
        "blockdev-add": capabilities.check_node,
        "device_add": capabilities.check_device,
    }
    checks[command.execute](command.arguments)


# --- Both QEMUs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("disk", DISKS)
def test_every_disk_that_hvext_makes_is_one_that_qemu_takes(capabilities: Capabilities, disk: str) -> None:
    driver = DISKS[disk].location.driver
    if DISKS[disk].nodes and driver not in capabilities.schema.drivers:
        assert driver in ("io_uring", "virtio-blk-vhost-user"), "a driver that both QEMUs have"
        with pytest.raises(CapabilityError, match=driver):
            check(capabilities, plug_commands(DISKS[disk])[0])
        return
    for command in plug_commands(DISKS[disk]):
        check(capabilities, command)
        wrong = Command(execute=command.execute, arguments={**command.arguments, "nonesuch": 1})
        with pytest.raises(CapabilityError, match=rf"^{command.execute}: .*'nonesuch'"):
            check(capabilities, wrong)


def test_all_storage_drivers_can_be_used_where_their_package_is_installed(
    qemu: str, capabilities: Capabilities
) -> None:
    if qemu.startswith("/usr/"):
        need(f"{MODULES}/block-rbd.so", "qemu-block-extra")
    assert capabilities.unloadable == frozenset()
    for driver in STORAGE_DRIVERS:
        assert (capabilities.obstacle(driver) is None) == (driver in capabilities.schema.drivers)
    assert {"file", "host_device", "nbd", "gluster", *EXTRA} <= capabilities.schema.drivers
    assert capabilities.devices.keys() == {"virtio-blk-pci", "scsi-hd", "virtio-scsi-pci", "vhost-user-blk-pci"}


def test_the_second_qemu_can_what_the_first_cannot(second_qemu: Path) -> None:
    first = binary_capabilities()
    second = binary_capabilities(str(second_qemu / "bin/qemu-system-x86_64"))
    node = {"driver": "virtio-blk-vhost-user", "path": "/run/s", "node-name": "n"}
    second.check_node(node)
    with pytest.raises(CapabilityError, match="this QEMU does not know driver 'virtio-blk-vhost-user'"):
        first.check_node(node)
    socket = {"backend": {"type": "socket"}}
    asked = [qemu.schema.has("chardev-add", "backend.data.reconnect-ms", socket) for qemu in (first, second)]
    assert asked == [False, True]


WORDS = st.sampled_from(["x", "off", "unmap", "", "inet", "unix"])
JUNK = st.none() | st.booleans() | st.integers(0, 9) | WORDS | st.just([]) | st.just({})
SERVER = st.fixed_dictionaries(
    {}, optional={"type": WORDS | JUNK, "path": WORDS | JUNK, "host": WORDS, "port": WORDS, "abstract": JUNK, "x": JUNK}
)
NODES = st.fixed_dictionaries(
    {"driver": st.sampled_from(["nbd", "rbd", "file", "null-co", "nosuch"]), "node-name": st.just("1")},
    optional={
        "server": SERVER | st.lists(st.just({"host": "h", "port": "1"}), max_size=1),
        "pool": WORDS | JUNK,
        "image": WORDS,
        "filename": WORDS.filter(bool) | JUNK,
        "size": JUNK,
        "read-only": st.booleans() | JUNK,
        "detect-zeroes": WORDS | JUNK,
        "cache": JUNK | st.fixed_dictionaries({}, optional={"direct": st.booleans() | JUNK, "no-flush": st.booleans()}),
        "open-timeout": JUNK,
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NODES)
def test_a_node_is_refused_exactly_when_qemu_would_refuse_it(
    capabilities: Capabilities, monitor: Qmp, node: dict[str, Any]
) -> None:
    # With this name QEMU opens nothing, but only says so when all options are right.
    with pytest.raises(Refused) as refused:
        monitor.execute("blockdev-add", **node)
    if str(refused.value) == "Invalid node-name: '1'":
        capabilities.check_node(node)
    else:
        with pytest.raises(CapabilityError):
            capabilities.check_node(node)


# --- A QEMU that runs ------------------------------------------------------------------------------------------------


def test_a_running_qemu_says_the_same_and_loads_nothing(qemu: str, capabilities: Capabilities, tmp_path: Path) -> None:
    with start_machine(MachineOptions(name="fresh", machine="none", qemu=qemu), None, tmp_path) as machine:
        before = cache.mapped_files(machine.pid)
        said = running_capabilities(str(machine.qmp_path))
        assert cache.mapped_files(machine.pid) == before
    assert before
    assert (said.schema, said.devices, said.version) == (
        capabilities.schema,
        capabilities.devices,
        capabilities.version,
    )


def test_trying_a_driver_leaves_nothing_behind(monitor: Qmp, capabilities: Capabilities) -> None:
    for driver in set(STORAGE_DRIVERS) & capabilities.schema.drivers - {"file", "host_device", "nbd", "nvme"}:
        capabilities.schema.check("blockdev-add", trial_node(driver))
        with pytest.raises(Refused, match="Invalid node-name: '1'"):
            monitor.execute("blockdev-add", **trial_node(driver))
    assert monitor.execute("query-named-block-nodes") == []


# --- Missing modules -------------------------------------------------------------------------------------------------


def hiding(folder: Path, modules: Path, qemu: str) -> str:
    """A QEMU that finds a folder where its modules are looked for by default."""
    if os.geteuid():
        pytest.skip("mounting needs root")
    need(MODULES, "qemu-system-common")
    program = folder / "hiding-qemu"
    program.write_text(
        f"#!/bin/sh\nexec {need('unshare', 'util-linux')} -m sh -ec "
        f'\'mount --bind {modules} {MODULES}; exec "$0" "$@"\' {qemu} "$@"\n'
    )
    program.chmod(0o755)
    return str(program)


def test_drivers_whose_package_is_not_installed_are_found(qemu: str, tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    shutil.copytree(need(MODULES, "qemu-system-common"), modules, ignore=shutil.ignore_patterns("block-*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEMU_MODULE_DIR", str(modules))
        found = binary_capabilities(hiding(tmp_path, modules, qemu))
    assert found.unloadable >= {"gluster", *EXTRA}
    assert "qemu-block-extra" in str(found.obstacle("rbd"))
    assert found.obstacle("nbd") is None
    with pytest.raises(CapabilityError, match="'rbd' cannot be loaded: Debian package qemu-block-extra"):
        found.check_node({"driver": "rbd", "pool": "p", "image": "i"})


@pytest.mark.parametrize("first", [[], ["block-curl.so"]])
def test_installing_the_missing_modules_is_noticed(
    second_qemu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: list[str]
) -> None:
    source = second_qemu / MODULES.removeprefix("/")
    modules, empty = tmp_path / "modules", tmp_path / "empty"
    modules.mkdir()
    empty.mkdir()
    for name in first:
        shutil.copy(source / name, modules)
    monkeypatch.setenv("QEMU_MODULE_DIR", str(modules))
    program = hiding(tmp_path, empty, str(second_qemu / "bin/qemu-system-x86_64"))
    before = binary_capabilities(program)
    assert "rbd" in before.unloadable
    assert ("https" in before.unloadable) is not bool(first)
    shutil.copy(source / "block-rbd.so", modules)
    after = binary_capabilities(program)
    assert before.unloadable - after.unloadable == {"rbd"}


def test_modules_of_another_build_are_missing_and_the_question_survives_them(
    second_qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(f"{MODULES}/block-rbd.so", "qemu-block-extra")
    monkeypatch.setenv("QEMU_MODULE_DIR", MODULES)
    found = binary_capabilities(str(second_qemu / "bin/qemu-system-x86_64"))
    assert found.unloadable >= {"gluster", *EXTRA}


# --- Answers that are kept -------------------------------------------------------------------------------------------


@pytest.fixture
def counted(tmp_path: Path) -> Counted:
    """A QEMU that says how often it was started, and the function that tells."""
    program, starts = tmp_path / "counted-qemu", tmp_path / "starts"
    starts.touch()
    qemu = need("qemu-system-x86_64", "qemu-system-x86")
    program.write_text(f'#!/bin/sh\necho >> {starts}\nexec {qemu} "$@"\n')
    program.chmod(0o755)
    return program, lambda: len(starts.read_text())


def test_a_binary_is_asked_once(counted: Counted, kept: Path) -> None:
    program, starts = counted
    first = binary_capabilities(str(program))
    assert binary_capabilities(str(program)) == first
    assert starts() == 1
    assert [path.stat().st_mode & 0o777 for path in kept.iterdir()] == [0o600]
    assert kept.stat().st_mode & 0o777 == 0o700


def test_a_binary_that_changed_is_asked_again(counted: Counted) -> None:
    program, starts = counted
    binary_capabilities(str(program))
    os.utime(program, ns=(0, 1))
    binary_capabilities(str(program))
    assert starts() == 2
    program.write_text(program.read_text() + "\n")
    os.utime(program, ns=(0, 1))
    binary_capabilities(str(program))
    assert starts() == 3


@pytest.mark.parametrize("damage", [b"[]", b"\xff", b'{"files": {}, "answer": {}}', b'{"files": {}}', "half"])
def test_a_damaged_answer_is_asked_for_again(counted: Counted, kept: Path, damage: bytes | str) -> None:
    program, starts = counted
    first = binary_capabilities(str(program))
    (file,) = kept.iterdir()
    text = file.read_bytes()
    file.write_bytes(text[: len(text) // 2] if isinstance(damage, str) else damage)
    assert binary_capabilities(str(program)) == first
    assert starts() == 2
    assert binary_capabilities(str(program)) == first
    assert starts() == 2
    assert file.read_bytes() == text


def test_what_is_about_disks_is_kept_apart_and_refuses_what_the_whole_does(counted: Counted, kept: Path) -> None:
    program, starts = counted
    whole = binary_capabilities(str(program))
    part = disk_capabilities(str(program))
    assert starts() == 1
    sizes = sorted(path.stat().st_size for path in kept.iterdir())
    assert len(sizes) == 2
    assert sizes[0] < sizes[1] / 2
    assert disk_capabilities(str(program)) == part
    assert (part.unloadable, part.devices, part.schema.drivers) == (
        whole.unloadable,
        whole.devices,
        whole.schema.drivers,
    )
    for node in (
        {"driver": "nbd", "node-name": "n"},
        {"driver": "nbdd"},
        {"driver": "file", "filename": "/x", "aoi": 1},
    ):
        with pytest.raises(CapabilityError) as of_part:
            part.check_node(node)
        with pytest.raises(CapabilityError) as of_whole:
            whole.check_node(node)
        assert (of_part.value.message, of_part.value.hint) == (of_whole.value.message, of_whole.value.hint)
    part.check_node({"driver": "file", "node-name": "n", "filename": "/x"})
    part.check_object({"qom-type": "secret", "id": "s", "data": "x"})
    part.check_chardev(
        {"id": "c", "backend": {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": "/s"}}}}}
    )
    os.utime(program, ns=(0, 1))
    assert disk_capabilities(str(program)) == part
    assert starts() == 2


def test_a_folder_that_cannot_be_written_is_no_error(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    program, starts = counted
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    binary_capabilities(str(program))
    binary_capabilities(str(program))
    assert starts() == 2


def test_answers_are_kept_where_caches_belong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.folder() == str(tmp_path / "cache/hvext")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == (str(tmp_path / ".cache/hvext") if os.geteuid() else "/var/cache/hvext")


def test_an_answer_is_kept_for_as_long_as_its_files(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("1")
    folder.mkdir()
    cache.keep("x", [1], [str(file), str(folder)])
    assert cache.kept("x") == [1]
    assert cache.kept("y") is None
    (folder / "new").touch()
    assert cache.kept("x") is None
    cache.keep("x", [2], [str(file), str(folder)])
    assert cache.kept("x") == [2]
    file.unlink()
    assert cache.kept("x") is None
    cache.keep("z", [3], [str(file)])
    assert cache.kept("z") is None
    assert not Path(cache.folder(), "z.json").exists()


# --- What is no QEMU -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "words", "hint"),
    [
        ("no-such-qemu", "no-such-qemu not found", "Debian package qemu-system-x86"),
        ("/nonexistent/qemu", "/nonexistent/qemu not found", "Debian package qemu-system-x86"),
        ("/etc/passwd", "/etc/passwd not found", "Debian package qemu-system-x86"),
        (
            "/bin/true",
            r"/bin/true does not say what it can do: ended with status 0 \(is",
            "is it a QEMU system emulator?",
        ),
        ("/bin/cat", "/bin/cat does not say what it can do: Try '/bin/cat --help'", "is it a QEMU system emulator?"),
    ],
)
def test_what_is_no_qemu_is_called_so(program: str, words: str, hint: str, kept: Path) -> None:
    with pytest.raises(ProgramError, match=words) as caught:
        binary_capabilities(program)
    assert caught.value.hint == hint
    assert not kept.exists()


# --- The command -----------------------------------------------------------------------------------------------------


def hvext(*words: str, status: int = 0) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "hvext", "capabilities", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == status, ended
    return ended.stdout if status == 0 else ended.stderr


def test_the_command_says_what_can_be_used_and_why_not(second_qemu: Path) -> None:
    rows = {line.split()[1]: line.split(None, 3)[2:] for line in hvext().splitlines()[2:]}
    assert rows.keys() == {*STORAGE_DRIVERS, "virtio-blk-pci", "scsi-hd", "virtio-scsi-pci", "vhost-user-blk-pci"}
    assert rows["nbd"] == ["yes"]
    assert rows["virtio-blk-vhost-user"] == ["no", "it has no block driver 'virtio-blk-vhost-user'"]
    second = json.loads(hvext("--json", "--qemu", str(second_qemu / "bin/qemu-system-x86_64")))
    entries = {entry["name"]: entry for entry in second["capabilities"]}
    assert entries["virtio-blk-vhost-user"] == {
        "kind": "driver", "name": "virtio-blk-vhost-user", "usable": True, "reason": None,
    }  # fmt: skip
    assert second["version"].startswith("10.")


def test_the_command_does_not_guess_what_a_running_qemu_could_load(running: Machine) -> None:
    rows = {line.split()[1]: line.split(None, 3)[2:] for line in hvext("--qmp", str(running.qmp_path)).splitlines()[2:]}
    assert rows["nbd"] == ["yes"]
    assert rows["rbd"] == ["?", "may need a module, which is not tried while a guest runs"]


def test_the_command_fails_without_a_qemu() -> None:
    assert "no-such-qemu not found" in hvext("--qemu", "no-such-qemu", status=1)
