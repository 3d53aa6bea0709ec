"""ExtStorage volumes as disks of KVM guests: the Python API.

Importing this costs nothing: each name is loaded when it is first used, and asyncio and qemu.qmp only by those that
talk to QEMU. Nothing here reads the environment or keeps global state. See ``docs/api.md``.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hvext.core.access import Access as Access
    from hvext.core.access import Choice as Choice
    from hvext.core.access import choose_access as choose_access
    from hvext.core.answer import Attachment as Attachment
    from hvext.core.answer import parse_answer as parse_answer
    from hvext.core.audit import Finding as Finding
    from hvext.core.capability import Capabilities as Capabilities
    from hvext.core.disk import Disk as Disk
    from hvext.core.hysteresis import FailBackRule as FailBackRule
    from hvext.core.options import Aio as Aio
    from hvext.core.options import Cache as Cache
    from hvext.core.options import DetectZeroes as DetectZeroes
    from hvext.core.options import DeviceModel as DeviceModel
    from hvext.core.options import Discard as Discard
    from hvext.core.options import DiskOptions as DiskOptions
    from hvext.core.options import ErrorPolicy as ErrorPolicy
    from hvext.core.options import Placement as Placement
    from hvext.core.options import Throttle as Throttle
    from hvext.core.running import RunningDisk as RunningDisk
    from hvext.core.schedule import Pace as Pace
    from hvext.core.secret import Secret as Secret
    from hvext.core.supervision import GiveUpRule as GiveUpRule
    from hvext.core.supervision import Notice as Notice
    from hvext.core.uri import FileLocation as FileLocation
    from hvext.core.uri import Location as Location
    from hvext.core.uri import parse_uri as parse_uri
    from hvext.core.value import replace as replace
    from hvext.core.volume import Volume as Volume
    from hvext.core.volume import derived_uuid as derived_uuid
    from hvext.errors import AccessError as AccessError
    from hvext.errors import AnswerError as AnswerError
    from hvext.errors import CannotCut as CannotCut
    from hvext.errors import CapabilityError as CapabilityError
    from hvext.errors import CommandRefused as CommandRefused
    from hvext.errors import CommandTimeout as CommandTimeout
    from hvext.errors import DiskNotFound as DiskNotFound
    from hvext.errors import FailoverFailed as FailoverFailed
    from hvext.errors import FailoverRefused as FailoverRefused
    from hvext.errors import FenceFailed as FenceFailed
    from hvext.errors import HvextError as HvextError
    from hvext.errors import InputError as InputError
    from hvext.errors import JournalError as JournalError
    from hvext.errors import LocationError as LocationError
    from hvext.errors import MigrationRefused as MigrationRefused
    from hvext.errors import MonitorError as MonitorError
    from hvext.errors import OperationFailed as OperationFailed
    from hvext.errors import PlugError as PlugError
    from hvext.errors import ProviderError as ProviderError
    from hvext.errors import ProviderInvalid as ProviderInvalid
    from hvext.errors import ProviderNotFound as ProviderNotFound
    from hvext.errors import QemuError as QemuError
    from hvext.errors import RenderError as RenderError
    from hvext.errors import RepointRefused as RepointRefused
    from hvext.errors import ScriptFailed as ScriptFailed
    from hvext.errors import ScriptTimeout as ScriptTimeout
    from hvext.errors import UnsupportedLocation as UnsupportedLocation
    from hvext.errors import VolumeInUse as VolumeInUse
    from hvext.host.provider import ProviderHost as ProviderHost
    from hvext.operations.attachments import Attached as Attached
    from hvext.operations.attachments import attach as attach
    from hvext.operations.attachments import detach as detach
    from hvext.operations.attachments import offer as offer
    from hvext.operations.audit import audit as audit
    from hvext.operations.batch import PlugOutcome as PlugOutcome
    from hvext.operations.capabilities import binary_capabilities as binary_capabilities
    from hvext.operations.capabilities import query_capabilities as query_capabilities
    from hvext.operations.failover import FailedOver as FailedOver
    from hvext.operations.fence import CommandFence as CommandFence
    from hvext.operations.fence import FrozenDisk as FrozenDisk
    from hvext.operations.fence import ProviderFence as ProviderFence
    from hvext.operations.migrate import TargetMachine as TargetMachine
    from hvext.operations.moving import migrate as migrate
    from hvext.operations.plug import Plugged as Plugged
    from hvext.operations.recover import Recovered as Recovered
    from hvext.operations.recover import recover as recover
    from hvext.operations.repoint import Repointed as Repointed
    from hvext.operations.resize import Resized as Resized
    from hvext.operations.sending import Migrated as Migrated
    from hvext.operations.start import Start as Start
    from hvext.operations.start import start_disks as start_disks
    from hvext.operations.start import stop_disks as stop_disks
    from hvext.operations.unplug import Unplugged as Unplugged
    from hvext.operations.unplug import UnplugState as UnplugState
    from hvext.operations.vm import AsyncVm as AsyncVm
    from hvext.operations.vm import Vm as Vm
    from hvext.operations.vm import open_vm as open_vm
    from hvext.operations.vm import open_vm_async as open_vm_async
    from hvext.operations.volumes import attach_volume as attach_volume
    from hvext.operations.volumes import close_volume as close_volume
    from hvext.operations.volumes import create_volume as create_volume
    from hvext.operations.volumes import detach_volume as detach_volume
    from hvext.operations.volumes import grow_volume as grow_volume
    from hvext.operations.volumes import open_volume as open_volume
    from hvext.operations.volumes import remove_volume as remove_volume
    from hvext.operations.volumes import set_volume_info as set_volume_info
    from hvext.operations.volumes import snapshot_volume as snapshot_volume
    from hvext.operations.volumes import verify_parameters as verify_parameters
    from hvext.operations.watch import Watch as Watch
    from hvext.operations.watch import WatchSettings as WatchSettings

_HOMES = {
    "Access": "hvext.core.access",
    "AccessError": "hvext.errors",
    "Aio": "hvext.core.options",
    "AnswerError": "hvext.errors",
    "AsyncVm": "hvext.operations.vm",
    "Attached": "hvext.operations.attachments",
    "Attachment": "hvext.core.answer",
    "Cache": "hvext.core.options",
    "CannotCut": "hvext.errors",
    "Capabilities": "hvext.core.capability",
    "CapabilityError": "hvext.errors",
    "Choice": "hvext.core.access",
    "CommandFence": "hvext.operations.fence",
    "CommandRefused": "hvext.errors",
    "CommandTimeout": "hvext.errors",
    "DetectZeroes": "hvext.core.options",
    "DeviceModel": "hvext.core.options",
    "Discard": "hvext.core.options",
    "Disk": "hvext.core.disk",
    "DiskNotFound": "hvext.errors",
    "DiskOptions": "hvext.core.options",
    "ErrorPolicy": "hvext.core.options",
    "FailBackRule": "hvext.core.hysteresis",
    "FailedOver": "hvext.operations.failover",
    "FailoverFailed": "hvext.errors",
    "FailoverRefused": "hvext.errors",
    "FenceFailed": "hvext.errors",
    "FileLocation": "hvext.core.uri",
    "Finding": "hvext.core.audit",
    "FrozenDisk": "hvext.operations.fence",
    "GiveUpRule": "hvext.core.supervision",
    "HvextError": "hvext.errors",
    "InputError": "hvext.errors",
    "JournalError": "hvext.errors",
    "Location": "hvext.core.uri",
    "LocationError": "hvext.errors",
    "Migrated": "hvext.operations.sending",
    "MigrationRefused": "hvext.errors",
    "MonitorError": "hvext.errors",
    "Notice": "hvext.core.supervision",
    "OperationFailed": "hvext.errors",
    "Pace": "hvext.core.schedule",
    "Placement": "hvext.core.options",
    "PlugError": "hvext.errors",
    "PlugOutcome": "hvext.operations.batch",
    "Plugged": "hvext.operations.plug",
    "ProviderError": "hvext.errors",
    "ProviderFence": "hvext.operations.fence",
    "ProviderHost": "hvext.host.provider",
    "ProviderInvalid": "hvext.errors",
    "ProviderNotFound": "hvext.errors",
    "QemuError": "hvext.errors",
    "Recovered": "hvext.operations.recover",
    "RenderError": "hvext.errors",
    "RepointRefused": "hvext.errors",
    "Repointed": "hvext.operations.repoint",
    "Resized": "hvext.operations.resize",
    "RunningDisk": "hvext.core.running",
    "ScriptFailed": "hvext.errors",
    "ScriptTimeout": "hvext.errors",
    "Secret": "hvext.core.secret",
    "Start": "hvext.operations.start",
    "TargetMachine": "hvext.operations.migrate",
    "Throttle": "hvext.core.options",
    "UnplugState": "hvext.operations.unplug",
    "Unplugged": "hvext.operations.unplug",
    "UnsupportedLocation": "hvext.errors",
    "Vm": "hvext.operations.vm",
    "Volume": "hvext.core.volume",
    "VolumeInUse": "hvext.errors",
    "Watch": "hvext.operations.watch",
    "WatchSettings": "hvext.operations.watch",
    "attach": "hvext.operations.attachments",
    "attach_volume": "hvext.operations.volumes",
    "audit": "hvext.operations.audit",
    "binary_capabilities": "hvext.operations.capabilities",
    "choose_access": "hvext.core.access",
    "close_volume": "hvext.operations.volumes",
    "create_volume": "hvext.operations.volumes",
    "derived_uuid": "hvext.core.volume",
    "detach": "hvext.operations.attachments",
    "detach_volume": "hvext.operations.volumes",
    "grow_volume": "hvext.operations.volumes",
    "migrate": "hvext.operations.moving",
    "offer": "hvext.operations.attachments",
    "open_vm": "hvext.operations.vm",
    "open_vm_async": "hvext.operations.vm",
    "open_volume": "hvext.operations.volumes",
    "parse_answer": "hvext.core.answer",
    "parse_uri": "hvext.core.uri",
    "query_capabilities": "hvext.operations.capabilities",
    "recover": "hvext.operations.recover",
    "remove_volume": "hvext.operations.volumes",
    "replace": "hvext.core.value",
    "set_volume_info": "hvext.operations.volumes",
    "snapshot_volume": "hvext.operations.volumes",
    "start_disks": "hvext.operations.start",
    "stop_disks": "hvext.operations.start",
    "verify_parameters": "hvext.operations.volumes",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hvext' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
