"""The shipped providers on their real storage, run as hvext and Ganeti run them.

Ceph with cephx, tgtd with CHAP, a mounted file system, a loop device. The kernel of a test machine has neither krbd nor
an iSCSI initiator: ``rbd map`` and ``iscsiadm`` are small programs here, which make a real block device of the same
bytes and pass everything else on.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hvext.host.provider import ProviderHost
from tests.conftest import need
from tests.servers.ceph import NAMESPACE, POOL, USER, CephCluster, ceph_cluster
from tests.servers.iscsi import TARGET, IscsiTarget, iscsi_target
from tests.servers.iscsi import USER as CHAP_USER

PROVIDERS = Path(__file__).parents[2] / "hvext" / "providers"
OWN = ("rbd", "iscsi", "sharedfile", "blockdev")
MIB = 1 << 20
NAME = "0a1b.ext.disk0"
WITH_TGT = "/usr/bin:/bin:/usr/sbin"
ANSWER_TIMEOUT_S = 60
"""A limit that only a hanging action reaches."""


@dataclass(frozen=True, slots=True)
class Result:
    """What an action left behind when it ended."""

    status: int
    out: str
    err: str


def larger_by_grow(_name: str, _size_mib: int) -> None:
    """Storage that the provider makes larger itself."""


@dataclass(slots=True, kw_only=True)
class Place:
    """One host's view of a provider's storage.

    ``prepare`` puts storage there for providers that adopt it, ``enlarge`` makes it larger, ``image`` gives qemu-io's
    words for a URI.
    """

    provider: str
    folder: Path
    parameters: dict[str, str]
    scripts: Path
    path: str = "/usr/bin:/bin"
    prepare: Callable[[str, int], None] = larger_by_grow
    enlarge: Callable[[str, int], None] = larger_by_grow
    image: Callable[[str], list[str]] = lambda uri: [uri]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def start(self, action: str, name: str, variables: dict[str, str], parameters: dict[str, str]) -> subprocess.Popen:
        """Start one action in a session of its own, in the cleaned environment of the contract."""
        merged = {"provider": self.provider, "run": str(self.run_dir), **self.parameters, **parameters}
        environment = {"PATH": self.path, "LC_ALL": "C", "HOME": "/", **variables}
        environment |= {f"EXTP_{key.upper()}": value for key, value in merged.items()}
        if action != "verify":
            environment["VOL_NAME"] = name
        process = subprocess.Popen(
            [f"{self.scripts}/{action}"],
            cwd=self.scripts,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(
        self, action: str, name: str = NAME, *, variables: dict[str, str] | None = None, **parameters: str
    ) -> Result:
        """Run one action to its end."""
        process = self.start(action, name, variables or {}, parameters)
        out, err = process.communicate(timeout=ANSWER_TIMEOUT_S)
        return Result(process.returncode, out, err)

    def do(self, action: str, name: str = NAME, *, variables: dict[str, str] | None = None, **parameters: str) -> str:
        """Run one action that must succeed, silently unless it is attach."""
        result = self.run(action, name, variables=variables, **parameters)
        assert (result.status, result.err) == (0, "")
        assert action == "attach" or result.out == ""
        return result.out

    def refuse(
        self, action: str, name: str = NAME, *, variables: dict[str, str] | None = None, **parameters: str
    ) -> str:
        """Run one action that must fail; returns what it says in its one line."""
        result = self.run(action, name, variables=variables, **parameters)
        assert (result.status, result.out) == (1, "")
        assert result.err.startswith(f"{self.provider}: {action}: ")
        assert result.err.count("\n") == 1
        return result.err

    def create(self, name: str = NAME, size_mib: int = 16) -> None:
        self.prepare(name, size_mib)
        self.do("create", name, variables={"VOL_SIZE": str(size_mib)})

    def grow(self, size_mib: int, name: str = NAME) -> None:
        self.enlarge(name, size_mib)
        self.do("grow", name, variables={"VOL_NEW_SIZE": str(size_mib)})

    def attach(self, name: str = NAME, **parameters: str) -> list[list[str]]:
        """The ways to the volume, as qemu-io's words: the block path if there is one, then the URIs."""
        path, *uris = self.do("attach", name, **parameters).splitlines()
        assert not path or stat.S_ISBLK(Path(path).stat().st_mode)
        assert all(uri.startswith("kvm:") for uri in uris)
        return ([[path]] if path else []) + [self.image(uri.removeprefix("kvm:")) for uri in uris]

    def tear_down(self) -> None:
        """Show that nothing is left on the host."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        assert list(self.run_dir.glob("**/*")) == []


def qemu_io(way: list[str], *commands: str) -> str:
    """Run qemu-io with O_DIRECT on a way to a volume; returns what it printed."""
    raw = [] if "--image-opts" in way else ["-f", "raw"]
    argv = ["qemu-io", *raw, "-t", "none", *(word for command in commands for word in ("-c", command)), *way]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S).stdout


def has_pattern(way: list[str], pattern: int) -> bool:
    return "verification failed" not in qemu_io(way, f"read -P {pattern} 0 64k")


def losetup(*words: str) -> str:
    argv = [need("losetup", "mount"), *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


# --- Storage ---------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def _programs() -> None:
    need("qemu-io", "qemu-utils")
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")


@pytest.fixture(scope="module")
def ceph() -> Iterator[CephCluster]:
    with ceph_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def target() -> Iterator[IscsiTarget]:
    with iscsi_target() as server:
        yield server


@pytest.fixture(scope="module")
def mounted() -> Iterator[Path]:
    """A file system of its own."""
    with tempfile.TemporaryDirectory(prefix="hvx-") as name:
        image, point = Path(name, "fs"), Path(name, "m")
        with image.open("wb") as file:
            file.truncate(512 * MIB)
        subprocess.run([need("mkfs.ext4", "e2fsprogs"), "-q", str(image)], check=True)
        point.mkdir()
        subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
        try:
            yield point
        finally:
            subprocess.run(["umount", str(point)], check=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hvx-") as name:
        yield Path(name)


@pytest.fixture
def rbd(ceph: CephCluster, folder: Path) -> Iterator[Place]:
    parameters = {"pool": POOL, "id": USER, "conf": str(ceph.conf), "keyring": str(ceph.keyring)}
    place = Place(provider="rbd", folder=folder, parameters=parameters, scripts=PROVIDERS / "rbd")
    yield place
    place.tear_down()
    for image in ceph.rbd("ls", POOL).split():
        ceph.rbd("rm", "--no-progress", f"{POOL}/{image}")
    assert ceph.rbd("trash", "ls", "--all", POOL) == ""


@pytest.fixture
def iscsi(target: IscsiTarget, folder: Path) -> Iterator[Place]:
    password = folder / "password"
    password.write_text(target.password)
    unit = f"u{len(target.units)}"
    target.create(unit, 16 * MIB)

    def image(uri: str) -> list[str]:
        assert uri == f"iscsi://{CHAP_USER}@{target.portal}/{TARGET}/{target.units[unit]}"
        options = f"driver=iscsi,transport=tcp,portal={target.portal},target={TARGET},lun={target.units[unit]}"
        words = ["--object", f"secret,id=s,file={password}", "--image-opts"]
        return [*words, f"{options},user={CHAP_USER},password-secret=s"]

    def enlarge(_name: str, size_mib: int) -> None:
        os.truncate(target.path(unit), size_mib * MIB)
        target.admin(f"--mode logicalunit --op delete --tid 1 --lun {target.units[unit]}")
        offer = f"--mode logicalunit --op new --tid 1 --lun {target.units[unit]} --bstype=rdwr --blocksize=512 -b"
        target.admin(offer, str(target.path(unit)))

    parameters = {"portal": target.portal, "target": TARGET, "lun": str(target.units[unit])}
    parameters |= {"user": CHAP_USER, "password_file": str(password)}
    place = Place(
        provider="iscsi",
        folder=folder,
        parameters=parameters,
        scripts=PROVIDERS / "iscsi",
        image=image,
        enlarge=enlarge,
    )
    yield place
    place.tear_down()


@pytest.fixture
def sharedfile(mounted: Path, folder: Path) -> Iterator[Place]:
    volumes = mounted / folder.name
    volumes.mkdir()
    place = Place(
        provider="sharedfile", folder=folder, parameters={"dir": str(volumes)}, scripts=PROVIDERS / "sharedfile"
    )
    yield place
    for left in volumes.iterdir():
        place.do("detach", left.name)
    place.tear_down()
    assert [line for line in losetup("--list", "-nO", "BACK-FILE").split() if str(volumes) in line] == []
    shutil.rmtree(volumes)


@pytest.fixture
def blockdev(folder: Path) -> Iterator[Place]:
    image = folder / "image"
    image.write_bytes(b"")
    os.truncate(image, 16 * MIB)
    device = losetup("--find", "--show", "--direct-io=on", str(image))
    link = folder / "by-id"
    link.symlink_to(device)
    place = Place(
        provider="blockdev",
        folder=folder,
        parameters={"path": str(link), "adopt": "yes"},
        scripts=PROVIDERS / "blockdev",
        enlarge=lambda _name, size_mib: os.truncate(image, size_mib * MIB),
    )
    yield place
    place.do("detach")
    losetup("--detach", device)
    place.tear_down()


#: In the default run, what takes its time is done on storage that is quick.
QUICK = ["sharedfile", "blockdev", *(pytest.param(slow, marks=pytest.mark.nightly) for slow in ("rbd", "iscsi"))]


@pytest.fixture(params=OWN)
def place(request: pytest.FixtureRequest) -> Place:
    """Each of the providers on its storage."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found


