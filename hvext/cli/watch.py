"""The command that supervises running guests."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shlex
import signal
import sys
import time
from collections.abc import Callable
from shutil import which

from hvext.cli.arguments import provider_host
from hvext.core.hysteresis import FailBackRule
from hvext.core.moment import utc_text
from hvext.core.schedule import Pace
from hvext.core.supervision import GiveUpRule, Notice
from hvext.errors import HvextError, InputError
from hvext.host import interrupts
from hvext.host.provider import ProviderHost
from hvext.operations.fence import CommandFence, Fence, ProviderFence
from hvext.operations.watch import Watch, WatchSettings


def watch(arguments: argparse.Namespace) -> int:
    """Supervise guests until a signal ends it; with ``--once`` 1 when not all are well."""
    host = provider_host(arguments)
    watching = Watch(settings(arguments, host), host=host, say=_printer(as_json=arguments.json))
    check_goes_on(arguments)
    well = interrupts.run(_run(watching, arguments.metrics))
    if arguments.once and not watching.found:
        raise nobody()
    return 0 if well or not arguments.once else 1


async def _run(watching: Watch, metrics: str | None) -> bool:
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        if metrics:
            # Not loaded by a watch that nobody asks for numbers.
            from hvext.cli.metrics import serve

            stack.enter_context(serve(watching, metrics, loop))
        return await _supervise(watching, loop)


async def _supervise(watching: Watch, loop: asyncio.AbstractEventLoop) -> bool:
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, watching.stop)
    loop.add_signal_handler(signal.SIGHUP, watching.hurry)
    return await watching.run()


def check_goes_on(arguments: argparse.Namespace) -> None:
    """Raise InputError for what a watch that looks once has no use for."""
    if arguments.metrics and arguments.once:
        raise InputError("--metrics is for a watch that goes on", hint="hvext metrics prints them once")


def nobody() -> HvextError:
    """Return what is raised when there is no guest."""
    return HvextError("there is no guest to look at", hint="do --qmp and --qmp-glob name sockets that exist?")


def settings(arguments: argparse.Namespace, host: ProviderHost) -> WatchSettings:
    """Return what a command line says of a watch; raises InputError."""
    return WatchSettings(
        qmp=arguments.qmp,
        qmp_globs=arguments.qmp_glob,
        rescan_s=arguments.rescan,
        pace=Pace(concurrent=arguments.concurrent, per_server_s=arguments.per_server),
        give_up=GiveUpRule(tries=arguments.give_up_tries, after_s=arguments.give_up_after),
        fail_back=None if arguments.no_fail_back else FailBackRule(checks=arguments.checks, hold_s=arguments.hold),
        sample_s=arguments.sample,
        stuck_s=arguments.stuck,
        fence=_fence(arguments, host),
        once=arguments.once,
        qmp_timeout_s=arguments.qmp_timeout,
        state=arguments.state_dir,
    )


def _fence(arguments: argparse.Namespace, host: ProviderHost) -> Fence | None:
    if arguments.fence_command is not None:
        try:
            argv = tuple(shlex.split(arguments.fence_command))
        except ValueError as error:
            raise InputError(f"--fence-command cannot be split into words: {error}") from error
        if not argv:
            raise InputError("--fence-command is empty")
        if which(argv[0]) is None:
            raise InputError(f"--fence-command: there is no program {argv[0]!r}")
        return CommandFence(argv=argv, leaves_server=arguments.fence_leaves_server)
    if arguments.fence_leaves_server:
        raise InputError("--fence-leaves-server is about a --fence-command, and there is none")
    return ProviderFence(host=host) if arguments.fence == "close" else None


def _printer(*, as_json: bool) -> Callable[[Notice], None]:
    """Return what prints one line for each notice: a JSON object to standard output, or words to standard error."""

    def say(notice: Notice) -> None:
        when = utc_text(time.time())
        if as_json:
            print(json.dumps(notice.to_json(when), ensure_ascii=False), flush=True)
        else:
            print(notice.line(when), file=sys.stderr, flush=True)

    return say
