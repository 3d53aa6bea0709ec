"""The URI schemes that are known by name, whether or not they can be opened."""

from __future__ import annotations

#: Protocols that QEMU once had, and the release that took them out.
REMOVED = {
    "sheepdog": "QEMU 6.0",
    "vxhs": "QEMU 5.2",
    "archipelago": "QEMU 2.9",
}
#: Protocols that some QEMU can open, beyond those that hvext turns into block nodes.
_ELSEWHERE = frozenset(
    (
        "iscsi",
        "iser",
        "gluster",
        "gluster+tcp",
        "gluster+unix",
        "gluster+rdma",
        "ssh",
        "nfs",
        "http",
        "https",
        "ftp",
        "ftps",
        "nvme",
        "json",
        "vhost-user",
    )
)
#: Protocols that hvext turns into block nodes.
OPENED = frozenset(("file", "host_device", "nbd", "nbd+tcp", "nbd+unix", "rbd"))


def is_known_scheme(word: str) -> bool:
    """Return whether ``word`` names a storage protocol, open to hvext or not."""
    return word in OPENED or word in _ELSEWHERE or word in REMOVED


def is_elsewhere(word: str) -> bool:
    """Return whether ``word`` is a protocol of QEMU that hvext does not turn into block nodes."""
    return word in _ELSEWHERE