# --- What all of them do ---------------------------------------------------------------------------------------------


def test_a_volume_lives_from_create_to_remove_and_leaves_nothing(place: Place) -> None:
    place.do("verify")
    place.create()
    ways = place.attach()
    for pattern, (written, read) in enumerate([(ways[0], ways[-1]), (ways[-1], ways[0])], 1):
        qemu_io(written, f"write -P {pattern} 0 64k")
        assert has_pattern(read, pattern)
    place.do("setinfo", variables={"VOL_METADATA": "originstname+web"})
    place.grow(24)
    assert [qemu_io(way, "length").strip() for way in ways] == ["24 MiB"] * len(ways)
    place.grow(24)
    for way in place.attach():
        assert qemu_io(way, "length").strip() == "24 MiB"
        assert has_pattern(way, 2)
    for action in ("detach", "detach", "remove", "remove"):
        place.do(action)


@pytest.mark.parametrize("place", QUICK, indirect=True)
def test_twenty_attaches_side_by_side_give_one_answer(place: Place) -> None:
    place.create()
    with ThreadPoolExecutor(20) as pool:
        answers = set(pool.map(lambda _: place.do("attach"), range(20)))
    assert len(answers) == 1
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda _: place.do("detach"), range(20)))
    place.do("remove")


@pytest.mark.parametrize("place", QUICK, indirect=True)
@pytest.mark.parametrize("times", [1, pytest.param(12, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("action", ["create", "attach", "grow", "detach", "remove"])
def test_an_action_that_was_killed_anywhere_is_finished_by_repeating_it(place: Place, action: str, times: int) -> None:
    variables = {"create": {"VOL_SIZE": "16"}, "grow": {"VOL_SIZE": "16", "VOL_NEW_SIZE": "24"}}.get(action, {})
    for _time in range(times):
        delay_s = random.uniform(0.02, 0.3)  # noqa: S311
        if action != "create":
            place.create()
        else:
            place.prepare(NAME, 16)
        if action in ("grow", "detach"):
            place.attach()
        if action == "grow":
            place.enlarge(NAME, 24)
        process = place.start(action, NAME, variables, {})
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=delay_s)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        elif action == "create" and process.returncode == 0:
            place.do("remove")
        place.do(action, variables=variables)
        if action != "remove":
            (*_, way) = place.attach()
            qemu_io(way, "write -P 7 0 64k")
            place.do("detach")
            place.do("remove")


ODD_NAMES = ("", "../x", "a/b", ".x", "-x", "a b", "a,b", "a\nb", "é", "a'b", "a%b", "x" * 181)


def test_a_name_that_storage_would_take_for_something_else_is_refused(place: Place) -> None:
    for number, name in enumerate(ODD_NAMES):
        action = ("create", "attach", "remove")[number % 3]
        assert "VOL_NAME" in place.refuse(action, name, variables={"VOL_SIZE": "16"})


@pytest.mark.nightly
def test_names_of_all_allowed_characters_and_lengths_are_volumes_of_their_own(rbd: Place, sharedfile: Place) -> None:
    for place in (rbd, sharedfile):
        names = ["Az09._+:=-z", "x" * 180]
        for name in names:
            place.create(name, 4)
        for number, name in enumerate(names):
            qemu_io(place.attach(name)[-1], f"write -P {number} 0 64k")
        for number, name in enumerate(names):
            for way in place.attach(name):
                assert has_pattern(way, number)
            place.do("detach", name)
            place.do("remove", name)


def test_sizes_that_are_none_or_would_lose_data_are_refused(place: Place) -> None:
    for size in ("", "0", "1.5", "999999999"):
        assert "VOL_SIZE" in place.refuse("create", variables={"VOL_SIZE": size})
    place.create()
    assert "VOL_NEW_SIZE" in place.refuse("grow", variables={"VOL_NEW_SIZE": "-1"})
    if place.provider in ("rbd", "sharedfile"):
        assert "would cut off data" in place.refuse("grow", variables={"VOL_NEW_SIZE": "8"})
        assert "find out which is right" in place.refuse("grow", variables={"VOL_SIZE": "17", "VOL_NEW_SIZE": "18"})
    else:
        assert "make it larger" in place.refuse("grow", variables={"VOL_SIZE": "16", "VOL_NEW_SIZE": "18"})
        assert "less than" in place.refuse("create", variables={"VOL_SIZE": "17"})
    place.do("remove")


@pytest.mark.parametrize("place", QUICK, indirect=True)
def test_a_misspelt_parameter_is_named_before_a_volume_is_made(place: Place) -> None:
    assert "unknown parameter 'colour'" in place.refuse("verify", colour="1")
    assert "unknown parameter 'colour'" in place.refuse("create", variables={"VOL_SIZE": "16"}, colour="1")
    place.create()
    place.attach(retired="yes", access="userspace")
    place.do("detach", retired="yes")
    place.do("remove", retired="yes")


@pytest.mark.parametrize("place", QUICK, indirect=True)
@pytest.mark.parametrize("copy", [True, False], ids=["copied", "linked"])
def test_a_provider_directory_works_alone_wherever_it_is_put(place: Place, copy: bool) -> None:
    alone = place.folder / "alone"
    if copy:
        shutil.copytree(place.scripts, alone, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        alone.symlink_to(place.scripts)
    place.create()
    first = place.do("attach")
    place.scripts = alone
    assert place.do("attach") == first
    assert not copy or not (alone / "__pycache__").exists()
    place.do("detach")
    place.do("remove")


def without(folder: Path, *programs: str) -> str:
    """A PATH that has all programs of the machine but some."""
    for source in ("/usr/bin", "/usr/sbin"):
        for program in Path(source).iterdir():
            if program.name not in programs and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    return str(folder)


@pytest.mark.parametrize(
    ("provider", "program", "package"), [("rbd", "rbd", "ceph-common"), ("iscsi", "qemu-img", "qemu-utils")]
)
def test_a_missing_tool_is_named_with_its_package(
    request: pytest.FixtureRequest, provider: str, program: str, package: str, tmp_path: Path
) -> None:
    place: Place = request.getfixturevalue(provider)
    place.path = without(tmp_path, program)
    words = place.refuse("verify")
    assert f"the program {program} is not installed; install the package {package}" in words


def test_the_file_that_all_have_is_the_same_in_all() -> None:
    assert len({(PROVIDERS / provider / "extstorage.py").read_bytes() for provider in OWN}) == 1


def test_hvext_finds_all_shipped_providers_valid_with_their_parameters() -> None:
    host = ProviderHost(search_path=[str(PROVIDERS)])
    assert {*OWN, "sample"} == set(host.names())
    for name in OWN:
        provider = host.find(name)
        lines = (PROVIDERS / name / "parameters.list").read_text().splitlines()
        assert [each.name for each in provider.parameters] == [line.split()[0] for line in lines]


def test_a_built_package_has_every_file_of_every_provider_and_they_can_be_run(tmp_path: Path) -> None:
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    argv = [sys.executable, "-c", build, str(tmp_path)]
    done = subprocess.run(argv, cwd=PROVIDERS.parents[1], check=True, capture_output=True, text=True)
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        packed = {entry.filename: entry.external_attr >> 16 & 0o111 for entry in wheel.infolist()}
    for path in filter(Path.is_file, PROVIDERS.glob("*/*")):
        assert packed[f"hvext/providers/{path.parent.name}/{path.name}"] == path.stat().st_mode & 0o111


# --- rbd -------------------------------------------------------------------------------------------------------------

FAKE_RBD = """\
#!{python}
import json, os, subprocess, sys, time
real, state, words = "/usr/bin/rbd", {state!r}, sys.argv[1:]
option = lambda name: words[words.index(name) + 1]
mapped = json.load(open(state)) if os.path.exists(state) else None
if words[:2] == ["device", "list"]:
    print(json.dumps([mapped["listed"]] if mapped else []))
elif words[0] == "map":
    image, parts = next(word for word in words if word.count("/") and not word.startswith("/")), None
    *where, name = image.split("/")
    file = state + ".image"
    open(file, "w").close()
    node = dict(driver="rbd", pool=where[0], image=name, conf=option("--conf"), user=option("--id"))
    node.update({{"node-name": "v"}}, **(dict(namespace=where[1]) if where[1:] else {{}}))
    export = dict(type="fuse", id="e", mountpoint=file, writable=True, growable=True) | {{"node-name": "v"}}
    subprocess.run(["setsid", "qemu-storage-daemon", "--daemonize", "--pidfile", state + ".pid", "--blockdev",
                    json.dumps(node), "--export", json.dumps(export)], check=True, stdout=2)
    losetup = ["losetup", "--find", "--show", "--direct-io=on", file]
    device = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
    listed = dict(id="0", pool=where[0], namespace="".join(where[1:]), name=name, snap="-", device=device)
    json.dump({{"listed": listed, "file": file}}, open(state + ".new", "w"))
    os.rename(state + ".new", state)
    print(device)
elif words[0] == "unmap":
    subprocess.run(["losetup", "--detach", mapped["listed"]["device"]], check=True)
    subprocess.run(["umount", mapped["file"]])
    os.kill(int(open(state + ".pid").read()), 15)
    os.unlink(state)
else:
    done = subprocess.run([real, *words])
    if words[0] == "resize" and mapped and done.returncode == 0:
        subprocess.run(["truncate", "-s", option("--size"), mapped["file"]], check=True)
        subprocess.run(["losetup", "--set-capacity", mapped["listed"]["device"]], check=True)
    sys.exit(done.returncode)
"""


@pytest.fixture
def mapping(rbd: Place, ceph: CephCluster) -> Place:
    """The provider on a host whose `rbd` can map: a loop device on a file that is the image."""
    tools, state = rbd.folder / "tools", rbd.folder / "mapped"
    tools.mkdir()
    conf = rbd.folder / "mapping.conf"
    conf.write_text(f"{ceph.conf.read_text()}keyring = {ceph.keyring}\n")
    (tools / "rbd").write_text(FAKE_RBD.format(python=sys.executable, state=str(state)))
    (tools / "rbd").chmod(0o755)
    rbd.path = f"{tools}:/usr/bin:/bin:/usr/sbin"
    rbd.parameters |= {"path": "yes", "conf": str(conf)}
    return rbd


def test_a_mapped_image_and_its_uri_show_the_same_bytes_and_sizes(mapping: Place) -> None:
    mapping.create()
    ways = mapping.attach()
    assert len(ways) == 2
    assert mapping.attach() == ways
    for pattern, (written, read) in enumerate([(ways[0], ways[1]), (ways[1], ways[0])], 1):
        qemu_io(written, f"write -P {pattern} 0 64k")
        assert has_pattern(read, pattern)
    assert "detach it first" in mapping.refuse("remove")
    mapping.grow(24)
    assert [qemu_io(way, "length").strip() for way in ways] == ["24 MiB", "24 MiB"]
    with Path(ways[0][0]).open("rb"):
        assert f"process {os.getpid()}" in mapping.refuse("detach")
    mapping.do("detach")
    mapping.do("detach")
    mapping.do("remove")


def test_without_a_kernel_client_the_first_line_is_empty(rbd: Place, ceph: CephCluster) -> None:
    rbd.create()
    if not Path("/sys/bus/rbd").exists():
        assert rbd.do("attach").startswith("\nkvm:rbd:")
    assert rbd.do("attach", path="no") == f"\nkvm:{ceph.uri(NAME)}\n"
    assert "cannot map image" in rbd.refuse("attach", path="yes") or Path("/sys/bus/rbd").exists()


def test_a_snapshot_keeps_the_bytes_of_its_moment_and_outlives_the_image(rbd: Place, ceph: CephCluster) -> None:
    rbd.create()
    (way,) = rbd.attach(path="no")
    qemu_io(way, "write -P 1 0 64k")
    wanted = {"VOL_SNAPSHOT_NAME": "s", "VOL_SNAPSHOT_SIZE": "20"}
    rbd.do("snapshot", variables=wanted)
    assert "already there" in rbd.refuse("snapshot", variables=wanted)
    qemu_io(way, "write -P 2 0 64k")
    (copy,) = rbd.attach("s", path="no")
    assert has_pattern(copy, 1)
    assert has_pattern(way, 2)
    assert qemu_io(copy, "length").strip() == "20 MiB"
    assert "ask for at least" in rbd.refuse("snapshot", variables={"VOL_SNAPSHOT_NAME": "t", "VOL_SNAPSHOT_SIZE": "1"})
    rbd.do("remove")
    assert has_pattern(copy, 1)
    rbd.do("remove", "s")
    assert ceph.rbd("ls", POOL) == ""


@pytest.mark.parametrize("step", ["create", "snap create", "clone"])
def test_an_image_that_a_killed_action_left_behind_is_made_anew(rbd: Place, step: str) -> None:
    tools, there = rbd.folder / "tools", rbd.folder / "there"
    tools.mkdir()
    real = need("rbd", "ceph-common")
    (tools / "rbd").write_text(
        f'#!/bin/sh\n{real} "$@" || exit\ncase "$*" in "{step} "*) touch {there}; exec sleep 60; esac\n'
    )
    (tools / "rbd").chmod(0o755)
    action, wanted = "create", {"VOL_SIZE": "16", "VOL_SNAPSHOT_NAME": "s", "VOL_SNAPSHOT_SIZE": "16"}
    if step != "create":
        rbd.create()
        action = "snapshot"
    rbd.path = f"{tools}:/usr/bin:/bin"
    process = rbd.start(action, NAME, wanted, {})
    while not there.exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    rbd.path = "/usr/bin:/bin"
    if step != "snap create":
        rbd.do(action, variables=wanted)
    rbd.do("remove")
    rbd.do("remove", "s")


@pytest.mark.nightly
def test_a_killed_snapshot_is_made_again(rbd: Place) -> None:
    rbd.create()
    (way,) = rbd.attach(path="no")
    for number in range(8):
        wanted = {"VOL_SNAPSHOT_NAME": "s", "VOL_SNAPSHOT_SIZE": "16"}
        qemu_io(way, f"write -P {number} 0 64k")
        process = rbd.start("snapshot", NAME, wanted, {})
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=random.uniform(0.1, 0.6))  # noqa: S311
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            rbd.do("snapshot", variables=wanted)
        assert has_pattern(rbd.attach("s", path="no")[-1], number)
        rbd.do("remove", "s")
    rbd.do("remove")


def test_the_pool_namespace_prefix_and_user_lead_to_the_image(rbd: Place, ceph: CephCluster) -> None:
    rbd.parameters |= {"namespace": NAMESPACE, "prefix": "vm-"}
    rbd.do("verify")
    rbd.create()
    assert ceph.rbd("ls", f"{POOL}/{NAMESPACE}").split() == [f"vm-{NAME}"]
    assert rbd.do("attach", path="no") == f"\nkvm:{ceph.uri(f'vm-{NAME}', namespace=NAMESPACE)}\n"
    rbd.do("setinfo", variables={"VOL_METADATA": "originstname+web"})
    meta = json.loads(ceph.rbd("image-meta", "list", "--format", "json", f"{POOL}/{NAMESPACE}/vm-{NAME}"))
    assert meta == {"hvext.metadata": "originstname+web"}
    rbd.do("remove")


def test_a_mistaken_parameter_of_rbd_is_named(rbd: Place) -> None:
    mistakes: list[tuple[dict[str, str], str]] = [
        ({"pool": "none"}, "cannot look into none"),
        ({"namespace": "none"}, "cannot look into volumes/none"),
        ({"id": "nobody"}, "client.nobody cannot look into volumes"),
        ({"keyring": "/none"}, "cannot read /none; correct the parameter keyring"),
        ({"conf": "ceph.conf"}, "it must be an absolute path"),
        ({"pool": "a/b"}, "the parameter pool is 'a/b'"),
        ({"path": "maybe"}, "it must be auto or yes or no"),
        ({"timeout": "soon"}, "a number of seconds"),
    ]
    for parameters, words in mistakes:
        assert words in rbd.refuse("verify", **parameters)


def test_an_image_in_use_is_not_removed(rbd: Place) -> None:
    rbd.create()
    (way,) = rbd.attach(path="no")
    argv = ["qemu-io", "-f", "raw", "-t", "none", *way]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=0) as client:
        assert client.stdin
        assert client.stdout
        client.stdin.write("write 0 4k\n")
        while not client.stdout.readline().startswith("4 KiB"):
            pass
        assert "is in use" in rbd.refuse("remove")
        client.stdin.close()
    rbd.do("remove")


def test_a_missing_pool_or_namespace_is_not_taken_for_a_removed_image(rbd: Place) -> None:
    for action in ("remove", "attach"):
        assert "error opening pool" in rbd.refuse(action, pool="none")
        assert "namespace 'none' does not exist" in rbd.refuse(action, namespace="none")


# --- iscsi -----------------------------------------------------------------------------------------------------------

FAKE_ISCSIADM = """\
#!/bin/sh
# A kernel that logs in: the unit's file becomes a loop device.
state={state} file={file}
case "$*" in
*session*)
    [ -e $state ] || {{ echo "iscsiadm: No active sessions." >&2; exit 21; }}
    printf 'Target: iqn.2000-01.org.example:other (non-flash)\\n\\tCurrent Portal: {portal},1\\n'
    printf '\\t\\tscsi1 Channel 00 Id 0 Lun: {lun}\\n\\t\\t\\tAttached scsi disk sdz\\t\\tState: running\\n'
    printf 'Target: {target} (non-flash)\\n\\tCurrent Portal: {portal},1\\n\\tPersistent Portal: {portal},1\\n'
    printf '\\t\\tHost Number: 6\\tState: running\\n\\t\\tscsi6 Channel 00 Id 0 Lun: 0\\n'
    printf '\\t\\tscsi6 Channel 00 Id 0 Lun: {lun}\\n'
    printf '\\t\\t\\tAttached scsi disk %s\\t\\tState: running\\n' "$(cat $state)"
    ;;
*--login*) basename "$(losetup --find --show --direct-io=on $file)" >$state.new; mv $state.new $state ;;
*--logout*) losetup --detach /dev/$(cat $state); rm $state ;;
*--rescan*) losetup --set-capacity /dev/$(cat $state) ;;
esac
"""


@pytest.fixture
def initiator(iscsi: Place, target: IscsiTarget) -> Place:
    """The provider on a host whose kernel has an initiator."""
    tools = iscsi.folder / "tools"
    tools.mkdir()
    unit = next(name for name, number in target.units.items() if str(number) == iscsi.parameters["lun"])
    words = {"portal": target.portal, "target": TARGET, "lun": iscsi.parameters["lun"]}
    script = FAKE_ISCSIADM.format(state=tools / "state", file=shlex.quote(str(target.path(unit))), **words)
    (tools / "iscsiadm").write_text(script)
    (tools / "iscsiadm").chmod(0o755)
    iscsi.path = f"{tools}:/usr/bin:/bin:/usr/sbin"
    iscsi.parameters["path"] = "yes"
    return iscsi


def test_a_disk_of_the_kernel_and_its_uri_show_the_same_bytes(initiator: Place) -> None:
    initiator.create()
    ways = initiator.attach()
    assert len(ways) == 2
    assert initiator.attach() == ways
    for pattern, (written, read) in enumerate([(ways[0], ways[1]), (ways[1], ways[0])], 1):
        qemu_io(written, f"write -P {pattern} 0 64k")
        assert has_pattern(read, pattern)
    assert "detach it first" in initiator.refuse("remove")
    initiator.grow(24)
    assert qemu_io(ways[0], "length").strip() == "24 MiB"
    with Path(ways[0][0]).open("rb"):
        assert f"process {os.getpid()}" in initiator.refuse("detach")
    initiator.do("detach")
    initiator.do("detach")


def test_a_unit_keeps_its_bytes_unless_zeros_are_asked_for(iscsi: Place) -> None:
    iscsi.create()
    (way,) = iscsi.attach(path="no")
    qemu_io(way, "write -P 5 0 64k")
    iscsi.create()
    iscsi.do("remove")
    assert has_pattern(way, 5)
    iscsi.do("remove", zero="yes")
    assert has_pattern(way, 0)
    qemu_io(way, "write -P 5 15M 64k")
    iscsi.do("create", variables={"VOL_SIZE": "16"}, zero="yes")
    assert "verification failed" not in qemu_io(way, "read -P 0 0 16M")


def test_the_password_is_in_no_argument_and_on_no_output(iscsi: Place, target: IscsiTarget) -> None:
    tools = iscsi.folder / "tools"
    tools.mkdir()
    real = need("qemu-img", "qemu-utils")
    (tools / "qemu-img").write_text(f'#!/bin/sh\ncat /proc/$$/cmdline >>{tools}/seen\nexec {real} "$@"\n')
    (tools / "qemu-img").chmod(0o755)
    iscsi.path = f"{tools}:/usr/bin:/bin"
    iscsi.do("attach", password=target.password, password_file="")
    (iscsi.folder / "line").write_text(f"{target.password}\n")
    iscsi.do("attach", password_file=str(iscsi.folder / "line"))
    said = iscsi.do("attach") + iscsi.refuse("attach", lun="99") + iscsi.refuse("create", variables={"VOL_SIZE": "99"})
    seen = (tools / "seen").read_bytes()
    assert b"secret,id=chap,file=" in seen
    assert target.password.encode() not in seen
    assert target.password not in said


def test_a_mistaken_parameter_of_iscsi_is_named(iscsi: Place) -> None:
    mistakes: list[tuple[dict[str, str], str]] = [
        ({"lun": "99"}, "cannot look at unit 99"),
        ({"lun": "x"}, "the parameter lun is 'x'"),
        ({"lun": "16384"}, "0 to 16383"),
        ({"target": "iqn.2001-04.org.example:none"}, "cannot look at unit"),
        ({"target": "disk"}, "begins with iqn., eui. or naa."),
        ({"portal": "a b"}, "HOST, HOST:PORT or [IPV6]:PORT"),
        ({"portal": ""}, "the parameter portal is not set"),
        ({"user": ""}, "is set, but user is not"),
        ({"password_file": ""}, "the parameter password_file is not set"),
        ({"password_file": "/none"}, "cannot read /none"),
        ({"user": "somebody"}, "Authentication failure"),
    ]
    for parameters, words in mistakes:
        assert words in iscsi.refuse("verify", **parameters)


@pytest.fixture
def made(target: IscsiTarget, folder: Path) -> Iterator[Place]:
    """The provider that has tgtd's tool make its units, with the password itself as a parameter."""
    backing = folder / "backing"
    backing.mkdir()
    parameters = {"portal": target.portal, "target": "iqn.2001-04.org.example", "backing": str(backing)}
    parameters |= {"user": CHAP_USER, "password": target.password}
    parameters["tgtadm"] = f"env TGT_IPC_SOCKET={target.folder / 'control'} tgtadm -C {target.port}"
    (folder / "password").write_text(target.password)

    def image(uri: str) -> list[str]:
        _, _, portal, name, lun = uri.split("/")
        assert portal == f"{CHAP_USER}@{target.portal}"
        options = f"driver=iscsi,transport=tcp,portal={target.portal},target={name},lun={lun},user={CHAP_USER}"
        return ["--object", f"secret,id=s,file={folder}/password", "--image-opts", f"{options},password-secret=s"]

    place = Place(
        provider="iscsi", folder=folder, parameters=parameters, scripts=PROVIDERS / "iscsi", image=image, path=WITH_TGT
    )
    yield place
    for left in backing.iterdir():
        place.do("remove", left.name)
    place.tear_down()
    assert target.admin("--mode target --op show").count("Target ") == 1


def test_made_units_are_volumes_of_their_own_behind_chap(made: Place) -> None:
    made.do("verify")
    for number, name in enumerate(("a", NAME), 1):
        made.create(name, 16)
        (way,) = made.attach(name, path="no")
        qemu_io(way, f"write -P {number} 0 64k")
    assert "already" in made.refuse("create", variables={"VOL_SIZE": "16"})
    made.grow(24)
    made.grow(24)
    assert "would cut off data" in made.refuse("grow", variables={"VOL_NEW_SIZE": "8"})
    for number, name in enumerate(("a", NAME), 1):
        (way,) = made.attach(name, path="no")
        assert has_pattern(way, number)
    assert qemu_io(way, "length").strip() == "24 MiB"
    assert made.refuse("attach", "none")
    with pytest.raises(subprocess.CalledProcessError):
        qemu_io([word.replace(f",user={CHAP_USER},password-secret=s", "") for word in way], "length")
    for action in ("detach", "detach", "remove", "remove"):
        made.do(action)
        made.do(action, "a")


def test_a_made_unit_that_somebody_uses_is_neither_removed_nor_taken_away_to_grow(made: Place) -> None:
    made.create()
    (way,) = made.attach(path="no")
    argv = ["qemu-io", *way]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=0) as client:
        assert client.stdin
        assert client.stdout
        client.stdin.write("write 0 4k\n")
        while not client.stdout.readline().startswith("4 KiB"):
            pass
        assert "somebody is logged in" in made.refuse("remove")
        assert "unplug it" in made.refuse("grow", variables={"VOL_NEW_SIZE": "24"})
        client.stdin.close()
    made.do("remove")


