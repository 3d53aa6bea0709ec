"""The disks whose renderings are kept in files: together they use every option and every kind of location."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from hvext.core.access import choose_access
from hvext.core.answer import Attachment, HypervisorUri
from hvext.core.identity import DiskNames
from hvext.core.options import DiskOptions
from hvext.core.plan import DiskPlan, plan_disk
from hvext.core.uri import Location, parse_uri

_UUID = uuid.UUID("0d1b4b5e-6d8a-4d3b-9a57-0c5f2f6f7a10")


def _plan(uri: str, options: Mapping[str, object], *, generation: int = 0, controller: str | None = None) -> DiskPlan:
    location: Location = parse_uri(uri)
    values = DiskOptions.from_mapping(options)
    return plan_disk(DiskNames(_UUID), location, values, generation=generation, controller=controller)


def _chosen(uri: str, options: Mapping[str, object]) -> DiskPlan:
    """The plan of a disk that a provider offers at one URI alone."""
    offered = Attachment(block_path=None, uris=(HypervisorUri(hypervisor="kvm", uri=uri, line=2),))
    choice = choose_access(offered)
    location = choice.chosen.location
    return plan_disk(DiskNames(_UUID), location, choice.options_at(location, DiskOptions.from_mapping(options)))


DISKS = {
    "nbd-unix": _plan("nbd+unix:///disk0?socket=/run/provider/disk0.sock", {}),
    "nbd-tcp-ipv6": _plan("nbd://[2001:db8::1]:10810/pool/disk0", {"discard": "unmap"}, generation=10),
    "host-device": _plan("/dev/mapper/vg-disk0", {"aio": "native", "serial": "vg-disk0"}),
    "file-read-only": _plan("/srv/images/install.raw", {"read_only": True, "cache": "writeback", "aio": "threads"}),
    "rbd": _plan("rbd:vms/disk0@base:conf=/etc/ceph/two.conf", {"bootindex": 1}),
    "rbd-namespace-and-user": _plan("rbd:vms/tenant/disk0:id=hvext", {}),
    "rbd-at-its-only-place": _chosen("rbd:vms/disk0", {}),
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
            "queues": 4,
            "bus": "pci.0",
            "addr": "1f",
            "bps_total": 1_000_000,
        },
    ),
    "odd-names": _plan("nbd+unix:///a,b%22c'd=%C3%A9?socket=/run/x,readonly=on/%22%25,,", {}),
    "nbd-psk": _plan(
        "nbds://hvext@server.example:10810/disk0?tls-psk-file=/etc/hvext/disks.psk&reconnect-delay=10&open-timeout=5",
        {},
    ),
    "nbd-x509": _plan("nbds://server.example/disk0?tls-certificates=/etc/pki/qemu&tls-hostname=disks.example", {}),
    "rbd-with-all": _plan(
        "rbd:vms/tenant/disk0@base:id=hvext:key=bm90LWEta2V5:auth_supported=cephx:conf=/etc/ceph/two.conf"
        ":mon_host=192.0.2.1\\:6789\\;[2001\\:db8\\:\\:1]\\:6789:rados_osd_op_timeout=20",
        {},
    ),
    "rbd-for-libvirt": _plan("rbd:vms/disk0:id=hvext:key=bm90LWEta2V5:mon_host=192.0.2.1\\:6789", {}),
    "iscsi": _plan("iscsi://hvext%not-a-password@[2001:db8::1]:3261/iqn.2001-04.org.example:disks/7", {}),
    "iscsi-with-all": _plan(
        'json:{"driver":"iscsi","transport":"iser","portal":"server.example:3261","target":"iqn.2001-04.org.example:x",'
        '"lun":3,"user":"hvext","password":"not-a-password","initiator-name":"iqn.2001-04.org.example:host",'
        '"header-digest":"crc32c","timeout":30}',
        {},
    ),
    "ssh": _plan(f"ssh://hvext@server.example:2222/srv/disk0?host_key_check=sha256:{'ab' * 32}", {}),
    "nfs": _plan("nfs://server.example/export/disk0?uid=1000&gid=1001", {}),
    "nfs-with-all": _plan(
        "nfs://server.example/export/disk0?uid=1000&gid=1001&tcp-syncnt=3&readahead=65536&pagecache=16&debug=2",
        {"cache": "writeback"},
    ),
    "gluster": _plan("gluster://server.example/volume/disk0", {}),
    "gluster-with-all": _plan(
        'json:{"driver":"gluster","volume":"volume","path":"disk0","debug":7,"logfile":"/var/log/gluster.log",'
        '"server":[{"type":"inet","host":"one.example","port":"24008"},{"type":"unix","path":"/run/glusterd.sock"}]}',
        {},
    ),
    "https": _plan("https://server.example/disk0.raw", {}),
    "https-with-all": _plan(
        'json:{"driver":"https","url":"https://server.example/disk0.raw","username":"hvext","password":"not-a-password",'
        '"cookie":"session=not-a-token","sslverify":false,"proxy-username":"proxy","proxy-password":"not-a-password",'
        '"readahead":1048576,"timeout":7}',
        {},
    ),
    "nvme": _plan("nvme://0000:44:00.0/2", {}),
    "io-uring": _plan('json:{"driver":"io_uring","filename":"/srv/disk0.raw"}', {}),
    "virtio-blk-vhost-user": _plan('json:{"driver":"virtio-blk-vhost-user","path":"/run/disk0.sock"}', {}),
    "vhost-user": _plan("vhost-user:/run/disk0,a.sock", {"bootindex": 1, "bus": "rp0"}),
    "odd-path": _plan("/srv/x,file.filename=/etc/shadow,\"'\\ $é&<", {"serial": "a,b=c"}),
}
