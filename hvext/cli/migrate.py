"""The commands of a migration, each for one of the two sides, and ``hvext stop``."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Sequence

from hvext.cli.arguments import provider_host
from hvext.cli.output import print_json, print_warnings, reporter
from hvext.cli.start import file_values, given_disks, read_json
from hvext.core.migration import Description, Transfer
from hvext.errors import HvextError
from hvext.host import interrupts
from hvext.host.qmp import CONNECT_TIMEOUT_S
from hvext.operations import moving
from hvext.operations.sending import Migrated
from hvext.operations.start import stop_disks
from hvext.operations.transfer import Limits
from hvext.operations.vm import AsyncVm, open_vm_async

_SHOWN_EVERY_S = 1.0
_NOT_SENT = (
    "the guest runs on here. Send it again, or end the target's QEMU, then hvext stop --close there, and "
    "hvext migrate-cancel here"
)


def begin(arguments: argparse.Namespace) -> int:
    """Describe the guest for the target, and open its volumes shared: on the source."""
    disks = given_disks(arguments)

    async def work() -> Description:
        async with _vm(arguments) as vm:
            return await moving.begin(vm, disks, own_controller=arguments.own_controller)

    print_json(interrupts.run(work()).to_json())
    return 0


def listen(arguments: argparse.Namespace) -> int:
    """Compare the target's QEMU with the source's, and have it wait for the guest: on the target."""
    description = the_description(arguments)

    async def work() -> str:
        async with _vm(arguments) as vm:
            return await moving.listen(vm, description, arguments.at)

    address = interrupts.run(work())
    print_json({"state": "listening", "at": address}) if arguments.json else print(address)
    return 0


def migrate(arguments: argparse.Namespace) -> int:
    """Send the guest away: on the source."""
    disks = given_disks(arguments)
    given_limits = limits(arguments)

    async def work() -> Migrated:
        async with _vm(arguments) as vm:
            return await moving.send(
                vm,
                disks,
                arguments.to,
                target=arguments.target_qmp,
                keep_source=arguments.keep_source,
                limits=given_limits,
                progress=_shown(_report(arguments)),
            )

    try:
        result = interrupts.run(work())
    except KeyboardInterrupt:
        print_warnings([_NOT_SENT])
        raise
    if arguments.json:
        print_json(result.to_json())
        return 0
    sent_mib = result.transfer.transferred_bytes >> 20
    pause = "" if result.paused_ms is None else f", paused for {result.paused_ms:g} ms"
    print(f"sent to {arguments.to}: {sent_mib} MiB in {result.transfer.elapsed_ms} ms{pause}")
    then = "end QEMU here, hvext stop --close here" if arguments.keep_source else "hvext stop here"
    print(f"next: hvext migrate-finish on the target, {then}")
    return 0


def limits(arguments: argparse.Namespace) -> Limits:
    """Return how far sending may go."""
    return Limits(
        timeout_s=arguments.time_limit,
        stall_s=arguments.stall,
        bandwidth_bytes=None if arguments.bandwidth is None else int(arguments.bandwidth * 1048576),
        downtime_ms=None if arguments.downtime is None else int(arguments.downtime * 1000),
    )


def finish(arguments: argparse.Namespace) -> int:
    """Let the guest run and open its volumes exclusively: on the target."""
    description = the_description(arguments)

    async def work() -> str:
        async with _vm(arguments) as vm:
            return await moving.finish(vm, description, timeout_s=arguments.wait)

    return _stands(arguments, interrupts.run(work()), "the guest is on this host")


def cancel(arguments: argparse.Namespace) -> int:
    """Keep the guest here, and open its volumes exclusively again: on the source."""
    disks = given_disks(arguments)

    async def work() -> str:
        async with _vm(arguments) as vm:
            return await moving.cancel(vm, disks, target_ended=arguments.target_ended)

    return _stands(arguments, interrupts.run(work()), "the guest stays on this host")


def stop(arguments: argparse.Namespace) -> int:
    """Detach the volumes of an instance that has ended, or has gone to another host."""
    host, disks = provider_host(arguments), given_disks(arguments)
    left = stop_disks(host, disks, name=arguments.vm, close=arguments.close)
    if left:
        raise stop_failure(left)
    if arguments.json:
        print_json({"state": "detached", "volumes": [disk.volume.name for disk in disks]})
    else:
        print(f"detached: {', '.join(f'{disk.provider}/{disk.volume.name}' for disk in disks)}")
    return 0


def stop_failure(left: Sequence[str]) -> HvextError:
    """Return what is raised for volumes that stay attached."""
    return HvextError(f"NOT detached: {'; '.join(left)}", hint="has the instance's QEMU ended?")


def the_description(arguments: argparse.Namespace) -> Description:
    """Return what ``migrate-begin`` printed, with its secrets."""
    value = read_json(arguments.disks, "the description of the guest")
    return Description.from_json(value).completed(file_values(arguments.parameter_file))


def _stands(arguments: argparse.Namespace, state: str, words: str) -> int:
    if arguments.json:
        print_json({"state": state})
    else:
        print(f"{words}: {state}")
    return 0


def _vm(arguments: argparse.Namespace) -> contextlib.AbstractAsyncContextManager[AsyncVm]:
    return open_vm_async(
        arguments.qmp,
        host=provider_host(arguments) if hasattr(arguments, "search_path") else None,
        timeout_s=arguments.qmp_timeout,
        connect_timeout_s=min(arguments.qmp_timeout, CONNECT_TIMEOUT_S),
        report=_report(arguments),
        name=arguments.vm,
    )


def _report(arguments: argparse.Namespace) -> Callable[[str], None]:
    return reporter(verbose=arguments.verbose)


def _shown(report: Callable[[str], None]) -> Callable[[Transfer], None]:
    """Return what reports progress, not too often."""
    last = 0.0

    def show(transfer: Transfer) -> None:
        nonlocal last
        if time.monotonic() - last >= _SHOWN_EVERY_S:
            last = time.monotonic()
            report(transfer.words)

    return show
