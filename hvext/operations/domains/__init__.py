"""The same operations on disks of libvirt's domains: libvirt opens the storage and plugs the device.

A domain has two views, what runs and the persistent configuration; each operation changes one of them or both.
"""
