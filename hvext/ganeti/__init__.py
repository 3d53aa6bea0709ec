"""What Ganeti's KVM code calls for a disk, under Ganeti's names and with its arguments, one function for each.

A maintainer can put them in the places of those that fail one by one; see ``docs/ganeti.md``. Nothing of Ganeti is
imported: disks, hypervisor parameters and the QMP connection are Ganeti's own objects, of which only what is named here
is used. Where Ganeti is loaded, its ``HypervisorError`` is raised, else an ``HvextError``.

Source: Ganeti 3.1, lib/hypervisor/hv_kvm: ``__init__.py``, ``kvm_utils.py``, ``monitor.py``.
"""

from __future__ import annotations

from hvext.ganeti.options import BlockDevice as BlockDevice
from hvext.ganeti.options import DictToQemuStringNotation as DictToQemuStringNotation
from hvext.ganeti.options import GenerateKVMBlockDevice as GenerateKVMBlockDevice
from hvext.ganeti.options import GenerateKVMBlockDevicesOptions as GenerateKVMBlockDevicesOptions
from hvext.ganeti.options import GetCacheSettings as GetCacheSettings
from hvext.ganeti.options import GetDriveURI as GetDriveURI
from hvext.ganeti.options import ParseStorageUriToBlockdevParam as ParseStorageUriToBlockdevParam
from hvext.ganeti.plugging import ForgetDisk as ForgetDisk
from hvext.ganeti.plugging import HasDevice as HasDevice
from hvext.ganeti.plugging import HotAddDisk as HotAddDisk
from hvext.ganeti.plugging import HotDelDisk as HotDelDisk
from hvext.ganeti.plugging import ResizeBlockDevice as ResizeBlockDevice
from hvext.ganeti.plugging import VerifyHotplugCommand as VerifyHotplugCommand