@pytest.mark.parametrize(
    ("action", "step"),
    [
        pytest.param("create", "target --op new", marks=pytest.mark.nightly),
        ("create", "-b"),
        pytest.param("grow", "truncate", marks=pytest.mark.nightly),
        ("grow", "--op delete"),
    ],
)
def test_a_unit_that_a_killed_action_left_half_made_is_finished(made: Place, action: str, step: str) -> None:
    tools, there = made.folder / "tools", made.folder / "there"
    tools.mkdir()
    for program in ("tgtadm", "truncate"):
        real = shutil.which(program, path=WITH_TGT)
        (tools / program).write_text(
            f'#!/bin/sh\n{real} "$@" || exit\ncase "$0 $*" in *"{step}"*) touch {there}; exec sleep 60; esac\n'
        )
        (tools / program).chmod(0o755)
    size = {"create": {"VOL_SIZE": "16"}, "grow": {"VOL_NEW_SIZE": "24"}}[action]
    if action == "grow":
        made.create()
    made.path = f"{tools}:{WITH_TGT}"
    process = made.start(action, NAME, size, {})
    while not there.exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    made.path = WITH_TGT
    made.do(action, variables=size)
    (way,) = made.attach(path="no")
    assert qemu_io(way, "length").split()[0] == next(iter(size.values()))
    made.do("remove")


