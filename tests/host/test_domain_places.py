"""Which places of storage are another thing on every host, and so no place for a domain elsewhere."""

from __future__ import annotations

import pytest

from hvext.core.uri import Opened, parse_uri
from hvext.operations.domains.elsewhere import is_local

LOCAL = (
    "/dev/loop0",
    "/srv/v.raw",
    "nbd+unix:///v?socket=/run/nbd.sock",
    "nbd://127.0.0.1/v",
    "nbd://127.3.4.5:1234/v",
    "nbd://[::1]/v",
    "nbd://localhost/v",
    "nbds://localhost/v?tls-certificates=/elsewhere",
    "iscsi://localhost/iqn.2026-01.org.example:v/1",
    r"rbd:pool/v:mon_host=127.0.0.1\:3300",
    "vhost-user:/run/vhost.sock",
    "nvme://0000:01:00.0/1",
)
SHARED = (
    "nbd://storage/v",
    "nbd://localhost-storage.example/v",
    "nbd://192.0.2.1/v",
    "nbd://[2001:db8::1]/v",
    "nbds://storage/v?tls-certificates=/elsewhere",
    "iscsi://storage/iqn.2026-01.org.example:v/1",
    "rbd:pool/v:conf=/etc/ceph/ceph.conf",
    "ssh://storage/srv/v.raw",
)


@pytest.mark.parametrize("place", LOCAL)
def test_a_place_of_one_host_is_not_sent_to_another(place: str) -> None:
    assert is_local(parse_uri(place, look=lambda _path: Opened.HOST_DEVICE))


@pytest.mark.parametrize("place", SHARED)
def test_a_server_that_both_hosts_reach_is(place: str) -> None:
    assert not is_local(parse_uri(place))
