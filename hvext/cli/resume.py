"""The command that lets a guest run again that an I/O error has stopped."""

from __future__ import annotations

import argparse
import contextlib

from hvext.cli.output import print_hint, print_json, reporter
from hvext.host import interrupts
from hvext.host.qmp import CONNECT_TIMEOUT_S
from hvext.operations.resume import Resumed, ResumeState
from hvext.operations.resume import resume as resume_guest
from hvext.operations.vm import open_vm_async
from hvext.operations.whose import end_told

_WAITS = "the guest's requests wait for that, and none is lost"


def resume(arguments: argparse.Namespace) -> int:
    """Let the guest run again; 1 when it does not run."""
    result = interrupts.run(_resumed(arguments))
    hint = _hint(result)
    if arguments.json:
        print_json(result.to_json() | {"hint": hint})
    else:
        print(f"VM {result.vm}: {_words(result)}")
        print_hint(hint)
    return 0 if result.runs else 1


async def _resumed(arguments: argparse.Namespace) -> Resumed:
    limit_s = arguments.qmp_timeout
    opening = open_vm_async(
        arguments.qmp,
        timeout_s=limit_s,
        connect_timeout_s=min(limit_s, CONNECT_TIMEOUT_S),
        report=reporter(verbose=arguments.verbose),
        name=arguments.vm,
    )
    async with contextlib.AsyncExitStack() as stack:
        with end_told(arguments.qmp):
            vm = await stack.enter_async_context(opening)
        return await resume_guest(vm)


def _words(result: Resumed) -> str:
    why = [f"disk {uuid} is full" for uuid in result.full] + [f"disk {uuid} failed" for uuid in result.failed]
    match result.state:
        case ResumeState.RESUMED:
            return "runs again"
        case ResumeState.RUNNING:
            return "runs already, nothing was done"
        case ResumeState.STOPPED:
            return "an I/O error has stopped it again at once" + (f": {', '.join(why)}" if why else "")
    return f"left as it is ({result.status}): no I/O error has stopped it"


def _hint(result: Resumed) -> str:
    if result.state is ResumeState.STOPPED:
        if result.failed or not result.full:
            return f"hvext watch --once fails disks over whose storage is dead; {_WAITS}"
        return f"make room, then repeat it; {_WAITS}"
    if result.state is ResumeState.PAUSED:
        return "whoever paused it lets it run again (cont, virsh resume)" if result.status == "paused" else ""
    return ""
