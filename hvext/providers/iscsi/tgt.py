"""Units that are made: tgtd's own tool makes a target for each volume, with one unit over a file.

The target is the memory: what it shows is what there is, for all hosts alike. tgtd forgets all of it when it ends; its
own ``tgt-admin --dump`` keeps it.
Source: tgtadm(8).
"""

from __future__ import annotations

import re
import shlex

from extstorage import Done, Lock, refuse, run_tool

LUN = "1"
_TOOL_S = 60.0
_TRIES = 50


class Shown:
    """One target, as tgtd shows it: its number, the files behind its units, and whether anybody is logged in."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.files: list[str] = []
        self.in_use = False


def parse_targets(shown: str) -> dict[str, Shown]:
    """Return the targets by their names."""
    targets: dict[str, Shown] = {}
    current = Shown(0)
    for line in shown.splitlines():
        if found := re.match(r"Target ([0-9]+): (\S+)", line):
            current = targets[found[2]] = Shown(int(found[1]))
        elif found := re.match(r"\s+Backing store path: (/.*)", line):
            current.files.append(found[1])
        elif re.match(r"\s+I_T nexus: ", line):
            current.in_use = True
    return targets


class Maker:
    """tgtd, reached with a command that ends in tgtadm and its options; what is before that reaches its host."""

    def __init__(self, command: str, folder: str, target: str, user: str) -> None:
        words = shlex.split(command)
        names = [word.rpartition("/")[2] for word in words]
        if "tgtadm" not in names:
            refuse(f"the parameter tgtadm is '{command}'; it must be a command with the program tgtadm in it")
        self._there = words[: names.index("tgtadm")]
        self._tgtadm = words
        self.file = f"{folder}/{target.rpartition(':')[2]}"
        self._target = target
        self._user = user

    def _run(self, *words: str, lock: Lock | None = None) -> Done:
        return run_tool(words[0], "tgt", *words[1:], timeout_s=_TOOL_S, lock=lock)

    def _on_host(self, *words: str, lock: Lock) -> Done:
        return self._run(*self._there, *words, lock=lock)

    def _do(self, *words: str, lock: Lock) -> None:
        done = self._run(*words, lock=lock)
        if done.status:
            refuse(f"{' '.join(words)} failed: {done.words}")

    def _admin(self, words: str, *more: str, lock: Lock) -> None:
        self._do(*self._tgtadm, "--lld", "iscsi", *words.split(), *more, lock=lock)

    def targets(self) -> dict[str, Shown]:
        """Return all that tgtd has."""
        done = self._run(*self._tgtadm, "--lld", "iscsi", "--mode", "target", "--op", "show")
        if done.status:
            refuse(f"cannot ask tgtd what it has with '{shlex.join(self._tgtadm)}': {done.words}")
        return parse_targets(done.out)

    def shown(self) -> Shown | None:
        """Return the volume's target, None when there is none."""
        return self.targets().get(self._target)

    def recover(self, lock: Lock) -> None:
        """Finish what a killed action has begun; nobody was told that it is done."""
        if lock.interrupted == "create":
            self._drop(lock)
        elif lock.interrupted == "grow" and (shown := self.shown()) and self.file not in shown.files:
            self._offer(shown.number, lock)
        lock.end()

    def create(self, size: int, lock: Lock) -> None:
        """Make the file and the target; the step that lets initiators in is the last."""
        if self.shown() is not None or self._on_host("test", "-e", self.file, lock=lock).status == 0:
            refuse(f"there is a target {self._target} or a file {self.file} already; remove it, or choose another name")
        lock.begin("create")
        self._do(*self._there, "truncate", "-s", str(size), self.file, lock=lock)
        number = self._new_target(lock)
        self._offer(number, lock)
        if self._user:
            self._admin(f"--mode account --op bind --tid {number} --user {self._user}", lock=lock)
        self._admin(f"--mode target --op bind --tid {number} -I ALL", lock=lock)
        lock.end()

    def _new_target(self, lock: Lock) -> int:
        for _try in range(_TRIES):
            targets = self.targets()
            number = max((each.number for each in targets.values()), default=0) + 1
            new = f"--mode target --op new --tid {number} --targetname"
            done = self._run(*self._tgtadm, "--lld", "iscsi", *new.split(), self._target, lock=lock)
            if done.status == 0:
                return number
        return refuse(f"cannot make the target {self._target}: {done.words}")

    def _offer(self, number: int, lock: Lock) -> None:
        self._admin(f"--mode logicalunit --op new --tid {number} --lun {LUN} --bstype rdwr -b", self.file, lock=lock)

    def remove(self, lock: Lock) -> None:
        """Take the target and the file away."""
        if (shown := self.shown()) and shown.in_use:
            refuse(f"somebody is logged in at {self._target}; end that first")
        self._drop(lock)

    def _drop(self, lock: Lock) -> None:
        if shown := self.shown():
            self._admin(f"--mode target --op delete --force --tid {shown.number}", lock=lock)
        self._do(*self._there, "rm", "-f", self.file, lock=lock)

    def grow(self, size: int, lock: Lock) -> None:
        """Make the file longer and offer it anew: tgtd looks at its size only then, and would fail I/O meanwhile."""
        shown = self.shown()
        if shown is None:
            refuse(f"there is no target {self._target}; create the volume first")
        if shown.in_use:
            refuse(f"somebody is logged in at {self._target}, and tgtd cannot show them a new size; unplug it, repeat")
        lock.begin("grow")
        self._do(*self._there, "truncate", "-s", str(size), self.file, lock=lock)
        self._admin(f"--mode logicalunit --op delete --tid {shown.number} --lun {LUN}", lock=lock)
        self._offer(shown.number, lock)
        lock.end()
