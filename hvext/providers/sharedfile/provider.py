"""Image files on a file system that all hosts have mounted: through the file itself, and through a loop device.

DIR/VOL_NAME/disk.raw    the bytes of the disk; its length is the volume's size
             lock        held by an action that changes the volume, on whichever host
             metadata    what setinfo was last told
             attached/HOST   one file for each host that has it attached
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import loop
from extstorage import (
    MIB,
    RELEASE_TIMEOUT_S,
    Lock,
    absolute,
    answer,
    choice,
    growth,
    lock_file,
    locked,
    main,
    matching,
    needed,
    parameter,
    refuse,
    refuse_unknown_parameters,
    run_tool,
    size_bytes,
    users_of,
    variable,
    volume_name,
    within,
)

_FICLONE = 0x40049409
_COPY_S = 86400.0
_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*"


class Place:
    """The folder of the volumes, as the parameters name it. It is not made: that is how a missing mount is seen."""

    def __init__(self) -> None:
        # One folder is one folder, however it is spelt: what serves its volumes, and is said of them, has one name.
        self.dir = os.path.realpath(absolute("dir", needed("dir")))
        self.run = os.path.realpath(absolute("run", parameter("run", "/run/hvext/sharedfile")))
        self.path = choice("path", "yes", "no") == "yes"
        self.preallocate = choice("preallocate", "no", "yes") == "yes"
        self.host = matching("host", parameter("host", os.uname().nodename), _NAME, "a name, without a slash")
        self._mount = absolute("mount", needed("mount")) if parameter("mount") else ""
        self._marker = matching("marker", parameter("marker"), r"[^/]*", "the name of a file, without a folder")
        if "," in self.dir:
            refuse(f"the parameter dir is '{self.dir}'; QEMU's options end at a comma, so it may have none")

    def check(self) -> None:
        """Refuse a folder whose file system is not mounted: its volumes would be made on the host's own disk."""
        try:
            descriptor = os.open(self.dir, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            refuse(f"cannot open the folder {self.dir} ({error.strerror}); mount its file system, or make the folder")
        try:
            mounted = mount_of(descriptor)
        finally:
            os.close(descriptor)
        if self._mount and mounted != os.path.realpath(self._mount):
            refuse(f"{self.dir} is on the file system at {mounted} and not on the one at {self._mount}; mount that")
        if not self._mount and mounted == "/":
            refuse(
                f"{self.dir} is on the file system of this host; mount the shared one there,",
                "or say mount=/ when that is meant",
            )
        if self._marker and not Path(self.dir, self._marker).exists():
            refuse(f"there is no file {self._marker} in {self.dir}; mount its file system, or make that file")

    @property
    def here(self) -> Volume:
        """The volume that the caller names."""
        return Volume(self, volume_name())

    def sweep(self) -> None:
        """Clear away what killed actions of this host have left under temporary names."""
        for left in Path(self.dir).glob(f".*~{self.host}.*"):
            if not Path("/proc", left.name.rpartition(".")[2]).exists():
                shutil.rmtree(left)


def mount_of(descriptor: int) -> str:
    """Return the mount point that an open file is below. Source: proc(5), fdinfo and mountinfo."""
    info = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    number = info[info.index("mnt_id:") + 7 :].split()[0]
    for words in map(str.split, Path("/proc/self/mountinfo").read_text().splitlines()):
        if words[0] == number:
            return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), words[4])
    return "/"


