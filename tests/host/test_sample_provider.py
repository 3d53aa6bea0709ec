"""The shipped sample provider, run as hvext and Ganeti run it: real scripts, servers and loop devices."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PROVIDER = Path(__file__).parents[2] / "hvext" / "providers" / "sample"
ACTIONS = ("create", "remove", "grow", "attach", "detach", "setinfo", "verify", "snapshot", "open", "close")
MIB = 1 << 20
BLOCK = 4096
NAME = "0a1b.ext.disk0"
NOBODY = 65534
ANSWER_TIMEOUT_S = 60
"""A limit that only a hanging action reaches."""


def missing(why: str) -> None:
    """Skip the test, or fail it where everything must be there."""
    if os.environ.get("HVEXT_REQUIRE_ALL") == "1":
        pytest.fail(why)
    pytest.skip(why)


def need(program: str, package: str) -> None:
    if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        missing(f"{program} is not installed (package {package})")


@dataclass(frozen=True, slots=True)
class Result:
    """What an action left behind when it ended."""

    status: int
    out: str
    err: str


@dataclass(slots=True)
class Place:
    """One host's view of the volumes below a temporary folder."""

    root: Path
    parameters: dict[str, str] = field(default_factory=dict)
    scripts: Path = PROVIDER
    uid: int = 0
    names: set[str] = field(default_factory=set)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def dir(self) -> Path:
        return self.root / "d"

    @property
    def run_dir(self) -> Path:
        return Path(self.parameters.get("run", str(self.root / "r")))

    def environment(self, variables: dict[str, str], parameters: dict[str, str]) -> dict[str, str]:
        """The cleaned environment of the contract."""
        merged = {"provider": "sample", "dir": str(self.dir), "run": str(self.run_dir), **self.parameters, **parameters}
        clean = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": "/"}
        return clean | {f"EXTP_{key.upper()}": value for key, value in merged.items()} | variables

    def start(
        self, action: str, name: str = NAME, *, variables: dict[str, str] | None = None, **parameters: str
    ) -> subprocess.Popen[str]:
        """Start one action in a session of its own, as hvext does."""
        self.names.add(name)
        volume = {} if action == "verify" else {"VOL_NAME": name}
        become = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"] if self.uid else []
        process = subprocess.Popen(
            [*become, f"{self.scripts}/{action}"],
            cwd=self.scripts,
            env=self.environment(volume | (variables or {}), parameters),
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
        """Run one action to its end; a server that kept the pipes open would make this hang."""
        process = self.start(action, name, variables=variables, **parameters)
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
        """Run one action that must fail; returns what it says."""
        result = self.run(action, name, variables=variables, **parameters)
        assert (result.status, result.out) == (1, "")
        assert result.err.startswith(f"sample: {action}: ")
        return result.err

    def create(self, name: str = NAME, size_mib: int = 16) -> None:
        self.do("create", name, variables={"VOL_SIZE": str(size_mib)})

    def grow(self, size_mib: int, name: str = NAME) -> None:
        self.do("grow", name, variables={"VOL_NEW_SIZE": str(size_mib)})

    def attach(self, name: str = NAME, **parameters: str) -> tuple[str, list[str]]:
        """The block path, and the URIs without their prefix."""
        path, *uris = self.do("attach", name, variables=None, **parameters).splitlines()
        assert all(uri.startswith("kvm:") for uri in uris)
        return path, [uri.removeprefix("kvm:") for uri in uris]

    def data(self, name: str = NAME) -> Path:
        return self.dir / name / "data.raw"

    def servers(self) -> list[int]:
        """Process ids of the NBD servers of this host that are alive.

        A server that has just become ready may have a forebear that is about to end: the leader of its session.
        """
        return sorted(
            int(cmdline.parent.name)
            for cmdline in Path("/proc").glob("[0-9]*/cmdline")
            if (words := arguments(cmdline))
            and words[0].endswith("qemu-storage-daemon")
            and any(word.startswith(f"addr.type=unix,addr.path={self.run_dir}/") for word in words)
            and not leads_its_session(int(cmdline.parent.name))
        )

    def loops(self) -> list[str]:
        """Loop devices over files below the temporary folder."""
        return sorted(
            f"/dev/{backing.parts[3]}"
            for backing in Path("/sys/block").glob("loop*/loop/backing_file")
            if contents(backing).startswith(f"{self.root}/")
        )

    def tear_down(self) -> None:
        """Detach everything and show that nothing is left of it."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        results = {name: self.run("detach", name) for name in self.names}
        refused = "sample: detach: VOL_NAME "
        left = {
            name: result for name, result in results.items() if result.status and not result.err.startswith(refused)
        }
        assert (left, self.servers(), list(self.run_dir.glob("*"))) == ({}, [], [])


def arguments(cmdline: Path) -> list[str]:
    """The arguments of a process, none if it has just gone."""
    return contents(cmdline).split("\0")


def leads_its_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return True


def contents(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder with a short path: sockets live below it."""
    need("qemu-storage-daemon", "qemu-system-common")
    need("losetup", "util-linux")
    need("qemu-io", "qemu-utils")
    if os.geteuid() != 0:
        missing("loop devices need root")
    with tempfile.TemporaryDirectory(prefix="hvx-") as name:
        yield Path(name)


@pytest.fixture
def place(root: Path) -> Iterator[Place]:
    """One host, torn down at the end."""
    here = Place(root)
    yield here
    here.tear_down()
    assert here.loops() == []


@pytest.fixture
def other(root: Path, place: Place) -> Iterator[Place]:
    """A second host that shares the volumes."""
    there = Place(root, {"host": "other", "run": f"{root}/r2"})
    yield there
    there.tear_down()


class Client:
    """A connection that stays open: qemu-io, told what to do line by line."""

    PROMPT = "qemu-io> "

    def __init__(self, target: str) -> None:
        self._process = subprocess.Popen(
            ["qemu-io", "-f", "raw", "-t", "none", target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=0,
        )
        self._read_to_prompt()

    def _read_to_prompt(self) -> str:
        assert self._process.stdout is not None
        got = ""
        while not got.endswith(self.PROMPT):
            byte = self._process.stdout.read(1)
            assert byte, f"qemu-io ended: {got}"
            got += byte
        return got.removesuffix(self.PROMPT)

    def do(self, command: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        return self._read_to_prompt()

    def size(self) -> str:
        return self.do("length").strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def qemu_io(target: str, *commands: str) -> str:
    """Run qemu-io with O_DIRECT on a URI or a device; returns what it printed."""
    argv = ["qemu-io", "-f", "raw", "-t", "none", *(word for command in commands for word in ("-c", command)), target]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S).stdout


def has_pattern(target: str, pattern: int) -> bool:
    return "verification failed" not in qemu_io(target, f"read -P {pattern} 0 64k")


class Device:
    """A block device that somebody holds open for writing with O_DIRECT."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        self._buffer = mmap.mmap(-1, BLOCK)

    def write(self, byte: bytes) -> str:
        """`ok`, or the name of the error."""
        self._buffer[:] = byte * BLOCK
        return self._try(lambda: os.pwritev(self._fd, [self._buffer], 0))

    def discard(self) -> str:
        blkdiscard = 0x1277
        return self._try(lambda: fcntl.ioctl(self._fd, blkdiscard, struct.pack("QQ", 0, BLOCK)))

    def size(self) -> int:
        return os.lseek(self._fd, 0, os.SEEK_END)

    def _try(self, act: object) -> str:
        assert callable(act)
        try:
            act()
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "ok"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


# --- One life --------------------------------------------------------------------------------------------------------


def test_a_volume_lives_from_create_to_remove_and_leaves_nothing(place: Place) -> None:
    place.do("verify")
    place.create(size_mib=16)
    assert place.data().stat().st_size == 16 * MIB
    path, uris = place.attach()
    assert stat.S_ISBLK(Path(path).stat().st_mode)
    assert len(uris) == 1
    assert qemu_io(uris[0], "length").strip() == "16 MiB"
    place.do("setinfo", variables={"VOL_METADATA": "originstname+web"})
    assert (place.dir / NAME / "metadata").read_text() == "originstname+web\n"
    place.do("open", variables={"VOL_OPEN_EXCLUSIVE": "True"})
    place.grow(20)
    place.do("close")
    place.do("snapshot", variables={"VOL_SNAPSHOT_NAME": "s", "VOL_SNAPSHOT_SIZE": "20"})
    place.do("detach")
    place.do("remove")
    place.do("remove", "s")
    assert list(place.dir.iterdir()) == []


def test_every_action_is_a_small_executable_file() -> None:
    for action in ACTIONS:
        script = PROVIDER / action
        assert script.is_file()
        assert not script.is_symlink()
        assert os.access(script, os.X_OK)
        assert len(script.read_text().splitlines()) <= 40


@pytest.mark.parametrize(("cwd", "argv"), [("/", [f"{PROVIDER}/attach"]), (str(PROVIDER), ["sh", "attach"])])
def test_an_action_works_wherever_it_is_called_from(place: Place, cwd: str, argv: list[str]) -> None:
    place.create()
    first = place.do("attach")
    env = place.environment({"VOL_NAME": NAME}, {})
    again = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=True)
    assert (again.stdout, again.stderr) == (first, "")


# --- attach ----------------------------------------------------------------------------------------------------------


def test_attaching_twice_gives_the_same_answer_and_starts_nothing_twice(place: Place) -> None:
    place.create()
    assert place.attach(candidates="2") == place.attach(candidates="2")
    assert (len(place.servers()), len(place.loops())) == (2, 1)


def test_twenty_attaches_side_by_side_get_one_server_and_one_loop_device(place: Place) -> None:
    place.create()
    with ThreadPoolExecutor(20) as pool:
        answers = set(pool.map(lambda _: place.do("attach"), range(20)))
    assert len(answers) == 1
    assert (len(place.servers()), len(place.loops())) == (1, 1)


def test_many_volumes_attached_side_by_side_each_get_their_own_device(place: Place) -> None:
    names = [f"v{number}" for number in range(6)]
    for name in names:
        place.create(name)
    with ThreadPoolExecutor(len(names)) as pool:
        paths = [path for path, _ in pool.map(place.attach, names)]
    assert len(set(paths)) == len(names)
    for name, path in zip(names, paths, strict=True):
        backing = contents(Path("/sys/block") / Path(path).name / "loop" / "backing_file")
        assert backing.strip() == str(place.data(name))


def test_both_accesses_show_the_same_bytes_in_both_directions(place: Place) -> None:
    place.create()
    path, (first, second) = place.attach(candidates="2")
    for pattern, (written, read) in enumerate([(path, first), (first, path), (second, first), (first, second)], 1):
        qemu_io(written, f"write -P {pattern} 0 64k")
        assert has_pattern(read, pattern)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_server_is_replaced_under_the_same_uri(place: Place, end: signal.Signals) -> None:
    place.create()
    answer = place.attach()
    (server,) = place.servers()
    os.kill(server, end)
    while place.servers():
        pass
    assert place.attach() == answer
    qemu_io(answer[1][0], "write -P 7 0 64k")
    assert has_pattern(answer[0], 7)


def test_a_vanished_loop_device_is_replaced(place: Place) -> None:
    place.create()
    path, uris = place.attach()
    subprocess.run(["losetup", "-d", path], check=True)
    path, again = place.attach()
    assert (again, place.loops()) == (uris, [path])


def test_a_path_only_volume_starts_no_server(place: Place) -> None:
    place.create()
    path, uris = place.attach(nbd="no")
    assert (place.loops(), uris, place.servers()) == ([path], [], [])


def test_a_user_who_is_not_root_gets_the_uri_without_a_path(place: Place) -> None:
    need("setpriv", "util-linux")
    scripts = place.root / "sample"
    shutil.copytree(PROVIDER, scripts)
    place.root.chmod(0o755)
    home = place.root / "nobody"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    plain = Place(home, {"path": "no"}, scripts, NOBODY)
    plain.create()
    assert plain.do("attach").startswith("\nkvm:nbd+unix:///")
    _, (uri,) = plain.attach()
    qemu_io(uri, "write -P 5 0 64k")
    assert "be root, or set path=no" in plain.refuse("attach", path="yes")
    assert len(plain.servers()) == 1
    plain.grow(20)
    plain.do("close")
    plain.tear_down()
    plain.do("remove")


def test_an_attach_that_fails_half_way_leaves_nothing(place: Place) -> None:
    place.create()
    tools = place.root / "tools"
    tools.mkdir()
    losetup = tools / "losetup"
    losetup.write_text("#!/bin/sh\nexit 1\n")
    losetup.chmod(0o755)
    place.refuse("attach", variables={"PATH": f"{tools}:/usr/bin:/bin"})
    assert (place.servers(), list(place.run_dir.iterdir())) == ([], [])


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_an_attach_ended_half_way_leaves_nothing(place: Place, end: signal.Signals) -> None:
    place.create()
    process, reached = stalled(place, "attach", "losetup")
    assert len(place.servers()) == 1
    assert reached.exists()
    os.killpg(process.pid, end)
    process.communicate(timeout=ANSWER_TIMEOUT_S)
    assert process.returncode != 0
    assert (place.servers(), list(place.run_dir.iterdir())) == ([], [])


def test_an_attach_killed_half_way_is_completed_by_the_next(place: Place) -> None:
    place.create()
    process, _ = stalled(place, "attach", "losetup")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=ANSWER_TIMEOUT_S)
    path, _ = place.attach()
    assert (len(place.servers()), place.loops()) == (1, [path])


def test_an_attach_ended_while_it_is_delayed_ends_at_once(place: Place) -> None:
    place.create()
    process, _ = stalled(place, "attach", "sleep", EXTP_ATTACH_DELAY="3600")
    process.terminate()
    process.communicate(timeout=ANSWER_TIMEOUT_S)
    assert process.returncode == 128 + signal.SIGTERM
    assert not place.run_dir.exists()


def stalled(place: Place, action: str, program: str, **variables: str) -> tuple[subprocess.Popen[str], Path]:
    """An action that has got as far as calling a program, which hangs."""
    tools = place.root / "tools"
    tools.mkdir()
    fifo = place.root / "reached"
    os.mkfifo(fifo)
    stub = tools / program
    stub.write_text(f"#!/bin/sh\necho here >{fifo}\nexec /bin/sleep 3600\n")
    stub.chmod(0o755)
    process = place.start(action, variables={"PATH": f"{tools}:/usr/bin:/bin", **variables})
    fifo.read_text()
    return process, fifo


# --- grow ------------------------------------------------------------------------------------------------------------


def test_growing_keeps_connected_clients_and_shows_new_ones_the_new_size(place: Place) -> None:
    place.create(size_mib=16)
    answer = place.attach(candidates="2")
    path, (first, second) = answer
    with Client(first) as old, Device(path) as device:
        old.do("write -P 1 0 64k")
        place.do("grow", variables={"VOL_SIZE": "16", "VOL_NEW_SIZE": "32"}, candidates="2")
        assert old.size() == "16 MiB"
        assert "wrote 65536/65536" in old.do("write -P 2 0 64k")
        assert device.size() == 32 * MIB
        for uri in (first, second):
            assert qemu_io(uri, "length").strip() == "32 MiB"
            assert has_pattern(uri, 2)
        qemu_io(first, "write -P 3 31M 64k")
        assert "verification failed" not in qemu_io(path, "read -P 3 31M 64k")
        assert place.attach(candidates="2") == answer
        assert "wrote 65536/65536" in old.do("write -P 4 0 64k")
    place.attach(candidates="2")
    assert len(place.servers()) == 2  # the old ones went with their last client


def test_growing_twice_under_one_client_keeps_it_connected(place: Place) -> None:
    place.create(size_mib=16)
    _, (uri,) = place.attach()
    with Client(uri) as oldest:
        place.grow(20)
        with Client(uri) as older:
            place.grow(24)
            assert (oldest.size(), older.size(), qemu_io(uri, "length").strip()) == ("16 MiB", "20 MiB", "24 MiB")
            assert len(place.servers()) == 3
            refused = place.run("detach")
            assert refused.status == 1
            assert "still has a client" in refused.err
            assert "wrote" in oldest.do("write 0 64k")
            assert "wrote" in older.do("write 0 64k")
    place.do("detach")
    assert place.servers() == []


def test_a_grow_is_repeated_without_harm_and_finishes_an_interrupted_one(place: Place) -> None:
    place.create(size_mib=16)
    path, (uri,) = place.attach()
    os.truncate(place.data(), 32 * MIB)  # what a grow that was killed leaves behind
    place.do("grow", variables={"VOL_SIZE": "16", "VOL_NEW_SIZE": "32"})
    place.do("grow", variables={"VOL_SIZE": "16", "VOL_NEW_SIZE": "32"})
    assert qemu_io(uri, "length") == qemu_io(path, "length")
    assert len(place.servers()) == 1


def test_a_detached_volume_grows_without_being_served(place: Place) -> None:
    place.create(size_mib=16)
    place.grow(32)
    assert (place.data().stat().st_size, place.servers(), place.loops()) == (32 * MIB, [], [])


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"VOL_SIZE": "16", "VOL_NEW_SIZE": "8"}, "does not shrink"),
        ({"VOL_SIZE": "64", "VOL_NEW_SIZE": "128"}, "VOL_SIZE says"),
        ({"VOL_SIZE": "16"}, "VOL_NEW_SIZE is ''"),
        ({"VOL_SIZE": "16", "VOL_NEW_SIZE": "1e3"}, "whole number of MiB"),
        ({"VOL_SIZE": "16", "VOL_NEW_SIZE": "-1"}, "whole number of MiB"),
        ({"VOL_SIZE": "16", "VOL_NEW_SIZE": "999999999"}, "more than 99999999"),
    ],
)
def test_a_grow_that_would_lose_data_or_makes_no_sense_is_refused(
    place: Place, variables: dict[str, str], words: str
) -> None:
    place.create(size_mib=16)
    assert words in place.refuse("grow", variables=variables)
    assert place.data().stat().st_size == 16 * MIB


def test_a_grow_that_does_not_fit_leaves_the_volume_as_it_was(place: Place) -> None:
    place.create(size_mib=16)
    said = place.run("grow", variables={"VOL_NEW_SIZE": "90000000"}, preallocate="yes")
    assert said.status == 1
    assert "cannot reserve" in said.err
    assert place.data().stat().st_size == 16 * MIB


# --- detach and remove -----------------------------------------------------------------------------------------------


def test_detaching_twice_succeeds_and_leaves_no_process_device_or_file(place: Place) -> None:
    place.create()
    place.attach(candidates="2")
    place.do("detach")
    assert (place.servers(), place.loops(), list(place.run_dir.iterdir())) == ([], [], [])
    place.do("detach")


def test_detaching_a_volume_that_does_not_exist_succeeds(place: Place) -> None:
    place.do("detach")
    assert not place.run_dir.exists()


def test_detaching_ends_what_serves_a_volume_that_is_gone(place: Place) -> None:
    place.create()
    place.attach()
    shutil.rmtree(place.dir / NAME)
    place.do("detach")
    assert (place.servers(), place.loops(), list(place.run_dir.iterdir())) == ([], [], [])


def test_detaching_ends_servers_whose_folder_was_deleted(place: Place) -> None:
    place.create()
    place.attach(path="no")
    shutil.rmtree(place.run_dir)
    place.do("detach")
    assert place.servers() == []


def test_detaching_ends_no_process_that_only_mentions_the_socket(place: Place) -> None:
    place.create()
    _, (uri,) = place.attach()
    socket = Path(urllib.parse.unquote(uri.partition("socket=")[2]))
    words = [sys.executable, "-c", "input()", "--nbd-server", f"addr.type=unix,addr.path={socket.resolve()}"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as bystander:
        place.do("detach")
        assert bystander.poll() is None
        bystander.kill()


def test_a_loop_device_in_use_is_not_pulled_away(place: Place) -> None:
    place.create()
    answer = place.attach()
    with Device(answer[0]) as device:
        said = place.refuse("detach")
        assert f"process {os.getpid()} " in said
        assert (device.write(b"x"), place.attach()) == ("ok", answer)
        assert len(place.servers()) == 1


def test_an_attached_volume_is_not_removed(place: Place) -> None:
    place.create()
    _, (uri,) = place.attach()
    assert "detach it first" in place.refuse("remove")
    place.do("close")
    assert "detach it first" in place.refuse("remove")
    place.attach()
    qemu_io(uri, "write 0 64k")


def test_a_volume_open_on_another_host_is_not_removed(place: Place, other: Place) -> None:
    place.create()
    other.do("open", variables={"VOL_OPEN_EXCLUSIVE": "False"})
    assert "open on other;" in place.refuse("remove")
    other.do("close")
    place.do("remove")


def test_removing_twice_succeeds(place: Place) -> None:
    place.create()
    place.do("remove")
    place.do("remove")
    assert "there is no volume" in place.refuse("attach")


# --- create ----------------------------------------------------------------------------------------------------------


def test_a_create_does_not_overwrite_a_volume(place: Place) -> None:
    place.create(size_mib=16)
    assert f"volume {NAME} is already in" in place.refuse("create", variables={"VOL_SIZE": "32"})
    assert place.data().stat().st_size == 16 * MIB


def test_of_creates_side_by_side_one_wins_and_the_volume_is_whole(place: Place) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: place.run("create", variables={"VOL_SIZE": "16"}), range(8)))
    assert sorted(result.status for result in results) == [0] + [1] * 7
    assert [entry.name for entry in place.dir.iterdir()] == [NAME]
    place.attach()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_create_does_not_block_its_repetition(place: Place, end: signal.Signals) -> None:
    process, _ = stalled(place, "create", "truncate", VOL_SIZE="16")
    os.killpg(process.pid, end)
    process.communicate(timeout=ANSWER_TIMEOUT_S)
    assert (end == signal.SIGTERM) == (list(place.dir.iterdir()) == [])
    place.create()
    assert [entry.name for entry in place.dir.iterdir()] == [NAME]


def test_a_create_that_does_not_fit_says_how_much_is_free_and_leaves_nothing(place: Place) -> None:
    said = place.run("create", variables={"VOL_SIZE": "90000000"}, preallocate="yes")
    assert said.status == 1
    assert re.search(r"where \d+ are free; free some, or set preallocate=no", said.err)
    assert list(place.dir.iterdir()) == []


def test_preallocate_reserves_the_space(place: Place) -> None:
    place.do("create", variables={"VOL_SIZE": "8"}, preallocate="yes")
    assert place.data().stat().st_blocks * 512 >= 8 * MIB


@pytest.mark.parametrize("size", ["", "0", "016", "1.5", "16M", "-1"])
def test_a_size_that_is_no_number_of_mib_is_refused(place: Place, size: str) -> None:
    assert "VOL_SIZE is " in place.refuse("create", variables={"VOL_SIZE": size})


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-n", "a/b", "a b", "a,b", "a~b", "a\nb", "é", "a" * 181])
def test_a_name_that_could_reach_elsewhere_is_refused(place: Place, name: str) -> None:
    for action in ("create", "attach", "detach", "remove"):
        place.refuse(action, name, variables={"VOL_SIZE": "16"})
    assert not place.dir.exists()
    assert not place.run_dir.exists()


@pytest.mark.parametrize("name", ["a+b:c@d=e-f_g.H", "a" * 180, "0"])
def test_every_allowed_name_can_be_reached_by_its_uri(place: Place, name: str) -> None:
    place.create(name)
    path, (uri,) = place.attach(name)
    assert re.fullmatch(r"nbd\+unix:///[A-Za-z0-9._~%-]+\?socket=[A-Za-z0-9._~%/-]+", uri)
    qemu_io(uri, "write -P 9 0 64k")
    assert has_pattern(path, 9)


@pytest.mark.parametrize("folder", ["blank, comma", "100%+b&c=ä", "it's $HOME*[b]?"])
def test_folders_of_any_name_work(place: Place, folder: str) -> None:
    place.parameters = {"dir": f"{place.root}/{folder}/d", "run": f"{place.root}/{folder}"}
    place.do("create", variables={"VOL_SIZE": "16"})
    path, (uri,) = place.attach()
    qemu_io(uri, "write -P 6 0 64k")
    assert has_pattern(path, 6)
    place.grow(20)
    assert qemu_io(uri, "length").strip() == "20 MiB"
    place.do("detach")
    assert [entry.name for entry in Path(place.parameters["run"]).iterdir()] == ["d"]
    place.do("remove")
    shutil.rmtree(place.parameters["dir"])


# --- open and close --------------------------------------------------------------------------------------------------


def test_after_close_nothing_can_be_written_through_this_host(place: Place) -> None:
    place.create()
    answer = place.attach(candidates="2")
    path, (first, second) = answer
    with Client(first) as one, Client(second) as two, Device(path) as device:
        assert device.write(b"a") == "ok"
        place.do("close")
        for client in (one, two):
            assert "wrote" not in client.do("write -P 0x62 0 64k")
        assert (device.write(b"b"), device.discard()) == ("EPERM", "EPERM")
        assert place.data().read_bytes()[:BLOCK] == b"a" * BLOCK
        assert place.servers() == []
        place.do("close")
        place.do("open", variables={"VOL_OPEN_EXCLUSIVE": "True"}, candidates="2")
        assert device.write(b"c") == "ok"
        qemu_io(second, "write -P 0x64 0 64k")
        assert has_pattern(first, 0x64)
        assert place.attach(candidates="2") == answer


def test_a_qemu_that_has_the_loop_device_open_cannot_write_after_close(place: Place) -> None:
    place.create()
    path, _ = place.attach()
    with Client(path) as qemu:
        qemu.do("write -P 1 0 64k")
        place.do("close")
        assert "write failed: Operation not permitted" in qemu.do("write -P 2 0 64k")
        assert "verification failed" not in qemu.do("read -P 1 0 64k")
        place.attach()
        assert "wrote 65536/65536" in qemu.do("write -P 3 0 64k")


def test_close_ends_a_server_that_is_stopped(place: Place) -> None:
    place.create()
    place.attach()
    (server,) = place.servers()
    os.kill(server, signal.SIGSTOP)
    place.do("close")
    assert place.servers() == []


def test_close_ends_servers_that_an_earlier_size_has_left(place: Place) -> None:
    place.create(size_mib=16)
    _, (uri,) = place.attach()
    with Client(uri) as old:
        place.grow(32)
        place.do("close")
        assert "wrote" not in old.do("write 0 64k")
    assert place.servers() == []


def test_a_close_that_cannot_fence_a_mounted_device_says_so(place: Place) -> None:
    need("mkfs.ext4", "e2fsprogs")
    place.create()
    path, _ = place.attach()
    place.do("open", variables={"VOL_OPEN_EXCLUSIVE": "True"})
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    mountpoint = place.root / "m"
    mountpoint.mkdir()
    subprocess.run(["mount", path, mountpoint], check=True)
    try:
        said = place.refuse("close")
        detaching = place.refuse("detach")
    finally:
        subprocess.run(["umount", mountpoint], check=True)
    assert f"mounted on {mountpoint}" in said
    assert f"mounted on {mountpoint}" in detaching
    assert list((place.dir / NAME / "open").iterdir()) != []
    place.do("close")
    assert list((place.dir / NAME / "open").iterdir()) == []
    # A server of another test may have a own view of the mounts from that moment: it holds the device until it ends.
    deadline = time.monotonic() + 60
    while place.run("detach").status:
        assert time.monotonic() < deadline, "the device is still in use"
        time.sleep(0.2)


def test_a_grow_after_close_does_not_lift_the_fence(place: Place) -> None:
    place.create(size_mib=16)
    path, (uri,) = place.attach()
    place.do("close")
    place.grow(32)
    assert place.servers() == []
    with Device(path) as device:
        assert device.write(b"x") == "EPERM"
        place.attach()
        assert (device.write(b"x"), device.size()) == ("ok", 32 * MIB)
    assert qemu_io(uri, "length").strip() == "32 MiB"


def test_an_attach_that_fails_does_not_lift_the_fence(place: Place) -> None:
    place.create()
    path, _ = place.attach(nbd="no")
    place.do("close")
    process, _ = stalled(place, "attach", "blockdev")
    assert len(place.servers()) == 1
    os.killpg(process.pid, signal.SIGTERM)
    (place.root / "tools" / "blockdev").unlink()
    process.communicate(timeout=ANSWER_TIMEOUT_S)
    assert place.servers() == []
    with Device(path) as device:
        assert device.write(b"x") == "EPERM"


def test_the_next_user_of_the_loop_device_does_not_find_it_read_only(place: Place) -> None:
    place.create()
    path, _ = place.attach()
    place.do("close")
    place.do("detach")
    assert subprocess.run(["blockdev", "--getro", path], check=True, capture_output=True).stdout == b"0\n"


def test_a_second_host_cannot_open_what_another_one_has_exclusively(place: Place, other: Place) -> None:
    exclusive, shared = ({"VOL_OPEN_EXCLUSIVE": mode} for mode in ("True", "False"))
    place.create()
    place.do("open", variables=exclusive)
    place.do("open", variables=exclusive)
    assert "it is open on" in other.refuse("open", variables=exclusive)
    assert "it is open exclusively on" in other.refuse("open", variables=shared)
    place.do("open", variables=shared)
    other.do("open", variables=shared)
    assert "it is open on other;" in place.refuse("open", variables=exclusive)
    place.do("close")
    other.do("open", variables=exclusive)
    assert "VOL_OPEN_EXCLUSIVE is 'yes'" in place.refuse("open", variables={"VOL_OPEN_EXCLUSIVE": "yes"})


def test_a_migration_hands_the_volume_over_and_fences_only_the_source(place: Place, other: Place) -> None:
    exclusive, shared = ({"VOL_OPEN_EXCLUSIVE": mode} for mode in ("True", "False"))
    place.create()
    source_path, (source_uri,) = place.attach()
    place.do("open", variables=exclusive)
    target_path, (target_uri,) = other.attach()
    other.do("close")  # Ganeti begins like this
    place.do("open", variables=shared)
    other.do("open", variables=shared)
    qemu_io(source_uri, "write -P 1 0 64k")
    assert has_pattern(target_path, 1)
    place.do("close")
    other.do("open", variables=exclusive)
    place.do("detach")
    qemu_io(target_uri, "write -P 2 0 64k")
    assert has_pattern(target_path, 2)
    assert source_path != target_path


def test_closing_a_volume_that_was_never_attached_succeeds(place: Place) -> None:
    place.create()
    place.do("close")
    place.do("close")
    assert "there is no volume" in place.refuse("close", "typo")


# --- snapshot --------------------------------------------------------------------------------------------------------


def test_a_snapshot_keeps_the_bytes_of_its_moment_and_can_be_attached(place: Place) -> None:
    place.create(size_mib=16)
    _, (uri,) = place.attach()
    qemu_io(uri, "write -P 1 0 64k")
    place.do("close")
    place.do("snapshot", variables={"VOL_SNAPSHOT_NAME": "s", "VOL_SNAPSHOT_SIZE": "20"})
    place.attach()
    qemu_io(uri, "write -P 2 0 64k")
    _, (snapshot_uri,) = place.attach("s")
    assert has_pattern(snapshot_uri, 1)
    assert has_pattern(uri, 2)
    assert qemu_io(snapshot_uri, "length").strip() == "20 MiB"
    assert place.data("s").stat().st_blocks * 512 < MIB


def test_a_volume_being_written_is_cloned_in_one_step_or_not_at_all(place: Place) -> None:
    place.create()
    place.attach()
    wanted = {"VOL_SNAPSHOT_NAME": "s", "VOL_SNAPSHOT_SIZE": "16"}
    probe = ["cp", "--reflink=always", str(place.data()), str(place.root / "probe")]
    if subprocess.run(probe, check=False, capture_output=True).returncode == 0:
        place.do("snapshot", variables=wanted)
    else:
        assert "detach or close it first, or use a filesystem with reflinks" in place.refuse(
            "snapshot", variables=wanted
        )
        assert [entry.name for entry in place.dir.iterdir()] == [NAME]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"VOL_SNAPSHOT_NAME": "s", "VOL_SNAPSHOT_SIZE": "8"}, "ask for at least that"),
        ({"VOL_SNAPSHOT_NAME": "s"}, "VOL_SNAPSHOT_SIZE is ''"),
        ({"VOL_SNAPSHOT_SIZE": "16"}, "VOL_SNAPSHOT_NAME is not set"),
        ({"VOL_SNAPSHOT_NAME": "../s", "VOL_SNAPSHOT_SIZE": "16"}, "a name has the characters"),
        ({"VOL_SNAPSHOT_NAME": NAME, "VOL_SNAPSHOT_SIZE": "16"}, "already in"),
    ],
)
def test_a_snapshot_that_would_lose_or_overwrite_data_is_refused(
    place: Place, variables: dict[str, str], words: str
) -> None:
    place.create(size_mib=16)
    assert words in place.refuse("snapshot", variables=variables)
    assert [entry.name for entry in place.dir.iterdir()] == [NAME]


# --- Parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"dir": "here"}, "the parameter dir is 'here'; it must be an absolute path"),
        ({"run": "/a\nb"}, "the parameter run has a control character"),
        ({"path": "maybe"}, "the parameter path is 'maybe'; it must be yes or no"),
        ({"nbd": "1"}, "the parameter nbd is '1'"),
        ({"preallocate": "full"}, "the parameter preallocate is 'full'"),
        ({"candidates": "3"}, "the parameter candidates is '3'; it must be 1 or 2"),
        ({"attach_delay": "soon"}, "the parameter attach_delay is 'soon'"),
        ({"host": "a/b"}, "set the parameter host"),
        ({"path": "no", "nbd": "no"}, "leaves no way to the volume"),
        ({"colour": "yes"}, "unknown parameter 'colour'"),
        ({"run": "/" + "r" * 70}, "at least 1 bytes shorter"),
    ],
)
def test_a_mistaken_parameter_is_named_before_a_volume_is_made(
    place: Place, parameters: dict[str, str], words: str
) -> None:
    place.names.clear()
    assert words in place.refuse("verify", variables=None, **parameters)
    assert words in place.refuse("create", variables={"VOL_SIZE": "16"}, **parameters)
    assert not place.dir.exists()


def test_a_parameter_unknown_later_does_not_keep_a_volume_from_being_used(place: Place) -> None:
    place.create()
    place.attach(retired="yes")
    place.do("detach", retired="yes")
    place.do("remove", retired="yes")


def test_every_documented_parameter_is_known_and_every_known_one_documented(place: Place) -> None:
    lines = (PROVIDER / "parameters.list").read_text().splitlines()
    documented = {line.split(maxsplit=1)[0] for line in lines}
    values = {"dir": "/a", "run": "/b", "candidates": "2", "attach_delay": "0.5", "host": "h"}
    place.do("verify", variables=None, access="userspace", **{name: values.get(name, "yes") for name in documented})
    (known,) = re.findall(r"^ +(DIR \|.*)\) ;;$", (PROVIDER / "lib.sh").read_text(), re.MULTILINE)
    assert {name.lower() for name in known.split(" | ")} - {"provider", "access"} == documented


def test_a_volume_at_the_longest_socket_path_can_be_attached_and_grown(place: Place) -> None:
    place.parameters = {"run": f"{place.root}/".ljust(70, "r")}
    place.create()
    _, (uri, _) = place.attach(candidates="2")
    place.grow(20)
    assert qemu_io(uri, "length").strip() == "20 MiB"
    place.do("detach")
    place.do("detach", path="yes", run=f"{place.root}/".ljust(71, "r"), nbd="no")