def test_a_mistaken_parameter_for_made_units_is_named(made: Place) -> None:
    mistakes: list[tuple[dict[str, str], str]] = [
        ({"tgtadm": "targetcli"}, "a command with the program tgtadm in it"),
        ({"tgtadm": "none/tgtadm"}, "the program none/tgtadm is not installed"),
        ({"backing": ""}, "the parameter backing is not set"),
        ({"backing": "b"}, "it must be an absolute path"),
        ({"lun": "1"}, "the parameters tgtadm and lun are set"),
    ]
    for parameters, words in mistakes:
        assert words in made.refuse("verify", **parameters)


# --- sharedfile ------------------------------------------------------------------------------------------------------


def volumes_of(place: Place) -> Path:
    return Path(place.parameters["dir"])


def test_a_folder_whose_file_system_is_not_mounted_is_refused(sharedfile: Place, mounted: Path, folder: Path) -> None:
    sharedfile.do("verify", mount=str(mounted))
    assert f"and not on the one at {folder}" in sharedfile.refuse("verify", mount=str(folder))
    assert "cannot open the folder" in sharedfile.refuse("verify", dir=f"{mounted}/none")
    if not Path("/usr").is_mount():
        assert "is on the file system of this host" in sharedfile.refuse(
            "create", variables={"VOL_SIZE": "1"}, dir="/usr"
        )
        sharedfile.do("verify", dir="/usr", mount="/")
    assert "there is no file here" in sharedfile.refuse("attach", marker="here")
    (volumes_of(sharedfile) / "here").touch()
    sharedfile.do("verify", marker="here")
    (volumes_of(sharedfile) / "here").unlink()
    assert "an absolute path" in sharedfile.refuse("verify", dir="volumes")
    assert "the parameter dir is not set" in sharedfile.refuse("verify", dir="")


