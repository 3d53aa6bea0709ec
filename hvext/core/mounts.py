"""On what file system a path is, from the table of mounts alone: nothing is opened, and no server is asked.

Source: proc(5), ``/proc/PID/mountinfo``.
"""

from __future__ import annotations

import re

#: File systems whose server may not answer; of fuse, nobody can tell.
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "glusterfs", "ocfs2", "gfs2", "lustre", "virtiofs"})


def is_on_network(path: str, mountinfo: str) -> bool:
    """Return whether a path, read as it stands, is below a mount whose server may not answer."""
    found, kind = "", ""
    for line in mountinfo.splitlines():
        fields, _dash, rest = line.partition(" - ")
        words = fields.split()
        if len(words) < 5 or not rest:
            continue
        # Blanks in it are written in octal.
        place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), words[4])
        # Of several at one place, the last is on top.
        if f"{path}/".startswith(f"{place.rstrip('/')}/") and len(place) >= len(found):
            found, kind = place, rest.split()[0]
    return kind in _NETWORK or kind.startswith("fuse")
