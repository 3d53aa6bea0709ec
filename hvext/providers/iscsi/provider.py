"""Units (LUNs) of an iSCSI target that is there: through libiscsi by their URI, and as disks of the kernel.

The provider itself looks at a unit with qemu-img, which is where QEMU is, and gives it the password by the name of its
file. What the kernel needs to log in is open-iscsi's own: its node records and iscsid.conf.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import tgt
from extstorage import (
    MIB,
    Done,
    absolute,
    answer,
    choice,
    device_bytes,
    find_program,
    growth,
    is_block_device,
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

_PORT = 3260
_ISCSIADM_S = 60.0
_ZERO_S = 86400.0
_SEEN_S = 10
_ALREADY_THERE, _NO_SESSION = 15, 21


class Unit:
    """The unit, as the parameters name it; it may not be there."""

    def __init__(self) -> None:
        host = r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])"
        portal = matching("portal", needed("portal"), rf"{host}(:[0-9]{{1,5}})?", "HOST, HOST:PORT or [IPV6]:PORT")
        self.portal = portal if re.search(r":[0-9]+$", portal.rpartition("]")[2]) else f"{portal}:{_PORT}"
        name = r"(iqn|eui|naa)\.[A-Za-z0-9.:-]+"
        self.target = matching("target", needed("target"), name, "a name that begins with iqn., eui. or naa.")
        self.zero = choice("zero", "no", "yes") == "yes"
        self.path = choice("path", "auto", "yes", "no")
        self.run = absolute("run", parameter("run", "/run/hvext/iscsi"))
        self.user = matching("user", parameter("user"), r"[A-Za-z0-9._-]*", "made of the characters A-Za-z0-9._-")
        self._password = parameter("password")
        self.password_file = absolute("password_file", needed("password_file")) if self._needs_file() else ""
        self.timeout = matching("timeout", parameter("timeout", "20"), "[1-9][0-9]{0,5}", "a number of seconds")
        self.maker = self._find_maker()
        wanted = "0|[1-9][0-9]{0,3}|1[0-5][0-9]{3}|16[0-2][0-9]{2}|163[0-7][0-9]|1638[0-3]"
        self.lun = tgt.LUN if self.maker else matching("lun", needed("lun"), wanted, "a number, 0 to 16383")

    def _needs_file(self) -> bool:
        if not self.user and (self._password or parameter("password_file")):
            refuse("the parameter password_file or password is set, but user is not; set both, or none")
        return bool(self.user) and not self._password

    def _find_maker(self) -> tgt.Maker | None:
        """Return who makes units, None where they are there already. A made volume has a target of its own."""
        if not parameter("tgtadm"):
            return None
        if parameter("lun"):
            refuse("the parameters tgtadm and lun are set; a unit is either made or given by its number")
        folder = matching("backing", absolute("backing", needed("backing")), r"[A-Za-z0-9._/-]+", "a plain path")
        name = volume_name(without="_+@=") if variable("VOL_NAME") else "none"
        self.target = f"{self.target}:{name}"
        return tgt.Maker(parameter("tgtadm"), folder, self.target, self.user)

    @property
    def words(self) -> str:
        """The unit for people."""
        return f"unit {self.lun} of {self.target} at {self.portal}"

    @property
    def uri(self) -> str:
        """The URI for QEMU: the user, no password."""
        return f"iscsi://{f'{self.user}@' if self.user else ''}{self.portal}/{self.target}/{self.lun}"

    @property
    def _node(self) -> str:
        options = f"driver=iscsi,transport=tcp,portal={self.portal},target={self.target},lun={self.lun}"
        options += f",timeout={self.timeout}"
        return f"{options},user={self.user},password-secret=chap" if self.user else options

    def _qemu_img(self, command: str, *words: str, timeout_s: float) -> Done:
        """Run qemu-img, which gets the password as a file that has no name."""
        secret = []
        with contextlib.ExitStack() as stack:
            if self.user:
                file = stack.enter_context(nameless(self._password or self._read_password()))
                secret = ["--object", f"secret,id=chap,file={file}"]
            package = "qemu-utils and qemu-block-extra"
            return run_tool("qemu-img", package, command, *secret, *words, timeout_s=timeout_s)

    def _read_password(self) -> str:
        """Return the password in the file; one line end behind it is none of it, as hvext has it."""
        try:
            text = Path(self.password_file).read_text()
        except OSError as error:
            refuse(
                f"cannot read {self.password_file} ({error.strerror}); put the password there, or correct password_file"
            )
        return text[:-1] if text.endswith("\n") else text

    def size(self) -> int:
        """Return the unit's size in bytes; refuses when the target does not show it."""
        words = ["--output", "json", "--image-opts", self._node]
        done = self._qemu_img("info", *words, timeout_s=float(self.timeout) + 10)
        if done.status:
            refuse(f"cannot look at {self.words}: {done.words}")
        return int(json.loads(done.out)["virtual-size"])

    def overwrite(self) -> None:
        """Write zeros over all of the unit."""
        size = self.size()
        zeros = f"driver=null-co,size={size},read-zeroes=on"
        words = ["-n", "--image-opts", "--target-image-opts", zeros, self._node]
        done = self._qemu_img("convert", *words, timeout_s=_ZERO_S)
        if done.status:
            refuse(f"cannot overwrite {self.words}: {done.words}")

    # The kernel's side

    @property
    def key(self) -> str:
        """What a session of the kernel is for: all units of a target share it."""
        return f"{self.portal} {self.target}"

    @property
    def kernel(self) -> bool:
        """Whether the kernel may have the unit as a disk."""
        if self.path != "auto":
            return self.path == "yes"
        return find_program("iscsiadm") is not None and kernel_has_initiator()

    def admin(self, *words: str, fine: tuple[int, ...] = ()) -> str:
        """Run iscsiadm; returns what it printed. It may start iscsid, so it does not hold our lock with us."""
        done = run_tool("iscsiadm", "open-iscsi", *words, timeout_s=_ISCSIADM_S)
        if done.status and done.status not in fine:
            refuse(f"iscsiadm {' '.join(words)} failed: {done.words}")
        return done.out

    def of_the_node(self, *words: str, fine: tuple[int, ...] = ()) -> None:
        """Run iscsiadm on the record of this target."""
        self.admin("--mode", "node", "--targetname", self.target, "--portal", self.portal, *words, fine=fine)

    def disks(self) -> dict[str, str]:
        """Return the kernel's disks of this target: unit number to device."""
        if not find_program("iscsiadm"):
            return {}
        shown = self.admin("--mode", "session", "--print", "3", fine=(_NO_SESSION,))
        return dict(parse_sessions(shown, self.target, self.portal))

    def log_in(self) -> str:
        """Have the kernel log in where it has not, and return the unit's device."""
        if device := self.disks().get(self.lun):
            return device
        self.of_the_node("--op", "new", fine=(_ALREADY_THERE,))
        self.of_the_node("--login", fine=(_ALREADY_THERE,))
        self.of_the_node("--rescan")
        if not within(_SEEN_S, lambda: is_block_device(self.disks().get(self.lun, ""))):
            refuse(f"the kernel logged in and has no disk for {self.words} after {_SEEN_S} s; is there such a unit?")
        return self.disks()[self.lun]

    def log_out(self) -> None:
        """Take the unit's disk away, and log out with the last disk of the target."""
        disks = self.disks()
        device = disks.pop(self.lun, "")
        if not device:
            return
        if users := users_of(device):
            refuse(f"{device} of {self.words} is still in use ({users}); end its users, then detach again")
        if disks:
            Path(f"/sys/block/{device[5:]}/device/delete").write_text("1")
        else:
            self.of_the_node("--logout")


