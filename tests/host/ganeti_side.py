"""Runs inside the system's Python, with an unpacked Ganeti on its path: its own code, asked from outside.

``python3 ganeti_side.py COMMAND`` reads JSON from standard input and writes JSON to standard output.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from ganeti import constants, errors, objects, pathutils
from ganeti.hypervisor import hv_kvm


def disk_of(row):
    disk = objects.Disk(
        dev_type=row["dev_type"],
        mode=row["mode"],
        params=row["params"],
        uuid=row["uuid"],
        hvinfo=row["hvinfo"],
        size=row.get("size", 16),
        logical_id=tuple(row.get("logical_id", ())),
    )
    disk.name = row.get("name")
    return disk


def options(asked):
    """What Ganeti's KVM code puts on the command line for each disk."""
    kvm = hv_kvm.KVMHypervisor.__new__(hv_kvm.KVMHypervisor)
    answers = []
    for row in asked["disks"]:
        drives = [(disk_of(row), row["link"], row["uri"])]
        try:
            argv = kvm._GenerateKVMBlockDevicesOptions(row["hvp"], drives, asked["kvmhelp"], asked["devlist"])
            answers.append({"argv": argv})
        except errors.HypervisorError as error:
            answers.append({"error": str(error)})
    return answers


def start(asked):
    """What the place in Ganeti's start of an instance gives that makes the disks' part of the command line."""
    import ast
    import inspect

    (place,) = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(hv_kvm)))
        if isinstance(node, ast.Assign) and "GenerateKVMBlockDevicesOptions" in ast.unparse(node.value)
    ]
    row = asked["disk"]
    names = {
        "self": hv_kvm.KVMHypervisor.__new__(hv_kvm.KVMHypervisor),
        "up_hvp": row["hvp"],
        "kvm_disks": [(disk_of(row), row["link"], row["uri"])],
        "kvmhelp": asked["kvmhelp"],
        "devlist": asked["devlist"],
    }
    try:
        return eval(ast.unparse(place.value), vars(hv_kvm), names)  # noqa: S307
    except errors.HypervisorError as error:
        return str(error)


def cache(asked):
    """What Ganeti 3.1 makes of each cache setting and disk template."""
    from ganeti.hypervisor.hv_kvm import kvm_utils

    answers = []
    for kind, dev_type in asked:
        try:
            answers.append(list(kvm_utils.GetCacheSettings(kind, dev_type)))
        except errors.HypervisorError:
            answers.append(None)
    return answers


def known(_asked):
    """The values that disks and parameters can have."""
    return {
        "caches": sorted(constants.HT_VALID_CACHE_TYPES),
        "dev_types": sorted(constants.DISK_TEMPLATES),
        "files": sorted(constants.DTS_FILEBASED),
        "shared": sorted(constants.DTS_EXT_MIRROR - {constants.DT_RBD}),
    }


def plug(asked):
    """Hot-add, verify, resize and hot-del as Ganeti 3.1 does it, with its own connection; what each step came to."""
    from ganeti.hypervisor.hv_kvm.kvm_runtime import KVMRuntime
    from ganeti.hypervisor.hv_kvm.monitor import QmpConnection

    disk = disk_of(asked["disk"])
    kvm = hv_kvm.KVMHypervisor.__new__(hv_kvm.KVMHypervisor)
    extra = (asked["disk"]["link"], asked["disk"]["uri"])
    runtime = KVMRuntime([[], [], asked["disk"]["hvp"], [(disk, *extra)] if asked.get("present") else []])
    kvm._LoadKVMRuntime = lambda _instance: runtime
    kvm._SaveKVMRuntime = lambda _instance, _runtime: None
    instance = objects.Instance(name="i", hvparams=asked["disk"]["hvp"])
    said = {}
    steps = {
        "add": lambda: kvm.HotAddDevice(instance, "disk", disk, extra, 0),
        "resize": lambda: kvm.ResizeDisk(instance, disk, asked["size"]),
        "del": lambda: kvm.HotDelDevice(instance, "disk", disk, extra, 0),
    }
    for name in asked["steps"]:
        kvm.qmp = QmpConnection(asked["qmp"])
        try:
            steps[name]()
            said[name] = "done"
        except (errors.HypervisorError, errors.HotplugError) as error:
            said[name] = f"{type(error).__name__}: {error}"
    said["runtime"] = [entry[0].uuid for entry in runtime.kvm_disks]
    return said


