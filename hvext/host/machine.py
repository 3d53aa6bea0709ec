"""The lifetime of a QEMU or qemu-storage-daemon that we start ourselves: for the demo, the tests and the benchmark.

Both are context managers: when the block ends, the process group is gone and so is the folder with its sockets. Logs
stay in the caller's folder, named after the machine, so that several machines may share one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from hvext.core.value import field, value_object
from hvext.errors import InputError, ProgramError
from hvext.host import process

#: `cryptomgr.notests` saves a second of self-tests under emulation; `panic=-1` makes a guest that crashed start again.
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check random.trust_cpu=on cryptomgr.notests audit=0"
)
#: QEMU answers after about 30 ms; a loaded machine and an image on a slow server may take many times that.
_READY_S = 30.0
#: QEMU flushes its disks on SIGTERM; one whose backend is frozen never ends by itself.
_GRACE_S = 5.0
_POLL_S = 0.01
_MAX_SOCKET_PATH_BYTES = 107
_MAX_ROOT_PORTS = 24


@value_object
class GuestImage:
    """The kernel and initrd of the test guest."""

    kernel: Path
    initrd: Path

    @classmethod
    def find(cls, directory: Path) -> Self:
        """Return the image in ``directory``; raises ProgramError when it was not built yet."""
        image = cls(kernel=directory / "vmlinuz", initrd=directory / "initrd.gz")
        for path in (image.kernel, image.initrd):
            if not path.is_file():
                raise ProgramError(f"no guest image: {path} does not exist", hint=checkout_hint(directory, "build"))
        return image


def checkout_hint(directory: Path, recipe: str) -> str:
    """Return what to do when an image of the test guest is not in a folder: it is built in a checkout of hvext."""
    if (directory.parent / recipe).is_file():
        return f"run {directory.parent / recipe}"
    return (
        f"the test guest is built in a checkout of hvext (vm-images/{recipe}): call hvext there, "
        "or name that checkout's vm-images/out with --guest DIR"
    )


@value_object
class MachineOptions:
    """What machine to start.

    ``root_ports`` are the hot-plug places of q35, ``rp0`` and up (at most 24); ``pc`` has free slots of its own, and
    ``none`` has no devices at all. ``scsi_controllers`` are virtio-scsi-pci devices ``scsi0`` and up, served by the
    iothread ``scsi_iothread`` where one of ``iothreads`` is named. ``shared_memory`` is what vhost-user devices need.
    ``version`` is that of the machine type (``7.2``; empty: the newest). ``incoming`` makes the machine wait for a
    guest that is migrated to it: ``defer``, or where it listens.
    ``prefix`` is an argv that ends by executing its arguments (``ip netns exec …``); ``env`` is added to a bare
    environment.
    """

    name: str
    machine: Literal["q35", "pc", "none"] = "q35"
    memory_mib: int = 256
    cpus: int = 1
    accel: str = "tcg"
    root_ports: int = 8
    native_pcie_hotplug: bool = False
    scsi_controllers: int = 0
    scsi_iothread: str = ""
    iothreads: tuple[str, ...] = ()
    shared_memory: bool = False
    start_paused: bool = False
    version: str = ""
    incoming: str = ""
    extra_args: tuple[str, ...] = ()
    qemu: str = "qemu-system-x86_64"
    prefix: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or "," in self.name:
            raise InputError(f"{self.name!r} cannot name a machine: it is part of file names and of QEMU's options")
        if self.accel not in ("tcg", "kvm"):
            raise InputError(f"accel is tcg or kvm, not {self.accel!r}")
        if not 0 <= self.root_ports <= _MAX_ROOT_PORTS:
            raise InputError(f"{self.root_ports} root ports: pcie.0 has room for 0 to {_MAX_ROOT_PORTS}")
        if self.scsi_iothread and self.scsi_iothread not in self.iothreads:
            raise InputError(f"scsi_iothread {self.scsi_iothread!r} is not one of iothreads {self.iothreads}")


class StartedProgram:
    """A program with a folder for its sockets; as a context manager both are gone after the block."""

    def __init__(self, running: process.Running, socket_dir: Path) -> None:
        self._running = running
        self._socket_dir = socket_dir

    @property
    def argv(self) -> tuple[str, ...]:
        """The command line, as started."""
        return self._running.argv

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._running.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._running.alive

    @property
    def log_path(self) -> Path:
        """The file with its standard output and standard error."""
        return self._running.log_path

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit status once it has ended by itself, or None when it has not within ``timeout_s``."""
        return self._running.wait(timeout_s)

    def stop(self, *, grace_s: float = _GRACE_S) -> int:
        """End it (SIGKILL after ``grace_s``), remove its sockets, return its exit status; may be repeated."""
        try:
            return self._running.stop(grace_s=grace_s)
        finally:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    def failure_report(self) -> str:
        """Return for people: how it was started, whether it runs, and its last words."""
        state = "running" if self.alive else f"ended with status {self._running.status}"
        return f"{shlex.join(self.argv)}\n({state})\n--- {self.log_path}\n{self._running.log_tail()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


