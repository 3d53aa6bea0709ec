"""The machine that is measured on, the provider whose disks are plugged, and the results."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from control.wire import Scripts, Wire

from hvext.core.disk import Disk
from hvext.host.machine import GuestImage, Machine, MachineOptions, start_machine
from hvext.host.provider import ProviderHost

ROOT = Path(__file__).resolve().parents[2]
#: The size of a disk.
SIZE = 4 << 20
_ACTIONS = ("create", "remove", "grow", "attach", "detach", "setinfo", "verify")


class Bench:
    """The machine that is measured on, the provider, and the results."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self.folder, self.quick = folder, quick
        self.rounds = 5 if quick else 21
        self.rows: list[dict[str, Any]] = []
        self.image = GuestImage.find(ROOT / "vm-images" / "out")
        self.wire, self.scripts = Wire(), Scripts()
        (folder / "volumes").mkdir()
        self._provider("quick", "")
        self._provider("slow", "sleep 1")
        os.environ |= {"HVEXT_STATE_DIR": f"{folder}/state", "HVEXT_RUNTIME_DIR": f"{folder}/run"}
        self.host = ProviderHost(search_path=(str(folder / "providers"),))

    def _provider(self, name: str, before: str) -> None:
        place = self.folder / "providers" / name
        place.mkdir(parents=True)
        for action in _ACTIONS:
            says = f"{before}\necho; echo kvm:file:{self.folder}/volumes/$VOL_NAME" if action == "attach" else ":"
            (place / action).write_text(f"#!/bin/sh\n{says}\n")
            (place / action).chmod(0o755)
        (place / "parameters.list").write_text("")

    def volume(self, name: str) -> Path:
        """Return a new file of the size of all disks."""
        path = self.folder / "volumes" / name
        with path.open("wb") as file:
            file.truncate(SIZE)
        return path

    def disks(self, prefix: str, number: int, provider: str = "quick", device: str = "scsi-hd") -> list[Disk]:
        """Return that many disks with their files."""
        names = [f"{prefix}{place}" for place in range(number)]
        for name in names:
            self.volume(name)
        return [Disk.from_mapping({"provider": provider, "volume": name, "device": device}) for name in names]

    def row(self, name: str, unit: str, **values: float | str) -> None:
        """Keep a result, and print it."""
        self.rows.append({"name": name, "unit": unit, **values})
        shown = "  ".join(
            f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
        )
        print(f"{name:44} [{unit}]  {shown}", flush=True)

    @contextlib.contextmanager
    def machine(self, **options: Any) -> Iterator[Machine]:
        """A QEMU without a running guest; hvext's monitor keeps no log, as the one of what is bare."""
        path = self.folder / "qmp"
        wanted = MachineOptions(
            **{"name": "bench", "scsi_controllers": 2, "start_paused": True, "memory_mib": 128, **options},
            extra_args=(
                *("-chardev", f"socket,id=plain,path={path},server=on,wait=off"),
                *("-mon", "chardev=plain,mode=control"),
            ),
        )
        with start_machine(wanted, self.image, self.folder / "logs") as machine:
            machine.qmp_path = path
            yield machine

    async def timed(self, work: Callable[[], Any]) -> tuple[float, float, list[tuple[str, int, dict[str, Any]]]]:
        """Return the seconds without scripts, those of the scripts, and what went over the wire."""
        self.wire.take()
        self.scripts.take_s()
        begun = time.perf_counter()
        await work()
        whole = time.perf_counter() - begun
        scripts = self.scripts.take_s()
        return whole - scripts, scripts, self.wire.take()


def ms(values: Sequence[float]) -> float:
    """Return the median of seconds in milliseconds."""
    return statistics.median(values) * 1000
