"""Images of a Ceph pool: through librbd by their URI, and through the kernel's block device where it has one.

An image is POOL[/NAMESPACE]/PREFIX+VOL_NAME. The cluster is the only memory, but for what is in an image's lock file:

    create, snapshot    the image is half-made; the repetition begins by clearing it away
    open                a client of ours has the image open for writing
    trace SECONDS       one was killed: until then (of the monotonic clock) the cluster may count it as a user

Whoever finds ``open`` when he gets the lock writes ``trace``. The removal waits for traces, and for nobody else.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import time
from pathlib import Path

from extstorage import (
    MIB,
    Done,
    Lock,
    absolute,
    answer,
    choice,
    device_bytes,
    find_program,
    growth,
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PACKAGE = "ceph-common"
_NOT_THERE, _IN_USE, _TAKEN = 2, 16, 17
_MODPROBE_S = 10
#: Longer than the cluster takes to give up a client that was killed (osd_client_watch_timeout, 30 s).
_WATCH_S = 40
#: How long the kernel takes to hear of an image's new size.
_SEEN_S = 10
#: A copy of a whole image, or its removal, may take as long as the caller lets it.
_LONG_S = 86400.0
_NAME = r"[A-Za-z0-9._+=-]+"
_KEY = "hvext.metadata"
_HALF_MADE = ("create", "snapshot")
_OPEN = "open"


class Pool:
    """The pool, as the parameters name it."""

    def __init__(self) -> None:
        alike = f"made of the characters {_NAME[1:-2]}"
        self.pool = matching("pool", parameter("pool", "rbd"), _NAME, alike)
        self.namespace = matching("namespace", parameter("namespace"), f"({_NAME})?", alike)
        self.id = matching("id", parameter("id", "admin"), _NAME, alike)
        self.prefix = matching("prefix", parameter("prefix"), f"({_NAME})?", alike)
        self.conf = absolute("conf", parameter("conf", "/etc/ceph/ceph.conf"))
        self.keyring = absolute("keyring", needed("keyring")) if parameter("keyring") else ""
        self.run = absolute("run", parameter("run", "/run/hvext/rbd"))
        self.timeout = matching("timeout", parameter("timeout", "30"), "[1-9][0-9]{0,5}", "a number of seconds")
        self._path = choice("path", "auto", "yes", "no")
        for name, path in (("conf", self.conf), ("keyring", self.keyring)):
            if path and not os.access(path, os.R_OK):
                refuse(f"cannot read {path}; correct the parameter {name}, or put the file there")

    def image(self, name: str) -> Image:
        """Return the image of a volume."""
        return Image(self, f"{self.prefix}{name}")

    @property
    def here(self) -> Image:
        """The image that the caller names."""
        return self.image(volume_name(without="@"))

    def tool(self, *words: str, timeout_s: float | None = None, lock: Lock | None = None) -> Done:
        """Run the rbd tool as the pool's user. The key is in a file, never in the arguments."""
        who = ["--conf", self.conf, "--id", self.id, *(["--keyring", self.keyring] if self.keyring else [])]
        limits = ["--client-mount-timeout", self.timeout, "--rados-mon-op-timeout", self.timeout]
        limits += ["--rados-osd-op-timeout", self.timeout]
        limit_s = timeout_s or float(self.timeout) + 10
        return run_tool("rbd", _PACKAGE, *words, *who, *limits, timeout_s=limit_s, lock=lock)

    @functools.cached_property
    def maps(self) -> bool:
        """Whether an image gets a block device as well."""
        return self._path == "yes" or (self._path == "auto" and kernel_can_map())


def kernel_can_map() -> bool:
    """Return whether the kernel has its own client, loading it where it is a module."""
    there = Path("/sys/bus/rbd")
    if not there.exists() and find_program("modprobe"):
        run_tool("modprobe", "kmod", "--quiet", "rbd", timeout_s=_MODPROBE_S)
    return there.exists()


