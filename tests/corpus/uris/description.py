"""``json:`` descriptions of block nodes."""

import json

from tests.corpus.uris.row import rows

_NBD = {"driver": "nbd", "server": {"type": "unix", "path": "/run/nbd.sock"}, "export": "vol1"}


def _text(value: object) -> str:
    return "json:" + json.dumps(value, ensure_ascii=False)


ROWS = rows(
    "json",
    valid={
        "nbd-unix": _text(_NBD),
        "nbd-inet": _text({"driver": "nbd", "server": {"type": "inet", "host": "storage.example", "port": "10809"}}),
        "nbd-dotted": _text({"driver": "nbd", "server.type": "unix", "server.path": "/run/nbd.sock", "export": "vol1"}),
        "file": _text({"driver": "file", "filename": "/corpus/vol1"}),
        "host-device": _text({"driver": "host_device", "filename": "/dev/corpus0"}),
        "rbd": _text({"driver": "rbd", "pool": "pool", "image": "image", "user": "hvext", "conf": "/corpus/ceph.conf"}),
        "rbd-namespace": _text({"driver": "rbd", "pool": "pool", "namespace": "ns", "image": "image"}),
        "rbd-server": _text(
            {"driver": "rbd", "pool": "pool", "image": "image", "server": [{"host": "192.0.2.7", "port": "6789"}]}
        ),
        "rbd-server-dotted": _text(
            {"driver": "rbd", "pool": "pool", "image": "i", "server.0.host": "192.0.2.7", "server.0.port": "6789"}
        ),
        "iscsi": _text(
            {"driver": "iscsi", "transport": "tcp", "portal": "192.0.2.7", "target": "iqn.2026-01.example:a", "lun": 1}
        ),
        "iscsi-timeout": _text(
            {
                "driver": "iscsi",
                "transport": "tcp",
                "portal": "192.0.2.7",
                "target": "iqn.2026-01.example:a",
                "timeout": 7,
            }
        ),
        "gluster": _text(
            {
                "driver": "gluster",
                "volume": "volume",
                "path": "image",
                "server": [{"type": "inet", "host": "storage.example", "port": "24007"}],
            }
        ),
        "gluster-two": _text(
            {
                "driver": "gluster",
                "volume": "volume",
                "path": "image",
                "server": [
                    {"type": "inet", "host": "a.example", "port": "24007"},
                    {"type": "unix", "path": "/run/glusterd.socket"},
                ],
            }
        ),
        "ssh": _text({"driver": "ssh", "server": {"host": "storage.example", "port": "22"}, "path": "/srv/vol1"}),
        "ssh-check": _text(
            {
                "driver": "ssh",
                "server": {"host": "storage.example", "port": "22"},
                "path": "/srv/vol1",
                "user": "alice",
                "host-key-check": {"mode": "hash", "type": "sha256", "hash": "00" * 32},
            }
        ),
        "nfs": _text(
            {"driver": "nfs", "server": {"type": "inet", "host": "storage.example"}, "path": "/export/vol1", "user": 5}
        ),
        "http": _text({"driver": "http", "url": "http://storage.example/vol1.raw", "readahead": 65536}),
        "https-cookie": _text({"driver": "https", "url": "https://storage.example/vol1.raw", "sslverify": False}),
        "nvme": _text({"driver": "nvme", "device": "0000:01:00.0", "namespace": 1}),
        "utf8": _text({"driver": "file", "filename": "/corpus/é"}),
        "escaped": 'json:{"driver": "file", "filename": "/corpus/\\u00e9"}',
        "odd-names": _text({"driver": "file", "filename": '/corpus/a,b"c\\d\ne'}),
        "blanks": 'json:  { "driver" : "file" , "filename" : "/corpus/vol1" }  ',
        "newlines": 'json:{\n  "driver": "file",\n  "filename": "/corpus/vol1"\n}\n',
        "nbd-reconnect": _text({**_NBD, "reconnect-delay": 10}),
    },
    odd={
        "cache": _text({**_NBD, "cache": {"direct": True}}),
        "read-only": _text({**_NBD, "read-only": True}),
        "raw-file": _text({"driver": "raw", "file": {"driver": "file", "filename": "/corpus/vol1"}}),
        "raw-nbd-dotted": _text(
            {"driver": "raw", "file.driver": "nbd", "file.server.type": "unix", "file.server.path": "/run/nbd.sock"}
        ),
        "raw-nbd": _text({"driver": "raw", "file": _NBD}),
        "nbd-legacy": _text({"driver": "nbd", "path": "/run/nbd.sock", "export": "vol1"}),
        "nbd-legacy-host": _text({"driver": "nbd", "host": "storage.example", "port": "10809"}),
        "raw-nested-filename": _text({"driver": "raw", "file": {"filename": "nbd:unix:/run/nbd.sock"}}),
        "raw-nested-dotted-filename": _text({"driver": "raw", "file.filename": "nbd:unix:/run/nbd.sock"}),
        "file-filename-protocol": _text({"driver": "file", "filename": "nbd:unix:/run/nbd.sock"}),
        "file-filename-json": _text({"driver": "file", "filename": 'json:{"driver":"null-co"}'}),
        "nbd-filename": _text({"driver": "nbd", "filename": "nbd:unix:/run/nbd.sock:exportname=vol1"}),
        "rbd-filename": _text({"driver": "rbd", "filename": "rbd:pool/image"}),
        "iscsi-filename": _text({"driver": "iscsi", "filename": "iscsi://192.0.2.7/iqn.2026-01.example:a/1"}),
        "http-filename": _text({"driver": "http", "filename": "http://storage.example/vol1.raw"}),
        "no-driver": _text({"filename": "/corpus/vol1"}),
        "no-driver-file": _text({"file": {"driver": "file", "filename": "/corpus/vol1"}}),
        "no-driver-protocol": _text({"file.driver": "nbd", "file.path": "/run/nbd.sock"}),
        "empty-object": "json:{}",
        "port-number": _text({"driver": "nbd", "server": {"type": "inet", "host": "storage.example", "port": 10809}}),
        "lun-text": _text(
            {"driver": "iscsi", "transport": "tcp", "portal": "h", "target": "iqn.2026-01.example:a", "lun": "1"}
        ),
        "user-text": _text(
            {"driver": "nfs", "server": {"type": "inet", "host": "h"}, "path": "/export/vol1", "user": "5"}
        ),
        "bool-text": _text({**_NBD, "read-only": "on"}),
        "bool-number": _text({**_NBD, "read-only": 1}),
        "bool-word": _text({**_NBD, "read-only": "true"}),
        "cache-dotted": _text({**_NBD, "cache.direct": "on"}),
        "node-name": _text({**_NBD, "node-name": "mine"}),
        "unknown-driver": _text({"driver": "sheepdog", "vdi": "a"}),
        "unknown-option": _text({**_NBD, "colour": "red"}),
        "unknown-nested": _text(
            {"driver": "nbd", "server": {"type": "unix", "path": "/run/nbd.sock", "colour": "red"}}
        ),
        "server-text": _text({"driver": "nbd", "server": "unix:/run/nbd.sock"}),
        "server-list": _text({"driver": "nbd", "server": [{"type": "unix", "path": "/run/nbd.sock"}]}),
        "server-missing": _text({"driver": "nbd", "export": "vol1"}),
        "server-and-path": _text({**_NBD, "path": "/run/other.sock"}),
        "nested-and-dotted": _text({"driver": "nbd", "server": {"type": "unix"}, "server.path": "/run/nbd.sock"}),
        "null": _text({**_NBD, "export": None}),
        "float": _text({**_NBD, "reconnect-delay": 1.5}),
        "number-text": _text({**_NBD, "reconnect-delay": "10"}),
        "negative": _text({**_NBD, "reconnect-delay": -1}),
        "huge": _text({**_NBD, "reconnect-delay": 1 << 40}),
        "duplicate-keys": 'json:{"driver":"file","filename":"/corpus/a","filename":"/corpus/b"}',
        "duplicate-driver": 'json:{"driver":"nbd","driver":"file","filename":"/corpus/a"}',
        "trailing-text": 'json:{"driver":"file","filename":"/corpus/a"}x',
        "trailing-object": 'json:{"driver":"file","filename":"/corpus/a"}{}',
        "trailing-comma": 'json:{"driver":"file","filename":"/corpus/a",}',
        "single-quotes": "json:{'driver':'file','filename':'/corpus/a'}",
        "mixed-quotes": "json:{'driver':\"file\",'filename':'/corpus/a\"b'}",
        "bad-escape": 'json:{"driver":"file","filename":"/corpus/\\x41"}',
        "nul-escape": 'json:{"driver":"file","filename":"/corpus/a\\u0000b"}',
        "surrogates": 'json:{"driver":"file","filename":"/corpus/\\ud83d\\ude00"}',
        "lone-surrogate": 'json:{"driver":"file","filename":"/corpus/\\ud83d"}',
        "raw-newline": 'json:{"driver":"file","filename":"/corpus/a\nb"}',
        "comment": 'json:{"driver":"file","filename":"/corpus/a"} // x',
        "interpolation": 'json:{"driver":"file","filename":%s}',
        "percent-text": 'json:{"driver":"file","filename":"/corpus/%s%p"}',
        "nan": 'json:{"driver":"null-co","size":NaN}',
        "qcow2": _text({"driver": "qcow2", "file": {"driver": "file", "filename": "/corpus/vol1.qcow2"}}),
        "qcow2-backing": _text(
            {
                "driver": "qcow2",
                "file": {"driver": "file", "filename": "/corpus/top"},
                "backing": {"driver": "raw", "file": _NBD},
            }
        ),
        "raw-backing": _text({"driver": "raw", "file": _NBD, "backing": None}),
        "raw-raw": _text({"driver": "raw", "file": {"driver": "raw", "file": _NBD}}),
        "raw-offset": _text({"driver": "raw", "offset": 4096, "size": 8192, "file": _NBD}),
        "luks": _text({"driver": "luks", "key-secret": "nosuch", "file": _NBD}),
        "throttle": _text({"driver": "throttle", "throttle-group": "nosuch", "file": _NBD}),
        "quorum": _text({"driver": "quorum", "vote-threshold": 1, "children": [_NBD, _NBD]}),
        "blkverify": _text({"driver": "blkverify", "test": _NBD, "raw": _NBD}),
        "null-co": _text({"driver": "null-co", "size": 65536}),
        "null-co-text": _text({"driver": "null-co", "size": "64k"}),
        "file-reference": _text({"driver": "raw", "file": "some-node"}),
        "io-uring": _text({"driver": "io_uring", "filename": "/corpus/vol1"}),
        "nvme-io-uring": _text({"driver": "nvme-io_uring", "path": "/dev/corpus0"}),
        "virtio-blk-vhost-user": _text({"driver": "virtio-blk-vhost-user", "path": "/run/vhost.sock"}),
        "virtio-blk-vhost-vdpa": _text({"driver": "virtio-blk-vhost-vdpa", "path": "/dev/corpus-vdpa"}),
        "virtio-blk-vfio-pci": _text({"driver": "virtio-blk-vfio-pci", "path": "/corpus/pci"}),
        "password-secret-missing": _text(
            {
                "driver": "iscsi",
                "transport": "tcp",
                "portal": "192.0.2.7",
                "target": "iqn.2026-01.example:a",
                "user": "alice",
                "password-secret": "nosuch",
            }
        ),
        "key-secret-missing": _text({"driver": "rbd", "pool": "pool", "image": "image", "key-secret": "nosuch"}),
        "iscsi-password": _text(
            {
                "driver": "iscsi",
                "transport": "tcp",
                "portal": "192.0.2.7",
                "target": "iqn.2026-01.example:a",
                "user": "alice",
                "password": "s3cret-json",
            }
        ),
        "http-password": _text({"driver": "http", "url": "http://alice:s3cret-json@storage.example/vol1.raw"}),
        "tls-missing": _text({**_NBD, "tls-creds": "nosuch"}),
        "locking": _text({"driver": "file", "filename": "/corpus/vol1", "locking": "off"}),
        "fat": _text({"driver": "vvfat", "dir": "/corpus"}),
        "upper": 'JSON:{"driver":"file","filename":"/corpus/a"}',
        "long": _text({"driver": "file", "filename": "/corpus/" + "/".join(["d" * 200] * 18)}),
    },
    invalid={
        "empty": "json:",
        "number": "json:5",
        "list": "json:[]",
        "text": 'json:"file"',
        "word": "json:null",
        "not-json": "json:driver=file",
        "unfinished": 'json:{"driver":"file"',
        "driver-number": _text({"driver": 5}),
        "driver-object": _text({"driver": {"driver": "file"}}),
        "driver-unknown": _text({"driver": "no-such-driver"}),
        "driver-empty": _text({"driver": ""}),
        "driver-upper": _text({"driver": "NBD", "path": "/run/nbd.sock"}),
        "filename-relative-nothing": _text({"driver": "file"}),
        "rbd-no-pool": _text({"driver": "rbd", "image": "image"}),
        "iscsi-no-target": _text({"driver": "iscsi", "transport": "tcp", "portal": "192.0.2.7"}),
        "deep": "json:" + '{"file":' * 2000 + "{}" + "}" * 2000,
    },
)
