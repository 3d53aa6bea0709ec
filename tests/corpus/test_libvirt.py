"""libvirt opens from hvext's XML what QEMU opens from hvext's options, for all of the corpus that XML can say."""

from __future__ import annotations

import itertools
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from lxml import etree

from hvext.core.domain_xml import disk_xml
from hvext.core.identity import DiskNames
from hvext.core.options import DeviceModel, DiskOptions
from hvext.core.plan import DiskPlan, plan_disk
from hvext.core.uri import Opened, parse_uri
from hvext.core.uri.location import Companions
from hvext.core.value import replace
from hvext.errors import InputError, RenderError
from tests.corpus.disagreements import LIBVIRT, LIBVIRT_SCHEMA
from tests.corpus.uris import CORPUS
from tests.host.oracle import Refused, domain, libvirt_daemon, schema

#: Disks in one domain.
BATCH = 150
#: What all drivers share, and libvirt sets in its own way.
SHARED = ("node-name", "read-only", "auto-read-only", "cache", "discard")
#: One secret of each kind for all disks: libvirt never shows its text.
BESIDE = Companions(node="corpus")
SECRETS = {"corpus-password": ("iscsi", "not-a-password"), "corpus-key": ("ceph", "bm90LWEta2V5")}


@dataclass(frozen=True)
class Said:
    """A row of the corpus with its plan, which XML can say."""

    row: str
    plan: DiskPlan

    def xml(self, index: int = 0) -> str:
        return disk_xml(self.plan, index)


def said() -> Iterator[Said]:
    """What XML can say of the corpus."""
    for row in CORPUS:
        names = DiskNames(uuid.uuid5(uuid.NAMESPACE_OID, row.id))
        try:
            location = parse_uri(row.uri, look=lambda _path: Opened.FILE)
            options = DiskOptions(device=DeviceModel.SCSI_HD if location.block_node else DeviceModel.VIRTIO_BLK)
            each = Said(row.id, replace(plan_disk(names, location, options), companions=BESIDE))
            each.xml()
        except (InputError, RenderError):
            continue
        yield each


@pytest.fixture(scope="module")
def rows() -> list[Said]:
    return list(said())


def storage(argv: Sequence[str]) -> dict[str, dict[str, Any]]:
    """libvirt's storage node of every disk by the id of its guest device."""
    pairs = list(itertools.pairwise(argv))
    nodes = {
        node["node-name"]: node for node in (json.loads(value) for option, value in pairs if option == "-blockdev")
    }
    found = {}
    for device in (json.loads(value) for option, value in pairs if option == "-device" and value.startswith("{")):
        if "drive" in device:
            node = nodes[device["drive"]]
            while "file" in node:
                node = nodes[node["file"]]
            found[device["id"]] = node
    return found


#: What URLs of each kind mean without a port.
PORTS = {"http": 80, "https": 443, "ftp": 21, "ftps": 990}


def plain(node: dict[str, Any]) -> dict[str, Any]:
    """A storage node without what makes no difference: names, defaults, and which object has the secret."""
    known = {
        key: True if key.endswith("-secret") or key == "tls-creds" else value
        for key, value in node.items()
        if key not in SHARED
    }
    driver = known["driver"]
    if driver == "gluster" and known.get("debug") == 4:
        # QEMU's own default.
        del known["debug"]
    if driver in PORTS:
        scheme, _, rest = known["url"].partition("://")
        authority, path = re.fullmatch(r"([^/?]*)(.*)", rest, re.DOTALL).groups()
        host, port = re.fullmatch(r"(.*?)(?::([0-9]*))?", authority).groups()
        known["url"] = f"{scheme}://{host}:{int(port or PORTS[driver])}{path if path[:1] == '/' else '/' + path}"
    if known.get("key-secret"):
        # Ceph's user when none is named, and the ways to log in that libvirt always names with a key.
        known = {"user": "admin", "auth-client-required": ["cephx", "none"], **known}
        known["auth-client-required"] = known["auth-client-required"][0]
    return known


def test_libvirt_opens_the_storage_that_qemu_opens(rows: list[Said]) -> None:
    wrong: dict[str, str] = {}
    with libvirt_daemon() as oracle, oracle.secrets(SECRETS):

        def compare(batch: list[Said]) -> None:
            try:
                found = storage(oracle.argv([each.xml(index) for index, each in enumerate(batch)]))
            except Refused as error:
                if len(batch) == 1:
                    wrong[batch[0].row] = f"refused: {error}\n{batch[0].xml()}"
                    return
                compare(batch[: len(batch) // 2])
                compare(batch[len(batch) // 2 :])
                return
            for each in batch:
                if each.plan.nodes:
                    ours = plain(each.plan.nodes[0])
                    theirs = plain(found[f"ua-{each.plan.names.device}"])
                    if ours != theirs:
                        wrong[each.row] = f"libvirt: {theirs}\n  hvext: {ours}"

        for start in range(0, len(rows), BATCH):
            compare(rows[start : start + BATCH])
    assert {row: words for row, words in wrong.items() if row not in LIBVIRT} == {}
    assert sorted(wrong) == sorted(LIBVIRT)
    assert len(rows) > 250


def test_the_xml_is_what_libvirts_schema_describes(rows: list[Said]) -> None:
    rules = schema()
    wrong = {}
    for each in rows:
        if not rules.validate(etree.fromstring(domain([each.xml()]))):
            wrong[each.row] = f"{rules.error_log.last_error}\n{each.xml()}"
    assert {row: words for row, words in wrong.items() if row not in LIBVIRT_SCHEMA} == {}
    assert sorted(wrong) == sorted(LIBVIRT_SCHEMA)
