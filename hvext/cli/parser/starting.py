"""The commands for an instance that starts, and for reading what attach printed."""

from __future__ import annotations

from hvext.cli.parser.shared import (
    DISK_OPTIONS,
    Command,
    as_json,
    disk_options,
    disks_at_start,
    dry_run,
    monitor_timeout,
    parameters,
    qemu_binary,
    scripts,
    secrets,
    vm_name,
)


def args_command(command: Command) -> None:
    """Make ``args``."""
    args = command(
        "args",
        "start:args",
        "attach the disks of an instance that starts, and print QEMU's arguments",
        scripts,
        dry_run,
        as_json,
        epilog="--disk takes provider=NAME,volume=NAME and, as wished, uuid=, cname=, access=, param.NAME=,\n"
        "secret.ROLE=FILE and disk options; a comma in a value is doubled. Or a JSON object with the same keys.\n\n"
        + DISK_OPTIONS.replace("-o KEY=VALUE, may be repeated", "keys of --disk"),
    )
    disks_at_start(args)
    args.add_argument("--vm", metavar="NAME", help="the VM's name in the journal: what QEMU gets as -name")
    args.add_argument("--shared", action="store_true", help="open the volumes for shared access, as for migration")
    args.add_argument(
        "--format", choices=("blockdev", "drive", "qmp", "xml"), default="blockdev", help="default: %(default)s"
    )
    args.add_argument(
        "--connect", metavar="URI", help="with --format xml: libvirt, which is to keep the secrets that the XML names"
    )
    qemu_binary(args)


def explain_command(command: Command) -> None:
    """Make ``explain``."""
    explain = command(
        "explain",
        "explain:explain",
        "read what attach printed, and say what would be done with it",
        as_json,
        disk_options,
        epilog="With --qmp: whether the disk would fit into that guest, and the steps of a plug. Nothing is done, and\n"
        "no script is run; without FILE, nothing is said about the storage. Exit status 1 when it does not fit.\n\n"
        + DISK_OPTIONS,
    )
    explain.add_argument(
        "answer", metavar="FILE", nargs="?", help="the output of an attach script ('-': standard input)"
    )
    explain.add_argument(
        "--access", choices=("prefer-userspace", "userspace", "kernelspace"), default="prefer-userspace"
    )
    explain.add_argument("--hypervisor", default="kvm", metavar="NAME", help="default: %(default)s")
    explain.add_argument(
        "--disk-uuid", metavar="UUID", help="the disk's uuid (default: one of the answer's; with --qmp, plug's)"
    )
    qemu_binary(explain)
    explain.add_argument("--offline", action="store_true", help="do not look whether the block device exists")
    running = explain.add_argument_group("whether it fits into a guest that runs")
    running.add_argument("--qmp", metavar="SOCKET", help="the guest's QMP monitor: a path or HOST:PORT")
    running.add_argument(
        "--volume", metavar="PROVIDER/VOLUME", help="with --qmp: the disk, as hvext plug would be told"
    )
    parameters(running)
    secrets(running)
    running.add_argument(
        "--search-path", metavar="DIR:DIR…", help="where to look for providers (default: Ganeti's path)"
    )
    vm_name(running)
    monitor_timeout(running)
