"""One of two programs that work on the same disks: ``python -m tests.vm.faults.rival``.

It reads a job (JSON) on standard input: operations to do, one after the other, on random disks of a VM. It prints a
line for each, with what came of it, as it comes.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import Mapping
from typing import Any

from hvext.core.disk import Disk
from hvext.errors import HvextError
from hvext.host.provider import ProviderHost
from hvext.operations.vm import AsyncVm, open_vm_async


async def _work(job: Mapping[str, Any]) -> None:
    disks = [Disk.from_mapping(disk) for disk in job["disks"]]
    host = ProviderHost(search_path=(job["search_path"],))
    chance = random.Random(job["seed"])  # noqa: S311
    async with open_vm_async(job["qmp"], host=host) as vm:
        for _round in range(job["rounds"]):
            operation, disk = chance.choice(job["operations"]), chance.choice(disks)
            print(f"{operation} {disk.volume.name} {await _done(vm, operation, disk)}", flush=True)


async def _done(vm: AsyncVm, operation: str, disk: Disk) -> str:
    try:
        if operation == "plug":
            return "plugged" if (await vm.plug(disk)).changed else "was there"
        return str((await vm.unplug(disk)).state)
    except HvextError as error:
        return f"{type(error).__name__}: {error.message}"


def main() -> None:
    """Do the job."""
    job = json.loads(sys.stdin.readline())
    os.environ["HVEXT_STATE_DIR"], os.environ["HVEXT_RUNTIME_DIR"] = job["state"], job["private"]
    asyncio.run(_work(job))


if __name__ == "__main__":
    main()
