"""``hvext explain --qmp``: what is said to fit is plugged there, what does not is refused; nothing changes."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hvext.cli import main
from hvext.core.disk import Disk
from hvext.core.identity import DiskNames
from hvext.core.record import DiskRecord, Operation, ProcessId, Unfinished, VmRecord
from hvext.core.volume import derived_uuid
from hvext.host import process
from hvext.host.journal import JournalFolder
from hvext.host.proc import this_process
from hvext.host.qmp import connect
from hvext.operations.fit.guest import of_journal
from hvext.operations.inspect import running_disks
from tests.conftest import need
from tests.providers import read_calls, write_provider
from tests.servers.program import free_port
from tests.watching import wait_until

MIB = 1 << 20
LISTS = ("query-named-block-nodes", "query-block", "query-chardev", "query-iothreads", "query-memdev", "query-migrate")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="looks with another user's eyes")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


@dataclass(slots=True)
class Guest:
    """A QEMU whose guest stands still, with a monitor of hvext's own and one to look at it."""

    folder: Path
    name: str
    pid: int = 0
    enter: list[str] = field(default_factory=list)

    @property
    def monitor(self) -> str:
        return f"{self.folder}/{self.name}.qmp"

    def run(self, *words: str) -> Ended:
        """Call hvext in this process."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status = main([*words, "--search-path", f"{self.folder}/providers"])
            except SystemExit as ended:
                status = int(str(ended.code))
        return Ended(status, out.getvalue(), err.getvalue())

    def plug(self, volume: str = "v1", *words: str, status: int = 0) -> Ended:
        done = self.run("plug", "--qmp", self.monitor, "fake", volume, "--log-dir", "none", *words)
        assert done.status == status, done
        return done

    def explain(self, *words: str, volume: str = "v1", answer: str | None = "", fits: bool = True) -> Any:
        """Return what is said in JSON, after a look that nothing has changed."""
        file = self.folder / "answer"
        file.write_text(answer or f"\nkvm:file:{self.folder}/image\n")
        named = [] if answer is None else [str(file)]
        before = self.has()
        done = self.run("explain", *named, "--qmp", self.monitor, "--volume", f"fake/{volume}", "--json", *words)
        assert self.has() == before
        assert done.status == (0 if fits else 1), done
        said = json.loads(done.out)
        assert said["fits"] is fits
        assert said["verdict"].startswith("fits: " if fits else "does not fit: ")
        return said

    def has(self) -> object:
        """All that QEMU has, the journal and private files, and how often a script was run."""

        async def ask() -> object:
            async with connect(f"{self.folder}/{self.name}.look") as monitor:
                lists = [await monitor.execute(name) for name in LISTS]
                trees = [await monitor.execute("qom-list", {"path": f"/{it}"}) for it in ("objects", "chardevs")]
                return json.loads(json.dumps([lists, trees, sorted(map(str, await running_disks(monitor)))]))

        places = [Path(os.environ[name]) for name in ("HVEXT_STATE_DIR", "HVEXT_RUNTIME_DIR")]
        files = {str(path): path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}
        return asyncio.run(ask()), files, len(read_calls(self.folder))

    def execute(self, command: str, **arguments: object) -> Any:
        async def ask() -> Any:
            async with connect(f"{self.folder}/{self.name}.look") as monitor:
                return await monitor.execute(command, arguments)

        return asyncio.run(ask())

    def address(self, volume: str = "v1") -> dict[str, Any]:
        """Where the device of a volume is."""
        device = f"/machine/peripheral/{DiskNames(derived_uuid('fake', volume, {})).device}"

        def read(name: str) -> Any:
            return self.execute("qom-get", path=device, property=name)

        bus = str(read("parent_bus")).rpartition("/")[2]
        if bus.startswith("scsi"):
            return {"scsi": (bus, read("scsi-id"), read("lun"))}
        return {"bus": bus}


Start = Callable[..., Guest]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a QEMU in a folder that every user gets to; all are ended after the test."""
    with tempfile.TemporaryDirectory(prefix="fit-") as short, ExitStack() as stack:
        folder = Path(short)
        folder.chmod(0o755)
        image = folder / "image"
        image.touch()
        os.truncate(image, 4 * MIB)
        image.chmod(0o666)
        attach = f"cat {folder}/offer 2>/dev/null || printf '\\nkvm:file:{image}\\n'"
        write_provider(folder / "providers", "fake", {"attach": attach}, record=folder)

        def begin(*more: str, name: str = "web1", prefix: tuple[str, ...] = (), machine: str = "q35") -> Guest:
            guest = Guest(folder, name)
            argv = [*prefix, need("qemu-system-x86_64", "qemu-system-x86"), "-S", "-accel", "tcg", "-m", "16"]
            argv += ["-nodefaults", "-display", "none", "-name", name, "-machine", machine]
            argv += ["-device", "virtio-scsi-pci,id=scsi0", "-object", "iothread,id=io0"]
            if machine.startswith("q35"):
                argv += ["-device", "pcie-root-port,id=rp0,chassis=1"]
            for monitor in ("qmp", "look"):
                argv += ["-qmp", f"unix:{folder}/{name}.{monitor},server=on,wait=off"]
            log = tmp_path / f"{name}.log"
            running = stack.enter_context(process.start([*argv, *more], env=dict(os.environ), log_path=log))
            guest.pid = running.pid
            wait_until(Path(guest.monitor).exists, "QEMU listens")
            return guest

        yield begin


