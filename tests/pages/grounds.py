"""What stands on the machine before the first block of a page: shell functions, and what they start.

A ground is shell: what it starts runs on the throw-away machine, and ends with it. ``$ROOT`` is this tree.
"""

from __future__ import annotations

from tests.vm.libvirt_guests import domain_xml

FUNCTIONS = """\
# The shell takes no notice of what "!" says.
not() { if "$@"; then echo "is not to succeed: $*" >&2; return 1; fi; }
until_is() { for _ in $(seq 600); do if "$@"; then return; fi; sleep 0.2; done; echo "never: $*" >&2; return 1; }
# A QEMU with root ports and no guest in it: NAME SOCKET [QEMU'S ARGUMENT ...]
empty_qemu() {
    local name=$1 socket=$2
    shift 2
    mkdir -p "$(dirname "$socket")"
    qemu-system-x86_64 -name "$name" -machine q35 -accel tcg -m 64 -nodefaults -display none -S -daemonize \\
        -device pcie-root-port,id=rp0,chassis=1 -device pcie-root-port,id=rp1,chassis=2 \\
        -qmp "unix:$socket,server=on,wait=off" "$@"
}
# A QEMU whose guest is about to boot: NAME [QEMU'S ARGUMENT ...]
boot() {
    local name=$1
    shift
    mkfifo "/run/$name.keys.in" "/run/$name.keys.out"
    local ports=() port
    for port in 0 1 2 3 4 5; do ports+=(-device "pcie-root-port,id=rp$port,chassis=$((port + 1))"); done
    qemu-system-x86_64 -name "$name" -machine q35 -accel tcg -m 256 -nodefaults -display none -daemonize \\
        -kernel "$ROOT/vm-images/out/vmlinuz" -initrd "$ROOT/vm-images/out/initrd.gz" \\
        -append 'console=ttyS0 quiet' "${ports[@]}" \\
        -serial "file:/run/$name.console" -serial "pipe:/run/$name.keys" "$@"
}
booted() { until_is grep -q GUEST-READY "/run/$1.console"; }
# The uuid of the disk on a volume, which is attached then: PROVIDER VOLUME
uuid_of() { hvext attach "$@" --json | grep -oE '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}' | head -n 1; }
# A command for a guest's shell: NAME COMMAND
type_into() { echo "$2" >"/run/$1.keys.in"; }
"""

#: A running guest ``NAME`` with hvext's monitor at /run/NAME.qmp.
MONITOR = "-chardev socket,id=hvext,path=/run/{name}.qmp,server=on,wait=off -mon chardev=hvext,mode=control"


def guest(name: str, more: str = "") -> str:
    """A booted guest with a monitor for hvext at ``/run/NAME.qmp``."""
    return f"boot {name} {MONITOR.format(name=name)} {more}\nbooted {name}\n"


#: What `libvirt` starts.
LIBVIRTD = {"/usr/sbin/libvirtd": "libvirt-daemon", "virsh": "libvirt-clients"}


def libvirt(name: str, *, boots: bool) -> str:
    """A libvirtd at its usual place, and a domain that runs; without a guest in it unless it ``boots``."""
    system = (
        "<kernel>ROOT/vm-images/out/vmlinuz</kernel><initrd>ROOT/vm-images/out/initrd.gz</initrd>"
        "<cmdline>console=ttyS0 quiet</cmdline>"
    )
    console = f"<serial type='file'><source path='/run/{name}.console'/></serial>"
    xml = domain_xml(name, boot=system if boots else "", more=console)
    return f"""\
mkdir -p /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt
getent passwd libvirt-qemu >/dev/null || useradd --system libvirt-qemu
getent group libvirt-qemu >/dev/null || groupadd --system libvirt-qemu
cat >/etc/libvirt/qemu.conf <<'CONF'
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = [ ]
cgroup_controllers = [ ]
stdio_handler = "file"
CONF
printf 'auth_unix_rw = "none"\\nauth_unix_ro = "none"\\nunix_sock_group = "root"\\n' >/etc/libvirt/libvirtd.conf
libvirtd -d
domains() {{ virsh -q -c qemu:///system list >/dev/null 2>&1; }}
until_is domains
sed "s#ROOT#$ROOT#g" >/tmp/{name}.xml <<'XML'
{xml}
XML
virsh -q -c qemu:///system define /tmp/{name}.xml
virsh -q -c qemu:///system start {name}{"" if boots else " --paused"}
{f"booted {name}" if boots else ""}
"""
