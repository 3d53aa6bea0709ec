"""Real guests for tests: built when needed, always ended, and explained when a test fails.

`boot` starts a guest for one test alone. A boot takes seconds: most tests use `share`, which lends them a guest that
runs already, and looks afterwards whether they left it as they found it. `machine` starts a QEMU without waiting for
its guest, which with ``start_paused=True`` never does anything.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hvext.core.disk import Disk
from hvext.errors import HvextError, ProgramError
from hvext.host import process
from hvext.host.guest import Console
from hvext.host.machine import GuestImage, Machine, MachineOptions, probe_acceleration, start_machine
from hvext.host.provider import ProviderHost
from hvext.operations import attachments, volumes
from tests.conftest import need
from tests.vm.state import State, state_of

VM_IMAGES = Path(__file__).parents[2] / "vm-images"
BOOT_LIMIT_S = 120.0
#: How long a guest may take to see that its last disk is gone.
CLEAN_S = 20.0

_machines = pytest.StashKey[list[Machine]]()

MachineFactory = Callable[..., Machine]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A booted guest: its machine and its console."""

    machine: Machine
    console: Console


GuestFactory = Callable[..., Guest]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A guest that runs for several tests: how it was when it had booted, and which tests had it so far."""

    guest: Guest
    state: State
    tests: list[str] = field(default_factory=list)


_lent = pytest.StashKey[dict[str, Shared]]()
_failed = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def guest_image() -> GuestImage:
    """The guest's kernel and initrd; built when missing or out of date."""
    need("qemu-system-x86_64", "qemu-system-x86")
    with contextlib.suppress(ProgramError):
        _build()
        return GuestImage.find(VM_IMAGES / "out")
    for program, package in (("apt-get", "apt"), ("gcc", "gcc"), ("cpio", "cpio")):
        need(program, package)
    _build()
    return GuestImage.find(VM_IMAGES / "out")