def as_nobody(chroot: Path | None = None) -> tuple[str, ...]:
    """Arguments that make a QEMU become the user nobody, in another root; those of 7.2 are gone in 10.0."""
    qemu = need("qemu-system-x86_64", "qemu-system-x86")
    known = subprocess.run([qemu, "--help"], capture_output=True, text=True, check=True).stdout
    if "-runas" in known:
        return ("-runas", "nobody", *(("-chroot", str(chroot)) if chroot else ()))
    return ("-run-with", "user=nobody" + (f",chroot={chroot}" if chroot else ""))


def one(said: Any, subject: str, fit: str = "problem") -> Any:
    """The only finding of this kind."""
    (found,) = [each for each in said["findings"] if (each["subject"], each["fit"]) == (subject, fit)]
    return found


@pytest.mark.parametrize(
    ("machine", "options", "place", "address"),
    [
        ("q35", ("iothread=auto", "queues=2", "iops_total=10"), "port rp0", {"bus": "rp0"}),
        ("pc", ("iothread=io0",), "slot 03 of pci.0", {"bus": "pci.0"}),
        ("q35", ("device=scsi-hd", "lun=3"), "SCSI id 0, LUN 3 of scsi0", {"scsi": ("scsi0.0", 0, 3)}),
    ],
)
def test_what_is_said_to_fit_is_plugged_in_the_place_and_by_the_steps_that_were_said(
    start: Start, machine: str, options: tuple[str, ...], place: str, address: dict[str, Any]
) -> None:
    guest = start(machine=machine)
    words = [word for option in options for word in ("-o", option)]
    said = guest.explain(*words)
    assert said["place"] == place
    assert said["device"]["bus"] == (address.get("bus") or address["scsi"][0])
    assert said["location"] == f"file:{guest.folder}/image"
    assert {each["fit"] for each in said["findings"]} == {"ok"}
    done = guest.plug("v1", "-v", *words)
    steps = [line.strip() for line in done.err.splitlines()]
    assert [each["step"] for each in said["steps"]] == [step for step in steps if "find a place" not in step]
    assert guest.address() == address
    assert said["device"]["id"] in done.out
    # Now it is there.
    again = guest.explain(*words)
    assert again["present"]
    assert again["steps"] == []


def test_a_guest_without_room_and_an_address_that_is_taken_do_not_fit(start: Start) -> None:
    guest = start()
    guest.plug("v1")
    other = f"\nkvm:file:{guest.folder}/other\n"
    (guest.folder / "other").write_bytes(bytes(MIB))
    full = one(guest.explain(volume="v2", answer=other, fits=False), "place")
    assert "all 1 hot-plug ports" in full["found"]
    assert "pcie-root-port" in full["cure"]
    (guest.folder / "offer").write_text(other)
    assert "no free slot" in guest.plug("v2", status=1).err
    assert guest.explain("-o", "device=scsi-hd", volume="v2", answer=other)["place"] == "SCSI id 0, LUN 0 of scsi0"
    guest.plug("v2", "-o", "device=scsi-hd", "-o", "bootindex=1")
    taken = ("-o", "device=scsi-hd", "-o", "scsi_id=0", "-o", "lun=0")
    (guest.folder / "third").write_bytes(bytes(MIB))
    third = f"\nkvm:file:{guest.folder}/third\n"
    assert (
        "SCSI id 0, LUN 0 of scsi0 is taken" in guest.explain(*taken, volume="v3", answer=third, fits=False)["verdict"]
    )
    boot = ("-o", "device=scsi-hd", "-o", "bootindex=1")
    assert "bootindex 1" in one(guest.explain(*boot, volume="v3", answer=third, fits=False), "options")["found"]
    thread = guest.explain("-o", "device=scsi-hd", "-o", "iothread=none", volume="v3", answer=third, fits=False)
    assert "no iothread 'none'" in thread["verdict"]


