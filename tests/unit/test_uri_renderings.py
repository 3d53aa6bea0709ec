"""Whatever a provider prints: renderings of it or hvext's own errors, and no password in any of them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.command_line import blockdev_argv, drive_argv
from hvext.core.commands import plug_commands
from hvext.core.domain_xml import disk_xml
from hvext.core.identity import DiskNames
from hvext.core.options import Cache, DiskOptions
from hvext.core.plan import DiskPlan, plan_disk
from hvext.core.uri import Opened, masked, parse_uri
from hvext.errors import InputError, RenderError
from tests.corpus.uris import CORPUS, Row

NAMES = DiskNames(uuid.UUID("0d1b4b5e-6d8a-4d3b-9a57-0c5f2f6f7a10"))
RENDERINGS: tuple[Callable[[DiskPlan], str], ...] = (
    lambda plan: "\n".join(blockdev_argv(plan)),
    lambda plan: "\n".join(drive_argv(plan)),
    lambda plan: json.dumps([command.to_json() for command in plug_commands(plan)], ensure_ascii=False),
    disk_xml,
    repr,
)
#: What a web server is asked for is its own affair: QEMU has no place for a secret in it.
IN_A_QUERY = ("https://", "http://", "ftp://", "ftps://")


def shown(text: str, cache: Cache = Cache.NONE) -> list[str]:
    """Everything that is shown of a URI: what it means to people, all renderings, or why there is none."""
    words = [masked(text)]
    try:
        location = parse_uri(text, look=lambda _path: Opened.FILE)
        words += [location.uri(), location.words, repr(location), repr(location.reported)]
        plan = plan_disk(NAMES, location, DiskOptions(cache=cache))
    except InputError as error:
        return [*words, str(error), repr(error)]
    for render in RENDERINGS:
        try:
            words.append(render(plan))
        except RenderError as error:
            words.append(str(error))
    return words


@pytest.mark.parametrize("protocol", sorted({row.protocol for row in CORPUS}))
def test_no_password_is_in_anything_that_is_shown(protocol: str) -> None:
    leaks = {row.id: words for row in CORPUS if row.protocol == protocol for words in leaked(row)}
    assert leaks == {}


def leaked(row: Row) -> list[str]:
    if "s3cret" not in row.uri or (row.uri.startswith(IN_A_QUERY) and "s3cret" in row.uri.partition("?")[2]):
        return []
    return [words for cache in (Cache.NONE, Cache.WRITEBACK) for words in shown(row.uri, cache) if "s3cret" in words]


starts = st.sampled_from(
    [
        *("nbd:", "nbd://", "nbd+unix:///", "nbds://", "nbds+unix:///e?socket=/s&", "nbd+vsock://", "rbd:p/i:", "rbd:"),
        *("iscsi://", "iscsi://u%p@h/t/", "iser://h/", "ssh://", "ssh://h/p?host_key_check=", "nfs://h/p?", "nfs://"),
        *("gluster://h/v/", "gluster+unix:///v/i?socket=", "http://", "https://u:p@", "ftp://h/", "nvme://", "json:"),
        *(
            'json:{"driver":"nbd","server":',
            'json:{"driver":"rbd",',
            'json:{"driver":"iscsi","password":"',
            "vhost-user:",
        ),
        *("file:", "host_device:", "/", "sheepdog:", "x:", ""),
    ]
)
pieces = st.lists(
    st.sampled_from(
        [*"/:@?#%&;=\\\"'{}[], é\n", "%2F", "%00", "%", "[::1]", ":1", "id=", "key=", "uid=", "on", "true", '"a":1']
    )
).map("".join)


@given(text=st.text() | st.builds(str.__add__, starts, st.text() | pieces), cache=st.sampled_from(Cache))
def test_any_text_is_rendered_or_refused_in_words(text: str, cache: Cache) -> None:
    for words in shown(text, cache):
        words.encode("utf-8", "surrogatepass")
