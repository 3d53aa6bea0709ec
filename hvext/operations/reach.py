"""Finding the QEMUs of the VMs that the journal knows."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from hvext.core.record import VmRecord
from hvext.errors import HvextError, MonitorError
from hvext.host.journal import JournalFolder
from hvext.host.proc import is_alive
from hvext.host.provider import ProviderHost
from hvext.operations.identify import process_of
from hvext.operations.steps import Report, silent
from hvext.operations.vm import AsyncVm, open_vm_async

#: A monitor that is busy with another client does not greet.
CONNECT_S = 3.0
#: What stands before libvirt's URI and a domain's name, with a blank between them, in the place of an address.
LIBVIRT = "libvirt:"


def has_ended(record: VmRecord) -> bool:
    """Return whether the QEMU of a VM is known to have ended. One that was never seen, or only over TCP, is not."""
    return record.process is not None and not is_alive(record.process)


def is_domain(record: VmRecord) -> bool:
    """Return whether the last operation on a VM came through libvirt."""
    return bool(record.monitors) and record.monitors[0].startswith(LIBVIRT)


@contextlib.asynccontextmanager
async def reach(
    record: VmRecord,
    *,
    folder: JournalFolder,
    host: ProviderHost | None = None,
    timeout_s: float,
    report: Report = silent,
) -> AsyncIterator[AsyncVm]:
    """Connect to a VM at one of the monitors it was seen at, the last one first.

    Raises MonitorError, which says what each of them answered.
    """
    async with contextlib.AsyncExitStack() as stack:
        said = []
        for address in record.monitors:
            try:
                vm = await stack.enter_async_context(
                    open_vm_async(
                        address,
                        host=host,
                        timeout_s=timeout_s,
                        connect_timeout_s=CONNECT_S,
                        report=report,
                        name=record.name,
                        state=str(folder.path),
                    )
                )
            except HvextError as error:
                said.append(error.message)
                continue
            if _is_its(record, vm):
                yield vm
                return
            said.append(f"{address} belongs to another QEMU now")
        raise MonitorError(
            "; ".join(said) or f"no monitor of VM {record.name} is known",
            hint="name it with --qmp" if not said else "is another program connected to it?",
        )


def _is_its(record: VmRecord, vm: AsyncVm) -> bool:
    process = process_of(vm.monitor)
    return vm.journal.name == record.name and (record.process is None or process is None or process == record.process)
