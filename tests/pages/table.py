"""What runs each block of each page: a session, a test of its own, or nothing, for a reason."""

from __future__ import annotations

from tests.pages.installing import INSTALLING
from tests.pages.long import LONG
from tests.pages.measuring import MEASURING
from tests.pages.providers import PROVIDERS
from tests.pages.quick import QUICK
from tests.pages.servers import MIGRATION, WITH_CEPH, WITH_ISCSI

#: Sessions that need nothing but the machine that they are run on.
NIGHTLY = (*LONG, *PROVIDERS, *MIGRATION, *MEASURING, *INSTALLING)
SESSIONS = (*QUICK, *NIGHTLY, *WITH_CEPH, *WITH_ISCSI)

#: Pages of which every block is run by a test of their own.
WHOLE_PAGES = {
    "docs/tutorial.md": "tests/vm/test_tutorial.py::test_a_newcomer_who_types_the_tutorial_gets_what_it_shows",
}
#: Blocks that a test of their own runs: page, how the block begins, and the test.
ELSEWHERE = {
    (
        "docs/api.md",
        "import sys\n",
    ): "tests/vm/test_api_page.py::test_the_example_for_hypervisor_layers_runs_as_printed",
    (
        "docs/ganeti.md",
        "--- a/lib/hypervisor/hv_kvm/__init__.py",
    ): "tests/host/test_ganeti.py::test_a_patched_ganeti_starts_an_instance_on_a_uri_that_ganeti_refuses",
    # It boots a Debian, with systemd as its first process.
    (
        "docs/install.md",
        "systemctl enable --now hvext-watch",
    ): "tests/host/test_packaging.py::test_the_service_watches_a_guest_comes_back_when_it_is_killed_and_spares_servers",
}
_DRAWING = "a drawing"
#: Blocks that nothing runs, and why.
NOT_RUN = {
    ("README.md", "   provider (scripts)"): _DRAWING,
    ("README.md", "3 disks"): "a recording, which `scripts/showcase` makes",
    ("CONTRIBUTING.md", "cli | bench |"): "the layers: import-linter holds them",
    ("docs/disks.md", "device (virtio-blk-pci | scsi-hd)"): _DRAWING,
    ("docs/failover.md", "storage dies"): _DRAWING,
    ("docs/operations.md", "requested "): _DRAWING,
    ("docs/shipped-providers.md", "ln -s"): "gnt-instance needs a cluster of Ganeti's, with its daemons on a node",
    (
        "docs/write-a-provider.md",
        "   cd /srv/ganeti/extstorage/mine",
    ): "a drawing; the sample's README has such a call, and that is run",
}
