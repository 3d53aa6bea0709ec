"""The commands that look at hosts and guests, once or all the time."""

from __future__ import annotations

from hvext.cli.parser.shared import Command, as_json, dry_run, number, scripts, seconds
from hvext.core.documentation import page


def watch_command(command: Command) -> None:
    """Make ``watch``."""
    watch = command(
        "watch",
        "watch:watch",
        "supervise running guests: fail their disks over and back, and resume them",
        scripts,
        dry_run,
        as_json,
        epilog="Each guest needs a QMP monitor for this alone. SIGTERM and Ctrl-C end it after what is under way,\n"
        "SIGHUP has it look for new guests, and try again what failed, at once. One line for each event.",
    )
    guests = watch.add_argument_group("which guests (at least one of these)")
    guests.add_argument("--qmp", action="append", default=[], metavar="SOCKET", help="a monitor: a path or HOST:PORT")
    guests.add_argument(
        "--qmp-glob", action="append", default=[], metavar="PATTERN", help="sockets, looked for again and again; or DIR"
    )
    watch.add_argument("--metrics", metavar="ADDRESS", help="serve Prometheus metrics at HOST:PORT or a socket's path")
    watch.add_argument("--once", action="store_true", help="bring in order what is broken now, and exit (1: not all)")
    watch.add_argument("--rescan", type=seconds, default=5.0, metavar="S", help="default: %(default)g")
    watch.add_argument("--qmp-timeout", type=seconds, default=30.0, metavar="S", help="default: %(default)g")
    watch.add_argument("--state-dir", metavar="DIR", help="the journal's folder (default: as for all commands)")
    pace = watch.add_argument_group(f"how fast, and for how long ({page('scale')})")
    pace.add_argument("--concurrent", type=seconds, default=8.0, metavar="N", help="at once (default: %(default)g)")
    pace.add_argument(
        "--per-server", type=seconds, default=20.0, metavar="N", help="connections a second (default: %(default)g)"
    )
    pace.add_argument("--give-up-tries", type=seconds, default=30.0, metavar="N", help="default: %(default)g")
    pace.add_argument("--give-up-after", type=seconds, default=600.0, metavar="S", help="default: %(default)g")
    back = watch.add_argument_group("back to the preferred storage")
    back.add_argument("--no-fail-back", action="store_true", help="leave disks where they are")
    back.add_argument("--checks", type=int, default=3, metavar="N", help="good looks in a row (default: %(default)s)")
    back.add_argument("--hold", type=seconds, default=30.0, metavar="S", help="for so long (default: %(default)g)")
    frozen = watch.add_argument_group(f"storage that is alive and silent ({page('failover')})")
    frozen.add_argument("--sample", type=seconds, default=5.0, metavar="S", help="look every (default: %(default)g)")
    frozen.add_argument("--stuck", type=seconds, default=10.0, metavar="S", help="frozen after (default: %(default)g)")
    fence = frozen.add_mutually_exclusive_group()
    fence.add_argument("--fence", choices=("none", "close"), default="none", help="close: the provider's script")
    fence.add_argument("--fence-command", metavar="CMD", help="a program with arguments; status 0: it is fenced")
    frozen.add_argument(
        "--fence-leaves-server", action="store_true", help="the command takes the storage away, not the server"
    )


def observing_commands(command: Command) -> None:
    """Make ``metrics`` and ``top``."""
    metrics = command(
        "metrics", "metrics:metrics", "print what is measured of all VMs of this host, for Prometheus",
        epilog="A VM whose monitor another program has is down here; hvext watch --metrics serves its own.",
    )  # fmt: skip
    metrics.add_argument("--output", metavar="FILE", help="write there, at once as a whole (node_exporter's textfile)")
    top = command(
        "top", "top:top", "show what the disks of all VMs of this host are doing, again and again", as_json,
        epilog="--json prints an object a line for each look. A VM whose monitor another program has is shown as busy.",
    )  # fmt: skip
    top.add_argument("--interval", type=seconds, default=2.0, metavar="S", help="default: %(default)g")
    many = top.add_mutually_exclusive_group()
    many.add_argument("--once", action="store_true", help="look at one interval, and exit")
    many.add_argument("--count", type=number, metavar="N", help="look at N intervals, and exit")
    for each in (metrics, top):
        each.add_argument("--vm", action="append", default=[], metavar="NAME", help="only this VM (repeatable)")
        each.add_argument("--wait", type=seconds, default=1.0, metavar="S", help="for a monitor (default: %(default)g)")