def adapter(asked):
    """The adapter's own functions, over the connection of this Ganeti."""
    from ganeti.hypervisor.hv_kvm.monitor import QmpConnection

    import hvext.ganeti as hvext

    row = asked["disk"]
    disk, devid = disk_of(row), row["hvinfo"]["id"]
    node = hvext.GenerateKVMBlockDevice(hvext.GetDriveURI(disk, row["link"], row["uri"]), disk, row["hvp"], devid)
    writeback, direct, _ = hvext.GetCacheSettings(row["hvp"]["disk_cache"], disk.dev_type)
    qmp = QmpConnection(asked["qmp"])
    hvext.HotAddDisk(qmp, disk, row["params"]["access"], writeback, direct, node)
    hvext.VerifyHotplugCommand(qmp, devid, True)
    said = {"there": hvext.HasDevice(qmp, devid)}
    hvext.ResizeBlockDevice(qmp, devid, 16 << 20)
    try:
        hvext.ResizeBlockDevice(qmp, devid, 1 << 40)
    except errors.HypervisorError as error:
        said["too large"] = str(error)
    hvext.HotDelDisk(qmp, devid)
    hvext.VerifyHotplugCommand(qmp, devid, False)
    return {**said, "afterwards": hvext.HasDevice(qmp, devid)}


def storage(asked):
    """A volume's life through ``ExtStorageDevice``, with providers of the given folder."""
    from ganeti.storage import extstorage

    pathutils.ES_SEARCH_PATH = [asked["providers"]]
    pathutils.LOG_ES_DIR = asked["logs"]
    ok, found = extstorage.ExtStorageFromDisk(asked["provider"])
    if not ok:
        return {"invalid": found}
    said = {"parameters": [list(pair) for pair in found.supported_parameters], "name": found.name}
    params = {**asked["params"], "provider": asked["provider"], "access": "userspace"}
    where = (asked["provider"], asked["volume"])
    names = {"name": "data", "uuid": asked["uuid"]}

    def device(size):
        return extstorage.ExtStorageDevice(where, [], size, params, {}, **names)

    extstorage._ExtStorageAction(constants.ES_ACTION_VERIFY, where, params)
    made = extstorage.ExtStorageDevice.Create(where, [], asked["size"], None, params, False, {}, **names)
    said["attached"] = made.attached
    said["path"] = made.dev_path
    try:
        said["uri"] = made.GetUserspaceAccessUri("kvm")
    except errors.BlockDeviceError as error:
        said["uri"] = str(error)
    made.Open(exclusive=True)
    made.SetInfo("originstname+web 1")
    if made.dev_path:
        Path(made.dev_path).write_bytes(b"written by Ganeti")
    made.Grow(asked["grow"], False, True, False)
    made.Close()
    made.Shutdown()
    again = device(asked["size"] + asked["grow"])
    if again.dev_path:
        with Path(again.dev_path).open("rb") as stream:
            said["read"] = stream.read(17).decode()
            said["size"] = stream.seek(0, 2)
    try:
        again.Snapshot(snap_name=f"{asked['volume']}.snap", snap_size=asked["size"] + asked["grow"])
    except errors.BlockDeviceError as error:
        said["snapshot"] = str(error)
    again.Remove()
    try:
        said["after"] = device(16).attached
    except errors.BlockDeviceError as error:
        said["after"] = str(error)
    return said


def main():
    logging.disable(logging.CRITICAL)
    commands = {each.__name__: each for each in (options, start, cache, known, plug, adapter, storage)}
    answer = commands[sys.argv[1]](json.load(sys.stdin))
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
