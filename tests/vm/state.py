"""What a QEMU and its host have at one moment, to be compared with another moment."""

from __future__ import annotations

import asyncio
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvext.host.machine import Machine
from hvext.host.qmp import Monitor, connect


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that a disk could leave behind."""

    nodes: frozenset[str]
    block_devices: frozenset[str]
    devices: frozenset[str]
    objects: frozenset[str]
    fdsets: str
    chardevs: frozenset[str]
    loops: frozenset[str]


def on_debug_monitor(machine: Machine, command: str, **arguments: Any) -> Any:
    """Send one command over the monitor that hvext does not use; ``_`` in names stands for ``-``."""

    async def talk() -> Any:
        async with connect(str(machine.debug_qmp_path)) as monitor:
            return await monitor.execute(command, {key.replace("_", "-"): value for key, value in arguments.items()})

    return asyncio.run(talk())


def state_of(machine: Machine, folder: Path | None = None) -> State:
    """Return what there is now; loop devices are those over files below ``folder``."""

    async def read() -> State:
        async with connect(str(machine.debug_qmp_path)) as monitor:
            return State(
                nodes=frozenset(
                    node["node-name"] for node in await monitor.execute("query-named-block-nodes", {"flat": True})
                ),
                block_devices=frozenset(
                    device.get("qdev", "") + device["device"] for device in await monitor.execute("query-block")
                ),
                devices=frozenset(await _children(monitor, "/machine/peripheral")),
                objects=frozenset(await _children(monitor, "/objects")),
                fdsets=json.dumps(await monitor.execute("query-fdsets")),
                chardevs=frozenset(chardev["label"] for chardev in await monitor.execute("query-chardev")),
                loops=loops(folder) if folder else frozenset(),
            )

    return asyncio.run(read())


async def _children(monitor: Monitor, path: str) -> list[str]:
    return [entry["name"] for entry in await monitor.execute("qom-list", {"path": path})]


def loops(folder: Path) -> frozenset[str]:
    """Return the loop devices over files below a folder, with their files."""
    listed = subprocess.run(
        ["losetup", "--list", "--raw", "--noheadings", "--output", "NAME,BACK-FILE"],
        capture_output=True,
        text=True,
        check=True,
    )
    return frozenset(line.strip() for line in listed.stdout.splitlines() if f"{folder}/" in line)
