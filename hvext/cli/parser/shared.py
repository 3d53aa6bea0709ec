"""Arguments that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Callable

#: What arguments are added to: a parser, or a group of one.
Group = argparse.ArgumentParser | argparse._ArgumentGroup
#: Adds arguments to a parser.
Add = Callable[[argparse.ArgumentParser], None]
#: Makes a command: its name, ``MODULE:FUNCTION`` of ``hvext.cli``, what it does, and what adds its arguments.
Command = Callable[..., argparse.ArgumentParser]
_OPTIONS_HELP = "disk option; see 'disk options' below"
DISK_OPTIONS = """\
disk options (-o KEY=VALUE, may be repeated):
  device=virtio-blk-pci|scsi-hd   cache=none|writeback|writethrough|directsync|unsafe
  aio=threads|native|io_uring     discard=ignore|unmap    detect_zeroes=off|on|unmap
  werror=report|stop|enospc|ignore    rerror=report|stop|ignore
  read_only=on|off    serial=TEXT    bootindex=N    iothread=ID|auto    queues=N
  bus=ID    addr=SLOT    scsi_id=N    lun=N
  bps_total, bps_read, bps_write, iops_total, iops_read, iops_write=N,
  each also as NAME_max and NAME_max_length; iops_size=N
"""


def seconds(text: str) -> float:
    """Return a number of seconds above 0, as argparse has it checked."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0; got {text!r}")
    return seconds


def number(text: str) -> int:
    """Return a whole number above 0, as argparse has it checked."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0; got {text!r}")
    return int(text)


def size_mib(text: str) -> int:
    """Return a whole number of MiB, as argparse has it converted; which numbers are good is said later."""
    try:
        return int(text)
    except ValueError:
        number, unit = text[:-1], text[-1:].upper()
        factor = {"M": 1, "G": 1024, "T": 1024**2}.get(unit, 0)
        meant = f"{int(number) * factor} for {text}" if factor and number.isdecimal() else "1024 for 1 GiB"
        raise argparse.ArgumentTypeError(f"sizes are whole numbers of MiB ({meant}); got {text!r}") from None


def as_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def dry_run(parser: argparse.ArgumentParser) -> None:
    """Add ``--dry-run``."""
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, step by step, and do nothing")


def log(parser: argparse.ArgumentParser) -> None:
    """Add the log of steps."""
    parser.add_argument("--log", choices=("json",), help="log each step on standard error, a JSON object a line")
    parser.add_argument("--log-file", metavar="FILE", help="log there instead, behind what the file holds")


def qemu_binary(parser: argparse.ArgumentParser) -> None:
    """Add the QEMU that is to open a disk."""
    parser.add_argument(
        "--qemu", metavar="BINARY", help="the QEMU that will open the disk: what it cannot open is passed over"
    )


def scripts(parser: argparse.ArgumentParser) -> None:
    """Add how providers are found and run, and the log."""
    group = parser.add_argument_group("how providers are found and run")
    group.add_argument("--search-path", metavar="DIR:DIR…", help="where to look for providers (default: Ganeti's path)")
    group.add_argument("--timeout", type=seconds, metavar="S", help="time limit of every script (default: 60)")
    group.add_argument(
        "--action-timeout", action="append", default=[], metavar="ACTION=S", help="time limit of one script"
    )
    group.add_argument("--log-dir", metavar="DIR", help="log files of the scripts ('none': keep none)")
    group.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="more environment for the scripts"
    )
    log(parser)


def parameters(parser: Group) -> None:
    """Add a provider's parameters."""
    parser.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="provider parameter (EXTP_NAME)"
    )
    parser.add_argument(
        "--parameter-file",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="provider parameter whose value is in a file: for secrets, which every user can see on a command line",
    )


def disk(parser: argparse.ArgumentParser) -> None:
    """Add what a disk has beside provider and volume."""
    parameters(parser)
    parser.add_argument("--disk-uuid", metavar="UUID", help="the disk's uuid (default: from provider, volume and -p)")
    parser.add_argument("--cname", metavar="NAME", help="the disk's name for people (VOL_CNAME)")
    parser.add_argument("--access", choices=("prefer-userspace", "userspace", "kernelspace"), help="the wished access")
    secrets(parser)


