"""Faults that are planted on a real host, each in a private place: ``test_doctor`` has the doctor find them.

A fault is made of arguments, environment variables and files of its own, or, where it is about the host itself, by a
wrapper: a mount namespace in which something is covered, a limit, a filter of system calls.
"""

from __future__ import annotations

import platform
import shlex
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hvext.core.disk import Disk
from hvext.core.finding import Severity
from hvext.core.record import DiskRecord, Intent, Operation, ProcessId, Unfinished, VmRecord
from hvext.host.journal import JournalFolder
from tests.conftest import need
from tests.providers import write_provider

#: A process that has ended: of another boot.
ENDED = ProcessId(pid=1, ticks=1, boot="another")
_FEW_NODES = "null zero full random urandom tty kvm fuse loop-control"


@dataclass(slots=True, kw_only=True)
class Place:
    """Where a fault is planted, and how the doctor is to be called there.

    ``wrap`` is an argv before the command; ``healthy`` the arguments for the same look without the fault, where it is
    in the arguments themselves.
    """

    folder: Path
    arguments: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    wrap: list[str] = field(default_factory=list)
    healthy: list[str] | None = None

    def mounted(self, *commands: str) -> None:
        """Have the doctor run in a mount namespace of its own, after these commands of sh."""
        script = "\n".join(("set -e", *commands, 'exec "$@"'))
        self.wrap = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]

    def devices(self, *without: str) -> None:
        """Have the doctor run with a /dev of its own that lacks some of the usual nodes."""
        folder = self.folder / "dev"
        nodes = [f"/dev/{name}" for name in _FEW_NODES.split() if name not in without and Path(f"/dev/{name}").exists()]
        if "loop" not in without:
            nodes += [str(path) for path in Path("/dev").glob("loop[0-9]*")]
        more = [f"mkdir {folder}/shm && mount -t tmpfs tmpfs {folder}/shm"] if "shm" not in without else []
        self.mounted(
            f"mkdir {folder} && mount -t tmpfs tmpfs {folder}",
            f"cp -a {shlex.join(nodes)} {folder}",
            *more,
            f"mount --rbind {folder} /dev",
        )

    def secret_file(self, name: str, text: str = "") -> Path:
        """A file that only root can read, in a folder that everybody can pass through."""
        self.folder.chmod(0o755)
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    def programs(self, *without: str) -> None:
        """Have the doctor find all programs of the host but some; nothing is on PATH beside."""
        folder = self.folder / "bin"
        folder.mkdir()
        for name in (
            "sh",
            "virsh",
            "losetup",
            "qemu-img",
            "qemu-io",
            "qemu-storage-daemon",
            "qemu-system-x86_64",
            "rbd",
        ):
            if name not in without:
                (folder / name).symlink_to(need(name, name))
        self.environment["PATH"] = str(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A fault: how it is planted, and the check that has to find it, with words of what it says."""

    plant: Callable[[Place], None]
    check: str
    severity: Severity
    found: str
    cure: str
    cures: bool


PLANTED: list[Planted] = []
ERROR, WARNING, ABSENT = Severity.ERROR, Severity.WARNING, Severity.ABSENT


def fault(
    check: str, severity: Severity, found: str, cure: str, *, cures: bool = False
) -> Callable[[Callable[[Place], None]], Callable[[Place], None]]:
    """Enter a fault; with ``cures`` the cure is a command that the test runs, after which nothing must be found."""

    def enter(plant: Callable[[Place], None]) -> Callable[[Place], None]:
        PLANTED.append(Planted(plant=plant, check=check, severity=severity, found=found, cure=cure, cures=cures))
        return plant

    return enter


# --- QEMU ------------------------------------------------------------------------------------------------------------


@fault("qemu.binary", ERROR, "nonesuch not found", "apt-get install qemu-system-x86")
def no_qemu(place: Place) -> None:
    place.arguments = ["--only", "qemu", "--qemu", "nonesuch"]
    place.healthy = ["--only", "qemu"]


@fault("qemu.binary", ERROR, "does not say what it can do", "--qemu")
def another_program_in_place_of_qemu(place: Place) -> None:
    place.arguments = ["--only", "qemu", "--qemu", "/bin/true"]
    place.healthy = ["--only", "qemu"]


def _without_modules(place: Place) -> None:
    modules = Path(need("/usr/lib/x86_64-linux-gnu/qemu/block-rbd.so", "qemu-block-extra")).parent
    # As after the removal of qemu-block-extra; answers that were kept before are not true any more.
    left = place.folder / "modules"
    place.mounted(f"cp -a {modules} {left}", f"rm {left}/block-*.so", f"mount --bind {left} {modules}")
    place.environment["XDG_CACHE_HOME"] = str(place.folder / "cache")


@fault("qemu.driver", ABSENT, "module for rbd", "apt-get install qemu-block-extra")
def driver_package_missing(place: Place) -> None:
    _without_modules(place)
    place.arguments = ["--only", "qemu"]


@fault("qemu.driver", ERROR, "module for iscsi", "apt-get install qemu-block-extra")
def driver_package_missing_for_a_uri(place: Place) -> None:
    _without_modules(place)
    place.arguments = ["--only", "qemu", "--uri", "iscsi://127.0.0.1/iqn.2026-01.example:t/1"]


@fault("qemu.tools", WARNING, "there is no qemu-io", "apt-get install qemu-utils")
def qemu_utils_missing(place: Place) -> None:
    place.programs("qemu-io")
    place.arguments = ["--only", "qemu"]


# --- Acceleration ----------------------------------------------------------------------------------------------------


@fault("acceleration.kvm", WARNING, "/dev/kvm: No such file", "modprobe kvm|nested virtualization")
def no_kvm(place: Place) -> None:
    place.devices("kvm")
    place.arguments = ["--only", "acceleration"]


@fault("acceleration.kvm", WARNING, "/dev/kvm: Permission denied", "usermod --append --groups kvm nobody")
def kvm_closed_to_the_user_of_qemu(place: Place) -> None:
    place.devices("kvm")
    place.wrap[6] = place.wrap[6].replace(
        "mount --rbind", f"mknod -m 0660 {place.folder}/dev/kvm c 10 232\nmount --rbind"
    )
    place.arguments = ["--only", "acceleration", "--user", "nobody"]
    place.healthy = ["--only", "acceleration"]


@fault("acceleration.kvm", WARNING, "Inappropriate ioctl", "-accel tcg")
def kvm_that_is_something_else(place: Place) -> None:
    place.mounted(f"touch {place.folder}/kvm", f"mount --bind {place.folder}/kvm /dev/kvm")
    need("/dev/kvm", "a kernel with KVM")
    place.arguments = ["--only", "acceleration"]


@fault("acceleration.tcg", WARNING, "could not load PC BIOS", "apt-get install --reinstall qemu-system-x86 seabios")
def firmware_missing(place: Place) -> None:
    qemu = place.folder / "qemu"
    qemu.write_text(f'#!/bin/sh\nexec {need("qemu-system-x86_64", "qemu-system-x86")} "$@" -bios nonesuch.bin\n')
    qemu.chmod(0o755)
    place.arguments = ["--only", "acceleration", "--qemu", str(qemu), "--user", "nobody"]
    place.healthy = ["--only", "acceleration", "--user", "nobody"]


# --- Devices and the kernel ------------------------------------------------------------------------------------------


@fault("loop.control", ABSENT, "/dev/loop-control: No such file", "modprobe loop")
def no_loop_driver(place: Place) -> None:
    place.devices("loop-control")
    place.arguments = ["--only", "loop"]


@fault("loop.control", ERROR, "/dev/loop-control: No such file", "modprobe loop")
def no_loop_driver_for_a_provider_that_needs_it(place: Place) -> None:
    place.devices("loop-control")
    place.arguments = ["--only", "loop", "--provider", "sample"]


@fault("loop.attach", ERROR, "losetup: ", "/dev/loop")
def no_loop_devices(place: Place) -> None:
    place.devices("loop")
    place.arguments = ["--only", "loop", "--provider", "sample"]


@fault("fuse.device", ABSENT, "/dev/fuse: No such file", "modprobe fuse")
def no_fuse(place: Place) -> None:
    place.devices("fuse")
    place.arguments = ["--only", "fuse"]


@fault("vfio.device", ERROR, "/dev/vfio/vfio: No such file", "modprobe vfio-pci")
def no_vfio_for_a_controller(place: Place) -> None:
    place.devices()
    place.arguments = ["--only", "vfio", "--uri", "nvme://0000:44:00.0/1"]
    # Many hosts have none.
    place.healthy = ["--only", "vfio", "--uri", "nbd://127.0.0.1/x"]


def _refused(place: Place, number: int) -> None:
    """Refuse a system call, as the filters of containers do."""
    if platform.machine() != "x86_64":
        pytest.skip("the numbers of system calls are those of x86-64")
    # seccomp(2): load the call's number; when it is this one, EPERM, else go on.
    rules = ((0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000))
    code = b"".join(struct.pack("=HBBI", *rule) for rule in rules)
    script = place.folder / "refuse.py"
    script.write_text(
        "import ctypes, os, struct, sys\n"
        f"code = ctypes.create_string_buffer({code!r})\n"
        f"program = struct.pack('@HP', {len(rules)}, ctypes.addressof(code))\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.prctl(38, 1, 0, 0, 0) == 0\n"
        "assert libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())\n"
        "os.execvp(sys.argv[1], sys.argv[1:])\n"
    )
    place.wrap = [sys.executable, str(script)]


@fault("aio.io_uring", WARNING, "aio=threads, the default, work", "allow the system call io_uring_setup")
def io_uring_forbidden_by_a_container(place: Place) -> None:
    _refused(place, 425)
    place.arguments = ["--only", "aio"]


@fault("aio.native", WARNING, "aio=threads, the default, work", "aio=threads")
def aio_forbidden_by_a_container(place: Place) -> None:
    _refused(place, 206)
    place.arguments = ["--only", "aio"]


@fault("aio.limit", WARNING, "65000 of 65536 are taken", "sysctl fs.aio-max-nr=1048576")
def all_aio_taken(place: Place) -> None:
    (place.folder / "used").write_text("65000\n")
    (place.folder / "most").write_text("65536\n")
    place.mounted(
        f"mount --bind {place.folder}/used /proc/sys/fs/aio-nr",
        f"mount --bind {place.folder}/most /proc/sys/fs/aio-max-nr",
    )
    place.arguments = ["--only", "aio"]


@fault("doctor.check", ERROR, "/var/tmp.*: Read-only file system", "hvext doctor --only aio")
def nowhere_to_put_a_file(place: Place) -> None:
    place.mounted("mount -t tmpfs -o ro tmpfs /var/tmp")
    place.arguments = ["--only", "aio", "--only", "limits"]


@fault("memory.memfd", ERROR, "memfd", "allow the system call memfd_create")
def shared_memory_forbidden_by_a_container(place: Place) -> None:
    _refused(place, 319)
    place.arguments = ["--only", "memory", "--uri", "vhost-user:/run/s.sock"]


@fault("memory.shm", WARNING, "1 MiB are free", "mount -o remount,size=50% /dev/shm")
def shared_memory_of_a_container(place: Place) -> None:
    place.mounted("mount -t tmpfs -o size=1m tmpfs /dev/shm")
    place.arguments = ["--only", "memory"]


@fault("memory.shm", WARNING, "/dev/shm: No such file", "mount -t tmpfs")
def no_shared_memory(place: Place) -> None:
    place.devices("shm")
    place.arguments = ["--only", "memory"]


@fault("limits.nofile", WARNING, "512 open files", "LimitNOFILE=65536")
def few_open_files(place: Place) -> None:
    place.wrap = ["prlimit", "--nofile=512:4096", "--"]
    place.arguments = ["--only", "limits"]


@fault("limits.nofile", ERROR, "100 open files", "ulimit -n 65536")
def hardly_any_open_files(place: Place) -> None:
    place.wrap = ["prlimit", "--nofile=100:4096", "--"]
    place.arguments = ["--only", "limits"]


# --- Providers -------------------------------------------------------------------------------------------------------


def _provider(place: Place, name: str = "mine") -> Path:
    write_provider(place.folder / "healthy", name)
    place.arguments = ["--only", "providers", "--provider", name, "--search-path", str(place.folder / "broken")]
    place.healthy = [*place.arguments[:-1], str(place.folder / "healthy")]
    return write_provider(place.folder / "broken", name)


@fault("providers.provider", ERROR, "script attach is not executable", r"chmod \+x", cures=True)
def provider_not_executable(place: Place) -> None:
    (_provider(place) / "attach").chmod(0o644)


@fault("providers.provider", ERROR, "script grow is missing", "hvext new-provider")
def provider_without_a_script(place: Place) -> None:
    (_provider(place) / "grow").unlink()


@fault("providers.provider", WARNING, "parameters.list is missing", "docs/providers.md")
def provider_that_nobody_asked_for_is_half_written(place: Place) -> None:
    (_provider(place) / "parameters.list").unlink()
    del place.arguments[2:4]


@fault("providers.provider", ERROR, "there is no provider 'nonesuch'", "hvext providers")
def no_such_provider(place: Place) -> None:
    _provider(place)
    place.arguments[3] = "nonesuch"


@fault("providers.interpreter", ERROR, "attach: its interpreter /usr/bin/nonesuch", "install it, or correct")
def interpreter_missing(place: Place) -> None:
    (_provider(place) / "attach").write_text("#!/usr/bin/nonesuch\n")


@fault("providers.interpreter", ERROR, "detach: its interpreter python2.0", "install it, or correct")
def interpreter_missing_behind_env(place: Place) -> None:
    (_provider(place) / "detach").write_text("#!/usr/bin/env -S python2.0\n")


@fault("providers.interpreter", ERROR, "line end of Windows", "sed -i", cures=True)
def script_edited_on_windows(place: Place) -> None:
    (_provider(place) / "create").write_bytes(b"#!/bin/sh\r\nexit 0\r\n")


@fault("providers.path", WARNING, "nonesuch: No such file", "mkdir -p")
def search_path_misspelt(place: Place) -> None:
    place.arguments = ["--only", "providers", "--search-path", f"{place.folder}/nonesuch"]
    place.healthy = ["--only", "providers", "--search-path", str(place.folder)]


@fault("providers.tool", ERROR, "rbd: rbd is not installed", "apt-get install ceph-common")
def tool_of_a_shipped_provider_missing(place: Place) -> None:
    need("rbd", "ceph-common")
    place.programs("rbd")
    place.arguments = ["--only", "providers", "--provider", "rbd"]


# --- What URIs name --------------------------------------------------------------------------------------------------


def _uri(place: Place, uri: str, *more: str, healthy: str = "nbd://127.0.0.1/x") -> None:
    place.arguments = ["--only", "files", "--uri", uri, *more]
    place.healthy = ["--only", "files", "--uri", healthy]


@fault("files.uri", ERROR, "removed in QEMU 6.0", "docs/uris.md")
def protocol_that_is_gone(place: Place) -> None:
    _uri(place, "sheepdog:///volume")


@fault("files.readable", ERROR, "ceph.conf: Permission denied", "setfacl -m u:nobody:r")
def ceph_conf_of_root(place: Place) -> None:
    conf = place.secret_file("ceph.conf")
    _uri(place, f"rbd:vms/v:conf={conf}", "--user", "nobody", healthy=f"rbd:vms/v:conf={conf}")


@fault("files.keyring", ERROR, "my.keyring: Permission denied", "setfacl -m u:nobody:r")
def keyring_of_root(place: Place) -> None:
    keyring = place.secret_file("my.keyring")
    conf = place.secret_file("ceph.conf", f"[global]\n[client.vm]\n keyring = {keyring}\n")
    conf.chmod(0o644)
    uri = f"rbd:vms/v:id=vm:conf={conf}"
    _uri(place, uri, "--user", "nobody", healthy=uri)


@fault("files.keyring", ERROR, "/etc/ceph/mine.client.web.keyring: No such file", "ceph auth get client.web -o")
def keyring_missing(place: Place) -> None:
    conf = place.secret_file("mine.conf", "[global]\nmon_host = 127.0.0.1\n")
    _uri(place, f"rbd:vms/v:id=web:conf={conf}", healthy=f"rbd:vms/v:conf={conf}:auth_client_required=none")


@fault("files.readable", ERROR, r"Permission denied, at .*/closed ", "setfacl -m u:nobody:x .*/closed$")
def folder_closed_on_the_way(place: Place) -> None:
    place.folder.chmod(0o755)
    (place.folder / "closed").mkdir(mode=0o700)
    conf = place.folder / "closed/ceph.conf"
    conf.write_text("[global]\nauth_client_required = none\n")
    _uri(place, f"rbd:vms/v:conf={conf}", "--user", "nobody", healthy=f"rbd:vms/v:conf={conf}")


@fault("files.readable", ERROR, "keys.psk: No such file", "install -D -m 0400 -o nobody", cures=True)
def file_missing_in_the_chroot(place: Place) -> None:
    keys = place.secret_file("keys.psk", "qemu:00\n")
    (place.folder / "root").mkdir()
    uri = f"nbds+unix:///x?socket=/nonesuch&tls-psk-file={keys}"
    _uri(place, uri, "--chroot", f"{place.folder}/root", "--user", "nobody", healthy=uri)


@fault("files.module", WARNING, "block-ssh.so is not in there", "mount --bind")
def modules_missing_in_the_chroot(place: Place) -> None:
    (place.folder / "root").mkdir()
    need("/usr/lib/x86_64-linux-gnu/qemu/block-ssh.so", "qemu-block-extra")
    _uri(place, "ssh://127.0.0.1/v", "--chroot", f"{place.folder}/root", healthy="ssh://127.0.0.1/v")


def unix_socket(path: Path, *, stale: bool = True) -> socket.socket:
    path.parent.mkdir(exist_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    if stale:
        server.close()
    return server


@fault("files.socket", ERROR, "stale: nobody listens", "start its server again")
def stale_socket_of_a_uri(place: Place) -> None:
    unix_socket(place.folder / "s")
    _uri(place, f"nbd+unix:///v?socket={place.folder}/s")


@fault("files.socket", ERROR, "Socket operation on non-socket", "name the socket")
def file_in_place_of_a_socket(place: Place) -> None:
    _uri(place, f"vhost-user:{place.secret_file('s')}")


@fault("files.storage", ERROR, "nonesuch: No such file", "hvext attach PROVIDER VOLUME")
def volume_that_is_not_attached(place: Place) -> None:
    _uri(place, "/dev/nonesuch", healthy="/dev/null")


@fault("files.storage", ERROR, "Permission denied", "setfacl -m u:nobody:rw")
def volume_that_the_user_cannot_write(place: Place) -> None:
    volume = place.secret_file("volume")
    volume.chmod(0o644)
    _uri(place, str(volume), "--user", "nobody", healthy=str(volume))


@fault("files.readable", ERROR, "ca-cert.pem: No such file", "put the file there")
def certificates_missing(place: Place) -> None:
    _uri(place, f"nbds+unix:///v?socket=/nonesuch&tls-hostname=h&tls-certificates={place.folder}")


@fault("files.server", ERROR, "127.0.0.1:1: Connection refused", "start the server")
def server_that_is_not_there(place: Place) -> None:
    _uri(place, "iscsi://127.0.0.1:1/iqn.2026-01.example:t/1")


@fault("files.agent", WARNING, "SSH_AUTH_SOCK is not set", "ssh-add")
def no_ssh_agent(place: Place) -> None:
    _uri(place, "ssh://127.0.0.1/v")


# --- What hvext keeps ------------------------------------------------------------------------------------------------


def _record(place: Place, **values: object) -> None:
    folder = place.folder / "journal"
    disk = Disk.from_mapping({"provider": "sample", "volume": "v1", "param.conf": "/etc/hostname"})
    record = VmRecord(name="web1", process=ENDED).with_disk(DiskRecord.of(disk, intent=Intent.PRESENT, **values))
    JournalFolder(folder).store("web1", record.to_json())
    place.environment["HVEXT_STATE_DIR"] = str(folder)
    place.arguments = ["--only", "journal"]


@fault("journal.folder", ERROR, "Read-only file system", "HVEXT_STATE_DIR")
def journal_that_cannot_be_written(place: Place) -> None:
    _record(place)
    place.mounted(f"mount -t tmpfs -o ro tmpfs {place.folder}/journal")


@fault("journal.folder", ERROR, "No space left on device", "make room")
def journal_on_a_full_disk(place: Place) -> None:
    _record(place)
    place.mounted(f"mount -t tmpfs -o size=64k tmpfs {place.folder}/journal")


@fault("journal.record", ERROR, "web1.json cannot be read", "hvext audit")
def record_that_somebody_changed(place: Place) -> None:
    _record(place)
    (place.folder / "journal/web1.json").write_text("{")


@fault("journal.ended", WARNING, "the QEMU of web1 has ended", "hvext recover")
def qemu_that_has_ended(place: Place) -> None:
    _record(place)


@fault("journal.unfinished", WARNING, r"unplug of sample/v1 \(web1\)", "hvext recover")
def operation_that_nobody_finishes(place: Place) -> None:
    _record(place, unfinished=Unfinished(operation=Operation.UNPLUG, since=1.0, by=ENDED))


@fault("files.readable", ERROR, "nonesuch.conf: No such file .*parameter conf of sample/v1", "put the file there")
def file_that_a_disk_of_the_journal_names(place: Place) -> None:
    _record(place)
    path = place.folder / "journal/web1.json"
    path.write_text(path.read_text().replace("/etc/hostname", "/nonesuch.conf"))
    place.arguments = ["--only", "files"]


@fault("providers.provider", ERROR, "there is no provider 'lost'", "hvext providers")
def provider_of_a_disk_was_removed(place: Place) -> None:
    _record(place)
    path = place.folder / "journal/web1.json"
    path.write_text(path.read_text().replace('"sample"', '"lost"'))
    place.arguments = ["--only", "providers"]


def _runtime(place: Place) -> Path:
    folder = place.folder / "run"
    folder.mkdir()
    folder.chmod(0o711)
    place.environment["HVEXT_RUNTIME_DIR"] = str(folder)
    place.arguments = ["--only", "runtime"]
    return folder


@fault("runtime.folder", ERROR, "mode 0777: others can change", "chmod 0711", cures=True)
def private_folder_that_everybody_can_write(place: Place) -> None:
    _runtime(place).chmod(0o777)


@fault("runtime.socket", WARNING, "nbd.sock is stale", "attach the volume again, or rm")
def socket_whose_server_has_ended(place: Place) -> None:
    unix_socket(_runtime(place) / "v1/nbd.sock")


@fault("runtime.reached", WARNING, r"Permission denied, at ", "setfacl -m u:nobody:x")
def private_folder_that_qemu_does_not_get_to(place: Place) -> None:
    _runtime(place)
    place.folder.chmod(0o700)
    place.arguments += ["--user", "nobody"]
    place.healthy = ["--only", "runtime"]


@fault("libvirt.daemon", WARNING, "Connection refused", "systemctl start libvirtd")
def libvirt_that_has_ended(place: Place) -> None:
    need("virsh", "libvirt-clients")
    unix_socket(place.folder / "s")
    place.environment["LIBVIRT_DEFAULT_URI"] = f"qemu+unix:///system?socket={place.folder}/s"
    place.arguments = ["--only", "libvirt"]
