from __future__ import annotations

import pytest

from hvext.core.access import Access, Choice, choose_access
from hvext.core.answer import Attachment, HypervisorUri
from hvext.core.options import Aio, Cache, DiskOptions, ErrorPolicy
from hvext.core.uri import FileLocation, Location, Opened, parse_uri
from hvext.errors import AccessError

PATH = "/dev/rbd0"
RBD = "rbd:pool/image"
NBD = "nbd+unix:///disk?socket=/run/s"
BAD = "sheepdog:disk"
WORSE = "ceph:pool/disk"


def offer(path: str | None, *uris: str, hypervisor: str = "kvm") -> Attachment:
    lines = (HypervisorUri(hypervisor=hypervisor, uri=uri, line=line) for line, uri in enumerate(uris, start=2))
    return Attachment(block_path=path, uris=tuple(lines))


OFFERS = {
    "path": offer(PATH),
    "uri": offer(None, RBD),
    "both": offer(PATH, RBD),
    "two-uris": offer(PATH, NBD, RBD),
    "unusable-uris": offer(PATH, BAD, WORSE),
    "unusable-uris-alone": offer(None, BAD),
    "unusable-then-usable": offer(PATH, BAD, RBD),
    "other-hypervisor": offer(PATH, RBD, hypervisor="xen-pvm"),
    "none": offer(None),
}
#: What is tried, in this order; a word of the reason, or of the error where nothing is left.
TABLE = {
    Access.PREFER_USERSPACE: {
        "path": ([PATH], "the provider printed no kvm: URI; using the block path"),
        "uri": ([RBD], "the provider offers a URI that QEMU can open itself"),
        "both": ([RBD, PATH], "the provider offers a URI that QEMU can open itself"),
        "two-uris": ([NBD, RBD, PATH], "the provider offers 2 URIs that QEMU can open itself"),
        "unusable-uris": ([PATH], "'sheepdog:disk' cannot be used: protocol 'sheepdog' was removed in QEMU 6.0"),
        "unusable-uris-alone": ([], "'sheepdog:disk' cannot be used"),
        "unusable-then-usable": ([RBD, PATH], "('sheepdog:disk' cannot be used"),
        "other-hypervisor": ([PATH], "the provider printed no kvm: URI; using the block path"),
        "none": ([], "the provider printed no kvm: URI, and there is no block device path either"),
    },
    Access.USERSPACE: {
        "path": ([], "access=userspace was asked for, but the provider printed no kvm: URI"),
        "uri": ([RBD], "access=userspace asks for a URI"),
        "both": ([RBD], "access=userspace asks for a URI"),
        "two-uris": ([NBD, RBD], "access=userspace asks for a URI"),
        "unusable-uris": ([], "QEMU knows no protocol 'ceph'"),
        "unusable-uris-alone": ([], "protocol 'sheepdog' was removed in QEMU 6.0"),
        "unusable-then-usable": ([RBD], "access=userspace asks for a URI ('sheepdog:disk' cannot be used"),
        "other-hypervisor": ([], "access=userspace was asked for, but the provider printed no kvm: URI"),
        "none": ([], "the provider printed no kvm: URI"),
    },
    Access.KERNELSPACE: {
        "path": ([PATH], "access=kernelspace asks for the block path"),
        "uri": ([], "access=kernelspace was asked for, but the provider printed no block device path"),
        "both": ([PATH], "access=kernelspace asks for the block path"),
        "two-uris": ([PATH], "access=kernelspace asks for the block path"),
        "unusable-uris": ([PATH], "access=kernelspace asks for the block path"),
        "unusable-uris-alone": ([], "let attach print the path in line 1"),
        "unusable-then-usable": ([PATH], "access=kernelspace asks for the block path"),
        "other-hypervisor": ([PATH], "access=kernelspace asks for the block path"),
        "none": ([], "no block device path"),
    },
}


@pytest.mark.parametrize(("access", "what"), [(access, what) for access in Access for what in OFFERS])
def test_the_access_that_was_asked_for_is_used_and_the_reason_is_in_words(access: Access, what: str) -> None:
    texts, words = TABLE[access][what]
    if not texts:
        with pytest.raises(AccessError) as caught:
            choose_access(OFFERS[what], access)
        assert words in str(caught.value)
        return
    choice = choose_access(OFFERS[what], access)
    assert [candidate.text for candidate in choice.candidates] == texts
    assert words in choice.reason
    for candidate in choice.candidates:
        is_path = candidate.text == PATH
        assert candidate.access is (Access.KERNELSPACE if is_path else Access.USERSPACE)
        assert candidate.location == parse_uri(candidate.text)


