from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.answer import (
    MAX_BYTES,
    MAX_LINE_BYTES,
    Attachment,
    HypervisorUri,
    check_block_path,
    parse_answer,
)
from hvext.core.provider import FileKind
from hvext.errors import AnswerError, InputError

D = "/dev/rbd0"


def uri(text: str, line: int = 2, hypervisor: str = "kvm") -> HypervisorUri:
    return HypervisorUri(hypervisor=hypervisor, uri=text, line=line)


ACCEPTED = {
    "path": ("/dev/rbd0", D, []),
    "path-and-newline": ("/dev/rbd0\n", D, []),
    "path-and-uri": ("/dev/rbd0\nkvm:rbd:p/i", D, [uri("rbd:p/i")]),
    "path-and-uri-with-newline": ("/dev/rbd0\nkvm:rbd:p/i\n", D, [uri("rbd:p/i")]),
    "prefix-in-any-case": ("/dev/rbd0\nKvM:rbd:p/i\n", D, [uri("rbd:p/i")]),
    "uri-without-path": ("\nkvm:rbd:p/i", None, [uri("rbd:p/i")]),
    "two-uris-in-order": ("/dev/rbd0\nkvm:a:1\nkvm:b:2\n", D, [uri("a:1"), uri("b:2", 3)]),
    "other-hypervisor-kept": ("/dev/rbd0\nxen-pvm:x\n", D, [uri("x", 2, "xen-pvm")]),
    "blank-lines-are-nothing": ("/dev/rbd0\n\n \t\nkvm:a:1\n\n", D, [uri("a:1", 4)]),
    "crlf": ("/dev/rbd0\r\nkvm:a:1\r\n", D, [uri("a:1")]),
    "lone-cr": ("/dev/rbd0\rkvm:a:1\r", D, [uri("a:1")]),
    "crlf-after-an-empty-line-1": ("\r\nkvm:a:1", None, [uri("a:1")]),
    "mixed-line-ends": ("/dev/rbd0\n\rkvm:a:1\r\n", D, [uri("a:1", 3)]),
    "ceph-with-options": (
        "/dev/rbd0\nkvm:rbd:p/i:id=admin:rbd_cache=true:conf=/etc/ceph/ceph.conf",
        D,
        [uri("rbd:p/i:id=admin:rbd_cache=true:conf=/etc/ceph/ceph.conf")],
    ),
    "vertical-tab-ends-no-line": ("/dev/a\vb", "/dev/a\vb", []),
    "form-feed-ends-no-line": ("/dev/a\fb\nkvm:a:\f1", "/dev/a\fb", [uri("a:\f1")]),
    "next-line-ends-no-line": ("/dev/a\x85b", "/dev/a\x85b", []),
    "line-separator-ends-no-line": ("/dev/a\u2028b\nkvm:a:\u20291", "/dev/a\u2028b", [uri("a:\u20291")]),
    "path-after-a-failure": ("/dev/mapper/3", "/dev/mapper/3", []),
    "longest-line": ("/" + "a" * (MAX_LINE_BYTES - 1), "/" + "a" * (MAX_LINE_BYTES - 1), []),
}


@pytest.mark.parametrize("row", ACCEPTED)
def test_what_a_provider_may_print_is_taken_without_a_warning(row: str) -> None:
    text, path, uris = ACCEPTED[row]
    assert parse_answer(text.encode()) == Attachment(block_path=path, uris=tuple(uris))


