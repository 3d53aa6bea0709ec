"""The commands that change the disks of running guests."""

from __future__ import annotations

import argparse

from hvext.cli.parser.shared import (
    DISK_OPTIONS,
    Command,
    as_json,
    disk_options,
    disks_at_start,
    dry_run,
    guest,
    guest_or_none,
    log,
    monitor,
    optional_volume,
    scripts,
    seconds,
    several_disks,
    size_mib,
    vm_name,
    withheld,
)


def guest_commands(command: Command) -> None:
    """Make ``plug``, ``unplug``, ``repoint``, ``resize``, ``resume`` and ``disks``."""
    command(
        "plug", "guest:plug", "attach a volume and plug it into a running guest",
        guest, optional_volume, several_disks, disk_options, scripts, dry_run, as_json,
        epilog="Instead of PROVIDER and VOLUME, --disk and --disks name several disks, as hvext args takes them. They\n"
        "are plugged at the same time; one that fails is undone, the others stay (exit status 1).\n\n" + DISK_OPTIONS,
    )  # fmt: skip
    unplug = command(
        "unplug", "guest:unplug", "unplug a disk and detach its volume",
        guest, optional_volume, scripts, dry_run, as_json,
        epilog="Without PROVIDER and VOLUME, --disk-uuid names the disk, and its volume stays attached.\n"
        "A guest that does not let go leaves the disk pending (exit status 1); the same command finishes it later.",
    )  # fmt: skip
    unplug.add_argument("--wait", type=seconds, metavar="S", default=15.0, help="for the guest (default: %(default)g)")
    repoint = command(
        "repoint", "guest:repoint", "move a disk of a running guest to another access to its volume",
        guest, optional_volume, scripts, dry_run, as_json,
        epilog="--to takes a URI or an absolute path. --access asks the provider again (its attach is idempotent).",
    )  # fmt: skip
    repoint.add_argument(
        "--to", metavar="LOCATION", help="the URI or block device to move to ('-': read it from standard input)"
    )
    repoint.add_argument(
        "--through-monitor", action="store_true", help="with --connect: past libvirt, which marks the domain as tainted"
    )
    resize = command(
        "resize", "guest:resize", "grow a disk of a running guest, and its volume",
        guest, optional_volume, scripts, dry_run, as_json,
        epilog="Without PROVIDER and VOLUME, --disk-uuid names a disk that is in the journal, with all its parameters.",
    )  # fmt: skip
    resize.add_argument("--new-size", type=size_mib, required=True, metavar="MIB", help="in MiB: 1024 is 1 GiB")
    resize.add_argument(
        "--size", type=size_mib, metavar="MIB", help="the volume's size now (default: what the guest sees)"
    )
    command(
        "resume", "resume:resume", "let a guest run again that an I/O error, or full storage, has stopped",
        monitor, log, dry_run, as_json,
        epilog="Make room first. A guest that somebody has paused is left so. May be repeated. A libvirt domain is\n"
        "resumed with virsh resume.\n"
        "Exit status 1 when the guest does not run then.",
    )  # fmt: skip
    disks = command(
        "disks", "guest:disks", "list hvext's disks of a running guest", guest_or_none, scripts, as_json,
        epilog="Nothing is stopped or waited for, whatever is asked. --places runs attach, which is idempotent.",
    )  # fmt: skip
    disks.add_argument("--stats", action="store_true", help="say all that is known of each disk, and what is odd")
    disks.add_argument("--places", action="store_true", help="also ask providers for all places, and look how they are")


def recovery_commands(command: Command) -> None:
    """Make ``audit`` and ``recover``."""
    audit = command(
        "audit", "recovery:audit", "compare the journal with what QEMU has, and list what is left over",
        _some_vms, as_json,
        epilog="Without --qmp and --vm all VMs of the journal are looked at. Exit status 1: there is something to do.",
    )  # fmt: skip
    recover = command(
        "recover", "recovery:recover", "finish or undo what a crash has left", _some_vms, scripts, dry_run, as_json,
        epilog="Without --qmp, --vm and --gone all VMs of the journal are seen to. May be repeated.\n"
        "Exit status 1 when something had to be left as it is.",
    )  # fmt: skip
    recover.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
    recover.add_argument(
        "--gone", action="append", default=[], metavar="NAME", help="a VM whose QEMU has ended, or was never started"
    )
    recover.add_argument(
        "--forget", action="append", default=[], metavar="UUID",
        help="a disk that no guest has, and whose provider is gone for good: strike it out",
    )  # fmt: skip
    for each in (audit, recover):
        each.add_argument("--qmp-timeout", type=seconds, default=30.0, metavar="S", help="default: %(default)g")


