"""Every command with its arguments. Nothing is imported here that is not needed to print help."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence

# Not typing's own, see hvext.core.value.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_OPTIONS_HELP = "disk option; see 'disk options' below"
_DISK_OPTIONS = """\
disk options (-o KEY=VALUE, may be repeated):
  device=virtio-blk-pci|scsi-hd   cache=none|writeback|writethrough|directsync|unsafe
  aio=threads|native|io_uring     discard=ignore|unmap    detect_zeroes=off|on|unmap
  werror=report|stop|enospc|ignore    rerror=report|stop|ignore
  read_only=on|off    serial=TEXT    bootindex=N    iothread=ID|auto    queues=N
  bus=ID    addr=SLOT    scsi_id=N    lun=N
  bps_total, bps_read, bps_write, iops_total, iops_read, iops_write=N,
  each also as NAME_max and NAME_max_length; iops_size=N
"""
_Add = Callable[[argparse.ArgumentParser], None]

# hvext has no translations, and argparse looks for them at each parser that is made, for which it loads locale.
vars(argparse)["_"] = str


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are JSON where JSON was asked for."""

    def error(self, message: str) -> NoReturn:
        if "--json" in sys.argv:
            import json

            value = {"error": {"type": "UsageError", "message": message, "hint": f"{self.prog} --help"}}
            print(json.dumps(value, ensure_ascii=False), file=sys.stderr)
            self.exit(2)
        super().error(message)


class _Version(argparse.Action):
    """Print the installed version; looked up only when it is asked for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        _namespace: argparse.Namespace,
        _values: object,
        _option_string: str | None = None,
    ) -> None:
        from importlib.metadata import version

        print(f"hvext {version('hvext')}")
        parser.exit()


def parse_line(words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of a command line; ends the program for ``--help`` and for one that is wrong.

    A command whose start-up counts gets a parser without all the others, which take longer than Python itself.
    """
    if not words or words[0] not in ALONE:
        return _whole_parser().parse_args(words)
    made: dict[str, argparse.ArgumentParser] = {}

    def command(name: str, run: str, text: str, *adds: _Add, epilog: str | None = None) -> argparse.ArgumentParser:
        made[name] = _Parser(prog=f"hvext {name}", **_described_as(text, epilog))
        return _filled(made[name], run, adds)

    ALONE[words[0]](command)
    return made[words[0]].parse_args(words[1:])


def _described_as(text: str, epilog: str | None) -> dict[str, Any]:
    return {"description": text[0].upper() + text[1:] + ".", "epilog": epilog, "formatter_class": _raw_formatter}


def _filled(parser: argparse.ArgumentParser, run: str, adds: Sequence[_Add]) -> argparse.ArgumentParser:
    for add in adds:
        add(parser)
    parser.set_defaults(run=run)
    return parser


def _raw_formatter(prog: str) -> argparse.HelpFormatter:
    """Return what lays out help, in lines as wide as the terminal.

    argparse asks for it at each argument, and to find the width by itself loads all that packs files (shutil).
    """
    wished = os.environ.get("COLUMNS", "")
    columns = int(wished) if wished.isdecimal() else 0
    with contextlib.suppress(ValueError, OSError):
        if not columns and sys.__stdout__ is not None:
            columns = os.get_terminal_size(sys.__stdout__.fileno()).columns
    return argparse.RawDescriptionHelpFormatter(prog, width=(columns or 80) - 2)


