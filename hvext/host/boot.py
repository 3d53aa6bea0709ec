"""The smallest guest there is: a boot sector that ends QEMU, to see whether a guest runs at all.

QEMU's firmware reads the sector and jumps to it, which a processor that is only half virtualised does not get to: on
some nested machines /dev/kvm opens, a single instruction runs, and the firmware hangs.

Source: QEMU, hw/misc/debugexit.c (a byte written to the port ends QEMU with twice that byte and one as status).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hvext.core.value import value_object
from hvext.host import process
from hvext.host.process import Cancel

_PORT = 0xF4
_BYTE = 42
_STATUS = 2 * _BYTE + 1
#: mov al, BYTE; out PORT, al; hlt; jmp back to hlt.
_CODE = bytes((0xB0, _BYTE, 0xE6, _PORT, 0xF4, 0xEB, 0xFD))
_SECTOR = _CODE.ljust(510, b"\0") + b"\x55\xaa"


@value_object
class Booted:
    """What came of a boot: ``words`` are empty when it went well; ``hung`` when the time was over."""

    hung: bool = False
    words: str = ""
    duration_s: float = 0.0


def boot(qemu: str, accel: str, *, limit_s: float, cancel: Cancel | None = None) -> Booted:
    """Boot the sector under an accelerator (``kvm``, ``tcg``) and return what came of it; leaves nothing.

    Raises ProgramError when QEMU cannot be started at all.
    """
    with tempfile.TemporaryDirectory(prefix="hvext-") as folder:
        path = Path(folder) / "sector"
        path.write_bytes(_SECTOR)
        # By default the machine `pc` looks at the first hard disk.
        drive = f"format=raw,snapshot=on,file={str(path).replace(',', ',,')}"
        argv = [qemu, "-machine", "pc", "-accel", accel, "-nodefaults", "-no-user-config", "-display", "none"]
        argv += ["-m", "16", "-drive", drive, "-device", f"isa-debug-exit,iobase={_PORT:#x},iosize=1"]
        kept = {name: os.environ[name] for name in ("PATH", "QEMU_MODULE_DIR") if name in os.environ}
        # Nothing of it has to be saved, and a QEMU that hangs in KVM may not hear SIGTERM.
        ended = process.run(argv, env={**kept, "TMPDIR": folder}, timeout_s=limit_s, cancel=cancel)
    if ended.timed_out or ended.cancelled:
        return Booted(hung=True, words=f"it did not get to the boot sector within {limit_s:g} s")
    if ended.status == _STATUS:
        return Booted(duration_s=ended.duration_s)
    lines = [line for line in ended.stderr.decode(errors="replace").splitlines() if line.strip()]
    return Booted(words=lines[-1] if lines else f"QEMU ended with status {ended.status}")
