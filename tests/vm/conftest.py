"""Real guests for tests: built when needed, always ended, and explained when a test fails."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hvext.core.disk import Disk
from hvext.errors import ProgramError
from hvext.host import process
from hvext.host.guest import Console
from hvext.host.machine import GuestImage, Machine, MachineOptions, probe_acceleration, start_machine
from hvext.host.provider import ProviderHost
from hvext.operations import attachments, volumes
from tests.conftest import need

VM_IMAGES = Path(__file__).parents[2] / "vm-images"
BOOT_LIMIT_S = 120.0

_machines = pytest.StashKey[list[Machine]]()

MachineFactory = Callable[..., Machine]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A booted guest: its machine and its console."""

    machine: Machine
    console: Console


GuestFactory = Callable[..., Guest]


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

    def start(**options: Any) -> Guest:
        new = machine(**options)
        console = Console(new.command_path, new.console_log, alive=lambda: new.alive)
        console.wait_ready(BOOT_LIMIT_S)
        return Guest(machine=new, console=console)

    return start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the machines of a failed test said last, and where all of it is.

    The logs stay in the test's temporary folder, which pytest keeps for three runs; with HVEXT_LOG_DIR they are copied
    there as well.
    """
    report = yield
    machines = item.stash.get(_machines, [])
    if report.failed and report.when == "call" and machines:
        folder = machines[0].console_log.parent
        for each in machines:
            (folder / f"{each.name}.argv").write_text(shlex.join(each.argv) + "\n")
            report.sections.append((f"machine {each.name}", each.failure_report()))
        if "HVEXT_LOG_DIR" in os.environ:
            kept = Path(os.environ["HVEXT_LOG_DIR"]) / item.name.replace("/", "_")
            folder = Path(shutil.copytree(folder, kept, dirs_exist_ok=True))
        report.sections.append(("logs kept", f"argv, serial and QMP logs are in {folder}"))
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