def report_command(command: Command) -> None:
    """Make ``report``."""
    report = command(
        "report", "report:report", "draw the disks of this host and what was done to them, as one page", scripts,
        epilog="The page needs nothing else: no script, no network. A monitor that another program has is not waited\n"
        "for longer than --wait; what the journal knows is drawn then.",
    )  # fmt: skip
    report.add_argument("--html", required=True, metavar="FILE", help="where to write it")
    report.add_argument("--vm", action="append", default=[], metavar="NAME", help="only this VM (repeatable)")
    report.add_argument("--places", action="store_true", help="ask providers where disks could be, and look there")
    report.add_argument(
        "--bench", action="append", default=[], metavar="RESULT.json", help="a benchmark to show (repeatable)"
    )
    report.add_argument("--wait", type=seconds, default=1.0, metavar="S", help="for a monitor (default: %(default)g)")


def doctor_command(command: Command) -> None:
    """Make ``doctor``."""
    doctor = command(
        "doctor",
        "doctor:doctor",
        "say whether this host is ready, for which transports, and what to do where it is not",
        as_json,
        epilog="Exit status 0: ready; 1: something is in error (with --strict, or a warning). Nothing is changed.",
    )
    doctor.add_argument(
        "--uri", action="append", default=[], metavar="URI",
        help="look at what this one needs ('-': read it from standard input; repeatable)",
    )  # fmt: skip
    doctor.add_argument("--provider", action="append", default=[], metavar="NAME", help="and this one (repeatable)")
    doctor.add_argument("--user", metavar="NAME", help="the user that QEMU runs as: open files as that one")
    doctor.add_argument("--chroot", metavar="DIR", help="the root that QEMU has: open files in there")
    doctor.add_argument("--qemu", metavar="BINARY", default="qemu-system-x86_64", help="default: %(default)s")
    doctor.add_argument("--search-path", metavar="DIR:DIR…", help="where providers are (default: Ganeti's path)")
    doctor.add_argument("--only", action="append", default=[], metavar="SUBJECT", help="one subject (repeatable)")
    doctor.add_argument("--strict", action="store_true", help="take warnings for errors")
    doctor.add_argument("--list", action="store_true", help="list all checks, and run none")


def trying_commands(command: Command) -> None:
    """Make ``capabilities``, ``demo`` and ``completion``."""
    can = command("capabilities", "capabilities:capabilities", "list what a QEMU can open and plug", as_json)
    which = can.add_mutually_exclusive_group()
    which.add_argument("--qemu", metavar="BINARY", default="qemu-system-x86_64", help="default: %(default)s")
    which.add_argument("--qmp", metavar="SOCKET", help="a running QEMU's monitor (a path or HOST:PORT)")
    demo = command(
        "demo", "demo:demo", "boot a guest, and plug, move, grow and unplug a disk under its writes", as_json
    )
    demo.add_argument("--guest", metavar="DIR", default="vm-images/out", help="the built guest (default: %(default)s)")
    demo.add_argument("--device", choices=("virtio-blk-pci", "scsi-hd"), default="virtio-blk-pci")
    demo.add_argument("--moves", type=int, default=10, metavar="N", help="moves under writes (default: %(default)s)")
    demo.add_argument("--keep", metavar="DIR", help="keep logs and volume there instead of a temporary directory")
    shells = command(
        "completion",
        "completion:completion",
        "print what has a shell complete the commands and options of hvext",
        epilog="bash: hvext completion bash >~/.local/share/bash-completion/completions/hvext\n"
        "zsh:  hvext completion zsh >_hvext, in a folder of $fpath\n"
        "fish: hvext completion fish >~/.config/fish/completions/hvext.fish",
    )
    shells.add_argument("shell", choices=("bash", "zsh", "fish"))
