"""Sessions with storage servers beside them: Ceph and iSCSI, and a migration between two hosts."""

from __future__ import annotations

from tests.pages.grounds import LIBVIRTD, guest, libvirt
from tests.pages.sessions import Session

CEPH, SECRETS, URIS = "docs/howto-ceph.md", "docs/howto-secrets.md", "docs/uris.md"

#: ``$CLUSTER`` is the folder of the cluster, with the administrator's keyring, ``$CONF`` its configuration for clients.
_CLUSTER = """\
getent passwd libvirt-qemu >/dev/null || useradd --system libvirt-qemu
rm -rf /etc/ceph
mkdir /etc/ceph
cp "$CONF" /etc/ceph/ceph.conf
install -m 600 "$CLUSTER/admin.keyring" /etc/ceph/ceph.client.admin.keyring
ceph auth rm client.vm 2>/dev/null
install -d -m 700 /etc/hvext
""" + guest("vm1")

#: Of the cluster of ``tests.servers.ceph``.
WITH_CEPH = (
    Session(
        name="Ceph",
        blocks=(
            (CEPH, "ceph osd pool create vms"),
            (CEPH, "apt-get install"),
            (CEPH, "hvext verify rbd"),
            (CEPH, "hvext plug --qmp /run/vm1.qmp rbd web1"),
            (CEPH, "rbd:vms/web1:id=vm:"),
            (CEPH, "[client.vm]"),
            ("docs/shipped-providers.md", "ceph osd pool create vms"),
        ),
        ground=_CLUSTER,
        within={
            "hvext plug": "ceph auth get-key client.vm | install -m 600 /dev/stdin /etc/hvext/vm.key\nBLOCK"
            "hvext unplug --qmp /run/vm1.qmp rbd web1 -p pool=vms -p id=vm\n",
            "rbd:vms/web1": "uri=$(cat <<'URI'\nBLOCKURI\n)\nqemu-img info \"$uri\"\n",
            "[client.vm]": "cat >>/etc/ceph/ceph.conf <<'INI'\nBLOCKINI\n"
            'test "$(ceph-conf --name client.vm --lookup rados_osd_op_timeout)" = 30\n'
            "rbd --id vm ls vms\n",
        },
        # The doctor says that QEMU's user cannot read the keyring, which the page is about.
        answers=True,
        says=(
            "cure: .*setfacl -m u:libvirt-qemu:r",
            "rbd/web1: plugged as .* userspace rbd:",
            "grown from 10240 MiB to 20480 MiB",
            "virtual size: 20 GiB",
        ),
        after='test "$(rbd --id vm ls vms)" = web1\n',
    ),
)

#: A provider ``san``: its volume is the unit ``$TARGET`` of an iSCSI target, and the scripts know no password.
_SAN = """\
mkdir -p /srv/ganeti/extstorage/san /etc/hvext
cd /srv/ganeti/extstorage/san
for action in create remove grow detach setinfo verify; do printf '#!/bin/sh\\n' >$action; done
printf '#!/bin/sh\\nprintf "\\\\nkvm:%s\\\\n"\\n' "$TARGET" >attach
printf 'password of the user\\n' >parameters.list
chmod +x create remove grow detach setinfo verify attach
cd /root/page
install -m 600 password /etc/hvext/san.password
install -m 600 uri /etc/hvext/san.uri
rm password uri
"""
_UNPLUG = "hvext unplug --qmp /run/vm1.qmp san vol1\n"

#: Of the target of ``tests.servers.iscsi``; its user's password is in the file ``password``, and in ``uri``.
WITH_ISCSI = (
    Session(
        name="secrets",
        needs=LIBVIRTD,
        blocks=(
            (SECRETS, "hvext plug --qmp /run/vm1.qmp san vol1 --secret"),
            (URIS, "hvext plug --qmp /run/vm1.qmp san vol1 --secret"),
            (URIS, "usage="),
        ),
        ground=_SAN + guest("vm1") + libvirt("vm2", boots=False),
        before={
            "usage=": "hvext unplug --qmp /run/vm1.qmp --disk-uuid $UUID\n"
            "name=$(hvext args --format xml --disk provider=san,volume=vol2,secret.password=/etc/hvext/san.password |"
            " grep -o 'hv[a-z0-9]*-00-password')\n"
        },
        stands_for={
            # Each of these lines is one of several ways.
            "hvext plug --qmp /run/vm1.qmp san vol1 --parameter-file": "UUID=$(hvext disks --qmp /run/vm1.qmp --json |"
            " grep -oE '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}' | head -n 1)\n"
            + _UNPLUG
            + "hvext plug --qmp /run/vm1.qmp san vol1 --parameter-file",
            "volume=vol1,secret": "volume=vol3,secret",
            "hvfqkl4rznt5k7nfpki4hutihjyi-00-password": '"$name"',
        },
        says=("san/vol1: plugged as .* userspace iscsi:", "unplugged, volume detached"),
        after="virsh -q -c qemu:///system secret-list | grep -q password\n",
    ),
)

