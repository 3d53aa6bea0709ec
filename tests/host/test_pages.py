from __future__ import annotations

import re
import subprocess
from pathlib import Path

from hvext.core.disk import Disk
from hvext.host.provider import ProviderHost
from hvext.operations import attachments, volumes
from tests.conftest import need

DOCS = Path(__file__).parents[2] / "docs"


def test_the_provider_printed_for_authors_is_valid_and_works(tmp_path: Path) -> None:
    need("losetup", "mount")
    example = re.findall(r"```sh\n(mkdir -p /srv/ganeti.*?)```", (DOCS / "providers.md").read_text(), re.DOTALL)[0]
    subprocess.run(["sh", "-ec", example.replace("/srv", str(tmp_path))], check=True)
    host = ProviderHost(search_path=(str(tmp_path / "ganeti/extstorage"),))
    disk = Disk.from_mapping({"provider": "mini", "volume": "v1"})
    volumes.create_volume(host, disk, 16)
    try:
        first = attachments.attach(host, disk).attachment
        assert attachments.offer(host, disk).attachment == first
        volumes.grow_volume(host, disk, old_size_mib=16, new_size_mib=24)
        assert first.block_path is not None
        sectors = Path(f"/sys/block/{Path(first.block_path).name}/size").read_text()
        assert int(sectors) * 512 == 24 << 20
    finally:
        attachments.detach(host, disk)
    attachments.detach(host, disk)
    volumes.remove_volume(host, disk)
    assert not (tmp_path / "v1").exists()


def test_every_page_that_is_linked_exists() -> None:
    for page in [DOCS.parent / "README.md", *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+?\.md)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page.name} links {target}"
