"""Plug and unplug beside virsh, command by command and as a batch."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from control.bench import ROOT, SIZE, Bench, ms
from control.wire import Bare

from hvext.core.disk import Disk
from hvext.host.machine import Machine
from hvext.operations.vm import Vm, open_vm, open_vm_async


class Libvirt:
    """A libvirtd of its own with one paused domain; as root it runs as nobody, so that it changes nothing here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {"PATH": f"{os.environ['PATH']}:/usr/sbin"} | {
            name: str(folder)
            for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")
        }
        self.account: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            self.account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def virsh(self, *words: str, stdin: str = "") -> None:
        """Run virsh to its end."""
        uri = f"qemu+unix:///session?socket={self.folder}/libvirt/libvirt-sock"
        subprocess.run(
            ["virsh", "-q", "-c", uri, *words], input=stdin, text=True, check=True, capture_output=True, timeout=300,
            env=self.env, **self.account,
        )  # fmt: skip

    @contextlib.contextmanager
    def domain(self) -> Iterator[None]:
        """The domain, in the block."""
        xml = self.folder / "domain.xml"
        xml.write_text(
            "<domain type='qemu'><name>bench</name><memory unit='MiB'>128</memory>"
            "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>"
            "<emulator>/usr/bin/qemu-system-x86_64</emulator>"
            "<controller type='scsi' index='0' model='virtio-scsi'/>"
            "<controller type='scsi' index='1' model='virtio-scsi'/>"
            "<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"
        )
        log = (self.folder / "log").open("wb")
        with log, subprocess.Popen(
            ["/usr/sbin/libvirtd"], env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, **self.account,
        ) as daemon:  # fmt: skip
            try:
                until = time.monotonic() + 30
                while not (self.folder / "libvirt" / "libvirt-sock").exists() and time.monotonic() < until:
                    time.sleep(0.05)
                self.virsh("create", str(xml), "--paused")
                try:
                    yield
                finally:
                    self.virsh("destroy", "bench")
            finally:
                daemon.terminate()

    def disk(self, place: int) -> str:
        """Return the file of a disk's XML, with its address, as the other side has it."""
        image = self.folder / f"image{place}"
        with image.open("wb") as file:
            file.truncate(SIZE)
        if self.account:
            os.chown(image, self.account["user"], self.account["group"])
        letters, rest = "", place
        while rest >= 0:
            letters, rest = chr(ord("a") + rest % 26) + letters, rest // 26 - 1
        xml = self.folder / f"disk{place}.xml"
        xml.write_text(
            "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>"
            f"<source file='{image}'/><target dev='sd{letters}' bus='scsi'/>"
            f"<address type='drive' controller='{place // 256}' bus='0' target='{place % 256}' unit='0'/></disk>"
        )
        return str(xml)


def virsh(bench: Bench) -> None:
    """Plug and unplug one disk, and many, beside libvirt: command by command, and a batch of each."""
    folder = Path(tempfile.mkdtemp(prefix="hvl-", dir="/tmp"))
    try:
        libvirt = Libvirt(folder)
        with libvirt.domain(), bench.machine() as machine:
            _beside_virsh(bench, libvirt, machine)
            for number in (10, 20) if bench.quick else (10, 100):
                _batch_beside_virsh(bench, libvirt, machine, number)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _batch_beside_virsh(bench: Bench, libvirt: Libvirt, machine: Machine, number: int) -> None:
    """Plug a batch by a process that is connected and by a command line, beside one virsh that is told all of it."""
    files = [libvirt.disk(place) for place in range(number)]
    disks = bench.disks(f"virsh{number}-", number)
    given = json.dumps([disk.to_mapping() for disk in disks])
    times: dict[str, list[float]] = {"connected": [], "command line": [], "virsh": []}
    path = str(machine.qmp_path)

    def took(name: str, begun: float) -> None:
        times[name].append(time.perf_counter() - begun)

    with open_vm(path, host=bench.host) as vm, contextlib.closing(Bare(machine.debug_qmp_path)) as bare:
        for _round in range(3 if bench.quick else 7):
            begun = time.perf_counter()
            vm.plug_all(disks)
            took("connected", begun)
            _taken_away(vm, bare, disks)
    for _round in range(3 if bench.quick else 7):
        begun = time.perf_counter()
        _hvext(bench, "plug", "--qmp", path, "--disks", "-", stdin=given)
        took("command line", begun)
        with open_vm(path, host=bench.host) as vm, contextlib.closing(Bare(machine.debug_qmp_path)) as bare:
            _taken_away(vm, bare, disks)
        begun = time.perf_counter()
        libvirt.virsh(stdin="".join(f"attach-device bench {file} --live\n" for file in files))
        took("virsh", begun)
        libvirt.virsh(stdin="".join(f"detach-device bench {file} --live\n" for file in files))
    connected, command, theirs = (ms(found) / number for found in times.values())
    bench.row(
        f"plug {number} disks as a batch, scripts too, each", "ms", hvext=connected, virsh=theirs,
        ratio=connected / theirs, hvext_command_line=command, ratio_command_line=command / theirs,
    )  # fmt: skip


def _taken_away(vm: Vm, bare: Bare, disks: Sequence[Disk]) -> None:
    bare.remove(disks)
    for disk in disks:
        vm.unplug(disk)


def _beside_virsh(bench: Bench, libvirt: Libvirt, machine: Machine) -> None:
    (disk,) = bench.disks("virsh", 1)
    file = libvirt.disk(0)
    words = ["quick", disk.volume.name, "--qmp", str(machine.qmp_path)]
    times: dict[str, list[float]] = {}
    api: dict[str, list[float]] = {"plug": [], "unplug": []}

    async def in_process() -> None:
        async with open_vm_async(str(machine.qmp_path), host=bench.host) as vm:
            for name, work in (("plug", lambda: vm.plug(disk)), ("unplug", lambda: vm.unplug(disk))):
                api[name].append((await bench.timed(work))[0])

    for _round in range(bench.rounds):
        asyncio.run(in_process())
        for name, work in (
            ("plug hvext", lambda: _hvext(bench, "plug", *words, "-o", "device=scsi-hd")),
            ("plug virsh", lambda: libvirt.virsh("attach-device", "bench", file, "--live")),
            ("unplug hvext", lambda: _hvext(bench, "unplug", *words)),
            ("unplug virsh", lambda: libvirt.virsh("detach-device", "bench", file, "--live")),
        ):
            begun = time.perf_counter()
            work()
            times.setdefault(name, []).append(time.perf_counter() - begun)
    for name in ("plug", "unplug"):
        command, theirs = ms(times[f"{name} hvext"]), ms(times[f"{name} virsh"])
        bench.row(
            f"{name} by command line, scripts too",
            "ms",
            hvext=command,
            virsh=theirs,
            ratio=command / theirs,
            hvext_in_process=ms(api[name]),
        )


def _hvext(bench: Bench, *words: str, stdin: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hvext", *words, "--search-path", f"{bench.folder}/providers", "--log-dir", "none"],
        input=stdin, text=True, check=True, capture_output=True, cwd=ROOT,
    )  # fmt: skip
    return done.stdout
