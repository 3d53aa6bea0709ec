"""Which paths are on a server, from the table of mounts alone."""

from __future__ import annotations

import pytest

from hvext.core.mounts import is_on_network

#: As Linux 6.1 writes it.
MOUNTS = r"""21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
35 21 0:31 / /srv rw,relatime shared:15 - nfs4 server:/export rw,vers=4.2
36 35 8:2 / /srv/local rw,relatime - xfs /dev/sdb rw
37 21 0:32 / /a\040b rw,relatime - fuse.glusterfs vol rw
38 21 0:33 / /twice rw - nfs server:/old rw
39 21 0:34 / /twice rw - tmpfs over rw
broken
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/lib/libvirt/images/v.qcow2", False),
        ("/srv/v.qcow2", True),
        ("/srv", True),
        ("/srv2/v.qcow2", False),
        ("/srv/local/v.qcow2", False),
        ("/a b/v.raw", True),
        ("/twice/v.raw", False),
    ],
)
def test_a_file_on_a_server_is_told_from_one_on_a_disk_of_this_host(path: str, *, expected: bool) -> None:
    assert is_on_network(path, MOUNTS) == expected
