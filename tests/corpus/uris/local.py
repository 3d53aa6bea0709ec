"""What is on this host: files, block devices, NVMe controllers and vhost-user sockets."""

from tests.corpus.uris.row import rows

FILE = rows(
    "file",
    valid={
        "path": "/corpus/vol1",
        "prefix": "file:/corpus/vol1",
        "path-blank": "/corpus/a b",
        "path-comma": "/corpus/a,readonly=on",
        "path-commas": "/corpus/a,,b",
        "path-comma-behind": "/corpus/a,",
        "path-colon": "/corpus/a:b",
        "path-protocol": "/corpus/nbd:unix:/run/x",
        "path-json": '/corpus/json:{"driver":"null-co"}',
        "path-percent": "/corpus/a%20b",
        "path-question": "/corpus/a?b#c",
        "path-quote": "/corpus/a\"b'c",
        "path-backslash": "/corpus/a\\b",
        "path-newline": "/corpus/a\nb",
        "path-control": "/corpus/a\x01b\x7f",
        "path-utf8": "/corpus/é\N{GRINNING FACE}",
        "path-dots": "/corpus/../corpus/vol1",
        "path-double-slash": "/corpus//vol1",
        "path-trailing-slash": "/corpus/vol1/",
        "path-dollar": "/corpus/${HOME}",
        "path-dash": "/corpus/-drive",
        "path-equals": "/corpus/a=b",
        "prefix-blank": "file:/corpus/a b",
        "prefix-percent": "file:/corpus/a%20b",
        "prefix-question": "file:/corpus/a?b",
        "prefix-comma": "file:/corpus/a,b",
        "path-900": "/corpus/" + "p" * 900,
        "path-4095": "/corpus/" + "/".join(["d" * 200] * 20) + "/" + "p" * 66,
    },
    odd={
        "two-slashes": "file://corpus/vol1",
        "three-slashes": "file:///corpus/vol1",
        "host": "file://localhost/corpus/vol1",
        "relative": "file:vol1",
        "prefix-twice": "file:file:/corpus/vol1",
        "prefix-nbd": "file:nbd:unix:/run/x",
        "upper": "FILE:/corpus/vol1",
        "path-two-slashes": "//corpus/vol1",
        "path-5000": "/corpus/" + "p" * 5000,
        "bare-relative": "vol1",
        "bare-relative-slash": "dir/vol1",
        "bare-relative-dot": "./vol1",
        "bare-relative-colon": "./a:b",
        "blank-before": " /corpus/vol1",
        "blank-behind": "/corpus/vol1 ",
        "fdset": "/dev/fdset/7",
    },
    invalid={
        "empty": "",
        "prefix-empty": "file:",
        "nul": "/corpus/a\0b",
    },
)

DEVICE = rows(
    "host_device",
    valid={
        "plain": "host_device:/dev/corpus0",
        "blank": "host_device:/dev/corpus/a b",
        "comma": "host_device:/dev/corpus/a,b",
        "mapper": "host_device:/dev/corpus/vg0-lv--1",
        "percent": "host_device:/dev/corpus/a%2Fb",
        "colon": "host_device:/dev/corpus/a:b",
        "utf8": "host_device:/dev/corpus/é",
        "file": "host_device:/corpus/vol1",
    },
    odd={
        "relative": "host_device:sdb",
        "slashes": "host_device:///dev/corpus0",
        "upper": "HOST_DEVICE:/dev/corpus0",
        "dash": "host-device:/dev/corpus0",
        "cdrom": "host_cdrom:/dev/corpus0",
        "empty": "host_device:",
    },
    invalid={"nul": "host_device:/dev/corpus\0"},
)

NVME = rows(
    "nvme",
    valid={
        "plain": "nvme://0000:01:00.0/1",
        "namespace-7": "nvme://0000:01:00.0/7",
        "domain": "nvme://10000:e1:00.0/1",
        "letters": "nvme://0000:c4:1f.7/1",
    },
    odd={
        "empty-device": "nvme:///1",
        "namespace-zero": "nvme://0000:01:00.0/0",
        "namespace-negative": "nvme://0000:01:00.0/-1",
        "namespace-letters": "nvme://0000:01:00.0/x",
        "namespace-hex": "nvme://0000:01:00.0/0x1",
        "namespace-leading-zeros": "nvme://0000:01:00.0/001",
        "namespace-huge": "nvme://0000:01:00.0/4294967297",
        "namespace-empty": "nvme://0000:01:00.0/",
        "namespace-missing": "nvme://0000:01:00.0",
        "namespace-behind": "nvme://0000:01:00.0/1/2",
        "namespace-query": "nvme://0000:01:00.0/1?x=y",
        "no-domain": "nvme://01:00.0/1",
        "upper-digits": "nvme://0000:C4:1F.7/1",
        "junk": "nvme://storage.example/1",
        "traversal": "nvme://..:..:..%2F/1",
        "blank": "nvme://0000:01:00.0 /1",
        "one-slash": "nvme:/0000:01:00.0/1",
        "no-slashes": "nvme:0000:01:00.0/1",
        "upper": "NVME://0000:01:00.0/1",
        "device": "nvme:///dev/nvme0/1",
    },
    invalid={
        "empty": "nvme://",
    },
)

#: hvext's own: QEMU has a device for it, and no block driver.
VHOST_USER = rows(
    "vhost-user",
    odd={
        "plain": "vhost-user:/run/vhost.sock",
        "slashes": "vhost-user:///run/vhost.sock",
        "relative": "vhost-user:vhost.sock",
        "comma": "vhost-user:/run/a,b",
        "blank": "vhost-user:/run/a b",
        "108": "vhost-user:/" + "s" * 107,
        "upper": "VHOST-USER:/run/vhost.sock",
        "other-name": "vhost-user-blk:/run/vhost.sock",
    },
    invalid={"empty": "vhost-user:", "host": "vhost-user://storage.example/vol1"},
)

ROWS = FILE + DEVICE + NVME + VHOST_USER
