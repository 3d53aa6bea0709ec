"""Disks as Ganeti has them, and the storage that they are on, for the comparison in ``tests/host/test_ganeti.py``."""

from __future__ import annotations

import contextlib
import http.server
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.host.oracle import MIB, absent, nbd_server

_NAMESPACE = uuid.UUID("0f7e2c7a-5d0e-4f0e-9d6b-0e0f3c1f3d10")

HVP = {
    "disk_cache": "default",
    "disk_aio": "threads",
    "disk_discard": "ignore",
    "disk_type": "paravirtual",
    "kernel_path": "",
    "boot_order": "cdrom",
}


@dataclass(frozen=True)
class Case:
    """A disk as Ganeti has it: what it is opened by (``{dir}``, ``{port}`` are the run's) and its parameters."""

    words: str
    uri: str | None = None
    dev_type: str = "ext"
    access: str = "userspace"
    link: str = "{dir}/link"
    mode: str = "rw"
    hvp: dict[str, str] = field(default_factory=dict)

    def row(self, values: dict[str, str]) -> dict[str, Any]:
        """The disk as ``ganeti_side.py`` and the adapter take it."""
        number = uuid.uuid5(_NAMESPACE, self.words)
        devid = f"disk-{str(number).rsplit('-', 2)[0]}"
        hvp = HVP | self.hvp
        driver = {"paravirtual": "virtio-blk-pci", "ide": "ide-hd"}.get(hvp["disk_type"], hvp["disk_type"])
        hvinfo: dict[str, Any] = {"driver": driver, "id": devid, "bus": "pci.0", "addr": "0xc"}
        if driver.startswith("scsi"):
            hvinfo = {"driver": driver, "id": devid, "bus": "scsi.0", "channel": 0, "scsi-id": 1, "lun": 0}
        return {
            "uuid": str(number),
            "dev_type": self.dev_type,
            "mode": self.mode,
            "params": {"access": self.access},
            "link": self.link.format(**values),
            "uri": None if self.uri is None else self.uri.format(**values),
            "hvp": hvp,
            "hvinfo": hvinfo,
        }