@contextlib.contextmanager
def nameless(text: str) -> Iterator[str]:
    """Have a file in memory with the text, and its path for the programs that we start; others cannot open it."""
    descriptor = os.memfd_create("secret")
    try:
        os.write(descriptor, text.encode())
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)


def kernel_has_initiator() -> bool:
    """Return whether the kernel has its own client, loading it where it is a module."""
    there = Path("/sys/class/iscsi_transport/tcp")
    if not there.exists() and find_program("modprobe"):
        run_tool("modprobe", "kmod", "--quiet", "iscsi_tcp", timeout_s=10)
    return there.exists()


def parse_sessions(shown: str, target: str, portal: str) -> Iterator[tuple[str, str]]:
    """Return unit numbers and devices of one target. Source: iscsiadm(8), --mode session --print 3."""
    ours = there = False
    lun = ""
    for line in map(str.strip, shown.splitlines()):
        if line.startswith("Target: "):
            ours, there = line.split()[1] == target, False
        elif line.startswith(("Current Portal: ", "Persistent Portal: ")):
            there = there or line.split()[2].split(",")[0] == portal
        elif found := re.search(r"\bLun: ([0-9]+)$", line):
            lun = found[1]
        elif ours and there and (found := re.match(r"Attached scsi disk (\S+)", line)):
            yield lun, f"/dev/{found[1]}"


