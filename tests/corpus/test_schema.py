"""What hvext makes of every URI of the corpus is what the QAPI schemas of both QEMUs describe."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from hvext.core.capability import Capabilities
from hvext.core.identity import DiskNames
from hvext.core.options import DiskOptions
from hvext.core.plan import plan_disk
from hvext.core.uri import Opened, parse_uri
from hvext.errors import CapabilityError, InputError
from hvext.operations.capabilities import binary_capabilities
from hvext.operations.openable import check_plan
from tests.conftest import need
from tests.corpus.uris import CORPUS

NAMES = DiskNames(uuid.UUID("0d1b4b5e-6d8a-4d3b-9a57-0c5f2f6f7a10"))
#: What a QEMU does not have, by the words that hvext finds for it.
LACKS = {
    "installed": ("io_uring", "nvme-io_uring", "virtio-blk-vhost-user", "virtio-blk-vhost-vdpa", "virtio-blk-vfio-pci"),
    "second": (),
}


@pytest.fixture(scope="module", params=["installed", "second"])
def capabilities(request: pytest.FixtureRequest) -> tuple[str, Capabilities]:
    need("qemu-system-x86_64", "qemu-system-x86")
    if request.param == "installed":
        return request.param, binary_capabilities()
    second: Path = request.getfixturevalue("second_qemu")
    return request.param, binary_capabilities(str(second / "bin/qemu-system-x86_64"))


def test_every_node_of_the_corpus_is_in_the_schema(capabilities: tuple[str, Capabilities]) -> None:
    which, known = capabilities
    checked, refused = 0, {}
    for row in CORPUS:
        try:
            location = parse_uri(row.uri, look=lambda _path: Opened.FILE)
            plan = plan_disk(NAMES, location, DiskOptions())
        except InputError:
            continue
        try:
            check_plan(known, plan)
            check_plan(known, plan.stored())
        except CapabilityError as error:
            if location.driver not in LACKS[which] or location.driver not in str(error):
                refused[row.id] = str(error)
        checked += 1
    assert refused == {}
    assert checked > 300
