"""ExtStorage volumes as disks of KVM guests: the Python API.

Importing this costs nothing: each name is loaded when it is first used, and asyncio and qemu.qmp only by those that
talk to QEMU. Nothing here reads the environment or keeps global state. See ``docs/api.md``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hvext.core.access import Access as Access
    from hvext.core.access import choose_access as choose_access
    from hvext.core.answer import parse_answer as parse_answer
    from hvext.core.disk import Disk as Disk
    from hvext.core.options import DiskOptions as DiskOptions
    from hvext.core.options import Placement as Placement
    from hvext.core.options import Throttle as Throttle
    from hvext.core.uri import parse_uri as parse_uri
    from hvext.core.volume import Volume as Volume
    from hvext.core.volume import derived_uuid as derived_uuid
    from hvext.errors import HvextError as HvextError
    from hvext.host.provider import ProviderHost as ProviderHost
    from hvext.operations.attachments import attach as attach
    from hvext.operations.attachments import detach as detach
    from hvext.operations.attachments import offer as offer
    from hvext.operations.start import start_disks as start_disks
    from hvext.operations.start import stop_disks as stop_disks
    from hvext.operations.vm import AsyncVm as AsyncVm
    from hvext.operations.vm import Vm as Vm
    from hvext.operations.vm import open_vm as open_vm
    from hvext.operations.vm import open_vm_async as open_vm_async
    from hvext.operations.volumes import close_volume as close_volume
    from hvext.operations.volumes import create_volume as create_volume
    from hvext.operations.volumes import grow_volume as grow_volume
    from hvext.operations.volumes import open_volume as open_volume
    from hvext.operations.volumes import remove_volume as remove_volume
    from hvext.operations.volumes import set_volume_info as set_volume_info
    from hvext.operations.volumes import snapshot_volume as snapshot_volume

_HOMES = {
    "Access": "hvext.core.access",
    "AsyncVm": "hvext.operations.vm",
    "Disk": "hvext.core.disk",
    "DiskOptions": "hvext.core.options",
    "HvextError": "hvext.errors",
    "Placement": "hvext.core.options",
    "ProviderHost": "hvext.host.provider",
    "Throttle": "hvext.core.options",
    "Vm": "hvext.operations.vm",
    "Volume": "hvext.core.volume",
    "attach": "hvext.operations.attachments",
    "choose_access": "hvext.core.access",
    "derived_uuid": "hvext.core.volume",
    "detach": "hvext.operations.attachments",
    "create_volume": "hvext.operations.volumes",
    "remove_volume": "hvext.operations.volumes",
    "grow_volume": "hvext.operations.volumes",
    "snapshot_volume": "hvext.operations.volumes",
    "set_volume_info": "hvext.operations.volumes",
    "open_volume": "hvext.operations.volumes",
    "close_volume": "hvext.operations.volumes",
    "offer": "hvext.operations.attachments",
    "open_vm": "hvext.operations.vm",
    "open_vm_async": "hvext.operations.vm",
    "parse_answer": "hvext.core.answer",
    "parse_uri": "hvext.core.uri",
    "start_disks": "hvext.operations.start",
    "stop_disks": "hvext.operations.start",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hvext' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
