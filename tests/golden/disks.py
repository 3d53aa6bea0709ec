"""The disks whose renderings are kept in files: together they use every option and every kind of location."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from hvext.core.identity import DiskNames
from hvext.core.options import DiskOptions
from hvext.core.plan import DiskPlan, plan_disk
from hvext.core.uri import Location, parse_uri

_UUID = uuid.UUID("0d1b4b5e-6d8a-4d3b-9a57-0c5f2f6f7a10")


def _plan(uri: str, options: Mapping[str, object], *, generation: int = 0, controller: str | None = None) -> DiskPlan:
    location: Location = parse_uri(uri)
    values = DiskOptions.from_mapping(options)
    return plan_disk(DiskNames(_UUID), location, values, generation=generation, controller=controller)


DISKS = {
    "nbd-unix": _plan("nbd+unix:///disk0?socket=/run/provider/disk0.sock", {}),
    "nbd-tcp-ipv6": _plan("nbd://[2001:db8::1]:10810/pool/disk0", {"discard": "unmap"}, generation=10),
    "host-device": _plan("/dev/mapper/vg-disk0", {"aio": "native", "serial": "vg-disk0"}),
    "file-read-only": _plan("/srv/images/install.raw", {"read_only": True, "cache": "writeback", "aio": "threads"}),
    "rbd": _plan("rbd:vms/disk0@base:conf=/etc/ceph/two.conf", {"bootindex": 1}),
    "rbd-namespace-and-user": _plan("rbd:vms/tenant/disk0:id=hvext", {}),
    "scsi": _plan(
        "nbd+unix:///disk0?socket=/run/provider/disk0.sock",
        {"device": "scsi-hd", "bus": "scsi0", "scsi_id": 3, "lun": 1, "serial": "disk0", "cache": "directsync"},
    ),
    "scsi-with-its-controller": _plan(
        "/dev/mapper/vg-disk0", {"device": "scsi-hd", "iothread": "auto"}, controller="hvscsi0"
    ),
    "throttle": _plan(
        "/dev/mapper/vg-disk0",
        {
            "bps_total": 50_000_000,
            "bps_total_max": 100_000_000,
            "bps_total_max_length": 10,
            "iops_read": 400,
            "iops_read_max": 800,
            "iops_read_max_length": 20,
            "iops_write": 200,
            "iops_write_max": 600,
            "iops_write_max_length": 30,
            "iops_size": 4096,
        },
    ),
    "throttle-by-direction": _plan(
        "/dev/mapper/vg-disk0",
        {
            "bps_read": 50_000_000,
            "bps_read_max": 100_000_000,
            "bps_read_max_length": 10,
            "bps_write": 25_000_000,
            "bps_write_max": 75_000_000,
            "bps_write_max_length": 20,
            "iops_total": 400,
            "iops_total_max": 800,
            "iops_total_max_length": 30,
        },
    ),
    "iothread-auto": _plan("nbd://server.example/disk0", {"iothread": "auto", "bus": "rp3", "addr": "00"}),
    "all-options": _plan(
        "/srv/images/disk0.raw",
        {
            "device": "virtio-blk-pci",
            "cache": "unsafe",
            "aio": "io_uring",
            "discard": "unmap",
            "detect_zeroes": "unmap",
            "werror": "stop",
            "rerror": "ignore",
            "serial": "disk0",
            "bootindex": 2,
            "iothread": "iothread1",
            "bus": "pci.0",
            "addr": "1f",
            "bps_total": 1_000_000,
        },
    ),
    "odd-names": _plan("nbd+unix:///a,b%22c'd=%C3%A9?socket=/run/x,readonly=on/%22%25,,", {}),
    "odd-path": _plan("/srv/x,file.filename=/etc/shadow,\"'\\ $é&<", {"serial": "a,b=c"}),
}