WARNED = {
    "blank-before-the-path": (" /dev/rbd0\n", D, [], ["line 1", "blanks", "path"]),
    "blanks-behind-the-path": ("/dev/rbd0 \t\n", D, [], ["line 1", "blanks", "path"]),
    "blank-in-an-empty-line-1": (" \nkvm:a:1\n", None, [uri("a:1")], ["line 1", "blanks", "path"]),
    "blank-behind-the-uri": ("/dev/rbd0\nkvm:a:1 \n", D, [uri("a:1")], ["line 2", "blanks", "URI"]),
    "blank-before-the-uri": ("/dev/rbd0\nkvm: a:1\n", D, [uri("a:1")], ["line 2", "blanks", "URI"]),
    "blank-before-the-prefix": ("\n kvm:rbd:p/i\n", None, [uri("rbd:p/i")], ["line 2", "blanks", "hypervisor"]),
    "blank-behind-the-prefix": ("\nkvm :rbd:p/i\n", None, [uri("rbd:p/i")], ["line 2", "blanks", "hypervisor"]),
    "prefix-without-a-uri": ("/dev/rbd0\nkvm:\n", D, [], ["line 2", "'kvm:'", "no URI", "absent"]),
    "prefix-with-a-blank-uri": ("/dev/rbd0\nkvm: \n", D, [], ["line 2", "'kvm:'", "no URI", "absent"]),
    "uri-without-a-prefix": (
        "/dev/rbd0\nrbd:p/i\n",
        D,
        [uri("p/i", 2, "rbd")],
        ["line 2", "'rbd:p/i'", "prefix is missing", "kvm:rbd:p/i"],
    ),
    "nbd-uri-without-a-prefix": (
        "/dev/nbd0\n\nnbd+unix:///e?socket=/s\n",
        "/dev/nbd0",
        [uri("///e?socket=/s", 3, "nbd+unix")],
        ["line 3", "kvm:nbd+unix:///e?socket=/s"],
    ),
    "noise-behind-the-path": ("/dev/rbd0\nmapped it\n", D, [], ["line 2", "'mapped it'", "ignored", "stderr"]),
}


@pytest.mark.parametrize("row", WARNED)
def test_what_a_provider_should_mend_is_said_with_its_line(row: str) -> None:
    text, path, uris, words = WARNED[row]
    answer = parse_answer(text.encode())
    assert (answer.block_path, answer.uris) == (path, tuple(uris))
    for word in words:
        assert any(word in warning for warning in answer.warnings), f"{word!r} is not in {answer.warnings}"


REFUSED = {
    "nothing": (b"", ["neither a block device nor a URI", "line 1"]),
    "newlines-only": (b"\n\r\n\n", ["neither a block device nor a URI", "<hypervisor>:<uri>"]),
    "blanks-only": (b" \n\t\n", ["neither a block device nor a URI"]),
    "prefix-without-a-uri-alone": (b"\nkvm:\n", ["neither a block device nor a URI", "line 2: 'kvm:' has no URI"]),
    "kvm-uri-as-line-1": (b"kvm:rbd:p/i\n", ["line 1", "'kvm:rbd:p/i'", "empty first line"]),
    "kvm-uri-in-capitals-as-line-1": (b"KVM:rbd:p/i", ["line 1", "'KVM:rbd:p/i'", "empty first line"]),
    "bare-uri-as-line-1": (b"rbd:p/i\n", ["'rbd:p/i'", "empty first line", "kvm:rbd:p/i"]),
    "noise-ahead-of-the-path": (
        b"multipath -> \n/dev/mapper/3\n",
        [
            "line 1",
            "'multipath ->'",
            "absolute path of a block device, or empty",
            "line 2 looks like the path",
            "stderr",
        ],
    ),
    "much-noise-ahead-of-the-path": (b"a\nb\n  /dev/x\n", ["line 1", "'a'", "line 3 looks like the path"]),
    "error-message": (b"ERROR: no such volume\n", ["'ERROR: no such volume'", "status that is not 0", "stderr"]),
    "relative-path": (b"dev/rbd0\n", ["'dev/rbd0'", "must be absolute"]),
    "nul": (b"/dev/rbd0\nkvm:a\0b\n", ["NUL", "line 2", "byte 15 "]),
    "nul-after-cr": (b"/dev/rbd0\rk\0", ["NUL", "line 2", "byte 11 "]),
    "nul-after-crlf": (b"/dev/rbd0\r\nk\0", ["NUL", "line 2", "byte 12 "]),
    "nul-in-line-1": (b"\0", ["NUL", "line 1", "byte 0 "]),
    "invalid-utf-8": (b"/dev/rbd0\n\nkvm:a\xff", ["not UTF-8", "line 3", "byte 16 "]),
    "invalid-utf-8-after-crlf": (b"/dev/rbd0\r\nk\xff", ["not UTF-8", "line 2", "byte 12 "]),
    "utf-8-cut-short": (b"/dev/\xc3\n", ["not UTF-8", "line 1", "byte 5 "]),
    "utf-8-surrogate": (b"/dev/\xed\xa0\x80", ["not UTF-8", "line 1", "byte 5 "]),
    "line-too-long": (b"/" + b"a" * MAX_LINE_BYTES, ["line 1", "4097 bytes", "at most 4096"]),
    "later-line-too-long": (b"/dev/x\nkvm:" + b"a" * 4093, ["line 2", "4097 bytes", "at most 4096"]),
    "answer-too-long": (b"/dev/x\n" + b"\n" * (MAX_BYTES - 6), ["at most 65536 bytes", "stderr"]),
}