class Machine(StartedProgram):
    """A QEMU that answers.

    ``qmp_path`` is a monitor for hvext alone (a monitor serves one client), what QEMU said on it is in ``qmp_log``;
    ``debug_qmp_path`` is a second one for tests and people. ``serial_path`` is the guest's console, for people; all it
    printed is in ``console_log`` even when nobody listened. ``command_path`` is a second serial port, on which the
    guest takes commands.
    """

    def __init__(self, running: process.Running, socket_dir: Path, work_dir: Path, name: str) -> None:
        super().__init__(running, socket_dir)
        self.name = name
        self.qmp_path = socket_dir / "qmp"
        self.debug_qmp_path = socket_dir / "debug-qmp"
        self.serial_path = socket_dir / "serial"
        self.command_path = socket_dir / "command"
        self.console_log = work_dir / f"{name}.console.log"
        self.qmp_log = work_dir / f"{name}.qmp.log"

    def failure_report(self) -> str:
        """Return for people: how QEMU was started, whether it runs, and the last words of QEMU and of the guest."""
        return f"{super().failure_report()}--- {self.console_log}\n{_tail(self.console_log)}"


class StorageDaemon(StartedProgram):
    """A qemu-storage-daemon whose nodes and exports are there."""


def start_machine(options: MachineOptions, image: GuestImage | None, work_dir: Path) -> Machine:
    """Start a QEMU and return it once it answers; the guest boots meanwhile.

    Without ``image`` nothing runs in it (``-S``): for machine ``none``, or to look at devices only. ``work_dir`` is
    made if need be and keeps the logs, which start anew.

    Raises ProgramError with what QEMU printed when it does not start.
    """
    if image is not None and options.machine == "none":
        raise InputError("machine none cannot run a guest")
    sockets = _make_socket_dir(work_dir, options.name)
    try:
        running = process.start(
            machine_argv(options, image, sockets, work_dir),
            env=_environment(options.env),
            log_path=work_dir / f"{options.name}.log",
        )
    except BaseException:
        shutil.rmtree(sockets, ignore_errors=True)
        raise
    machine = Machine(running, sockets, work_dir, options.name)
    _wait_ready(machine, lambda: _monitor_answers(machine.debug_qmp_path), _READY_S)
    return machine


def start_storage_daemon(
    arguments: Sequence[str],
    work_dir: Path,
    *,
    name: str = "storage-daemon",
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    program: str = "qemu-storage-daemon",
) -> StorageDaemon:
    """Start a qemu-storage-daemon with these arguments and return it once its exports are there.

    Sockets that the arguments name are the caller's: they stay behind when the daemon ends. ``env`` and ``prefix`` are
    as in `MachineOptions`, ``program`` is the daemon's name or path.

    Raises ProgramError with what it printed when it does not start.
    """
    sockets = _make_socket_dir(work_dir, name)
    pid_file = sockets / "pid"
    try:
        running = process.start(
            [*prefix, program, *arguments, "--pidfile", str(pid_file)],
            env=_environment(env or {}),
            log_path=work_dir / f"{name}.log",
        )
    except BaseException:
        shutil.rmtree(sockets, ignore_errors=True)
        raise
    daemon = StorageDaemon(running, sockets)
    # The file is written after all options were carried out.
    _wait_ready(daemon, pid_file.exists, _READY_S)
    return daemon


def probe_acceleration(image: GuestImage, *, limit_s: float = 8.0, qemu: str = "qemu-system-x86_64") -> str:
    """Return ``"kvm"`` when a guest boots with it within ``limit_s``, else ``"tcg"``.

    That /dev/kvm can be opened says little: in some containers and nested machines a guest hangs on it. The answer is
    kept beside the image until the host boots or QEMU changes.

    Raises ProgramError when there is no QEMU.
    """
    found = shutil.which(qemu)
    if found is None:
        raise ProgramError(f"{qemu} not found", hint="Debian package qemu-system-x86")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    key = {"boot_id": boot_id, "qemu": found, "qemu_mtime_ns": Path(found).stat().st_mtime_ns}
    cache = image.kernel.with_name("acceleration.json")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        kept = json.loads(cache.read_text())
        if {name: kept.get(name) for name in key} == key and kept.get("accel") in ("tcg", "kvm"):
            return str(kept["accel"])
    accel = "kvm" if _boots_with_kvm(image, found, limit_s) else "tcg"
    with contextlib.suppress(OSError):
        new = cache.with_name(f"{cache.name}.{os.getpid()}")
        new.write_text(json.dumps({**key, "accel": accel}) + "\n")
        new.replace(cache)
    return accel