def _build() -> None:
    """Run vm-images/build, which does nothing when its work is done."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    built = process.run([str(VM_IMAGES / "build")], env=environment, timeout_s=300)
    if built.status:
        raise ProgramError(f"vm-images/build failed: {built.stderr.decode(errors='replace')}")


@pytest.fixture(scope="session")
def accel(guest_image: GuestImage) -> str:
    """The fastest acceleration that a guest really boots with here."""
    return probe_acceleration(guest_image)


@pytest.fixture
def machine(
    request: pytest.FixtureRequest, guest_image: GuestImage, accel: str, tmp_path: Path
) -> Iterator[MachineFactory]:
    """A function that starts a machine from the fields of MachineOptions; all are ended after the test."""
    started = request.node.stash.setdefault(_machines, [])
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> Machine:
            wanted = MachineOptions(**{"name": f"vm{len(started)}", "accel": accel, **options})
            image = None if wanted.machine == "none" else guest_image
            new = stack.enter_context(start_machine(wanted, image, tmp_path / "logs"))
            started.append(new)
            return new

        yield start


@pytest.fixture
def boot(machine: MachineFactory) -> GuestFactory:
    """A function that starts a machine as `machine` does and waits until its guest is ready."""
    return lambda **options: _booted(machine(**options))


def _booted(machine: Machine) -> Guest:
    console = Console(machine.command_path, machine.console_log, alive=lambda: machine.alive)
    console.wait_ready(BOOT_LIMIT_S)
    return Guest(machine=machine, console=console)


@pytest.fixture(scope="session")
def shared_guests() -> Iterator[dict[str, Shared]]:
    """The guests of `share`, by the options they were started with."""
    guests: dict[str, Shared] = {}
    yield guests
    for shared in guests.values():
        shared.guest.machine.stop()


@pytest.fixture
def share(
    request: pytest.FixtureRequest,
    guest_image: GuestImage,
    accel: str,
    shared_guests: dict[str, Shared],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[GuestFactory]:
    """A function that lends a booted guest, with the SCSI controller ``scsi0`` and the iothread ``io0``, to a test.

    A test that gives it back in another state than it had after its boot has failed. The guest is ended then, as after
    every other failure, and the next test gets a new one.
    """
    if "storage" in request.fixturenames:
        # So that its volumes are detached after the guest was looked at, or ended.
        request.getfixturevalue("storage")
    lent = request.node.stash.setdefault(_lent, {})

    def lend(**options: Any) -> Guest:
        wanted = {"machine": "q35", "accel": accel, "scsi_controllers": 1, "iothreads": ("io0",), **options}
        key = repr(sorted(wanted.items()))
        if key not in shared_guests:
            logs = tmp_path_factory.mktemp("shared")
            new = start_machine(MachineOptions(name=logs.name, **wanted), guest_image, logs)
            try:
                shared_guests[key] = Shared(guest=_booted(new), state=state_of(new))
            except BaseException:
                new.stop()
                request.node.stash.setdefault(_machines, []).append(new)
                raise
        lent[key] = shared_guests[key]
        lent[key].tests.append(request.node.nodeid)
        return lent[key].guest

    yield lend
    failed = request.node.stash.get(_failed, False)
    problems = []
    for key, shared in lent.items():
        left = "" if failed else _left_in(shared)
        if failed or left:
            shared_guests.pop(key).guest.machine.stop()
        if left:
            problems.append(left)
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def _left_in(shared: Shared) -> str:
    """Say what a test left in a guest that the next one gets; empty when nothing."""
    machine, console = shared.guest.machine, shared.guest.console
    if not machine.alive:
        return "the test ended a machine that is not its own"
    deadline = time.monotonic() + CLEAN_S
    try:
        if (state := state_of(machine)) != shared.state:
            return f"left in the machine: {shared.state} became {state}"
        while text := console.run("cd /sys/block; ls -d [vs]d* 2>/dev/null; pidof writer", CLEAN_S)[1]:
            if time.monotonic() > deadline:
                return f"left in the guest, disks and writers: {text}"
            time.sleep(0.1)
    except HvextError as error:
        return f"the test left a machine or a guest that does not answer: {error}"
    return ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the machines of a failed test said last, and where all of it is.

    The logs stay in temporary folders, which pytest keeps for three runs; with HVEXT_LOG_DIR they are copied there as
    well. Those of a shared guest begin with the tests that had it before.
    """
    report = yield
    if not report.failed:
        return report
    item.stash[_failed] = True
    lent = item.stash.get(_lent, {}).values()
    machines = [*item.stash.get(_machines, []), *(shared.guest.machine for shared in lent)]
    for each in machines:
        each.console_log.with_name(f"{each.name}.argv").write_text(shlex.join(each.argv) + "\n")
        report.sections.append((f"machine {each.name}", each.failure_report()))
    for shared in lent:
        report.sections.append((f"tests that had machine {shared.guest.machine.name}", "\n".join(shared.tests)))
    for folder in dict.fromkeys(each.console_log.parent for each in machines):
        kept = folder
        if "HVEXT_LOG_DIR" in os.environ:
            kept = Path(os.environ["HVEXT_LOG_DIR"]) / item.name.replace("/", "_")
            shutil.copytree(folder, kept, dirs_exist_ok=True)
        report.sections.append(("logs kept", f"argv, serial and QMP logs are in {kept}"))
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """The shipped sample provider with volumes in the test's folder."""

    host: ProviderHost
    folder: Path

    def disk(self, name: str = "vol", *, parameters: dict[str, str] | None = None, **options: Any) -> Disk:
        """Return a disk on the volume ``name``; ``options`` are disk options and ``access``."""
        own = {"dir": str(self.folder / "volumes"), "run": str(self.folder / "run"), **(parameters or {})}
        values: dict[str, object] = {"provider": "sample", "volume": name, "parameters": own, **options}
        return Disk.from_mapping(values)

    def paths(self, disk: Disk) -> tuple[str, str]:
        """Return block path and first URI of a volume that is attached."""
        offered = attachments.offer(self.host, disk).attachment
        assert offered.block_path is not None
        return offered.block_path, offered.uris_for("kvm")[0]


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """Storage whose volumes are all detached after the test, once its machines have ended."""
    need("losetup", "mount")
    need("qemu-storage-daemon", "qemu-system-common")
    # The path of a unix socket is short: pytest's folders are not.
    with tempfile.TemporaryDirectory(prefix="hvext-") as short:
        made = Storage(host=ProviderHost(log_directory=str(tmp_path / "provider-logs")), folder=Path(short))
        yield made
        for started in request.node.stash.get(_machines, []):
            started.stop()
        for path in (Path(short) / "volumes").glob("*"):
            attachments.detach(made.host, made.disk(path.name.removesuffix(".raw")))


@pytest.fixture
def create(storage: Storage) -> Callable[..., Disk]:
    """A function that creates a volume of 64 MiB and returns a disk on it, as `Storage.disk` does."""

    def make(name: str = "vol", *, size_mib: int = 64, **options: Any) -> Disk:
        disk = storage.disk(name, **options)
        volumes.create_volume(storage.host, disk, size_mib)
        return disk

    return make
