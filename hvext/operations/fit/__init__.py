"""Whether a disk would fit into one running guest, for ``hvext explain --qmp``; nothing is changed.

``guest`` asks QEMU and the journal, ``storage`` looks at each access to the volume, ``examination`` puts it together.
"""
