"""What the page shows: VMs as they were seen, what has ended, and the last benchmark."""

from __future__ import annotations

from hvext.core.history import Past
from hvext.core.observation import ObservedDisk, ObservedVm
from hvext.core.value import value_object


@value_object
class Benchmark:
    """A benchmark in a few words: of which ``volume``, its ``answer`` and the ``reason``, and when it was made.

    ``certain`` tells whether the figures carry the answer.
    """

    volume: str
    answer: str
    reason: str
    made: str
    certain: bool


@value_object
class Content:
    """All that the page shows; ``taken`` in seconds since 1970, ``broken`` why records could not be read."""

    host: str
    version: str
    taken: float
    vms: tuple[ObservedVm, ...]
    history: tuple[Past, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()
    broken: tuple[str, ...] = ()

    @property
    def disks(self) -> list[ObservedDisk]:
        """The disks of all VMs."""
        return [disk for vm in self.vms for disk in vm.disks]
