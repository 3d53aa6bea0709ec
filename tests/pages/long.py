"""Sessions with guests, servers and measurements: the nightly ones."""

from __future__ import annotations

from tests.pages.grounds import LIBVIRTD, guest, libvirt
from tests.pages.quick import CLI
from tests.pages.sessions import Session

#: What is left of the arguments of a QEMU where a page has "…".
_QEMU = (
    "-machine q35 -nodefaults -display none -S -daemonize"
    " -device pcie-root-port,id=rp0,chassis=1 -device pcie-root-port,id=rp1,chassis=2"
)
#: A benchmark that shows that the command works, in a fraction of the time.
_SHORT = "--quick --rounds 2 --runtime 0.3 --span 32M"

_WITHOUT_A_GUEST = (
    Session(
        name="volumes",
        blocks=((CLI, "hvext providers "),),
        ground="mkdir /srv/volumes\n",
        says=(
            r"rbd +\S+ +valid",
            r"/dev/loop\d+\nkvm:nbd\+unix:///v1\?socket=/run/hvext/sample/",
            "sample/v1: removed",
        ),
        after="test -f /var/lib/hvext/sample/v1.snap/data.raw\nnot test -e /var/lib/hvext/sample/v1/data.raw\n",
    ),
    Session(
        name="a start",
        blocks=((CLI, "disks=$(hvext args --disk provider=sample"),),
        ground="for each in v1 v2 v3; do hvext create sample $each --size 16; done\n"
        'echo \'[{"provider": "sample", "volume": "v3", "bus": "rp0"}]\' >disks.json\n',
        stands_for={"x86_64 … ": f"x86_64 {_QEMU} "},
        says=("-drive if=none",),
        after="pgrep -f '^qemu-system-x86_64.*hv-.*hv-'\n",
    ),
    Session(
        name="after a crash",
        blocks=((CLI, "hvext audit "), ("docs/recovery.md", "hvext audit ")),
        ground="""\
for each in v1 v2 v3; do hvext create sample $each --size 16; done
empty_qemu runs /run/vm1.qmp
empty_qemu dead /run/dead.qmp -pidfile /run/pid
hvext plug --qmp /run/vm1.qmp sample v1
hvext plug --qmp /run/dead.qmp sample v2
hvext args --vm vm1 --disk provider=sample,volume=v3 >/dev/null
kill -9 $(cat /run/pid)
""",
        answers=True,
        says=("dead +QEMU has ended", "nothing is left over, and nothing is unfinished"),
        after="hvext audit\n",
    ),
    Session(
        name="a page of the host, counters",
        blocks=(
            (CLI, "hvext report "),
            ("docs/report.md", "hvext report "),
            (CLI, "hvext top "),
            ("docs/observe.md", "hvext metrics "),
            ("docs/observe.md", "rate(hvext_"),
        ),
        ground="""\
empty_qemu web1 /run/web1.qmp
hvext create sample v1 --size 16
hvext plug --qmp /run/web1.qmp sample v1
mkdir -p /var/lib/node_exporter
gunzip <$ROOT/docs/data/sample.json.gz >result.json
""",
        stands_for={"hvext top  ": "hvext top --once  "},
        # There is no Prometheus here: the names are those that hvext tells, where the libraries add "_total".
        within={
            "rate(": """\
for each in $(grep -o 'hvext_[a-z_]*' <<'QUERIES'
BLOCKQUERIES
); do
    grep -rqE "\\"(hvext_)?${each%_total}\\"" "$ROOT"/hvext/{core,operations}/ || { echo "no $each"; exit 1; }
done
"""
        },
        says=(r"web1 +sample/v1 +userspace",),
        after="grep -q sample/v1 host.html\ngrep -q '^hvext_disk_requests_total{' /var/lib/node_exporter/hvext.prom\n",
    ),
    Session(
        name="dry runs",
        blocks=((CLI, "hvext plug --qmp /run/vm1.qmp sample v1 --dry-run"),),
        ground="""\
hvext create sample v1 --size 16
hvext create sample v2 --size 16
empty_qemu vm1 /run/vm1.qmp
hvext plug --qmp /run/vm1.qmp sample v2
echo '[{"provider": "sample", "volume": "v2"}]' >disks.json
""",
        says=("attach sample/v1",),
        after="hvext disks --qmp /run/vm1.qmp >disks\nlosetup --list >loops\n"
        "not grep 4fafddd2 disks\nnot grep sample/v1 loops\ngrep sample/v2 loops\n",
    ),
    Session(
        name="doctor",
        blocks=(
            ("docs/doctor.md", "hvext doctor "),
            (CLI, "hvext doctor "),
            ("docs/doctor.md", "$ hvext doctor --uri"),
        ),
        ground="""\
getent passwd libvirt-qemu >/dev/null || useradd --system libvirt-qemu
mkdir -p /var/lib/qemu /etc/ceph
printf '[global]\\nmon host = 127.0.0.1\\n' >/etc/ceph/ceph.conf
printf '[client.vm]\\n\\tkey = AQBnone\\n' >/etc/ceph/ceph.client.vm.keyring
chmod 600 /etc/ceph/ceph.client.vm.keyring
""",
        answers=True,
    ),
    Session(
        name="watch",
        blocks=((CLI, "hvext watch --qmp-glob /run/hvext-watch"),),
        ground="""\
for each in vm1 vm2; do empty_qemu $each /run/$each.watch.qmp; done
empty_qemu vm3 /run/hvext-watch/vm3
empty_qemu vm4 /run/vm4/watch.qmp
""",
        # Each runs until somebody ends it.
        stands_for={"hvext watch --qmp": "timeout --preserve-status --signal INT 4 hvext watch --qmp"},
        says=(
            "vm3: watching: QEMU",
            '"event": "watching".*"vm": "vm1"|"vm": "vm1".*"event": "watching"',
            "vm4: watching",
        ),
    ),
)