def test_a_mount_point_with_blanks_in_it_is_found(sharedfile: Place, folder: Path) -> None:
    point = folder / "a b\\c"
    point.mkdir()
    subprocess.run(["mount", "--bind", str(volumes_of(sharedfile)), str(point)], check=True)
    try:
        sharedfile.do("verify", dir=str(point), mount=str(point))
    finally:
        subprocess.run(["umount", str(point)], check=True)


def test_a_volume_is_removed_only_when_nobody_uses_it(sharedfile: Place) -> None:
    sharedfile.create()
    (path,), (uri,) = sharedfile.attach()
    file = Path(uri.removeprefix("file:"))
    assert "is attached on this host" in sharedfile.refuse("remove")
    with file.open("rb"), Path(path).open("rb"):
        assert f"process {os.getpid()}" in sharedfile.refuse("detach")
    sharedfile.do("detach")
    sharedfile.do("attach", host="other", path="no")
    assert "is attached on other" in sharedfile.refuse("remove")
    sharedfile.do("detach", host="other")
    sharedfile.do("remove")
    assert list(volumes_of(sharedfile).iterdir()) == []


def test_a_snapshot_of_files_keeps_the_bytes_and_is_refused_while_they_change(sharedfile: Place) -> None:
    sharedfile.create()
    path, uri = sharedfile.attach()
    qemu_io(uri, "write -P 1 0 64k")
    wanted = {"VOL_SNAPSHOT_NAME": "s", "VOL_SNAPSHOT_SIZE": "20"}
    assert "use a file system with reflinks" in sharedfile.refuse("snapshot", variables=wanted)
    sharedfile.do("detach")
    sharedfile.do("attach", host="other", path="no")
    assert "attached on other" in sharedfile.refuse("snapshot", variables=wanted)
    sharedfile.do("detach", host="other")
    sharedfile.do("snapshot", variables=wanted)
    assert "already in" in sharedfile.refuse("snapshot", variables=wanted)
    path, uri = sharedfile.attach()
    qemu_io(path, "write -P 2 0 64k")
    copy = sharedfile.attach("s")[1]
    assert has_pattern(copy, 1)
    assert has_pattern(uri, 2)
    assert qemu_io(copy, "length").strip() == "20 MiB"


