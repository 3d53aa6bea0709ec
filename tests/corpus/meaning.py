"""When two records mean the same storage, although the calls are not letter for letter the same.

Each function undoes one difference that is known to make none; ``meaning`` applies them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import unquote

from hvext.core.uri.location import PrivateFile
from tests.corpus.recorder import Call, Record

_CONF_SET = "rados_conf_set"
_READ_FILE = "rados_conf_read_file"
_USUAL_FILE = "/etc/ceph/ceph.conf"
_LISTS = ("mon_host", "auth_client_required")


def meaning(record: Record, files: Sequence[PrivateFile] = ()) -> tuple[Call, ...]:
    """What the calls of an opened record ask for; ``files`` are the private files that were made for it."""
    calls: Iterable[Call] = record.calls
    calls = with_what_only_the_message_says(calls, record.message)
    calls = with_files_read(calls, files)
    calls = without_overridden_options(calls)
    calls = with_the_empty_namespace(calls)
    calls = with_users_out_of_urls(calls)
    calls = with_plain_ports(calls)
    return tuple(calls)


def with_what_only_the_message_says(calls: Iterable[Call], message: str) -> Iterator[Call]:
    """A host key's expected hash, and the kind of file that a driver wanted, are in QEMU's message alone.

    QEMU compares hashes without regard to case and colons.
    """
    for call in calls:
        yield call
        if call.name == "ssh_get_publickey_hash":
            expected = message.rpartition("host_key_check '")[2].removesuffix("'")
            method, _, digits = expected.partition(":")
            yield Call("expected_hash", (("method", method), ("digits", digits.replace(":", "").lower())))
        if call.name == "open":
            yield Call("wanted", (("file", message.partition(" requires ")[0]),))


def with_files_read(calls: Iterable[Call], files: Sequence[PrivateFile]) -> Iterator[Call]:
    """A Ceph configuration of hvext's own sets its options as if QEMU had set them, behind the file it continues.

    Without a name Ceph reads the usual file.
    """
    own = {file.path: file for file in files}
    for call in calls:
        if call.name != _READ_FILE:
            yield call
            continue
        path = dict(call.arguments)["path"]
        path = _USUAL_FILE if path is None else path
        file = own.get(str(path))
        yield Call(_READ_FILE, (("path", file.link or file.after if file else path),))
        for line in (file.text.reveal() if file and file.text else "").splitlines():
            name, equals, value = (part.strip() for part in line.partition("="))
            if equals:
                plain = re.sub(r"\\(.)", r"\1", value.removeprefix('"').removesuffix('"'))
                yield Call(_CONF_SET, (("option", name), ("value", plain)))


def without_overridden_options(calls: Iterable[Call]) -> Iterator[Call]:
    """Of an option that is set twice Ceph takes the last; the order of different options says nothing.

    Ceph separates lists in several ways, and of a client's ``auth_supported`` it takes what ``auth_client_required``
    says as well.
    """
    options: dict[str, object] = {}
    for call in calls:
        if call.name == _CONF_SET:
            values = dict(call.arguments)
            name = str(values["option"]).replace(" ", "_").replace("auth_supported", "auth_client_required")
            value = str(values["value"])
            options[name] = tuple(re.split("[,; ]+", value)) if name in _LISTS else value
            continue
        for name, plain in sorted(options.items()):
            yield Call(_CONF_SET, (("option", name), ("value", plain)))
        options = {}
        yield call


def with_the_empty_namespace(calls: Iterable[Call]) -> Iterator[Call]:
    """Ceph takes no namespace for the empty one."""
    for call in calls:
        if call.name == "rados_ioctx_set_namespace" and call.arguments == (("namespace", None),):
            yield Call(call.name, (("namespace", ""),))
        else:
            yield call


def with_users_out_of_urls(calls: Iterable[Call]) -> Iterator[Call]:
    """A user and a password may be in the URL or be told to libcurl beside it."""
    told: dict[str, object] = {}
    for call in calls:
        values = dict(call.arguments)
        if call.name == "curl_easy_setopt" and {"username", "password"} & values.keys():
            told.update(values)
            continue
        match = re.fullmatch(r"([a-z]+://)([^/?#@]*)@(.*)", str(values.get("url", "")), re.DOTALL)
        if call.name == "curl_easy_setopt" and match:
            user, _colon, password = match[2].partition(":")
            # Without a password libcurl logs in with an empty one.
            told = {"username": unquote(user), "password": unquote(password), **told}
            yield Call(call.name, (("url", match[1] + match[3]),))
            continue
        if told and call.name != "curl_easy_setopt":
            yield Call("curl_login", tuple(sorted({"password": "", **told}.items())))
            told = {}
        yield call


def with_plain_ports(calls: Iterable[Call]) -> Iterator[Call]:
    """Zeros before a port say nothing; an iSCSI portal without a port has port 3260."""
    for call in calls:
        values = dict(call.arguments)
        if call.name == "iscsi_full_connect_sync":
            match = re.fullmatch(r"(?P<host>\[[^]]*\]|[^:]+)(?::(?P<port>[0-9]*))?", str(values["portal"]))
            if match:
                values["portal"] = f"{match['host']}:{int(match['port'] or 3260)}"
        if call.name == "getaddrinfo" and re.fullmatch("[0-9]+", str(values["service"])):
            values["service"] = int(str(values["service"]))
        yield Call(call.name, tuple(values.items()))