_RUNNING = (
    Session(
        name="disks of a running guest",
        needs=LIBVIRTD,
        blocks=((CLI, "-chardev socket"), (CLI, "hvext plug    --qmp")),
        within={"-chardev": "boot guest1 BLOCKbooted guest1\n"},
        ground=libvirt("vm1", boots=False)
        + """\
for each in v1 v2; do hvext create sample $each --size 1024; done
echo '[{"provider": "sample", "volume": "v2"}]' >disks.json
UUID=$(uuid_of sample v2)
device=$(hvext attach sample v2 | head -n 1)
for each in v1 v2; do
    qemu-nbd --fork --persistent --shared 0 -f raw --cache=none -k /run/$each.sock -x v1 "$device"
done
echo 'nbd+unix:///v1?socket=/run/v2.sock' >uri.txt
""",
        says=("nbd.unix:///v1.socket=/run/v1.sock", "1024 MiB to 2048 MiB", "unplugged, volume detached", "unplugged"),
    ),
    Session(
        name="a domain of libvirt's",
        needs=LIBVIRTD,
        blocks=(
            ("docs/libvirt.md", "hvext plug sample vol --access kernelspace"),
            ("docs/libvirt.md", "from hvext.core.disk import Disk"),
            ("docs/libvirt.md", "hvext repoint --disk-uuid UUID"),
            ("docs/libvirt.md", "hvext args --disks disks.json --format xml"),
        ),
        ground=libvirt("vm1", boots=True)
        + """\
hvext create sample vol --size 16
hvext create sample other --size 16
UUID=$(uuid_of sample vol)
echo '[{"provider": "sample", "volume": "other"}]' >disks.json
""",
        stands_for={"UUID": "$UUID", "/dev/rbd0": "$(hvext attach sample vol | head -n 1)"},
        says=("16 MiB to 20480 MiB", "moved from nbd.* to /dev/loop"),
        after="grep -q '<disk .*type=.network' disks.xml\n",
    ),
)