class Image:
    """One image, which may not be there. What changes it needs its lock."""

    def __init__(self, pool: Pool, name: str) -> None:
        self.pool = pool
        self.name = name
        self.spec = "/".join(part for part in (pool.pool, pool.namespace, name) if part)
        #: What the image was left as by an action that was killed.
        self.interrupted = ""
        self._lock: Lock | None = None
        self._half_made = False
        self._traced_until = 0.0

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the image's lock on this host, and find out what was interrupted."""
        with locked(self.pool.run, self.spec) as self._lock:
            self.interrupted = self._lock.interrupted
            self._half_made = self.interrupted in _HALF_MADE
            if self.interrupted:
                latest = time.monotonic() + _WATCH_S
                trace = re.fullmatch("trace ([0-9]+)", self.interrupted)
                # A later time than that is one of before the host was started anew.
                self._traced_until = min(latest, float(trace[1])) if trace else latest
            if not self._half_made:
                self.settle()
            yield

    def begin(self, what: str) -> None:
        """Write down that the image is half-made from now on."""
        self._half_made = True
        self._note(what)

    def settle(self) -> None:
        """The image is whole, or is none of ours."""
        self._half_made = False
        self._note(f"trace {self._traced_until:.0f}" if self._traced_until > time.monotonic() else "")

    def _note(self, what: str) -> None:
        if self._lock:
            self._lock.begin(what)

    def write(self, *words: str) -> Done:
        """Run the tool, which opens the image for writing, to its end, however long that takes."""
        if not self._half_made:
            self._note(_OPEN)
        done = self.pool.tool(*words, timeout_s=_LONG_S, lock=self._lock)
        # One that was killed, or left behind by an exception, did not take its leave of the cluster.
        if done.status >= 0 and not self._half_made:
            self.settle()
        return done

    def do(self, what: str, *words: str) -> str:
        """As ``write``; returns what the tool printed, and refuses when it fails."""
        done = self.write(*words)
        if done.status:
            refuse(f"cannot {what}:", done.words)
        return done.out

    def size(self) -> int | None:
        """Return the image's size in bytes, None when there is no such image."""
        done = self.pool.tool("info", "--format", "json", self.spec)
        if done.status == 0:
            return int(json.loads(done.out)["size"])
        if done.status == _NOT_THERE and is_about_the_image(done):
            return None
        return refuse(f"cannot look at image {self.spec} as client.{self.pool.id}: {done.words}")

    def need_size(self) -> int:
        """Return the image's size in bytes; refuses when it is not there."""
        size = self.size()
        return refuse(f"there is no image {self.spec}; create it, or correct the parameters") if size is None else size

    def remove(self) -> None:
        """Remove the image, also one that is half-made. Images that share its bytes get their own copy first."""
        for child in self._children():
            self.do(f"give {child} its own copy of the bytes of {self.spec}", "flatten", "--no-progress", child)
        self.drop_moments()
        while time.monotonic() < self._traced_until and self._has_watchers():
            time.sleep(0.5)
        done = self.write("rm", "--no-progress", self.spec)
        if done.status == _IN_USE:
            refuse(f"image {self.spec} is in use ({done.words}); end its users, whose trace goes within 30 s; repeat")
        if done.status and not (done.status == _NOT_THERE and is_about_the_image(done)):
            refuse(f"cannot remove image {self.spec}: {done.words}")
        self._traced_until = 0.0

    def drop_moments(self) -> None:
        """Take away snapshots that a killed `snapshot` has left; those of others stay."""
        done = self.pool.tool("snap", "ls", "--format", "json", self.spec)
        for each in json.loads(done.out) if done.status == 0 else []:
            if each["name"].startswith("hvext-"):
                self.do("clear away", "snap", "rm", "--no-progress", f"{self.spec}@{each['name']}")

    def _has_watchers(self) -> bool:
        """Return whether the cluster knows of a client; this question is none, because it opens for reading."""
        done = self.pool.tool("status", "--format", "json", self.spec)
        return done.status == 0 and bool(json.loads(done.out)["watchers"])

    def _children(self) -> list[str]:
        done = self.pool.tool("children", "--all", "--format", "json", self.spec)
        if done.status:
            return []  # no image, or half of one; what else it is, the removal says
        each = (
            ("/".join(filter(None, (found["pool"], found.get("pool_namespace"), found["image"]))), found)
            for found in json.loads(done.out)
        )
        return [spec for spec, found in each if not found.get("trash")]

    def device(self) -> str:
        """Return the block device that the image is mapped to, empty when there is none."""
        if not Path("/sys/bus/rbd").exists() and self.pool._path != "yes":
            return ""
        done = self.pool.tool("device", "list", "--format", "json")
        if done.status:
            refuse(f"cannot list the mapped images: {done.words}")
        listed = json.loads(done.out or "[]")
        for each in listed.values() if isinstance(listed, dict) else listed:
            names = (each["pool"], each.get("namespace", ""), each["name"], each["snap"])
            if names == (self.pool.pool, self.pool.namespace, self.name, "-"):
                return str(each["device"])
        return ""

    @property
    def uri(self) -> str:
        """The URI for QEMU: the user and the files, no key."""
        values = {"id": self.pool.id, "conf": self.pool.conf, "keyring": self.pool.keyring}
        options = [f"{key}={escaped(value)}" for key, value in values.items() if value]
        return ":".join(["rbd:" + "/".join(map(escaped, self.spec.split("/"))), *options])


def escaped(text: str) -> str:
    """Return a part of the URI with a backslash before what would end it."""
    return re.sub(r"([:@;=\\])", r"\\\1", text)


def is_about_the_image(done: Done) -> bool:
    """Return whether the tool misses the image, and not its pool or namespace."""
    return not re.search(r"error opening (pool|default pool|namespace)|namespace .*does not exist", done.err)


# --- The actions -----------------------------------------------------------------------------------------------------