#: One provider on two hosts, each with a journal, private files, sockets and loop devices of its own.
_HOSTS = """\
sample=$ROOT/hvext/providers/sample
for side in source target; do
    mkdir -p /srv/$side/providers/shared /srv/$side/state
    for action in create remove grow attach detach setinfo verify open close; do
        printf '#!/bin/sh\\nexport EXTP_RUN=/run/%s EXTP_HOST=%s\\ncd %s && exec ./%s\\n' \\
            $side $side "$sample" $action >/srv/$side/providers/shared/$action
        chmod +x /srv/$side/providers/shared/$action
    done
    cp "$sample/parameters.list" /srv/$side/providers/shared/
done
on() { # SIDE COMMAND ...: one of hvext's commands on that host
    local side=$1 command=$2 search=(--search-path "/srv/$1/providers")
    shift 2
    if [ $command = migrate-listen ]; then search=(); fi
    HVEXT_STATE_DIR=/srv/$side/state HVEXT_RUNTIME_DIR=/run/hvext-$side hvext $command "${search[@]}" "$@"
}
on source create shared v1 --size 16 -p dir=/srv/volumes
echo '[{"provider": "shared", "volume": "v1", "bus": "rp0", "parameters": {"dir": "/srv/volumes"}}]' >mine.json
eval "boot guest1 -qmp unix:/run/source.qmp,server=on,wait=off $(on source args --vm guest1 --disks mine.json)"
booted guest1
eval_boot() { # the same machine, which waits for the guest
    rm -f /run/guest1.keys.*
    eval "boot guest1 -qmp unix:/run/target.qmp,server=on,wait=off $*"
}
"""
_BEGIN = """\
on source migrate-begin --qmp /run/source.qmp --disks mine.json >theirs.json
disks=$(on target args --shared --disks theirs.json)
mv /run/guest1.console /run/source.console
"""
_TARGET = 'eval_boot "$disks -S -incoming defer -pidfile /run/target.pid"\n'

MIGRATION = (
    Session(
        name="a migration",
        blocks=(("docs/cli.md", "hvext migrate-begin"),),
        ground=_HOSTS,
        stands_for={
            "hvext migrate-begin ": "on source migrate-begin ",
            "hvext args ": "on target args ",
            "hvext migrate-listen ": _TARGET + "on target migrate-listen ",
            "tcp:ADDRESS:0 ": "tcp:127.0.0.1:0 >address ",
            "hvext migrate  ": "on source migrate  ",
            "tcp:ADDRESS:PORT": "$(cat address)",
            "hvext migrate-finish ": "on target migrate-finish ",
            "hvext stop ": "on source stop ",
            # Too late: the guest is elsewhere.
            "hvext migrate-cancel ": "not on source migrate-cancel ",
            "--qmp S": "--qmp /run/source.qmp",
            "--qmp T": "--qmp /run/target.qmp",
        },
        after="on target disks --qmp /run/target.qmp | grep -q virtio-blk-pci\n",
    ),
    Session(
        name="a migration that is given up",
        blocks=(("docs/migration.md", "# target: end its QEMU"),),
        ground=_HOSTS + _BEGIN + _TARGET + "on target migrate-listen --qmp /run/target.qmp --disks theirs.json"
        " --at tcp:127.0.0.1:0\nkill -9 $(cat /run/target.pid)\n",
        stands_for={
            "hvext stop ": "on target stop ",
            "hvext migrate-cancel ": "on source migrate-cancel ",
            "--qmp S": "--qmp /run/source.qmp",
        },
        after="on source disks --qmp /run/source.qmp | grep -q virtio-blk-pci\n",
    ),
)
SERVERS = MIGRATION