def test_every_offer_has_a_row_for_every_access() -> None:
    assert {access: list(rows) for access, rows in TABLE.items()} == {access: list(OFFERS) for access in Access}


def test_every_unusable_uri_is_named_with_its_own_reason() -> None:
    choice = choose_access(OFFERS["unusable-uris"])
    assert len(choice.skipped) == 2
    assert "'sheepdog'" in choice.skipped[0]
    assert "'ceph'" in choice.skipped[1]
    assert all(skipped in choice.reason for skipped in choice.skipped)


def test_a_uri_that_this_qemu_has_no_driver_for_is_passed_over_with_the_reason() -> None:
    def no_rbd(location: Location) -> str | None:
        return "it has no driver rbd" if location.driver == "rbd" else None

    choice = choose_access(offer(PATH, RBD, NBD), obstacle=no_rbd)
    assert [candidate.text for candidate in choice.candidates] == [NBD, PATH]
    assert f"'{RBD}' cannot be used here: it has no driver rbd" in choice.reason
    with pytest.raises(AccessError, match="it has no driver rbd"):
        choose_access(offer(PATH, RBD), Access.USERSPACE, obstacle=no_rbd)
    assert choose_access(offer(PATH, RBD), obstacle=no_rbd).chosen.text == PATH


def test_a_uri_that_is_a_path_is_looked_at() -> None:
    choice = choose_access(offer(None, "file:/x"), look=lambda _path: Opened.HOST_DEVICE)
    assert choice.chosen.location == FileLocation(path="/x", opened=Opened.HOST_DEVICE)


def test_the_block_path_is_opened_as_a_device_whatever_its_name() -> None:
    choice = choose_access(offer("/srv/volume"), look=lambda _path: Opened.FILE)
    assert choice.chosen.location == FileLocation(path="/srv/volume", opened=Opened.HOST_DEVICE)


def test_another_hypervisor_gets_its_own_uris() -> None:
    assert choose_access(OFFERS["other-hypervisor"], hypervisor="xen-pvm").chosen.text == RBD


def test_a_choice_says_in_json_what_was_chosen_and_why() -> None:
    both = OFFERS["both"]
    assert choose_access(both).to_json() == {
        "access": "userspace",
        "uri": RBD,
        "reason": "the provider offers a URI that QEMU can open itself",
    }
    assert choose_access(both, Access.KERNELSPACE).to_json() == {
        "access": "kernelspace",
        "path": PATH,
        "reason": "access=kernelspace asks for the block path",
    }


@pytest.mark.parametrize(
    ("offered", "access", "cache"),
    [
        (offer(None, RBD), Access.PREFER_USERSPACE, Cache.WRITEBACK),
        (offer(PATH, RBD), Access.USERSPACE, Cache.WRITEBACK),
        (offer(None, RBD, BAD), Access.PREFER_USERSPACE, Cache.WRITEBACK),
        (offer(None, RBD, "vhost-user:/run/s"), Access.PREFER_USERSPACE, Cache.WRITEBACK),
        (offer(PATH, RBD), Access.PREFER_USERSPACE, Cache.NONE),
        (offer(None, RBD, NBD), Access.PREFER_USERSPACE, Cache.NONE),
        (offer(PATH, RBD), Access.KERNELSPACE, Cache.NONE),
        (offer(None, NBD), Access.PREFER_USERSPACE, Cache.NONE),
    ],
)
def test_an_image_with_a_cache_of_its_client_uses_it_only_where_no_failover_could_lose_what_is_in_it(
    offered: Attachment, access: Access, cache: Cache
) -> None:
    choice = choose_access(offered, access)
    wished = DiskOptions()
    options = choice.options_at(choice.chosen.location, wished)
    assert options.cache_mode is cache
    # A disk that stops and waits for another place is never one that has unflushed writes elsewhere.
    assert options.cache is None or options.werror is not ErrorPolicy.STOP


@pytest.mark.parametrize("said", [DiskOptions(cache=Cache.NONE), DiskOptions(aio=Aio.NATIVE)])
def test_who_asks_for_no_cache_gets_none_whatever_the_client_has(said: DiskOptions) -> None:
    choice = choose_access(offer(None, RBD))
    assert choice.options_at(choice.chosen.location, said) == said


def test_a_choice_of_nothing_cannot_be_made() -> None:
    with pytest.raises(AccessError):
        Choice(candidates=(), reason="")