def secrets(parser: Group) -> None:
    """Add the files of secrets."""
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="ROLE=FILE",
        help="a secret that the provider's URI lacks: password, key, cookie or proxy_password",
    )


#: What the two words mean that most commands begin with.
_PROVIDER = "the provider's name: that of its folder (hvext providers lists them)"
_VOLUME = "the volume's name, as the provider knows it"


def volume(parser: argparse.ArgumentParser) -> None:
    """Add a disk by its provider and volume."""
    parser.add_argument("provider", metavar="PROVIDER", help=_PROVIDER)
    parser.add_argument("volume", metavar="VOLUME", help=_VOLUME)
    disk(parser)


def optional_volume(parser: argparse.ArgumentParser) -> None:
    """Add a disk by its provider and volume, which may be left out."""
    parser.add_argument("provider", metavar="PROVIDER", nargs="?", help=_PROVIDER)
    parser.add_argument("volume", metavar="VOLUME", nargs="?", help=_VOLUME)
    disk(parser)


def disk_options(parser: argparse.ArgumentParser) -> None:
    """Add disk options."""
    parser.add_argument("-o", "--option", action="append", default=[], metavar="KEY=VALUE", help=_OPTIONS_HELP)


def several_disks(parser: argparse.ArgumentParser) -> None:
    """Add several disks."""
    parser.add_argument("--disk", action="append", default=[], metavar="KEY=VALUE,…", help="a disk; may be repeated")
    parser.add_argument(
        "--disks", metavar="FILE", help="a JSON list of disks, or what migrate-begin printed ('-': standard input)"
    )


def withheld(parser: argparse.ArgumentParser) -> None:
    """Add secret parameters that a description leaves out."""
    parser.add_argument(
        "--parameter-file", action="append", default=[], metavar="NAME=FILE",
        help="a provider's parameter that is secret, and that migrate-begin leaves out",
    )  # fmt: skip


def disks_at_start(parser: argparse.ArgumentParser) -> None:
    """Add the disks of an instance, and their secret parameters."""
    several_disks(parser)
    withheld(parser)


def vm_name(parser: Group) -> None:
    """Add the VM's name."""
    parser.add_argument("--vm", metavar="NAME", help="the VM's name in the journal (default: QEMU's -name)")


def monitor_timeout(parser: Group) -> None:
    """Add the limit of one QMP command."""
    parser.add_argument(
        "--qmp-timeout",
        type=seconds,
        default=30.0,
        metavar="S",
        help="limit of one QMP command (default: %(default)g)",
    )


def monitor(parser: argparse.ArgumentParser) -> None:
    """Add the guest's monitor."""
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
    parser.add_argument("--qmp", required=True, metavar="SOCKET", help="the guest's QMP monitor: a path or HOST:PORT")
    vm_name(parser)
    monitor_timeout(parser)


def guest(parser: argparse.ArgumentParser) -> None:
    """The guest's monitor, or libvirt and its domain."""
    _guest(parser, required=True)


def guest_or_none(parser: argparse.ArgumentParser) -> None:
    """The same, for a command that says itself what to do where no guest is named."""
    _guest(parser, required=False)


def _guest(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
    which = parser.add_mutually_exclusive_group(required=required)
    which.add_argument("--qmp", metavar="SOCKET", help="the guest's QMP monitor: a path or HOST:PORT")
    which.add_argument("--connect", metavar="URI", help="libvirt that runs the guest: qemu:///system, …")
    parser.add_argument("--domain", metavar="NAME", help="with --connect: the guest's name or uuid there")
    parser.add_argument("--live", action="store_true", help="with --connect: change what runs, and nothing else")
    parser.add_argument("--config", action="store_true", help="with --connect: the persistent configuration alone")
    vm_name(parser)
    monitor_timeout(parser)
