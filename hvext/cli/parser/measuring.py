"""The commands that measure."""

from __future__ import annotations

import argparse

from hvext.cli.parser.shared import DISK_OPTIONS, Command, as_json, disk_options, dry_run, scripts, seconds, volume


def bench_commands(command: Command) -> None:
    """Make ``bench``, ``tune`` and what reads their results."""
    bench = command(
        "bench",
        "bench:bench",
        "measure every access to a volume, and say which is the faster one",
        volume,
        disk_options,
        scripts,
        dry_run,
        as_json,
        _measured,
        epilog="The volume is only read, unless --destroy-data is given. hvext bench compare BEFORE.json AFTER.json\n"
        "compares two results, hvext bench report RESULT.json --html FILE makes the page of one.\n\n" + DISK_OPTIONS,
    )
    bench.add_argument(
        "--made", default="", metavar="LIST", help="also what is made from the block path: loop,nbd,vhost-user-blk"
    )
    bench.add_argument("--html", metavar="FILE", help="write the report there: one page with plots")
    tune = command(
        "tune",
        "bench:tune",
        "measure a disk's options over one access, and print the best",
        volume,
        disk_options,
        scripts,
        dry_run,
        as_json,
        _measured,
        epilog="Which access is --access's to say. The volume is only read, unless --destroy-data is given.\n\n"
        + DISK_OPTIONS,
    )
    tune.set_defaults(made="")
    tune.add_argument(
        "--beside",
        default="",
        metavar="LIST",
        help="measure the defaults of other layers instead: ganeti,libvirt,proxmox",
    )
    compare = command("bench-compare", "bench:compare", "compare two benchmarks, before and after", as_json)
    compare.add_argument("before", metavar="BEFORE.json")
    compare.add_argument("after", metavar="AFTER.json")
    report = command("bench-report", "bench:report", "make the page of a benchmark that was kept in a file")
    report.add_argument("result", metavar="RESULT.json")
    report.add_argument("--html", required=True, metavar="FILE", help="where to write it")


def _measured(parser: argparse.ArgumentParser) -> None:
    long = parser.add_mutually_exclusive_group()
    long.add_argument("--quick", action="store_true", help="under a minute for two accesses on the host")
    long.add_argument("--full", action="store_true", help="the whole list of workloads, ten seconds each")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each run is done, in turn with the others")
    parser.add_argument("--runtime", type=seconds, metavar="S", help="how long one run takes")
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
