"""The corpus: texts that a provider might print as a storage URI, and some that none should.

Hosts are names and addresses reserved for documentation; passwords start with ``s3cret``. One module per family.
"""

from __future__ import annotations

from tests.corpus.uris import curl, description, gluster, iscsi, local, nbd, nfs, others, rbd, ssh
from tests.corpus.uris.row import Kind, Row

__all__ = ["CORPUS", "Kind", "Row"]

CORPUS: tuple[Row, ...] = (
    nbd.ROWS
    + rbd.ROWS
    + iscsi.ROWS
    + gluster.ROWS
    + ssh.ROWS
    + nfs.ROWS
    + curl.ROWS
    + local.ROWS
    + description.ROWS
    + others.ROWS
)
