"""The protocols that are known by name, and the module that reads each: the place where a new protocol is entered.

A module has ``parse(scheme, rest)`` for its URI schemes and ``from_options(driver, fields)`` for its block drivers in
``json:``; where QEMU reports an open node by something else than ``json:``, also ``parse_filename(driver, filename)``.
"""

from __future__ import annotations

#: The module under ``hvext.core.uri`` that reads a URI scheme.
SCHEMES = {
    "file": "file",
    "host_device": "file",
    "ftp": "curl",
    "ftps": "curl",
    "gluster": "gluster",
    "gluster+rdma": "gluster",
    "gluster+tcp": "gluster",
    "gluster+unix": "gluster",
    "http": "curl",
    "https": "curl",
    "iscsi": "iscsi",
    "iser": "iscsi",
    "json": "description",
    "nbd": "nbd",
    "nbd+tcp": "nbd",
    "nbd+unix": "nbd",
    "nbd+vsock": "nbd",
    "nbds": "nbd",
    "nbds+unix": "nbd",
    "nbds+vsock": "nbd",
    "nfs": "nfs",
    "nvme": "nvme",
    "rbd": "rbd",
    "ssh": "ssh",
    "vhost-user": "vhost_user",
}
#: The module that reads the options of a block driver.
DRIVERS = {
    "file": "file",
    "ftp": "curl",
    "ftps": "curl",
    "gluster": "gluster",
    "host_device": "file",
    "http": "curl",
    "https": "curl",
    "io_uring": "blkio",
    "iscsi": "iscsi",
    "nbd": "nbd",
    "nfs": "nfs",
    "nvme": "nvme",
    "nvme-io_uring": "blkio",
    "rbd": "rbd",
    "ssh": "ssh",
    "virtio-blk-vfio-pci": "blkio",
    "virtio-blk-vhost-user": "blkio",
    "virtio-blk-vhost-vdpa": "blkio",
}
#: Protocols that QEMU once had, and the release that took them out.
REMOVED = {
    "sheepdog": "QEMU 6.0",
    "vxhs": "QEMU 5.2",
    "archipelago": "QEMU 2.9",
}


#: Prefixes that QEMU knows and that name no storage.
LAYERS = frozenset(("blkdebug", "blkverify", "blkreplay", "fat", "null-co", "null-aio", "raw", "qcow2"))
#: Schemes that are read only to say why they cannot be opened.
REFUSED = frozenset(("gluster+rdma",))


def is_known_scheme(word: str) -> bool:
    """Return whether ``word`` names a storage protocol, one that can be opened or one that was removed."""
    return word in SCHEMES or word in REMOVED