def machine_argv(options: MachineOptions, image: GuestImage | None, sockets: Path, work_dir: Path) -> list[str]:
    """Return the command line of QEMU for a machine with its sockets and logs in these folders."""
    argv = [*options.prefix, options.qemu, "-name", options.name, "-nodefaults", "-no-user-config", "-display", "none"]
    argv += _board_args(options)
    for chardev, log in (("qmp", "qmp.log"), ("debug-qmp", ""), ("serial", "console.log"), ("command", "")):
        logfile = f",logfile={_doubled(work_dir / f'{options.name}.{log}')}" if log else ""
        argv += ["-chardev", f"socket,id={chardev},path={_doubled(sockets / chardev)},server=on,wait=off{logfile}"]
    argv += ["-mon", "chardev=qmp,mode=control", "-mon", "chardev=debug-qmp,mode=control"]
    if options.machine != "none":
        argv += ["-serial", "chardev:serial", "-serial", "chardev:command"]
    for name in options.iothreads:
        argv += ["-object", f"iothread,id={name}"]
    argv += _slot_args(options)
    if image is None or options.start_paused:
        argv += ["-S"]
    if options.incoming:
        argv += ["-incoming", options.incoming]
    if image is not None:
        argv += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", KERNEL_ARGUMENTS]
    return [*argv, *options.extra_args]


def _board_args(options: MachineOptions) -> list[str]:
    accel = ["-accel", "tcg,thread=multi" if options.accel == "tcg" else options.accel]
    if options.machine == "none":
        return ["-machine", "none", *accel]
    memory = ",memory-backend=mem0" if options.shared_memory else ""
    kinds = {"q35": "pc-q35-", "pc": "pc-i440fx-"}
    machine = f"{kinds[options.machine]}{options.version}" if options.version else options.machine
    argv = ["-machine", f"{machine}{memory}", *accel, "-m", str(options.memory_mib), "-smp", str(options.cpus)]
    if options.shared_memory:
        argv += ["-object", f"memory-backend-memfd,id=mem0,share=on,size={options.memory_mib}M"]
    if options.machine == "q35" and options.native_pcie_hotplug:
        argv += ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
    return argv


def _slot_args(options: MachineOptions) -> list[str]:
    """Root ports and SCSI controllers, in an order that gives the same machine the same slots every time."""
    argv: list[str] = []
    if options.machine == "q35":
        for number in range(options.root_ports):
            port = f"pcie-root-port,id=rp{number},bus=pcie.0,chassis={number + 1},slot={number + 1}"
            argv += ["-device", port]
    if options.machine != "none":
        iothread = f",iothread={options.scsi_iothread}" if options.scsi_iothread else ""
        for number in range(options.scsi_controllers):
            argv += ["-device", f"virtio-scsi-pci,id=scsi{number}{iothread}"]
    return argv


def _doubled(path: Path) -> str:
    """A path as a value of a QEMU option: a comma would start the next option."""
    return str(path).replace(",", ",,")


def _environment(added: Mapping[str, str]) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", **added}


def _make_socket_dir(work_dir: Path, name: str) -> Path:
    """A private folder with a short name: the path of a Unix socket has at most 107 bytes."""
    work_dir.mkdir(parents=True, exist_ok=True)
    for suffix in ("log", "qmp.log", "console.log"):
        (work_dir / f"{name}.{suffix}").unlink(missing_ok=True)
    path = Path(tempfile.mkdtemp(prefix="hvext-"))
    if len(os.fsencode(path / "debug-qmp")) > _MAX_SOCKET_PATH_BYTES:
        path.rmdir()
        raise ProgramError(f"{path} is too long for a Unix socket", hint="set TMPDIR to a shorter folder")
    return path


def _wait_ready(program: StartedProgram, ready: Callable[[], bool], limit_s: float) -> None:
    """Wait until the program is ready; end it and raise ProgramError when it ends or takes too long."""
    try:
        deadline = time.monotonic() + limit_s
        while not ready():
            if not program.alive or time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        else:
            return
        what = f"does not answer after {limit_s} s" if program.alive else "did not start"
        report = program.failure_report()
    except BaseException:
        program.stop()
        raise
    program.stop()
    raise ProgramError(f"{program.argv[0]} {what}: {report}")


def _monitor_answers(path: Path) -> bool:
    """Whether a command is carried out; the greeting alone comes from a thread that runs before devices are made."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        said = b""
        try:
            client.connect(str(path))
            client.sendall(b'{"execute": "qmp_capabilities"}\n')
            while b'"return"' not in said:
                piece = client.recv(65536)
                if not piece:
                    return False
                said += piece
        except OSError:
            return False
    return True


def _boots_with_kvm(image: GuestImage, qemu: str, limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    options = MachineOptions(name="probe", accel="kvm", root_ports=0, qemu=qemu)
    with tempfile.TemporaryDirectory(prefix="hvext-") as folder:
        try:
            machine = start_machine(options, image, Path(folder))
        except ProgramError:
            return False
        try:
            while machine.alive and time.monotonic() < deadline:
                if "GUEST-READY" in _tail(machine.console_log):
                    return True
                time.sleep(5 * _POLL_S)
            return False
        finally:
            machine.stop(grace_s=0.5)


def _tail(path: Path, n_bytes: int = 4096) -> str:
    try:
        return path.read_bytes()[-n_bytes:].decode(errors="replace")
    except FileNotFoundError:
        return ""