def test_an_unplug_that_the_guest_has_not_answered_is_in_the_way(start: Start) -> None:
    guest = start()
    guest.plug("v1")
    guest.run("unplug", "--qmp", guest.monitor, "fake", "v1", "--log-dir", "none", "--wait", "0.1")
    pending = one(guest.explain(fits=False), "disk")
    assert "pending" in pending["found"]
    assert "hvext unplug" in pending["cure"]
    assert "pending" in guest.plug("v1", status=1).err


def test_pieces_that_an_interrupted_plug_left_are_removed_by_the_first_step(start: Start) -> None:
    guest = start()
    node = DiskNames(derived_uuid("fake", "v1", {})).root
    guest.execute("blockdev-add", **{"driver": "null-co", "read-zeroes": True, "node-name": node})
    said = guest.explain()
    assert "pieces" in one(said, "disk", "ok")["found"]
    assert said["steps"][0]["step"] == "remove what an earlier plug left"
    guest.plug("v1")


@pytest.mark.parametrize(("alive", "fit", "words"), [(True, "unknown", "at work"), (False, "ok", "was interrupted")])
def test_an_operation_that_is_under_way_is_told_from_one_that_was_interrupted(
    tmp_path: Path, alive: bool, fit: str, words: str
) -> None:
    disk = Disk.from_mapping({"provider": "fake", "volume": "v1"})
    by = this_process() if alive else ProcessId(pid=1, ticks=1, boot="another")
    work = Unfinished(operation=Operation.PLUG, since=0.0, by=by, step="open the storage")
    own = VmRecord(name="web1").with_disk(DiskRecord.of(disk, unfinished=work))
    *_others, found = of_journal(disk, own, {"web1": own}, JournalFolder(tmp_path))
    assert found.fit == fit
    assert words in found.found


def test_a_record_that_cannot_be_read_leaves_it_open_who_has_the_volume(start: Start) -> None:
    guest = start()
    JournalFolder().store("web2", "{")
    assert one(guest.explain(), "volume", "unknown")["cure"]


def test_memory_that_is_not_shared_keeps_out_what_needs_it_and_nothing_else(start: Start) -> None:
    memory = ("-object", "memory-backend-memfd,id=mem0,share=on,size=16M")
    shared, plain = start(*memory, name="web1", machine="q35,memory-backend=mem0"), start(name="web2")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{shared.folder}/vhost")
        server.listen()
        uri = f"vhost-user:{shared.folder}/vhost"
        said = shared.explain(answer=f"\nkvm:{uri}\n")
        assert one(said, "memory", "ok")["about"] == uri
        not_shared = one(plain.explain(answer=f"\nkvm:{uri}\n", fits=False), "memory")
        assert "share=on" in not_shared["cure"]
        both = plain.explain(answer=f"\nkvm:{uri}\nkvm:file:{plain.folder}/image\n")
        assert both["location"] == f"file:{plain.folder}/image"
        assert not one(both, "memory")["needed"]


def test_a_volume_of_another_vm_does_not_fit_and_a_plug_refuses_it(start: Start) -> None:
    has, wants = start(name="web1"), start(name="web2")
    has.plug("v1")
    said = wants.explain(fits=False)
    assert "VM web1" in one(said, "volume")["found"]
    # Under another name no journal knows it, and the lock tells.
    locked = one(wants.explain(volume="v2", fits=False), "lock")
    assert f"VM web1 (process {has.pid})" in locked["found"]
    assert "fake/v2 is where disk fake/v1 of VM web1 is: the same storage" in wants.plug("v2", status=1).err
    assert "VM web1" in wants.plug("v1", status=1).err
    assert "this QEMU itself" in one(has.explain("-o", "device=scsi-hd", volume="v3", fits=False), "lock")["found"]


def test_two_that_only_read_an_image_may_both_have_it(start: Start) -> None:
    has, wants = start(name="web1"), start(name="web2")
    has.plug("v1", "-o", "read_only=on")
    wants.explain("-o", "read_only=on", volume="v2")
    assert one(wants.explain(volume="v2", fits=False), "lock")
    assert "the same storage" in wants.plug("v2", status=1).err
    wants.plug("v2", "-o", "read_only=on")