def test_a_loop_device_that_others_put_on_the_file_is_left_alone(sharedfile: Place) -> None:
    sharedfile.create()
    file = volumes_of(sharedfile) / NAME / "disk.raw"
    theirs = losetup("--find", "--show", "--read-only", str(file))
    try:
        (path,), _uri = sharedfile.attach()
        assert path != theirs
        sharedfile.do("detach")
        assert losetup("-nO", "BACK-FILE", theirs) == str(file)
    finally:
        losetup("--detach", theirs)


def test_what_a_killed_create_left_is_swept_away(sharedfile: Place) -> None:
    left = volumes_of(sharedfile) / f".{NAME}~{os.uname().nodename}.999999999"
    left.mkdir()
    others = volumes_of(sharedfile) / f".{NAME}~elsewhere.999999999"
    others.mkdir()
    sharedfile.create()
    assert not left.exists()
    others.rmdir()


def test_a_full_file_system_leaves_no_half_volume(sharedfile: Place) -> None:
    words = sharedfile.refuse("create", variables={"VOL_SIZE": "4096"}, preallocate="yes")
    assert "No space left on device" in words
    assert list(volumes_of(sharedfile).iterdir()) == []


# --- blockdev --------------------------------------------------------------------------------------------------------


def test_a_device_is_taken_over_and_given_back_only_when_that_is_said(blockdev: Place) -> None:
    (way,) = blockdev.attach()
    qemu_io(way, "write -P 3 0 64k")
    blockdev.do("detach")
    assert "set adopt=yes" in blockdev.refuse("create", variables={"VOL_SIZE": "16"}, adopt="no")
    assert "set adopt=yes" in blockdev.refuse("remove", adopt="no")
    blockdev.create()
    blockdev.do("remove")
    assert has_pattern(way, 3)