@pytest.mark.parametrize("row", REFUSED)
def test_an_answer_that_cannot_be_used_is_refused_in_words_to_act_on(row: str) -> None:
    stdout, words = REFUSED[row]
    with pytest.raises(AnswerError) as caught:
        parse_answer(stdout)
    for word in words:
        assert word in str(caught.value)


def test_the_largest_answer_is_taken() -> None:
    assert parse_answer(b"/dev/x\n" + b"\n" * (MAX_BYTES - 7)).block_path == "/dev/x"


def test_limits_count_bytes_and_not_characters() -> None:
    longest = "/" + "a" + "é" * ((MAX_LINE_BYTES - 2) // 2)
    assert parse_answer(longest.encode()).block_path == longest
    with pytest.raises(AnswerError, match="4098 bytes"):
        parse_answer((longest + "é").encode())


def test_a_long_line_is_quoted_in_part() -> None:
    with pytest.raises(AnswerError) as caught:
        parse_answer(b"noise " * 500)
    assert len(str(caught.value)) < 400
    assert "(3000 characters)" in str(caught.value) or "(2999 characters)" in str(caught.value)


def test_uris_are_found_by_hypervisor_in_any_case() -> None:
    answer = parse_answer(b"\nkvm:a:1\nxen-hvm:b:2\nKVM:c:3\n")
    assert answer.uris_for("KVM") == ("a:1", "c:3")
    assert answer.uris_for("xen-hvm") == ("b:2",)
    assert answer.uris_for("lxc") == ()


def test_an_answer_for_another_hypervisor_alone_is_usable_for_that_one() -> None:
    assert parse_answer(b"\nxen-pvm:x\n").uris_for("xen-pvm") == ("x",)


def test_a_block_device_is_fine() -> None:
    check_block_path(D, FileKind.BLOCK_DEVICE)


@pytest.mark.parametrize("kind", [kind for kind in FileKind if kind is not FileKind.BLOCK_DEVICE])
def test_a_path_that_is_no_block_device_is_refused_with_what_it_is(kind: FileKind) -> None:
    with pytest.raises(AnswerError) as caught:
        check_block_path("/dev/mapper/3", kind)
    assert "'/dev/mapper/3'" in str(caught.value)
    assert ("does not exist" if kind is FileKind.MISSING else f"is {kind.value}") in str(caught.value)
    assert "leave line 1 empty" in str(caught.value)


pieces = st.sampled_from(
    [
        b"/",
        b"/dev/x",
        b"kvm:",
        b"KVM :",
        b"rbd:p/i",
        b"\n",
        b"\r",
        b"\r\n",
        b" ",
        b"\t",
        b"\0",
        b"\xff",
        b"\xc3\xa9",
        b":",
    ]
)


@given(stdout=st.binary(max_size=300) | st.lists(pieces | st.binary(max_size=5), max_size=30).map(b"".join))
def test_whatever_is_printed_is_an_answer_or_an_explained_error(stdout: bytes) -> None:
    try:
        answer = parse_answer(stdout)
    except AnswerError:
        return
    assert answer.block_path or answer.uris
    assert answer.block_path is None or answer.block_path.startswith("/")
    for line in answer.uris:
        assert line.uri == line.uri.strip(" \t") != ""
        assert line.hypervisor == line.hypervisor.lower()
        assert line.line >= 2


@given(
    path=st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n")).map(lambda name: f"/{name}/"),
    uris=st.lists(st.text(st.characters(min_codepoint=33, codec="ascii"), min_size=1, max_size=50)),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_what_was_printed_comes_back(path: str | None, uris: list[str], end: str) -> None:
    lines = [path or "", *(f"kvm:{uri}" for uri in uris)]
    if not path and not uris:
        return
    answer = parse_answer(end.join(lines).encode())
    assert (answer.block_path, answer.uris_for("kvm"), answer.warnings) == (path, tuple(uris), ())


def test_an_answer_may_be_text_and_nothing_else_but_bytes() -> None:
    text = "/dev/rbd0\nkvm:rbd:p/\u00fc\n"
    assert parse_answer(text) == parse_answer(text.encode())
    with pytest.raises(AnswerError, match="not UTF-8 in line 2"):
        parse_answer("/dev/x\nkvm:rbd:\udcff")
    nothing: Any = None
    with pytest.raises(InputError, match="must be bytes or text, not NoneType"):
        parse_answer(nothing)