@as_root
def test_a_file_that_the_user_of_qemu_may_not_open_does_not_fit_until_he_may(start: Start) -> None:
    guest = start(*as_nobody())
    image = guest.folder / "image"
    image.chmod(0o600)
    closed = one(guest.explain(fits=False), "reach")
    assert "Permission denied" in closed["found"]
    assert "as user nobody" in closed["found"]
    assert closed["cure"].endswith(f"setfacl -m u:nobody:rw {image}")
    assert "Permission denied" in guest.plug("v1", status=1).err
    image.chmod(0o666)
    guest.explain()
    guest.plug("v1")


@as_root
def test_a_file_outside_of_qemus_root_does_not_fit_and_one_in_it_does(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    guest = start(*as_nobody(root))
    outside = one(guest.explain(fits=False), "reach")
    assert f"in /proc/{guest.pid}/root" in outside["found"]
    assert "mount --bind" in outside["cure"]
    (root / "image").write_bytes(bytes(MIB))
    (root / "image").chmod(0o666)
    tmp_path.chmod(0o755)
    guest.explain(answer="\nkvm:file:/image\n")


@as_root
def test_a_driver_whose_module_is_gone_does_not_fit(start: Start, tmp_path: Path) -> None:
    modules = Path(need("/usr/lib/x86_64-linux-gnu/qemu/block-rbd.so", "qemu-block-extra")).parent
    left = tmp_path / "modules"
    without = f'cp -a {modules} {left} && rm {left}/block-*.so && mount --bind {left} {modules} && exec "$@"'
    guest = start(prefix=("unshare", "--mount", "--propagation", "private", "sh", "-c", without, "sh"))
    answer = tmp_path / "answer"
    answer.write_text(f"\nkvm:iscsi://127.0.0.1:1/iqn.2001-04.org.example:x/1\nkvm:file:{guest.folder}/image\n")
    argv = ["nsenter", "--mount", "--target", str(guest.pid), sys.executable, "-m", "hvext", "explain", str(answer)]
    argv += ["--qmp", guest.monitor, "--volume", "fake/v1", "--search-path", f"{guest.folder}/providers", "--json"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env=environment, cwd=Path(__file__).parents[2]
    )
    assert done.stdout, done.stderr
    said = json.loads(done.stdout)
    missing = one(said, "driver")
    assert "iscsi" in missing["found"]
    assert missing["cure"] == "apt-get install qemu-block-extra"
    assert not missing["needed"]
    assert said["location"] == f"file:{guest.folder}/image"
    assert said["chosen"]["uri"] == said["location"]


def test_what_this_qemu_has_no_driver_or_no_option_for_does_not_fit(start: Start) -> None:
    guest = start()
    unknown_driver = "json:" + json.dumps(
        {"driver": "virtio-blk-vfio-pci", "path": "/sys/bus/pci/devices/0000:01:00.0"}
    )
    drivers = json.dumps(guest.execute("query-qmp-schema"))
    if "virtio-blk-vfio-pci" not in drivers:
        said = guest.explain(answer=f"\nkvm:{unknown_driver}\n", fits=False)
        assert "no block driver 'virtio-blk-vfio-pci'" in one(said, "driver")["found"]
    said = guest.explain("-o", "read_only=off", answer="\nkvm:https://127.0.0.1:1/v\n", fits=False)
    assert "can only be read" in one(said, "options")["found"]


def test_a_guest_on_its_way_to_another_host_takes_no_disk(start: Start) -> None:
    guest, waiting = start(name="web1"), start("-incoming", "defer", name="web2")
    with socket.socket(socket.AF_UNIX) as target:
        # It takes nothing, and the migration goes on until it is cancelled.
        target.bind(f"{guest.folder}/target")
        target.listen()
        guest.execute("migrate", uri=f"unix:{guest.folder}/target")
        wait_until(lambda: guest.execute("query-migrate")["status"] == "active", "the migration goes on")
        file = guest.folder / "answer"
        file.write_text(f"\nkvm:file:{guest.folder}/image\n")
        # What was sent so far changes.
        done = guest.run("explain", str(file), "--qmp", guest.monitor, "--volume", "fake/v1", "--json")
        assert "(active)" in one(json.loads(done.out), "migration")["found"]
        assert done.status == 1
        assert "migrat" in guest.plug("v1", status=1).err
        guest.execute("migrate_cancel")
    assert "not arrived" in one(waiting.explain(), "migration", "unknown")["found"]


@as_root
def test_a_device_that_the_host_has_mounted_does_not_fit(start: Start) -> None:
    guest = start()
    need("mkfs.ext4", "e2fsprogs")
    subprocess.run(["mkfs.ext4", "-q", f"{guest.folder}/image"], check=True)
    losetup = ["losetup", "--find", "--show", f"{guest.folder}/image"]
    device = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
    mounted = guest.folder / "mounted"
    mounted.mkdir()
    try:
        said = guest.explain(answer=f"{device}\n")
        assert said["chosen"]["access"] == "kernelspace"
        subprocess.run(["mount", device, str(mounted)], check=True)
        try:
            assert f"mounted at {mounted}" in one(guest.explain(answer=f"{device}\n", fits=False), "lock")["found"]
        finally:
            subprocess.run(["umount", str(mounted)], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_what_cannot_be_told_is_said_to_be_unknown_and_with_what_would_tell(start: Start) -> None:
    port = free_port()
    guest = start("-qmp", f"tcp:127.0.0.1:{port},server=on,wait=off")
    nothing = guest.explain(answer=None)
    assert "hvext attach fake v1" in one(nothing, "access", "unknown")["cure"]
    assert nothing["chosen"] is None
    assert nothing["steps"]
    missing = one(guest.explain(answer=f"\nkvm:nbd+unix:///v?socket={guest.folder}/none\n"), "reach", "unknown")
    assert "hvext attach fake v1" in missing["cure"]
    assert "--offline" in one(guest.explain("--offline"), "reach", "unknown")["cure"]
    answer = guest.folder / "answer"
    words = ("explain", str(answer), "--qmp", f"127.0.0.1:{port}", "--volume", "fake/v1", "--json")
    done = guest.run(*words)
    assert done.status == 0
    assert "TCP" in one(json.loads(done.out), "reach", "unknown")["found"]


def test_a_person_is_told_the_verdict_each_cure_and_the_steps(start: Start) -> None:
    guest = start()
    answer = guest.folder / "answer"
    answer.write_text(f"\nkvm:nonsense://x\nkvm:file:{guest.folder}/image\n")
    words = ("explain", str(answer), "--qmp", guest.monitor, "--volume", "fake/v1")
    done = guest.run(*words)
    assert "PROBLEM  access" in done.out
    assert "(passed over)" in done.out
    assert "cure: " in done.out
    assert f"file:{guest.folder}/image (would be used)" in done.out
    assert "detach fake/v1" in done.out
    assert done.out.splitlines()[-1].startswith("fits: fake/v1 would be plugged at port rp0, opened as file:")


def test_an_access_whose_files_are_missing_gives_way_to_the_next(start: Start) -> None:
    guest = start()
    tls = f"nbds+unix:///v?socket={guest.folder}/none&tls-hostname=h&tls-certificates=/none-such"
    said = guest.explain(answer=f"\nkvm:{tls}\nkvm:file:{guest.folder}/image\n")
    missing = one(said, "reach")
    assert "/none-such/ca-cert.pem" in missing["found"]
    assert not missing["needed"]
    assert said["chosen"]["uri"] == f"file:{guest.folder}/image"
    assert "no access before it" in said["chosen"]["reason"]


def test_an_unknown_provider_is_refused_as_a_plug_refuses_it(start: Start) -> None:
    guest = start()
    done = guest.run("explain", "--qmp", guest.monitor, "--volume", "nope/v1")
    assert done.status == 1
    assert "no provider 'nope'" in done.err
    assert "looked for its directory" in done.err
    done = guest.run("explain", "--qmp", guest.monitor, "--volume", "fake/v1", "--secret", "password=/none-such")
    assert done.status == 2
    assert "/none-such" in done.err


@pytest.mark.parametrize(
    ("words", "status", "said", "hint"),
    [
        (["--qmp", "/none-such", "--volume", "fake/v1"], 1, "cannot connect to the QMP monitor", "-mon chardev="),
        (["--qmp", "SILENT", "--volume", "fake/v1", "--qmp-timeout", "0.2"], 1, "did not greet", "its own monitor"),
        (["--qmp", "/none-such"], 2, "which disk that is was not said", "--volume PROVIDER/VOLUME"),
        (["--qmp", "/none-such", "--volume", "v1"], 2, "takes PROVIDER/VOLUME", "hvext plug"),
        (["--qmp", "/none-such", "--volume", "fake/v1", "--qemu", "x"], 2, "--qemu", ""),
        (["--qmp", "/none-such", "--volume", "fake/v1", "/none-such"], 2, "cannot read /none-such", ""),
        (["--volume", "fake/v1"], 2, "--volume", "--qmp SOCKET"),
        ([], 2, "no answer of attach is named", "--qmp"),
    ],
)
def test_wrong_words_are_refused_with_what_to_say_instead(
    words: list[str], status: int, said: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{short}/silent")
        silent.listen()
        assert main(["explain", *(f"{short}/silent" if word == "SILENT" else word for word in words)]) == status
    err = capsys.readouterr().err
    assert said in err
    assert hint in err