def create() -> None:
    """Make the image. What a killed create has left is cleared away: nobody was told of it."""
    refuse_unknown_parameters()
    pool, size = Pool(), size_bytes("VOL_SIZE")
    image = pool.here
    with image.locked():
        if image.interrupted == "create":
            image.remove()
        elif image.size() is not None:
            refuse(f"image {image.spec} is already there; remove it first, or choose another name")
        image.begin("create")
        made = image.write("create", "--size", f"{size // MIB}M", image.spec)
        if made.status:
            if made.status == _TAKEN:
                image.settle()  # another host was faster, and it is not ours to clear away
            refuse(f"cannot make image {image.spec} of {size // MIB} MiB: {made.words}")
        image.settle()


def remove() -> None:
    """Remove the image."""
    image = Pool().here
    with image.locked():
        if device := image.device():
            refuse(f"image {image.spec} is mapped to {device} on this host; detach it first")
        image.remove()
        image.settle()


def grow() -> None:
    """Make the image larger. Who has it open hears of it by itself; the block device is waited for."""
    image = Pool().here
    with image.locked():
        now = image.need_size()
        new = growth(image.spec, now)
        if new > now:
            words = ("resize", "--no-progress", "--size", f"{new // MIB}M", image.spec)
            image.do(f"grow image {image.spec} to {new // MIB} MiB", *words)
        device = image.device()
        if device and not within(_SEEN_S, lambda: device_bytes(device) >= new):
            refuse(f"image {image.spec} has {new // MIB} MiB, but its device {device} still has its old size; repeat")


def attach() -> None:
    """Say where the image is, and map it when that is wanted."""
    pool = Pool()
    image = pool.here
    with image.locked():
        image.need_size()
        if image.interrupted in _HALF_MADE:
            image.settle()  # the caller takes it for made
        device = ""
        if pool.maps:
            device = image.device() or image.do(f"map image {image.spec}", "map", "--options", "noudev", image.spec)
    answer(device.strip(), image.uri)


def detach() -> None:
    """Take the block device away. The cluster is asked nothing when there is none."""
    image = Pool().here
    with image.locked():
        device = image.device()
        if not device:
            return
        if users := users_of(device):
            refuse(f"{device} of image {image.spec} is still in use ({users}); end its users, then detach again")
        image.do(f"unmap {device} of image {image.spec}", "unmap", "--options", "noudev", device)


def setinfo() -> None:
    """Keep VOL_METADATA in the image's metadata, as ``hvext.metadata``."""
    image = Pool().here
    with image.locked():
        words = ("image-meta", "set", image.spec, _KEY, variable("VOL_METADATA"))
        image.do(f"keep metadata with image {image.spec}", *words)


def snapshot() -> None:
    """Clone the image from a snapshot that goes away with the clone, and give it the size that was asked for."""
    pool = Pool()
    image, copy = pool.here, pool.image(volume_name("VOL_SNAPSHOT_NAME", without="@"))
    wanted = size_bytes("VOL_SNAPSHOT_SIZE")
    if copy.spec == image.spec:
        refuse(f"VOL_SNAPSHOT_NAME is VOL_NAME, {image.name}; choose another name")
    with image.locked(), copy.locked():
        size = image.need_size()
        if wanted < size:
            refuse(
                f"VOL_SNAPSHOT_SIZE is {wanted // MIB} MiB, but image {image.spec} has {size // MIB};",
                "ask for at least that",
            )
        if copy.interrupted == "snapshot":
            copy.remove()
        elif copy.size() is not None:
            refuse(f"image {copy.spec} is already there; remove it first, or choose another name")
        image.drop_moments()
        copy.begin("snapshot")
        clone(image, copy)
        if wanted > size:
            larger = ("resize", "--no-progress", "--size", f"{wanted // MIB}M", copy.spec)
            copy.do(f"give {copy.spec} {wanted // MIB} MiB", *larger)
        copy.settle()


def clone(image: Image, copy: Image) -> None:
    """Make the copy of a snapshot of the image, which is gone afterwards."""
    moment = f"{image.spec}@hvext-{copy.name}"
    image.do(f"make the snapshot {moment}", "snap", "create", "--no-progress", moment)
    cloned = copy.write("clone", "--rbd-default-clone-format", "2", moment, copy.spec)
    image.do(f"leave {moment} to its clone", "snap", "rm", "--no-progress", moment)
    if cloned.status:
        if cloned.status == _TAKEN:
            copy.settle()
        refuse(f"cannot clone {moment} as {copy.spec}: {cloned.words}")


def verify() -> None:
    """Check the parameters, and whether the user can look into the pool."""
    refuse_unknown_parameters()
    pool = Pool()
    where = f"{pool.pool}/{pool.namespace}" if pool.namespace else pool.pool
    done = pool.tool("ls", where)
    if done.status:
        refuse(f"client.{pool.id} cannot look into {where} with {pool.conf}: {done.words}")


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
