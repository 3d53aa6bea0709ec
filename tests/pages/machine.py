"""A machine that is thrown away: this one's programs and files, on which a script may change whatever it likes.

Its root is a layer over this machine's, so that pages are run with the paths that they name: ``/run/vm1.qmp``,
``/etc/hvext``, ``apt install``. Whatever it starts ends with it. It shares the network and the loop devices with this
machine; a loop device that a page leaves is detached.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.conftest import need
from tests.host.oracle import short_folder
from tests.pages.blocks import ROOT
from tests.servers.namespaces import namespaces

#: Where volumes may be: on a file system that has O_DIRECT, which a layer in memory has not everywhere.
_ON_DISK = ("srv", "tmp", "root/page", "var/lib/hvext")
_MAKE = """\
mount -t tmpfs -o mode=755 layer {folder}/layer
mkdir {folder}/layer/changes {folder}/layer/work
mount -t overlay -o lowerdir=/,upperdir={folder}/layer/changes,workdir={folder}/layer/work overlay {folder}/root
cd {folder}/root
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
mount -t tmpfs -o mode=755 run run
mkdir -p run/lock
for each in {places}; do
    mkdir -p {folder}/disk/$each $each
    mount --bind {folder}/disk/$each $each
done
chmod 1777 tmp
install -m 755 {folder}/hvext usr/local/bin/hvext
install -m 755 {folder}/page-python usr/local/bin/page-python
exec chroot . bash -c 'cd /root/page && exec bash /root/page/script'
"""
#: Runs Python blocks: with ``await`` outside of functions, as the pages that say "in an event loop" have it.
_PYTHON = """\
#!{python}
import ast, asyncio, inspect, sys
code = compile(sys.stdin.read(), "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
names = {{"__name__": "__main__"}}
result = eval(code, names)
if inspect.iscoroutine(result):
    asyncio.run(result)
"""


@contextlib.contextmanager
def throwaway_machine() -> Iterator[ThrowawayMachine]:
    """A machine inside the block; skips the test where this one does not let us make it (it needs root)."""
    need("losetup", "mount")
    namespaces("--mount")
    with short_folder() as folder:
        for each in ("layer", "root", "disk"):
            (folder / each).mkdir()
        (folder / "hvext").write_text(f'#!/bin/sh\nexec {sys.executable} -m hvext "$@"\n')
        (folder / "page-python").write_text(_PYTHON.format(python=sys.executable))
        machine = ThrowawayMachine(folder)
        try:
            yield machine
        finally:
            machine.let_go()


class ThrowawayMachine:
    """A machine that runs one script after the other, each with a layer of its own; volumes are kept between them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def here(self) -> Path:
        """The folder that scripts begin in, as it is seen from this machine."""
        path = self._folder / "disk" / "root" / "page"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def run(self, script: str, environment: Mapping[str, str], *, timeout_s: float) -> tuple[int, str]:
        """Run a bash script to its end; returns its status, and all that was printed.

        Everything that it has started is ended. A script that takes longer than ``timeout_s`` is ended as well: 124.
        """
        (self.here / "script").write_text(script, encoding="utf-8")
        kept = {name: os.environ[name] for name in ("http_proxy", "https_proxy", "no_proxy") if name in os.environ}
        usual = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        here = {"LANG": "C.UTF-8", "ROOT": str(ROOT), "PYTHON": sys.executable}
        made = _MAKE.format(folder=self._folder, places=" ".join(_ON_DISK))
        options = ("--mount", "--pid", "--fork", "--kill-child", "--propagation", "private")
        argv = [need("unshare", "util-linux"), *options, "bash", "-ec", made]
        output = self._folder / "output"
        with output.open("wb") as stream:
            started = subprocess.Popen(
                argv,
                env={**kept, **usual, **here, **environment},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = started.wait(timeout_s)
            except subprocess.TimeoutExpired:
                status = 124
            finally:
                started.kill()
                started.wait()
        return status, output.read_text(encoding="utf-8", errors="replace")

    def let_go(self) -> None:
        """Detach the loop devices that stand on files of this machine."""
        found = [path.stat() for path in (self._folder / "disk").rglob("*") if path.is_file() and not path.is_symlink()]
        files = {(status.st_dev, status.st_ino) for status in found}
        argv = ["losetup", "--list", "--raw", "--noheadings", "--output", "NAME,BACK-MAJ:MIN,BACK-INO"]
        for line in subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines():
            # It pads the first number with blanks, which it then escapes.
            device, numbers, inode = line.replace("\\x20", "").split()
            major, minor = numbers.split(":")
            if (os.makedev(int(major), int(minor)), int(inode)) in files:
                subprocess.run(["losetup", "--detach", device], check=False, timeout=60)
