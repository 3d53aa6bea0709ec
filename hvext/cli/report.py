"""The command that draws what a host has as one page."""

from __future__ import annotations

import argparse
import socket
import sys
import time
from importlib.metadata import version

from hvext.bench.verdict import judge
from hvext.cli.arguments import provider_host
from hvext.cli.files import check_writable, read_result, write_whole
from hvext.cli.output import print_note
from hvext.core.history import parse_history
from hvext.core.observation import ObservedVm
from hvext.core.record import VmRecord
from hvext.errors import HvextError
from hvext.host import interrupts
from hvext.host.journal import JournalFolder
from hvext.operations.observe import observe
from hvext.operations.observe_host import HostObserver
from hvext.operations.reach import reach
from hvext.operations.records import broken_records, check_names, read_records
from hvext.operations.whose import where_looked
from hvext.report.content import Benchmark, Content
from hvext.report.page import html_page

#: How long a QEMU may take for a command.
_COMMAND_S = 10.0


def report(arguments: argparse.Namespace) -> int:
    """Write the page."""
    folder = JournalFolder()
    check_writable(arguments.html)
    check_names(arguments.vm, folder)
    print_note(where_looked(folder))
    benchmarks = tuple(_benchmark(path) for path in arguments.bench)
    vms = interrupts.run(_seen(arguments, folder))
    wished = {vm.name for vm in vms} if arguments.vm else None
    content = Content(
        host=socket.gethostname(),
        version=version("hvext"),
        taken=time.time(),
        vms=tuple(vms),
        history=tuple(past for past in parse_history(folder.remembered()) if wished is None or past.vm in wished),
        benchmarks=benchmarks,
        broken=tuple(error.message for error in broken_records(folder)),
    )
    write_whole(arguments.html, html_page(content))
    print(f"the page is in {arguments.html}", file=sys.stderr)
    return 0


async def _seen(arguments: argparse.Namespace, folder: JournalFolder) -> list[ObservedVm]:
    """Return the VMs as they are seen; with --places, those that can be asked are asked for their disks' places."""
    seen = await HostObserver(names=arguments.vm, folder=folder, wait_s=arguments.wait).observe(in_flight=True)
    if not arguments.places:
        return seen
    records = read_records(folder)
    return [await _with_places(arguments, folder, vm, records.get(vm.name)) for vm in seen]


async def _with_places(
    arguments: argparse.Namespace, folder: JournalFolder, vm: ObservedVm, record: VmRecord | None
) -> ObservedVm:
    if not vm.asked or record is None:
        return vm
    try:
        host, limit_s = provider_host(arguments), arguments.wait + _COMMAND_S
        async with reach(record, folder=folder, host=host, timeout_s=limit_s) as reached:
            return await observe(reached, places=True)
    except HvextError:
        # Somebody else has the monitor meanwhile, or the VM has ended: what was seen before is shown.
        return vm


def _benchmark(path: str) -> Benchmark:
    result = read_result(path)
    verdict = judge(result)
    answer = str(verdict.recommendation)
    return Benchmark(
        volume=f"{result.volume.get('provider', '')}/{result.volume.get('name', '')}",
        answer=f"access={answer} ({verdict.access})" if verdict.access else answer,
        reason=verdict.reason,
        made=result.created,
        certain=verdict.certain,
    )