class Volume:
    """One volume, which may not be there."""

    def __init__(self, place: Place, name: str) -> None:
        self.place = place
        self.name = name
        self.folder = f"{place.dir}/{name}"
        self.file = f"{self.folder}/disk.raw"

    def size(self) -> int:
        """Return the volume's size in bytes; refuses when there is no such volume."""
        try:
            return os.stat(self.file).st_size  # noqa: PTH116
        except FileNotFoundError:
            return refuse(
                f"there is no volume {self.name} in {self.place.dir}; create it, or correct the parameter dir"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[Lock]:
        """Hold the volume on this host."""
        with locked(self.place.run, self.folder) as lock:
            yield lock

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the volume on all hosts, as far as the file system has flock for all of them."""
        self.size()
        try:
            descriptor = lock_file(f"{self.folder}/lock")
        except FileNotFoundError:
            self.size()
            raise
        try:
            yield
        finally:
            os.close(descriptor)

    def write(self, name: str, text: str) -> None:
        """Replace a small file of the volume in one step."""
        new = Path(self.folder, f"{name}.new")
        new.write_text(f"{text}\n")
        new.replace(Path(self.folder, name))

    def elsewhere(self) -> str:
        """Return the other hosts that have the volume attached."""
        return " ".join(
            sorted(each.name for each in Path(self.folder, "attached").glob("*") if each.name != self.place.host)
        )

    def record(self) -> None:
        """Record that this host has the volume attached."""
        Path(self.folder, "attached", self.place.host).touch()

    def forget(self) -> None:
        """Drop the record of this host."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            Path(self.folder, "attached", self.place.host).unlink()

    def refuse_elsewhere(self) -> None:
        """Refuse while other hosts have the volume attached."""
        if others := self.elsewhere():
            refuse(
                f"volume {self.name} is attached on {others}; detach it there first",
                f"(for a host that is lost: remove its file in {self.folder}/attached)",
            )

    def users(self) -> str:
        """Return who uses the file on this host, or its loop device, in words."""
        device = loop.find(self.file)
        return ", ".join(filter(None, (users_of(path) for path in (self.file, device) if path and Path(path).exists())))

    def extend(self, file: str, size: int) -> None:
        """Make a file longer; it never gets shorter."""
        with open(file, "r+b", buffering=0) as opened:  # noqa: PTH123
            try:
                if self.place.preallocate:
                    os.posix_fallocate(opened.fileno(), 0, size)
                else:
                    os.ftruncate(opened.fileno(), size)
                os.fsync(opened.fileno())
            except OSError as error:
                refuse(f"cannot make {file} {size} bytes long: {error.strerror}; free some space, or preallocate=no")

    def make(self, size: int, source: Volume | None = None) -> None:
        """Make the volume under another name, then rename it: it is whole or not there."""
        self.place.sweep()
        temporary = f"{self.place.dir}/.{self.name}~{self.place.host}.{os.getpid()}"
        try:
            os.makedirs(f"{temporary}/attached")  # noqa: PTH103
            copy = f"{temporary}/disk.raw"
            Path(copy).touch()
            if source:
                copy_bytes(source, copy)
            self.extend(copy, size)
            try:
                os.rename(temporary, self.folder)  # noqa: PTH104
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                self.refuse_taken()
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def refuse_taken(self) -> None:
        """Say that the name is taken."""
        refuse(f"volume {self.name} is already in {self.place.dir}; remove it first, or choose another name")


def copy_bytes(source: Volume, copy: str) -> None:
    """Copy a volume as it is at one moment: in one step, or while nobody uses it."""
    with open(source.file, "rb") as old, open(copy, "r+b") as new:  # noqa: PTH123
        try:
            fcntl.ioctl(new, _FICLONE, old.fileno())
        except OSError as error:
            why = error.strerror
        else:
            return
    hosts = " ".join(sorted(each.name for each in Path(source.folder, "attached").iterdir()))
    if hosts or (users := source.users()):
        refuse(
            f"volume {source.name} is in use ({f'attached on {hosts}' if hosts else users}) and {source.place.dir}",
            f"cannot clone a file ({why}); detach it first, or use a file system with reflinks",
        )
    done = run_tool("cp", "coreutils", "--sparse=always", "--", source.file, copy, timeout_s=_COPY_S)
    if done.status:
        refuse(f"cannot copy volume {source.name}: {done.words}")


# --- The actions -----------------------------------------------------------------------------------------------------


def create() -> None:
    """Make the volume. One that a killed create has made, and nobody was told of, is as good as a new one."""
    refuse_unknown_parameters()
    place, size = Place(), size_bytes("VOL_SIZE")
    volume = place.here
    place.check()
    with volume.locked() as lock:
        if Path(volume.folder).exists():
            if lock.interrupted != "create" or volume.size() != size:
                volume.refuse_taken()
        else:
            lock.begin("create")
            try:
                volume.make(size)
            except Exception:
                lock.end()
                raise
        lock.end()


def remove() -> None:
    """Remove the volume."""
    place = Place()
    volume = place.here
    place.check()
    with volume.locked() as lock:
        place.sweep()
        if device := loop.find(volume.file):
            refuse(f"volume {volume.name} is attached on this host as {device}; detach it first")
        if Path(volume.folder).exists():
            if users := volume.users():
                refuse(f"volume {volume.name} is in use ({users}); end its users first")
            volume.refuse_elsewhere()
            gone = f"{place.dir}/.{volume.name}~{place.host}.{os.getpid()}"
            os.rename(volume.folder, gone)  # noqa: PTH104
            shutil.rmtree(gone)
        lock.end()


def grow() -> None:
    """Make the volume larger, and its loop device on this host with it."""
    place = Place()
    volume = place.here
    place.check()
    with volume.locked(), volume.changing():
        now = volume.size()
        new = growth(volume.name, now)
        if new > now:
            volume.extend(volume.file, new)
        if device := loop.find(volume.file):
            loop.refresh(device, new)


def attach() -> None:
    """Say where the volume is."""
    place = Place()
    volume = place.here
    place.check()
    with volume.locked() as lock:
        lock.end()
        size = volume.size()
        volume.record()
        device = loop.find(volume.file)
        if not device and place.path:
            device = loop.make(volume.file)
        if device:
            loop.refresh(device, size)
    answer(device, f"file:{volume.file}")


def detach() -> None:
    """Take the loop device away; also of a volume that is gone. Those that use the file would lose it: refused."""
    place = Place()
    volume = place.here
    with volume.locked():
        if not within(RELEASE_TIMEOUT_S, lambda: not volume.users()):
            refuse(f"volume {volume.name} is still in use ({volume.users()}); end its users, then detach again")
        if device := loop.find(volume.file):
            loop.drop(device)
        volume.forget()


def setinfo() -> None:
    """Keep VOL_METADATA with the volume."""
    place = Place()
    volume = place.here
    place.check()
    with volume.locked(), volume.changing():
        volume.write("metadata", variable("VOL_METADATA"))


def snapshot() -> None:
    """Make another volume with the same bytes."""
    place = Place()
    volume, copy = place.here, Volume(place, volume_name("VOL_SNAPSHOT_NAME"))
    wanted = size_bytes("VOL_SNAPSHOT_SIZE")
    place.check()
    with volume.locked(), volume.changing():
        size = volume.size()
        if wanted < size:
            refuse(
                f"VOL_SNAPSHOT_SIZE is {wanted // MIB} MiB, but volume {volume.name} has {size // MIB};",
                "ask for at least that",
            )
        if Path(copy.folder).exists():
            copy.refuse_taken()
        copy.make(wanted, source=volume)


def verify() -> None:
    """Check the parameters, and whether the file system is mounted."""
    refuse_unknown_parameters()
    Place().check()


if __name__ == "__main__":
    main(
        {
            "create": create,
            "remove": remove,
            "grow": grow,
            "attach": attach,
            "detach": detach,
            "setinfo": setinfo,
            "snapshot": snapshot,
            "verify": verify,
        }
    )