def _some_vms(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--qmp", action="append", default=[], metavar="SOCKET", help="a guest's monitor (repeatable)")
    parser.add_argument("--vm", action="append", default=[], metavar="NAME", help="a VM of the journal (repeatable)")


def migration_commands(command: Command) -> None:
    """Make the commands of a migration, and ``stop``."""
    from hvext.core.documentation import page

    steps = (
        "On the source: migrate-begin, migrate, stop. On the target: args --shared (and start QEMU with -S -incoming\n"
        f"defer), migrate-listen, migrate-finish. {page('migration')} has them in order."
    )
    begin = command(
        "migrate-begin", "migrate:begin", "describe a guest for its migration, and open its volumes shared (source)",
        monitor, disks_at_start, scripts, dry_run, as_json,
        epilog="Prints JSON, which the target's commands take as --disks.\n" + steps,
    )  # fmt: skip
    begin.add_argument(
        "--own-controller", action="store_true", help="hvext args made scsi0 at the start here, and is to there as well"
    )
    listen = command(
        "migrate-listen", "migrate:listen", "have a QEMU wait for a guest, once it is like the source's (target)",
        monitor, _described, log, dry_run, as_json, epilog=steps,
    )  # fmt: skip
    listen.add_argument("--at", required=True, metavar="URI", help="tcp:ADDRESS:PORT (port 0: any) or unix:PATH")
    migrate = command(
        "migrate", "migrate:migrate", "send a guest to the target that waits for it (source)",
        monitor, disks_at_start, scripts, dry_run, as_json,
        epilog="Ctrl-C, or a limit that is passed, cancels: the guest runs on here.\n" + steps,
    )  # fmt: skip
    migrate.add_argument("--to", required=True, metavar="URI", help="where it waits: tcp:HOST:PORT or unix:PATH")
    migrate.add_argument("--target-qmp", metavar="SOCKET", help="the target's monitor: the guest runs there at once")
    migrate.add_argument(
        "--keep-source", action="store_true", help="leave this QEMU and its volumes: it must never go on"
    )
    migrate.add_argument("--time-limit", type=seconds, metavar="S", help="cancel after that (default: never)")
    migrate.add_argument(
        "--stall", type=seconds, metavar="S", default=30.0, help="cancel when nothing is sent (default: %(default)g)"
    )
    migrate.add_argument("--bandwidth", type=seconds, metavar="MIB", help="MiB a second (default: QEMU's)")
    migrate.add_argument("--downtime", type=seconds, metavar="S", help="the pause to aim at (default: QEMU's 0.3)")
    finish = command(
        "migrate-finish", "migrate:finish", "let a guest run that arrived, and open its volumes exclusively (target)",
        monitor, _described, scripts, dry_run, as_json, epilog=steps,
    )  # fmt: skip
    finish.add_argument("--wait", type=seconds, metavar="S", default=30.0, help="for the guest (default: %(default)g)")
    cancel = command(
        "migrate-cancel", "migrate:cancel", "keep a guest, and open its volumes exclusively again (source)",
        monitor, disks_at_start, scripts, dry_run, as_json,
        epilog="The target has to let go of the volumes before: hvext stop --close there.\n" + steps,
    )  # fmt: skip
    cancel.add_argument(
        "--target-ended", action="store_true", help="the target's QEMU has ended and never let the guest run"
    )
    stop = command(
        "stop", "migrate:stop", "detach the disks of an instance that has ended",
        disks_at_start, scripts, dry_run, as_json,
    )  # fmt: skip
    vm_name(stop)
    stop.add_argument("--close", action="store_true", help="close the volumes first: on a target that gets no guest")


def _described(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--disks", required=True, metavar="FILE", help="what migrate-begin printed ('-': standard input)"
    )
    withheld(parser)