def _whole_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hvext",
        description="ExtStorage volumes as disks of KVM guests: through their userspace URIs, or their block devices.",
        epilog="Each command has its own --help. Exit status: 0 done, 1 failed, 2 wrong command or value.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    # Without prog, argparse formats a usage for it, and loads what looks at the terminal's size.
    commands = parser.add_subparsers(metavar="COMMAND", required=True, prog=parser.prog)

    def command(name: str, run: str, text: str, *adds: _Add, epilog: str | None = None) -> argparse.ArgumentParser:
        return _filled(commands.add_parser(name, help=text, **_described_as(text, epilog)), run, adds)

    command("providers", "providers:list_providers", "list the providers on the search path", _host, _json)
    one = command("provider", "providers:show_provider", "show one provider, and what is wrong with it", _host, _json)
    one.add_argument("provider", metavar="NAME")
    _volume_commands(command)
    _args_command(command)
    _explain_command(command)
    _guest_commands(command)
    _recovery_commands(command)
    _watch_command(command)
    _migration_commands(command)
    _bench_commands(command)
    _sanity_command(command)
    _new_provider_command(command)
    can = command("capabilities", "capabilities:capabilities", "list what a QEMU can open and plug", _json)
    which = can.add_mutually_exclusive_group()
    which.add_argument("--qemu", metavar="BINARY", default="qemu-system-x86_64", help="default: %(default)s")
    which.add_argument("--qmp", metavar="SOCKET", help="a running QEMU's monitor (a path or HOST:PORT)")
    demo = command("demo", "demo:demo", "boot a guest, and plug, move, grow and unplug a disk under its writes", _json)
    demo.add_argument("--guest", metavar="DIR", default="vm-images/out", help="the built guest (default: %(default)s)")
    demo.add_argument("--device", choices=("virtio-blk-pci", "scsi-hd"), default="virtio-blk-pci")
    demo.add_argument("--moves", type=int, default=10, metavar="N", help="moves under writes (default: %(default)s)")
    demo.add_argument("--keep", metavar="DIR", help="keep logs and volume there instead of a temporary directory")
    return parser


def _new_provider_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    new = command("new-provider", "new_provider:new_provider", "write a provider to begin with", _json)
    new.add_argument("name", metavar="NAME")
    new.add_argument("--language", choices=("sh", "python"), default="sh", help="default: %(default)s")
    new.add_argument("--folder", metavar="DIR", default=".", help="where its folder is made (default: here)")


def _volume_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    create = command("create", "volumes:create", "create a volume", _volume, _host, _json)
    create.add_argument("--size", type=int, required=True, metavar="MIB")
    command("remove", "volumes:remove", "remove a volume with all its data", _volume, _host, _json)
    grow = command("grow", "volumes:grow", "grow a volume (of a running guest: see resize)", _volume, _host, _json)
    grow.add_argument("--size", type=int, required=True, metavar="MIB", help="the size it has")
    grow.add_argument("--new-size", type=int, required=True, metavar="MIB", help="the size it is to have")
    attach = command("attach", "volumes:attach", "attach and open a volume on this host", _volume, _host, _json)
    attach.add_argument("--shared", action="store_true", help="open it for shared access, as for migration")
    command("detach", "volumes:detach", "detach a volume from this host", _volume, _host, _json)
    open_ = command("open", "volumes:open_volume", "open an attached volume for I/O", _volume, _host, _json)
    open_.add_argument("--shared", action="store_true", help="open it for shared access, as for migration")
    command("close", "volumes:close_volume", "close a volume: no more I/O from this host", _volume, _host, _json)
    info = command("setinfo", "volumes:set_info", "store metadata with a volume", _volume, _host, _json)
    info.add_argument("--metadata", required=True, metavar="TEXT", help="Ganeti stores originstname+INSTANCE")
    snapshot = command("snapshot", "volumes:snapshot", "take a snapshot of a volume", _volume, _host, _json)
    snapshot.add_argument("--snapshot-name", required=True, metavar="NAME")
    snapshot.add_argument("--snapshot-size", type=int, required=True, metavar="MIB")
    verify = command("verify", "volumes:verify", "have a provider check parameters", _host, _json)
    verify.add_argument("provider", metavar="PROVIDER")
    _parameters(verify)


def _args_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    args = command(
        "args",
        "start:args",
        "attach the disks of an instance that starts, and print QEMU's arguments",
        _host,
        _json,
        epilog="--disk takes provider=NAME,volume=NAME and, as wished, uuid=, cname=, access=, param.NAME=,\n"
        "secret.ROLE=FILE and disk options; a comma in a value is doubled. Or a JSON object with the same keys.\n\n"
        + _DISK_OPTIONS.replace("-o KEY=VALUE, may be repeated", "keys of --disk"),
    )
    _disks(args)
    args.add_argument("--vm", metavar="NAME", help="the VM's name in the journal: what QEMU gets as -name")
    args.add_argument("--shared", action="store_true", help="open the volumes for shared access, as for migration")
    args.add_argument(
        "--format", choices=("blockdev", "drive", "qmp", "xml"), default="blockdev", help="default: %(default)s"
    )
    _qemu(args)


