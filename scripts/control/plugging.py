"""Plug, move and unplug of one disk and of many, beside the same commands over a bare socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from control.bench import Bench, ms
from control.wire import Bare, run_scripts

from hvext.host.machine import Machine
from hvext.operations.vm import open_vm_async


def single(bench: Bench) -> None:
    """Plug, move and unplug one disk, and the same commands bare."""
    times: dict[str, dict[str, list[float]]] = {
        name: {"hvext": [], "bare": [], "script": [], "whole": [], "script alone": []}
        for name in ("plug", "move", "unplug")
    }
    with bench.machine() as machine:
        asyncio.run(_single(bench, machine, times))
    for name, found in times.items():
        own, plain = ms(found["hvext"]), ms(found["bare"])
        bench.row(f"{name} one disk", "ms", hvext=own, bare=plain, ratio=own / plain, script_apart=ms(found["script"]))
    # A script runs while QEMU answers: hvext's time without it is less than it would be alone.
    found = times["plug"]
    whole, plain = ms(found["whole"]), ms(found["bare"]) + ms(found["script alone"])
    bench.row(
        "the same plug with its script", "ms", hvext=whole, bare=plain, ratio=whole / plain,
        scripts_alone=ms(found["script alone"]),
    )  # fmt: skip


async def _single(bench: Bench, machine: Machine, times: dict[str, dict[str, list[float]]]) -> None:
    (disk,) = bench.disks("single", 1)
    there = bench.volume("single-there")
    attach = str(bench.folder / "providers" / "quick" / "attach")
    bare = Bare(machine.debug_qmp_path)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(bare.close)
        vm = await stack.enter_async_context(open_vm_async(str(machine.qmp_path), host=bench.host))
        # Its record is there already, as that of any VM with a disk.
        await vm.plug(bench.disks("steady", 1)[0])
        for number in range(bench.rounds + 1):
            logs = {}
            works = (
                ("plug", lambda: vm.plug(disk)),
                ("move", lambda: vm.repoint(disk.volume.uuid, f"file:{there}")),
                ("unplug", lambda: vm.unplug(disk)),
            )
            bench.wire.record(on=False)
            for name, work in works:
                own, script, _log = await bench.timed(work)
                times[name]["hvext"].append(own)
                times[name]["script"].append(script)
                times[name]["whole"].append(own + script)
            bench.wire.record(on=True)
            for name, work in works:
                _own, _script, logs[name] = await bench.timed(work)
            for name, log in logs.items():
                times[name]["bare"].append(bare.replay(log))
            times["plug"]["script alone"].append(run_scripts(attach, 1))
            if not number:
                # The first time, hvext asks QEMU what it can do.
                for found in times.values():
                    for kept in found.values():
                        kept.clear()


def many(bench: Bench) -> None:
    """Plug many SCSI disks one by one and as a batch, and the same commands bare."""
    numbers = (10, 100) if bench.quick else (10, 100, 500)
    with bench.machine() as machine:
        asyncio.run(_one_by_one(bench, machine, numbers))
    for number in numbers:
        with bench.machine() as machine:
            asyncio.run(_batch(bench, machine, number))


async def _one_by_one(bench: Bench, machine: Machine, numbers: Sequence[int]) -> None:
    """Plug disk after disk, each first by hvext and, once that is taken away, bare; this one stays."""
    disks = bench.disks("each", numbers[-1])
    own, plain, scripts = [], [], []
    with contextlib.closing(Bare(machine.debug_qmp_path)) as bare:
        async with open_vm_async(str(machine.qmp_path), host=bench.host) as vm:
            await vm.plug(bench.disks("warm", 1)[0])
            for disk in disks:
                spent, script, log = await bench.timed(lambda disk=disk: vm.plug(disk))
                bare.remove([disk])
                plain.append(bare.replay(log))
                own.append(spent)
                scripts.append(script)
    bench.row(
        f"plug {len(disks)} disks one by one, each", "ms", hvext=ms(own), bare=ms(plain), ratio=ms(own) / ms(plain),
        script_apart=ms(scripts),
    )  # fmt: skip
    for number in numbers:
        last = slice(number - 10, number)
        ratio = ms(own[last]) / ms(plain[last])
        bench.row(f"the last ten of {number}, each", "ms", hvext=ms(own[last]), bare=ms(plain[last]), ratio=ratio)


async def _batch(bench: Bench, machine: Machine, number: int) -> None:
    disks = bench.disks(f"batch{number}-", number)
    attach = str(bench.folder / "providers" / "quick" / "attach")
    times: dict[str, list[float]] = {"hvext": [], "script": [], "bare": [], "scripts alone": []}
    with contextlib.closing(Bare(machine.debug_qmp_path)) as bare:
        async with open_vm_async(str(machine.qmp_path), host=bench.host) as vm:
            # The first time, hvext asks QEMU what it can do, and starts its threads.
            for measured in (False, *[True] * (5 if number <= 100 else 3)):
                bench.wire.record(on=False)
                own, script, _log = await bench.timed(lambda: vm.plug_all(disks))
                bare.remove(disks)
                for disk in disks:
                    await vm.unplug(disk)
                bench.wire.record(on=True)
                _own, _script, log = await bench.timed(lambda: vm.plug_all(disks))
                bare.remove(disks)
                found = (own, script, bare.replay(log), run_scripts(attach, number))
                bare.remove(disks)
                for disk in disks:
                    await vm.unplug(disk)
                for name, value in zip(times, found, strict=True):
                    times[name] += [value] if measured else []
    own, script, plain, alone = map(ms, times.values())
    bench.row(
        f"plug {number} disks as a batch", "ms", hvext=own, bare=plain, ratio=own / plain, each=own / number,
        script_apart=script,
    )  # fmt: skip
    bench.row(
        f"the same with the scripts, {number} disks", "ms", hvext=own + script, bare=plain + alone,
        ratio=(own + script) / (plain + alone), scripts_alone=alone,
    )  # fmt: skip