_COUNTERS = (
    Session(
        name="what disks do",
        blocks=(
            ("docs/observe.md", "$ hvext disks --places"),
            ("docs/observe.md", "$ hvext top --once"),
            ("docs/observe.md", '{"time"'),
        ),
        ground=guest("web1")
        + """\
empty_qemu db1 /run/db1.qmp
for each in data db more; do hvext create sample $each --size 64; done
hvext plug --qmp /run/web1.qmp sample data -o iops_total=5000
hvext plug --qmp /run/db1.qmp sample db
type_into web1 'until [ -e /dev/vda ]; do sleep 1; done; writer /dev/vda --blocks 1024 --rate 70 &'
# Somebody else has the monitor of db1.
python3 -c 'import socket, time; s = socket.socket(socket.AF_UNIX); s.connect("/run/db1.qmp"); time.sleep(600)' &
sleep 5
""",
        within={
            '{"time"': """\
hvext plug --qmp /run/web1.qmp sample more --log json 2>log.json
page-python <<'PYTHON'
import json
said = [json.loads(line) for line in open("log.json")]
for each in map(json.loads, \'\'\'BLOCK\'\'\'.splitlines()):
    like = [other for other in said if (set(other), other["event"]) == (set(each), each["event"])]
    assert like, (each, said)
PYTHON
"""
        },
    ),
)

_MACHINE = """\
import contextlib, logging, subprocess, uuid
import hvext
host = hvext.ProviderHost()
log = logging.getLogger()
volume = hvext.Volume(name="NAME", uuid=uuid.uuid4())
disk = hvext.Disk(provider="sample", volume=volume)
"""
_START = (
    _MACHINE
    + """\
hvext.create_volume(host, disk, size_mib=16)
disks = [disk]
machine_arguments = "-M q35 -accel tcg -m 64 -nodefaults -display none -no-reboot".split()
# An instance that ends soon: its kernel finds no root.
machine_arguments += ["-kernel", "ROOT/vm-images/out/vmlinuz", "-append", "panic=-1"]
"""
)


def _python(before: str, after: str = "") -> str:
    return f"sed \"s#ROOT#$ROOT#g\" <<'PYTHON' | page-python\n{before}BLOCK{after}PYTHON\n"


_API = (
    Session(
        name="from Python",
        blocks=tuple(
            ("docs/api.md", beginning)
            for beginning in (
                "start = hvext.start_disks(host, disks)  #",
                "start = hvext.start_disks(host, disks, ",
                "disk = hvext.Disk(",
                "async with hvext.open_vm_async",
                "from hvext import audit, recover",
                "watch = hvext.Watch(",
            )
        ),
        ground="""\
mkdir -p /etc/hvext
install -m 600 /root/page/script /etc/hvext/san.password
empty_qemu vm1 /run/vm1.qmp -chardev socket,id=w,path=/run/vm1.watch,server=on,wait=off -mon chardev=w,mode=control
""",
        within={
            "start = hvext.start_disks(host, disks)  #": _python(_START.replace("NAME", "one")),
            "start = hvext.start_disks(host, disks, ": _python(
                _START.replace("NAME", "two"), "print(start.disks[0])\nhvext.stop_disks(host, disks)\n"
            ),
            "disk = hvext.Disk(": _python(_MACHINE, "print(disk)\n"),
            "async with": _python(
                _MACHINE.replace("NAME", "three") + "hvext.create_volume(host, disk, size_mib=16)\n",
                'print("asynchronously", vm)\n',
            ),
            "from hvext import audit": _python(
                """\
import asyncio, contextlib, os, signal, subprocess, uuid
import hvext
host = hvext.ProviderHost()
disk = hvext.Disk(provider="sample", volume=hvext.Volume(name="four", uuid=uuid.uuid4()))
hvext.create_volume(host, disk, size_mib=16)
opened = contextlib.ExitStack()
vm = opened.enter_context(hvext.open_vm("/run/vm1.qmp", host=host))
vm.plug(disk)
def die():
    for pid in subprocess.run(["pidof", "qemu-storage-daemon"], capture_output=True, text=True).stdout.split():
        os.kill(int(pid), signal.SIGKILL)
""",
                "print('on', vm.disks()[disk.volume.uuid])\nopened.close()\n",
            ),
            "watch = ": _python(
                """\
import asyncio, logging, sys
import hvext
host = hvext.ProviderHost()
logging.basicConfig(stream=sys.stdout, level=logging.INFO)
log = logging.getLogger()
asyncio.get_running_loop().call_later(4, lambda: watch.stop())
"""
            ),
        },
        stands_for={"vm.fail_over": "die()\nvm.fail_over"},
        says=("on .*/dev/loop", "QEMU .* at /run/vm1.watch"),
    ),
)

LONG = (*_WITHOUT_A_GUEST, *_RUNNING, *_COUNTERS, *_API)