KERNEL: dict[str, Any] = {"access": "kernelspace"}
RBD: dict[str, Any] = {"dev_type": "rbd"}
SCSI = {"disk_type": "scsi-hd"}
IDE = {"disk_type": "ide"}
NBD = "nbd+unix:///v?socket={dir}/nbd"
GLUSTER = "gluster://127.0.0.1:1/vol/dir/image"
DISKS = (
    Case("block path", **KERNEL),
    Case("block path, cache=none", **KERNEL, dev_type="plain", hvp={"disk_cache": "none"}),
    Case("block path, cache=writeback", **KERNEL, dev_type="plain", hvp={"disk_cache": "writeback"}),
    Case("block path, cache=writethrough", **KERNEL, dev_type="plain", hvp={"disk_cache": "writethrough"}),
    Case("block path of a provider, cache=writeback", **KERNEL, hvp={"disk_cache": "writeback"}),
    Case("block path, aio=native, cache=none", **KERNEL, hvp={"disk_aio": "native", "disk_cache": "none"}),
    Case(
        "block path, aio=native, cache=writeback",
        **KERNEL,
        dev_type="plain",
        hvp={"disk_aio": "native", "disk_cache": "writeback"},
    ),
    Case("block path, aio=io_uring", **KERNEL, hvp={"disk_aio": "io_uring", "disk_cache": "none"}),
    Case("block path, discard=unmap", **KERNEL, hvp={"disk_discard": "unmap"}),
    Case("block path, boot", **KERNEL, hvp={"boot_order": "disk"}),
    Case("block path, boot, kernel of the host", **KERNEL, hvp={"boot_order": "disk", "kernel_path": "/boot/vmlinuz"}),
    Case("block path, IDE", **KERNEL, hvp=IDE),
    Case("block path, IDE, boot", **KERNEL, hvp={**IDE, "boot_order": "disk"}),
    Case("block path, scsi-hd", **KERNEL, hvp=SCSI),
    Case(
        "block path, scsi-hd, boot, cache=writethrough",
        **KERNEL,
        dev_type="plain",
        hvp={**SCSI, "boot_order": "disk", "disk_cache": "writethrough"},
    ),
    Case("block path, scsi-block that the device is not", **KERNEL, hvp={"disk_type": "scsi-block"}),
    Case("block path with a comma", **KERNEL, link="{dir}/a,b"),
    Case("block path with a comma and an option", **KERNEL, link="{dir}/a,read-only=on"),
    Case("block path, read-only", **KERNEL, mode="ro"),
    Case("block path, IDE, read-only", **KERNEL, mode="ro", hvp=IDE),
    Case("file", **KERNEL, dev_type="file", link="{dir}/file"),
    Case(
        "file, scsi-hd, discard=unmap",
        **KERNEL,
        dev_type="file",
        link="{dir}/file",
        hvp={**SCSI, "disk_discard": "unmap"},
    ),
    Case("file with a comma", **KERNEL, dev_type="file", link="{dir}/f,g"),
    Case(
        "shared file, cache=writeback",
        **KERNEL,
        dev_type="sharedfile",
        link="{dir}/file",
        hvp={"disk_cache": "writeback"},
    ),
    Case("a disk type that QEMU has not", **KERNEL, hvp={"disk_type": "mtd"}),
    Case("userspace without a URI", None),
    Case("rbd", "rbd:pool/image", **RBD),
    Case("rbd of a provider", "rbd:pool/image"),
    Case("rbd, cache=writethrough", "rbd:pool/image", **RBD, hvp={"disk_cache": "writethrough"}),
    Case("rbd, scsi-hd, boot", "rbd:pool/image", **RBD, hvp={**SCSI, "boot_order": "disk"}),
    Case("rbd, IDE", "rbd:pool/image", **RBD, hvp=IDE),
    Case("rbd, id", "rbd:pool/image:id=admin", **RBD),
    Case("rbd, id and conf", "rbd:pool/image:id=admin:conf={dir}/ceph.conf"),
    Case("rbd, id, conf and keyring", "rbd:pool/image:id=admin:conf={dir}/ceph.conf:keyring={dir}/keyring"),
    Case("rbd, snapshot", "rbd:pool/image@snap", mode="ro"),
    Case("rbd, namespace", "rbd:pool/space/image"),
    Case("rbd, pool with a dash", "rbd:my-pool/image"),
    Case("rbd, image in capitals", "rbd:pool/Image"),
    Case("rbd, Ganeti's own name", "rbd:pool/0f7e2c7a-5d0e-4f0e-9d6b-0e0f3c1f3d10.rbd.disk0", **RBD),
    Case("gluster", GLUSTER, dev_type="gluster"),
    Case("gluster, cache=writeback, scsi-hd", GLUSTER, dev_type="gluster", hvp={**SCSI, "disk_cache": "writeback"}),
    Case("gluster, volume in capitals, no port", "gluster://127.0.0.1/Vol/image"),
    Case("gluster+unix", "gluster+unix:///vol/image?socket={dir}/no-socket"),
    Case("nbd, unix socket", NBD),
    Case("nbd, unix socket, scsi-hd, boot", NBD, hvp={**SCSI, "boot_order": "disk"}),
    Case("nbd, unix socket, IDE", NBD, hvp=IDE),
    Case("nbd, unix socket, discard=unmap", NBD, hvp={"disk_discard": "unmap"}),
    Case("nbd, TCP", "nbd://127.0.0.1:{port}/v"),
    Case("nbd, old form", "nbd:unix:{dir}/nbd:exportname=v"),
    Case("nbd, export with a comma", "nbd+unix:///x%2Cy?socket={dir}/nbd"),
    Case("iscsi", "iscsi://127.0.0.1:1/iqn.2026-01.org.example:t/1"),
    Case("iscsi, CHAP", "iscsi://user%25{secret}@127.0.0.1:1/iqn.2026-01.org.example:t/1"),
    Case("http", "http://127.0.0.1:{web}/image"),
    Case("http, IDE", "http://127.0.0.1:{web}/image", hvp=IDE),
    Case("nfs", "nfs://127.0.0.1/no/such/export/image"),
    Case("ssh", "ssh://nobody@127.0.0.1:1/image"),
    Case("json:", 'json:{{"driver":"nbd","server":{{"type":"unix","path":"{dir}/nbd"}},"export":"v"}}'),
    Case("file: URI", "file:{dir}/file"),
    Case("host_device: URI", "host_device:{dir}/link"),
    Case("vhost-user", "vhost-user:{dir}/no-socket"),
    Case("a protocol that nobody knows", "sheepdog:volume"),
    Case("no URI", "hello"),
)


class _Web(http.server.BaseHTTPRequestHandler):
    """A web server with one image of zeroes, in the ways that QEMU asks for it."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(16 * MIB))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self) -> None:
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{16 * MIB}")
        self.send_header("Content-Length", str(int(last) - int(first) + 1))
        self.end_headers()
        self.wfile.write(bytes(int(last) - int(first) + 1))

    def log_message(self, *_words: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def web() -> Iterator[int]:
    """The web server inside the block, by its port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Web) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def loop_device(path: Path) -> Iterator[str]:
    """A loop device over a new file inside the block."""
    with path.open("wb") as file:
        file.truncate(16 * MIB)
    made = subprocess.run(["losetup", "--find", "--show", str(path)], capture_output=True, text=True, check=False)
    if made.returncode:
        absent(f"no loop device: {made.stderr}")
    try:
        yield made.stdout.strip()
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


@contextlib.contextmanager
def storage(folder: Path, secret: str) -> Iterator[dict[str, str]]:
    """What the disks are on, inside the block: files, links to a block device, NBD and web servers; their places."""
    for name in ("file", "f,g"):
        with (folder / name).open("wb") as file:
            file.truncate(16 * MIB)
    (folder / "ceph.conf").write_text("[global]\nfsid = 0f7e2c7a-5d0e-4f0e-9d6b-0e0f3c1f3d10\n", encoding="utf-8")
    (folder / "keyring").write_text("", encoding="utf-8")
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(loop_device(folder / "device"))
        for name in ("link", "a,b", "a,read-only=on"):
            (folder / name).symlink_to(device)
        exports = {"v": 16 * MIB, "x,y": 16 * MIB}
        stack.enter_context(nbd_server(folder / "nbd", exports))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        stack.enter_context(nbd_server(listener, exports))
        port = listener.getsockname()[1]
        yield {"dir": str(folder), "port": str(port), "web": str(stack.enter_context(web())), "secret": secret}