def test_a_device_is_given_to_one_volume_at_a_time(blockdev: Place) -> None:
    device = os.path.realpath(blockdev.parameters["path"])
    blockdev.attach()
    assert f"attached on this host as volume {NAME}" in blockdev.refuse("attach", "other", path=device)
    assert "attached on this host" in blockdev.refuse("create", "other", variables={"VOL_SIZE": "16"})
    assert "detach it first" in blockdev.refuse("remove")
    blockdev.do("detach", "other")
    assert blockdev.refuse("attach", "other")
    blockdev.do("detach")
    blockdev.attach("other")
    blockdev.do("detach", "other")


def test_a_device_in_use_is_not_taken_over(blockdev: Place) -> None:
    with Path(blockdev.parameters["path"]).open("rb"):
        assert f"process {os.getpid()}" in blockdev.refuse("create", variables={"VOL_SIZE": "16"})


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "the parameter path is not set"),
        ("sda", "it must be an absolute path"),
        ("/dev/none", "there is no /dev/none"),
        ("/dev/null", "/dev/null is no block device"),
        ("/etc/hostname", "/etc/hostname is no block device"),
    ],
)
def test_a_path_that_is_no_device_is_named(blockdev: Place, path: str, words: str) -> None:
    assert words in blockdev.refuse("verify", path=path)
    assert words in blockdev.refuse("attach", path=path)
