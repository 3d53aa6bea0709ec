"""What a QEMU that is still to be started can do, as far as it is kept: this loads neither an event loop nor a QEMU."""

from __future__ import annotations

import contextlib
import os

from hvext.core.capability import Capabilities
from hvext.core.identity import short_hash
from hvext.errors import InputError
from hvext.host import cache
from hvext.host.files import program_path

#: The QEMU that is asked when none is named.
DEFAULT_QEMU = "qemu-system-x86_64"
#: QEMU looks for its modules there first.
MODULE_DIR = "QEMU_MODULE_DIR"
#: Kept answers as they were read, by name, with what was made of them.
_read: dict[str, tuple[object, Capabilities]] = {}


def kept_name(binary: str) -> str:
    """Return the name under which the answer of a QEMU, by the real path of its program, is kept."""
    modules = os.environ.get(MODULE_DIR, "")
    return "qemu-" + short_hash(os.fsencode(f"binary {binary}\0modules {modules}"))


def kept_capabilities(name: str) -> Capabilities | None:
    """Return the capabilities that are kept under a name; None when there are none that are still true."""
    if (answer := cache.kept(name)) is not None:
        with contextlib.suppress(InputError):
            known = _read.get(name)
            if known is None or known[0] is not answer:
                known = _read[name] = (answer, Capabilities.from_json(answer))
            return known[1]
    return None


def disk_capabilities(qemu: str = DEFAULT_QEMU) -> Capabilities:
    """Return of ``binary_capabilities`` what is about disks, which is kept apart: the whole takes long to read.

    Blocks, and raises, as that does.
    """
    found = program_path(qemu)
    whole_name = kept_name(os.path.realpath(found or qemu))
    name = f"{whole_name}-disks"
    if found and (known := kept_capabilities(name)) is not None:
        return known
    from hvext.operations.capabilities import binary_capabilities

    part = binary_capabilities(qemu).about_disks()
    cache.keep_beside(whole_name, name, part.to_json())
    return part
