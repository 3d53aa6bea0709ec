"""Which disk options go together with which storage."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from hvext.core.identity import DiskNames
from hvext.core.options import DiskOptions
from hvext.core.plan import options_obstacle, plan_disk
from hvext.core.uri import parse_uri
from hvext.errors import InputError

NAMES = DiskNames(UUID(int=7))


@pytest.mark.parametrize("path", ["/dev/rbd0", "/dev/rbd/pool/image"])
@pytest.mark.parametrize("cache", ["writeback", "writethrough", "unsafe"])
def test_requests_that_would_hang_on_a_kernel_rbd_device_are_never_made(path: str, cache: str) -> None:
    with pytest.raises(InputError, match=f"hang with aio=io_uring and cache={cache}: use cache=none or aio=threads"):
        plan_disk(NAMES, parse_uri(path), DiskOptions.from_mapping({"aio": "io_uring", "cache": cache}))


@pytest.mark.parametrize(
    ("place", "options"),
    [
        ("/dev/rbd0", {"aio": "io_uring"}),
        ("/dev/rbd0", {"aio": "io_uring", "cache": "directsync"}),
        ("/dev/rbd0", {"aio": "threads", "cache": "writeback"}),
        ("/dev/sdb", {"aio": "io_uring", "cache": "writeback"}),
        ("rbd:pool/image", {"aio": "io_uring", "cache": "writeback"}),
        ("vhost-user:/run/s", {"cache": "none"}),
    ],
)
def test_what_goes_together_is_not_refused(place: str, options: dict[str, Any]) -> None:
    assert options_obstacle(parse_uri(place), DiskOptions.from_mapping(options)) is None