def _explain_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    explain = command(
        "explain",
        "explain:explain",
        "read what attach printed, and say what would be done with it",
        _json,
        _options,
        epilog=_DISK_OPTIONS,
    )
    explain.add_argument("answer", metavar="FILE", help="the output of an attach script ('-': standard input)")
    explain.add_argument(
        "--access", choices=("prefer-userspace", "userspace", "kernelspace"), default="prefer-userspace"
    )
    explain.add_argument("--hypervisor", default="kvm", metavar="NAME", help="default: %(default)s")
    explain.add_argument("--disk-uuid", metavar="UUID", help="the disk's uuid (default: one derived from the answer)")
    _qemu(explain)
    explain.add_argument("--offline", action="store_true", help="do not look whether the block device exists")


def _guest_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    command(
        "plug", "guest:plug", "attach a volume and plug it into a running guest",
        _qmp, _optional_volume, _several_disks, _options, _host, _json,
        epilog="Instead of PROVIDER and VOLUME, --disk and --disks name several disks, as hvext args takes them. They\n"
        "are plugged at the same time; one that fails is undone, the others stay (exit status 1).\n\n" + _DISK_OPTIONS,
    )  # fmt: skip
    unplug = command(
        "unplug", "guest:unplug", "unplug a disk and detach its volume", _qmp, _optional_volume, _host, _json,
        epilog="Without PROVIDER and VOLUME, --disk-uuid names the disk, and its volume stays attached.\n"
        "A guest that does not let go leaves the disk pending (exit status 1); the same command finishes it later.",
    )  # fmt: skip
    unplug.add_argument("--wait", type=_seconds, metavar="S", default=15.0, help="for the guest (default: %(default)g)")
    repoint = command(
        "repoint", "guest:repoint", "move a disk of a running guest to another access to its volume",
        _qmp, _optional_volume, _host, _json,
        epilog="--to takes a URI or an absolute path. --access asks the provider again (its attach is idempotent).",
    )  # fmt: skip
    repoint.add_argument(
        "--to", metavar="LOCATION", help="the URI or block device to move to ('-': read it from standard input)"
    )
    resize = command(
        "resize", "guest:resize", "grow a disk of a running guest, and its volume", _qmp, _volume, _host, _json
    )
    resize.add_argument("--new-size", type=int, required=True, metavar="MIB")
    resize.add_argument("--size", type=int, metavar="MIB", help="the volume's size now (default: what the guest sees)")
    command("disks", "guest:disks", "list hvext's disks of a running guest", _qmp, _json)


def _recovery_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    audit = command(
        "audit", "recovery:audit", "compare the journal with what QEMU has, and list what is left over",
        _some_vms, _json,
        epilog="Without --qmp and --vm all VMs of the journal are looked at. Exit status 1 when anything is wrong.",
    )  # fmt: skip
    recover = command(
        "recover", "recovery:recover", "finish or undo what a crash has left", _some_vms, _host, _json,
        epilog="Without --qmp, --vm and --gone all VMs of the journal are seen to. May be repeated.\n"
        "Exit status 1 when something had to be left as it is.",
    )  # fmt: skip
    recover.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
    recover.add_argument(
        "--gone", action="append", default=[], metavar="NAME", help="a VM whose QEMU has ended, or was never started"
    )
    for each in (audit, recover):
        each.add_argument("--qmp-timeout", type=_seconds, default=30.0, metavar="S", help="default: %(default)g")


