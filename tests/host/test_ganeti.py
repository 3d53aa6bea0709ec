"""The adapter for Ganeti's KVM code beside Ganeti's own code.

``docs/ganeti.md`` has the differences as a table, and the patch: HVEXT_REGENERATE=1 writes the table anew, for whoever
then reads the difference.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hvext.ganeti as adapter
from hvext.errors import HvextError, InputError
from tests.conftest import need
from tests.ganeti import FOLDER, ROOT, Ganeti
from tests.ganeti_disks import DISKS, HVP, Case, storage
from tests.host.oracle import MIB, Refused, absent, qemu, short_folder

PAGE = ROOT / "docs/ganeti.md"
BEGIN, END = "<!-- differences -->\n", "<!-- end of differences -->\n"
#: What block drivers say when all that is wrong is that nobody answers here.
NO_SERVER = re.compile(
    r"monitor info|error connecting|Gluster connection|glfs_init|iSCSI: Failed|Failed to mount|Failed to connect"
)
#: Which side may be worse than the other is none: an answer that QEMU refuses is worst, an error in words is better.
REFUSED, TOLD, USED = range(3)


@dataclass(frozen=True)
class Outcome:
    """What became of a disk: how good that is, the arguments, and what QEMU has then."""

    rank: int
    words: str
    argv: tuple[str, ...] = ()
    seen: object = None


@pytest.fixture(scope="module", autouse=True)
def _needs() -> None:
    if os.geteuid() != 0:
        absent("loop devices need root")
    need("losetup", "util-linux")


@pytest.fixture(scope="module")
def asked() -> dict[str, str]:
    """What QEMU says of itself, which Ganeti looks through."""
    binary = need("qemu-system-x86_64", "qemu-system-x86")
    texts = (("kvmhelp", ["-help"]), ("devlist", ["-device", "help"]))
    return {
        name: subprocess.run([binary, *words], capture_output=True, text=True, check=True, timeout=60).stdout
        for name, words in texts
    }


@pytest.fixture(scope="module")
def places() -> Iterator[dict[str, str]]:
    with short_folder() as folder, storage(folder, secret=f"pass{uuid.uuid4().hex[:8]}") as values:
        yield values


def ours(row: dict[str, Any], asked: dict[str, str]) -> dict[str, Any]:
    """The adapter's answer, as ``ganeti_side.py`` gives Ganeti's."""
    disk: Any = SimpleNamespace(**{name: row[name] for name in ("dev_type", "mode", "params", "hvinfo")})
    drives = [(disk, row["link"], row["uri"])]
    try:
        return {"argv": adapter.GenerateKVMBlockDevicesOptions(row["hvp"], drives, asked["kvmhelp"], asked["devlist"])}
    except HvextError as error:
        return {"error": error.message}


def outcome(answer: dict[str, Any]) -> Outcome:
    """Start a QEMU with an answer."""
    if "error" in answer:
        return Outcome(TOLD, f"error: {answer['error']}")
    argv = tuple(answer["argv"])
    try:
        with qemu("-device", "virtio-scsi-pci,id=scsi", *argv, machine="pc") as monitor:
            (block,) = [each for each in monitor.execute("query-block") if "inserted" in each]
            inserted = block["inserted"]
            nodes = monitor.execute("query-named-block-nodes", flat=True)
            drivers = sorted(node["drv"] for node in nodes if not node["drv"].startswith("throttle"))
            size = inserted["image"]["virtual-size"]
            return Outcome(USED, "opens", argv, (inserted["ro"], inserted["cache"], drivers, size))
    except Refused as error:
        if NO_SERVER.search(str(error)):
            return Outcome(USED, "asks its server", argv)
        return Outcome(REFUSED, "QEMU refuses the arguments", argv)


def plain(text: str, places: dict[str, str]) -> str:
    """The text without what only this run has."""
    for name in ("secret", "dir", "port", "web"):
        text = text.replace(places[name], {"dir": "", "secret": "PASSWORD"}.get(name, "1"))
    text = re.sub(r"(Unsupported storage URI scheme): .*", r"\1", text)
    return re.sub(r"(disk )?disk-[0-9a-f-]{18}", "the disk", text).replace("|", "\\|")


def cells(theirs: Outcome, mine: Outcome, places: dict[str, str]) -> tuple[str, str]:
    """Both outcomes in words; with the arguments that only one of them has, where both are of use."""
    texts = []
    for one, other in ((theirs, mine), (mine, theirs)):
        words = one.words
        if any(places["secret"] in word for word in one.argv):
            words += ", with the password in its arguments"
        if one.rank == other.rank == USED and one.argv != other.argv:
            alone = {word for text in one.argv for word in text.split(",")}
            alone -= {word for text in other.argv for word in text.split(",")}
            words += f" ({', '.join(f'`{word}`' for word in sorted(alone))})" if alone else ""
        texts.append(plain(words, places))
    return texts[0], texts[1]


def row_of(case: Case, old: Outcome, new: Outcome, mine: Outcome, places: dict[str, str]) -> str | None:
    """The line of the table, or None where nothing differs.

    Ganeti 3.0 has no block device parameters: of its options counts what QEMU makes of them.
    """
    same_old = (old.rank, old.words, old.seen) == (mine.rank, mine.words, mine.seen)
    open_secret = any(places["secret"] in word for word in old.argv)
    if same_old and not open_secret and new.argv == mine.argv and new.rank == mine.rank:
        return None
    if new.rank == mine.rank == TOLD and old.rank == TOLD and "error" in case.words:
        return None
    before = plain(old.words, places) + (", with the password in its arguments" if open_secret else "")
    theirs, here = cells(new, mine, places)
    return f"| {case.words} | {before} | {theirs} | {here} |\n"


def table(rows: list[str], same: int) -> str:
    head = "| disk | Ganeti 3.0 | Ganeti 3.1 | `hvext.ganeti` |\n|---|---|---|---|\n"
    return f"{BEGIN}\n{len(rows) + same} disks; the same in all three: {same}.\n\n{head}{''.join(rows)}\n{END}"


def test_the_adapter_gives_the_same_options_as_ganeti_or_better_ones(
    ganeti: dict[str, Ganeti], asked: dict[str, str], places: dict[str, str]
) -> None:
    given = [case.row(places) for case in DISKS]
    assert len(given) >= 40
    old, new = (ganeti[version].ask("options", {"disks": given, **asked}) for version in ("3.0", "3.1"))
    rows = []
    for case, row, before, theirs in zip(DISKS, given, old, new, strict=True):
        mine = ours(row, asked)
        results = [outcome(before), outcome(theirs)]
        results.append(results[1] if mine == theirs else outcome(mine))
        found = results[2]
        assert found.rank >= max(each.rank for each in results), f"{case.words}: {results}"
        assert not any(places["secret"] in word for word in found.argv), case.words
        for each in results[:2]:
            if each.seen is not None and found.seen is not None:
                assert found.seen == each.seen, f"{case.words}: the guest would have another disk than with Ganeti"
        rows.append(row_of(case, *results, places))
        adapter.ForgetDisk(row["hvinfo"]["id"])
    lines = [line for line in rows if line is not None]
    made = table(lines, len(rows) - len(lines))
    page = PAGE.read_text(encoding="utf-8")
    before_table, _, rest = page.partition(BEGIN)
    now, _, after_table = rest.partition(END)
    if os.environ.get("HVEXT_REGENERATE") == "1":
        PAGE.write_text(before_table + made + after_table, encoding="utf-8")
        return
    assert BEGIN + now + END == made, "docs/ganeti.md says otherwise; HVEXT_REGENERATE=1 writes its table anew"


def test_every_cache_setting_means_the_same_for_every_disk_template(ganeti: dict[str, Ganeti]) -> None:
    known = ganeti["3.1"].ask("known", None)
    pairs = list(itertools.product([*known["caches"], "fast"], known["dev_types"]))
    theirs = ganeti["3.1"].ask("cache", pairs)
    mine: list[list[bool] | None] = []
    for kind, dev_type in pairs:
        try:
            mine.append(list(adapter.GetCacheSettings(kind, dev_type)))
        except InputError:
            mine.append(None)
    # Ganeti does not look at the setting where it is overridden; a wrong one is said here in every case.
    wrong = [pair for pair, here, there in zip(pairs, mine, theirs, strict=True) if here != there]
    assert all(kind == "fast" and dev_type in known["shared"] for kind, dev_type in wrong)


def test_the_values_that_the_adapter_has_of_ganeti_are_those_of_both_versions(ganeti: dict[str, Ganeti]) -> None:
    for each in ganeti.values():
        known = each.ask("known", None)
        direct = {name for name in known["dev_types"] if adapter.GetCacheSettings("writeback", name)[1]}
        assert direct == set(known["shared"])
        disk: Any = SimpleNamespace(mode="rw", params={})
        files = set()
        for disk.dev_type in known["dev_types"]:
            node: Any = adapter.GenerateKVMBlockDevice("/x", disk, HVP, "d")
            files |= {disk.dev_type} if node["file"]["driver"] == "file" else set()
        assert files == set(known["files"])


@pytest.fixture(scope="module")
def patched(ganeti: dict[str, Ganeti], tmp_path_factory: pytest.TempPathFactory) -> Ganeti:
    """Ganeti 3.1 with the patch of the page."""
    (patch,) = re.findall(r"```diff\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    folder = tmp_path_factory.mktemp("patched")
    shutil.copytree(FOLDER / "3.1/ganeti", folder / "ganeti", symlinks=True)
    (folder / "lib").symlink_to("ganeti")
    done = subprocess.run(
        [need("patch", "patch"), "-p1", "--fuzz=0", "--follow-symlinks"],
        cwd=folder,
        input=patch,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return Ganeti(folder)


@pytest.fixture
def guest() -> Iterator[dict[str, Any]]:
    """A QEMU without a guest system: its second monitor for Ganeti, and the first for looking."""
    with short_folder() as folder:
        argv = ["-qmp", f"unix:{folder}/ganeti,server=on,wait=off", "-device", "virtio-scsi-pci,id=scsi"]
        with qemu(*argv, machine="pc") as monitor:
            yield {"qmp": f"{folder}/ganeti", "monitor": monitor}


def nodes(guest: dict[str, Any]) -> list[str]:
    return [node["node-name"] for node in guest["monitor"].execute("query-named-block-nodes", flat=True)]


def case(words: str) -> Case:
    (found,) = [each for each in DISKS if each.words == words]
    return found


def test_a_patched_ganeti_starts_an_instance_on_a_uri_that_ganeti_refuses(
    ganeti: dict[str, Ganeti], patched: Ganeti, asked: dict[str, str], places: dict[str, str]
) -> None:
    given = {"disk": case("nbd, unix socket").row(places), **asked}
    assert "Unsupported storage URI scheme" in ganeti["3.1"].ask("start", given)
    argv = patched.ask("start", given)
    assert argv == ours(given["disk"], asked)["argv"]
    assert outcome({"argv": argv}).words == "opens"
    refused = patched.ask("start", {"disk": case("no URI").row(places), **asked})
    assert "neither a URI nor an absolute path" in refused, "Ganeti catches its own HypervisorError only"


@pytest.mark.parametrize("words", ["nbd, unix socket, scsi-hd, boot", "block path, scsi-hd"])
def test_a_patched_ganeti_plugs_grows_and_unplugs_disks_that_ganeti_loses(
    ganeti: dict[str, Ganeti], patched: Ganeti, guest: dict[str, Any], places: dict[str, str], words: str
) -> None:
    given = {"disk": case(words).row(places), "qmp": guest["qmp"], "size": 16 * MIB}
    unpatched = ganeti["3.1"].ask("plug", {**given, "steps": ["add"]})
    assert "Unsupported storage URI scheme" in unpatched["add"] or "is missing" in unpatched["add"], unpatched
    assert unpatched["runtime"] == []
    if "is missing" in unpatched["add"]:
        # It is there for good: Ganeti knows nothing of it, and its next try finds the name taken.
        again = ganeti["3.1"].ask("plug", {**given, "steps": ["add"]})
        assert "Duplicate" in again["add"], again
        guest["monitor"].execute("device_del", id=given["disk"]["hvinfo"]["id"])
    if words.startswith("block"):
        subprocess.run(["truncate", "--size", "32M", f"{places['dir']}/device"], check=True, timeout=60)
        subprocess.run(["losetup", "--set-capacity", f"{places['dir']}/link"], check=True, timeout=60)
        given["size"] = 32 * MIB
    said = patched.ask("plug", {**given, "steps": ["add", "resize"]})
    assert said == {"add": "done", "resize": "done", "runtime": [given["disk"]["uuid"]]}
    (block,) = [each for each in guest["monitor"].execute("query-block") if "inserted" in each]
    assert block["inserted"]["image"]["virtual-size"] == given["size"]
    said = patched.ask("plug", {**given, "steps": ["del"], "present": True})
    assert said == {"del": "done", "runtime": []}
    assert nodes(guest) == []


@pytest.mark.parametrize("version", ["3.0", "3.1"])
@pytest.mark.parametrize("words", ["nbd, unix socket, scsi-hd, boot", "block path, scsi-hd"])
def test_the_adapter_plugs_over_the_connection_of_each_ganeti(
    ganeti: dict[str, Ganeti], guest: dict[str, Any], places: dict[str, str], version: str, words: str
) -> None:
    guest["monitor"].execute("cont")  # QEMU does not close a removed descriptor while it is stopped
    said = ganeti[version].ask("adapter", {"disk": case(words).row(places), "qmp": guest["qmp"]})
    assert "grow" in said.pop("too large")
    assert said == {"there": True, "afterwards": False}
    assert nodes(guest) == []
    assert guest["monitor"].execute("query-fdsets") == []


def test_a_plug_that_fails_leaves_nothing_behind_and_can_be_repeated(
    ganeti: dict[str, Ganeti], patched: Ganeti, guest: dict[str, Any], places: dict[str, str]
) -> None:
    row = case("iscsi, CHAP").row(places)
    row["uri"] = case("nbd, unix socket").row(places)["uri"]
    row["hvinfo"]["addr"] = "0x1"  # the chipset is there
    row["hvinfo"]["bus"] = "pci.0"
    row["hvp"] = HVP
    wrong = {"disk": row, "qmp": guest["qmp"], "steps": ["add"]}
    right = {**wrong, "disk": {**row, "hvinfo": {**row["hvinfo"], "addr": "0xc"}}}
    kernel = {**wrong, "disk": {**row, "params": {"access": "kernelspace"}}}
    assert "in use" in ganeti["3.1"].ask("plug", kernel)["add"]
    assert row["hvinfo"]["id"] in nodes(guest), "Ganeti cleans up by now: the page says otherwise"
    assert "in use" in patched.ask("plug", wrong)["add"]
    assert nodes(guest) == []
    assert patched.ask("plug", right)["add"] == "done"


def test_a_password_reaches_qemu_as_an_object_and_goes_with_the_disk(
    patched: Ganeti, guest: dict[str, Any], places: dict[str, str]
) -> None:
    row = case("iscsi, CHAP").row(places)
    private = Path(os.environ["HVEXT_RUNTIME_DIR"])
    disk: Any = SimpleNamespace(dev_type="ext", mode="rw", params={"access": "userspace"}, hvinfo=row["hvinfo"])
    node = adapter.GenerateKVMBlockDevice(row["uri"], disk, HVP, row["hvinfo"]["id"])
    assert places["secret"] not in str(node) + str(node.needs)
    (secret,) = node.needs.objects
    assert Path(str(secret["file"])).parent == private
    said = patched.ask("plug", {"disk": row, "qmp": guest["qmp"], "steps": ["add"]})
    assert "iSCSI: Failed to connect" in said["add"], "the object was there, or QEMU would have missed it first"
    assert places["secret"] not in said["add"]
    objects = [each["name"] for each in guest["monitor"].execute("qom-list", path="/objects")]
    assert not [name for name in objects if name.startswith("disk-")]
    assert not list(private.glob("disk-*"))


def test_a_disk_that_the_guest_does_not_let_go_keeps_its_storage(
    patched: Ganeti, guest: dict[str, Any], places: dict[str, str]
) -> None:
    row = case("nbd, unix socket").row(places)
    devid = row["hvinfo"]["id"]
    assert patched.ask("plug", {"disk": row, "qmp": guest["qmp"], "steps": ["add"]})["add"] == "done"
    connection = FakeGaneti(guest["monitor"])
    for _ in range(2):
        with pytest.raises(HvextError, match=r"has not let device .* go"):
            adapter.HotDelDisk(connection, devid, timeout_s=0.3)
        assert devid in nodes(guest)
    with pytest.raises(HvextError, match="still there"):
        adapter.VerifyHotplugCommand(connection, devid, False, timeout_s=0.2)
    guest["monitor"].execute("system_reset")  # QEMU lets go then
    guest["monitor"].execute("cont")
    adapter.HotDelDisk(connection, devid)
    assert nodes(guest) == []
    adapter.HotDelDisk(connection, devid)


class FakeGaneti:
    """The looking monitor with the methods of Ganeti's connection."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def is_connected(self) -> bool:
        return True

    def connect(self) -> None:
        raise AssertionError("it is connected")

    def close(self) -> None:
        raise AssertionError("whoever opened it closes it")

    def execute_qmp(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        return self._monitor.execute(command, **(arguments or {}))

    def _AddFd(self, fd: int) -> int:  # noqa: N802
        raise AssertionError(f"descriptor {fd} is not handed over by URI")

    def _RemoveFdset(self, fdset: int) -> None:  # noqa: N802
        raise AssertionError(f"there is no fdset {fdset}")


def test_the_adapter_costs_ganeti_no_event_loop() -> None:
    program = "import sys, hvext.ganeti; print([m for m in ('asyncio', 'subprocess', 'qemu') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"