# --- The actions -----------------------------------------------------------------------------------------------------


def create() -> None:
    """Make the unit, or take over one that is there, as it is or full of zeros."""
    refuse_unknown_parameters()
    volume_name()
    unit, size = Unit(), size_bytes("VOL_SIZE")
    if unit.maker:
        with locked(unit.run, unit.target) as lock:
            unit.maker.recover(lock)
            unit.maker.create(size, lock)
        return
    now = unit.size()
    if now < size:
        refuse(f"{unit.words} has {now // MIB} MiB, less than {size // MIB}; make it larger, or ask for less")
    if unit.zero:
        unit.overwrite()


def remove() -> None:
    """Remove a unit that was made; give another back, as it is or full of zeros."""
    volume_name()
    unit = Unit()
    with locked(unit.run, unit.key):
        if device := unit.disks().get(unit.lun):
            refuse(f"{unit.words} is {device} on this host; detach it first")
    if unit.zero and not (unit.maker and unit.maker.shown() is None):
        unit.overwrite()
    if unit.maker:
        with locked(unit.run, unit.target) as lock:
            unit.maker.recover(lock)
            unit.maker.remove(lock)


def grow() -> None:
    """Make the unit larger, or see that it is, and have the kernel look again."""
    volume_name()
    unit = Unit()
    with contextlib.ExitStack() as stack:
        if unit.maker:
            lock = stack.enter_context(locked(unit.run, unit.target))
            unit.maker.recover(lock)
        now, new = unit.size(), size_bytes("VOL_NEW_SIZE")
        if now < new:
            growth(unit.words, now)
            if not unit.maker:
                refuse(f"{unit.words} has {now // MIB} MiB, not {new // MIB}; make it larger there, then repeat")
            unit.maker.grow(new, lock)
        elif unit.maker:
            growth(unit.words, now)
    with locked(unit.run, unit.key):
        if device := unit.disks().get(unit.lun):
            unit.of_the_node("--rescan")
            if not within(_SEEN_S, lambda: device_bytes(device) >= new):
                refuse(f"{unit.words} has {new // MIB} MiB, but its disk {device} still has its old size; repeat")


def attach() -> None:
    """Say where the unit is."""
    volume_name()
    unit = Unit()
    if unit.maker:
        with locked(unit.run, unit.target) as lock:
            unit.maker.recover(lock)
    unit.size()
    device = ""
    if unit.kernel:
        with locked(unit.run, unit.key):
            device = unit.log_in()
    answer(device, unit.uri)


def detach() -> None:
    """Take the kernel's disk away. The target is asked nothing when there is none."""
    volume_name()
    unit = Unit()
    with locked(unit.run, unit.key):
        unit.log_out()


def setinfo() -> None:
    """Check the words, and keep nothing."""
    volume_name()
    Unit()


def verify() -> None:
    """Check the parameters, and whether the unit answers."""
    refuse_unknown_parameters()
    unit = Unit()
    if unit.maker:
        unit.maker.targets()
    else:
        unit.size()


if __name__ == "__main__":
    main(
        {
            "create": create,
            "remove": remove,
            "grow": grow,
            "attach": attach,
            "detach": detach,
            "setinfo": setinfo,
            "verify": verify,
        }
    )