def _some_vms(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--qmp", action="append", default=[], metavar="SOCKET", help="a guest's monitor (repeatable)")
    parser.add_argument("--vm", action="append", default=[], metavar="NAME", help="a VM of the journal (repeatable)")


def _migration_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    steps = (
        "On the source: migrate-begin, migrate, stop. On the target: args --shared (and start QEMU with -S -incoming\n"
        "defer), migrate-listen, migrate-finish. docs/migration.md has them in order."
    )
    begin = command(
        "migrate-begin", "migrate:begin", "describe a guest for its migration, and open its volumes shared (source)",
        _qmp, _disks, _host, _json, epilog="Prints JSON, which the target's commands take as --disks.\n" + steps,
    )  # fmt: skip
    begin.add_argument(
        "--own-controller", action="store_true", help="hvext args made scsi0 at the start here, and is to there as well"
    )
    listen = command(
        "migrate-listen", "migrate:listen", "have a QEMU wait for a guest, once it is like the source's (target)",
        _qmp, _described, _json, epilog=steps,
    )  # fmt: skip
    listen.add_argument("--at", required=True, metavar="URI", help="tcp:ADDRESS:PORT (port 0: any) or unix:PATH")
    migrate = command(
        "migrate", "migrate:migrate", "send a guest to the target that waits for it (source)",
        _qmp, _disks, _host, _json,
        epilog="Ctrl-C, or a limit that is passed, cancels: the guest runs on here.\n" + steps,
    )  # fmt: skip
    migrate.add_argument("--to", required=True, metavar="URI", help="where it waits: tcp:HOST:PORT or unix:PATH")
    migrate.add_argument("--target-qmp", metavar="SOCKET", help="the target's monitor: the guest runs there at once")
    migrate.add_argument(
        "--keep-source", action="store_true", help="leave this QEMU and its volumes: it must never go on"
    )
    migrate.add_argument("--time-limit", type=_seconds, metavar="S", help="cancel after that (default: never)")
    migrate.add_argument(
        "--stall", type=_seconds, metavar="S", default=30.0, help="cancel when nothing is sent (default: %(default)g)"
    )
    migrate.add_argument("--bandwidth", type=_seconds, metavar="MIB", help="MiB a second (default: QEMU's)")
    migrate.add_argument("--downtime", type=_seconds, metavar="S", help="the pause to aim at (default: QEMU's 0.3)")
    finish = command(
        "migrate-finish", "migrate:finish", "let a guest run that arrived, and open its volumes exclusively (target)",
        _qmp, _described, _host, _json, epilog=steps,
    )  # fmt: skip
    finish.add_argument("--wait", type=_seconds, metavar="S", default=30.0, help="for the guest (default: %(default)g)")
    cancel = command(
        "migrate-cancel", "migrate:cancel", "keep a guest, and open its volumes exclusively again (source)",
        _qmp, _disks, _host, _json,
        epilog="The target has to let go of the volumes before: hvext stop --close there.\n" + steps,
    )  # fmt: skip
    cancel.add_argument(
        "--target-ended", action="store_true", help="the target's QEMU has ended and never let the guest run"
    )
    stop = command("stop", "migrate:stop", "detach the disks of an instance that has ended", _disks, _host, _json)
    _vm(stop)
    stop.add_argument("--close", action="store_true", help="close the volumes first: on a target that gets no guest")


def _disks(parser: argparse.ArgumentParser) -> None:
    _several_disks(parser)
    _withheld(parser)


def _several_disks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--disk", action="append", default=[], metavar="KEY=VALUE,…", help="a disk; may be repeated")
    parser.add_argument(
        "--disks", metavar="FILE", help="a JSON list of disks, or what migrate-begin printed ('-': standard input)"
    )


def _described(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--disks", required=True, metavar="FILE", help="what migrate-begin printed ('-': standard input)"
    )
    _withheld(parser)


def _withheld(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--parameter-file", action="append", default=[], metavar="NAME=FILE",
        help="a provider's parameter that is secret, and that migrate-begin leaves out",
    )  # fmt: skip


def _watch_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    watch = command(
        "watch",
        "watch:watch",
        "supervise running guests: fail their disks over and back, and resume them",
        _host,
        _json,
        epilog="Each guest needs a QMP monitor for this alone. SIGTERM and Ctrl-C end it after what is under way,\n"
        "SIGHUP has it look for new guests, and try again what failed, at once. One line for each event.",
    )
    guests = watch.add_argument_group("which guests (at least one of these)")
    guests.add_argument("--qmp", action="append", default=[], metavar="SOCKET", help="a monitor: a path or HOST:PORT")
    guests.add_argument(
        "--qmp-glob", action="append", default=[], metavar="PATTERN", help="sockets, looked for again and again; or DIR"
    )
    watch.add_argument("--once", action="store_true", help="bring in order what is broken now, and exit (1: not all)")
    watch.add_argument("--rescan", type=_seconds, default=5.0, metavar="S", help="default: %(default)g")
    watch.add_argument("--qmp-timeout", type=_seconds, default=30.0, metavar="S", help="default: %(default)g")
    watch.add_argument("--state-dir", metavar="DIR", help="the journal's folder (default: as for all commands)")
    pace = watch.add_argument_group("how fast, and for how long (docs/scale.md)")
    pace.add_argument("--concurrent", type=_seconds, default=8.0, metavar="N", help="at once (default: %(default)g)")
    pace.add_argument(
        "--per-server", type=_seconds, default=20.0, metavar="N", help="connections a second (default: %(default)g)"
    )
    pace.add_argument("--give-up-tries", type=_seconds, default=30.0, metavar="N", help="default: %(default)g")
    pace.add_argument("--give-up-after", type=_seconds, default=600.0, metavar="S", help="default: %(default)g")
    back = watch.add_argument_group("back to the preferred storage")
    back.add_argument("--no-fail-back", action="store_true", help="leave disks where they are")
    back.add_argument("--checks", type=int, default=3, metavar="N", help="good looks in a row (default: %(default)s)")
    back.add_argument("--hold", type=_seconds, default=30.0, metavar="S", help="for so long (default: %(default)g)")
    frozen = watch.add_argument_group("storage that is alive and silent (docs/failover.md)")
    frozen.add_argument("--sample", type=_seconds, default=5.0, metavar="S", help="look every (default: %(default)g)")
    frozen.add_argument("--stuck", type=_seconds, default=10.0, metavar="S", help="frozen after (default: %(default)g)")
    fence = frozen.add_mutually_exclusive_group()
    fence.add_argument("--fence", choices=("none", "close"), default="none", help="close: the provider's script")
    fence.add_argument("--fence-command", metavar="CMD", help="a program with arguments; status 0: it is fenced")
    frozen.add_argument(
        "--fence-leaves-server", action="store_true", help="the command takes the storage away, not the server"
    )


def _bench_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    bench = command(
        "bench",
        "bench:bench",
        "measure every access to a volume, and say which is the faster one",
        _volume,
        _options,
        _host,
        _json,
        _measured,
        epilog="The volume is only read, unless --destroy-data is given. hvext bench compare BEFORE.json AFTER.json\n"
        "compares two results, hvext bench report RESULT.json --html FILE makes the page of one.\n\n" + _DISK_OPTIONS,
    )
    bench.add_argument(
        "--made", default="", metavar="LIST", help="also what is made from the block path: loop,nbd,vhost-user-blk"
    )
    bench.add_argument("--html", metavar="FILE", help="write the report there: one page with plots")
    tune = command(
        "tune",
        "bench:tune",
        "measure a disk's options over one access, and print the best",
        _volume,
        _options,
        _host,
        _json,
        _measured,
        epilog="Which access is --access's to say. The volume is only read, unless --destroy-data is given.\n\n"
        + _DISK_OPTIONS,
    )
    tune.set_defaults(made="")
    tune.add_argument(
        "--beside",
        default="",
        metavar="LIST",
        help="measure the defaults of other layers instead: ganeti,libvirt,proxmox",
    )
    compare = command("bench-compare", "bench:compare", "compare two benchmarks, before and after", _json)
    compare.add_argument("before", metavar="BEFORE.json")
    compare.add_argument("after", metavar="AFTER.json")
    report = command("bench-report", "bench:report", "make the page of a benchmark that was kept in a file")
    report.add_argument("result", metavar="RESULT.json")
    report.add_argument("--html", required=True, metavar="FILE", help="where to write it")


def _sanity_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    sanity = command(
        "sanity", "sanity:sanity", "run a provider through the whole contract, on throw-away volumes",
        _parameters, _host, _json,
        epilog="Volumes have names of their own, and no other is touched; they are removed, also after Ctrl-C. Exit\n"
        "status: 0 all passed, 1 a check failed, 2 wrong use. docs/sanity.md says what is checked.",
    )  # fmt: skip
    sanity.add_argument("provider", metavar="PROVIDER", nargs="?")
    sanity.add_argument("--level", choices=("contract", "data", "stress"), default="data", help="default: %(default)s")
    sanity.add_argument("--skip", action="append", default=[], metavar="CHECK", help="leave a check out (repeatable)")
    sanity.add_argument("--size", type=int, default=32, metavar="MIB", help="of the volumes (default: %(default)s)")
    sanity.add_argument(
        "--watch", action="append", default=[], metavar="DIR",
        help="a folder that only this provider uses meanwhile: whatever is new in it is left over (repeatable)",
    )  # fmt: skip
    sanity.add_argument(
        "--place", action="append", default=[], metavar="NAME=VALUE,…",
        help="for a provider that makes no storage: the parameters of what one volume at a time may have, of at least\n"
        "twice the size (repeatable). ITS DATA ARE LOST",
    )  # fmt: skip
    sanity.add_argument("--junit", metavar="FILE", help="write JUnit XML there")
    sanity.add_argument("--list", action="store_true", help="list the checks of the level, and run none")


def _measured(parser: argparse.ArgumentParser) -> None:
    long = parser.add_mutually_exclusive_group()
    long.add_argument("--quick", action="store_true", help="under a minute for two accesses on the host")
    long.add_argument("--full", action="store_true", help="the whole list of workloads, ten seconds each")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each run is done, in turn with the others")
    parser.add_argument("--runtime", type=_seconds, metavar="S", help="how long one run takes")
    parser.add_argument("--level", choices=("host", "guest", "both"), default="host", help="default: %(default)s")
    parser.add_argument(
        "--devices", default="virtio-blk-pci", metavar="LIST", help="of the guest: virtio-blk-pci,scsi-hd"
    )
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="of the guest (default: %(default)s)")
    parser.add_argument("--job", metavar="FILE", help="a fio job file, instead of the built-in workloads")
    parser.add_argument("--span", default="1G", metavar="SIZE", help="the part that is measured (default: %(default)s)")
    parser.add_argument("--destroy-data", action="store_true", help="measure writing too: THE VOLUME'S DATA ARE LOST")
    parser.add_argument(
        "--out", metavar="FILE", help="keep the result there, with the programs' whole output (JSON; packed if FILE.gz)"
    )
    parser.add_argument(
        "--guest", metavar="DIR", default="vm-images/out", help="the built guest (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the random places (default: %(default)s)")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0; got {text!r}")
    return seconds


def _qemu(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--qemu", metavar="BINARY", help="the QEMU that will open the disk: what it cannot open is passed over"
    )


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _host(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how providers are found and run")
    group.add_argument("--search-path", metavar="DIR:DIR…", help="where to look for providers (default: Ganeti's path)")
    group.add_argument("--timeout", type=_seconds, metavar="S", help="time limit of every script (default: 60)")
    group.add_argument(
        "--action-timeout", action="append", default=[], metavar="ACTION=S", help="time limit of one script"
    )
    group.add_argument("--log-dir", metavar="DIR", help="log files of the scripts ('none': keep none)")
    group.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="more environment for the scripts"
    )


def _parameters(parser: argparse.ArgumentParser) -> None:
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


def _disk(parser: argparse.ArgumentParser) -> None:
    _parameters(parser)
    parser.add_argument("--disk-uuid", metavar="UUID", help="the disk's uuid (default: from provider, volume and -p)")
    parser.add_argument("--cname", metavar="NAME", help="the disk's name for people (VOL_CNAME)")
    parser.add_argument("--access", choices=("prefer-userspace", "userspace", "kernelspace"), help="the wished access")
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="ROLE=FILE",
        help="a secret that the provider's URI lacks: password, key, cookie or proxy_password",
    )


def _volume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("provider", metavar="PROVIDER")
    parser.add_argument("volume", metavar="VOLUME")
    _disk(parser)


def _optional_volume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("provider", metavar="PROVIDER", nargs="?")
    parser.add_argument("volume", metavar="VOLUME", nargs="?")
    _disk(parser)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--option", action="append", default=[], metavar="KEY=VALUE", help=_OPTIONS_HELP)


def _vm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vm", metavar="NAME", help="the VM's name in the journal (default: QEMU's -name)")


def _qmp(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
    parser.add_argument("--qmp", required=True, metavar="SOCKET", help="the guest's QMP monitor: a path or HOST:PORT")
    _vm(parser)
    parser.add_argument(
        "--qmp-timeout",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="limit of one QMP command (default: %(default)g)",
    )


#: Commands that hypervisor layers run again and again, and what builds them.
ALONE = {
    "args": _args_command,
    "explain": _explain_command,
    **dict.fromkeys(("plug", "unplug", "repoint", "resize", "disks"), _guest_commands),
}
