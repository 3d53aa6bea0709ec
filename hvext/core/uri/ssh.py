"""Files behind SSH: ``ssh://[USER@]HOST[:PORT]/PATH[?host_key_check=CHECK]``.

CHECK is ``no``, ``yes`` (the known-hosts file, also QEMU's default) or the fingerprint of the server's key,
``md5:HEX``, ``sha1:HEX`` or ``sha256:HEX``. QEMU logs in with the keys of the agent that ``SSH_AUTH_SOCK`` names; it
takes no password. User, path and query are percent-decoded.

Stricter than QEMU where it drops something silently or would ask another thing: passwords (QEMU takes them for a part
of the user's name), fragments, unknown parameters, fingerprints that no key can have, and paths that are relative to
the login's folder.
Source: QEMU, block/ssh.c, ``parse_uri`` and ``check_host_key``; qemu-storage-daemon-qmp-ref(7), BlockdevOptionsSsh.
"""

from __future__ import annotations

import re
from enum import StrEnum

from hvext.core.text import checked, quoted
from hvext.core.uri.disk_source import unsayable
from hvext.core.uri.location import Companions, LibvirtSource, Location
from hvext.core.uri.syntax import (
    check_host,
    check_port,
    decoded,
    encoded_host,
    encoded_path,
    encoded_query,
    encoded_userinfo,
    parse_address,
    query_pairs,
    split_uri,
)
from hvext.core.value import replace, value_object
from hvext.errors import LocationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hvext.core.uri.fields import Fields

DEFAULT_PORT = 22


class HashType(StrEnum):
    """How a key's fingerprint is computed."""

    MD5 = "md5"
    SHA1 = "sha1"
    SHA256 = "sha256"


_HEX_DIGITS = {HashType.MD5: 32, HashType.SHA1: 40, HashType.SHA256: 64}


class CheckMode(StrEnum):
    """How the server's key is checked."""

    NONE = "none"
    KNOWN_HOSTS = "known_hosts"
    HASH = "hash"


@value_object
class HostKeyCheck:
    """A check of the server's key; with mode ``hash``, ``fingerprint`` in lower-case hexadecimal without colons."""

    mode: CheckMode
    hash_type: HashType | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if self.mode is not CheckMode.HASH:
            if self.hash_type is not None or self.fingerprint:
                raise LocationError(f"host key check {self.mode} takes no fingerprint")
            return
        if self.hash_type is None:
            raise LocationError("host key check by hash needs its type: md5, sha1 or sha256")
        digits = _HEX_DIGITS[self.hash_type]
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", self.fingerprint):
            raise LocationError(
                f"{self.hash_type} fingerprint {quoted(self.fingerprint)} is not {digits} hexadecimal digits",
                hint="QEMU takes no base64: convert what ssh-keygen -l prints, or use its -E md5",
            )

    @property
    def options(self) -> dict[str, object]:
        """What QEMU's driver is told."""
        if self.mode is not CheckMode.HASH:
            return {"mode": str(self.mode)}
        return {"mode": str(self.mode), "type": str(self.hash_type), "hash": self.fingerprint}

    @property
    def text(self) -> str:
        """What stands in the URI."""
        words = {CheckMode.NONE: "no", CheckMode.KNOWN_HOSTS: "yes"}
        return words.get(self.mode, f"{self.hash_type}:{self.fingerprint}")


@value_object
class SshLocation(Location):
    """A file of a server; without ``user`` QEMU logs in under the name that it runs under."""

    host: str
    path: str
    port: int = DEFAULT_PORT
    user: str = ""
    host_key_check: HostKeyCheck | None = None

    def __post_init__(self) -> None:
        check_host(self.host)
        check_port(self.port)
        checked(self.path, "SSH path", error=LocationError)
        checked(self.user, "SSH user", error=LocationError)
        if not self.path.startswith("/"):
            raise LocationError(
                f"SSH path {quoted(self.path)} is not absolute", hint="write it from the server's root folder"
            )
        if re.search("[/:]", self.user):
            raise LocationError(
                "the SSH user's name has ':' or '/' in it",
                hint="QEMU takes no password: load a key into the agent that SSH_AUTH_SOCK names",
            )

    @property
    def driver(self) -> str:
        return "ssh"

    def blockdev(self, beside: Companions = Companions()) -> dict[str, object]:
        user = {"user": self.user} if self.user else {}
        check = {"host-key-check": self.host_key_check.options} if self.host_key_check else {}
        return {"server": {"host": self.host, "port": str(self.port)}, "path": self.path, **user, **check}

    def uri(self, *, reveal: bool = False) -> str:
        user = f"{encoded_userinfo(self.user)}@" if self.user else ""
        check = f"?host_key_check={encoded_query(self.host_key_check.text)}" if self.host_key_check else ""
        return f"ssh://{user}{encoded_host(self.host)}:{self.port}{encoded_path(self.path)}{check}"

    @property
    def reported(self) -> Location:
        # QEMU reports the check only of nodes that were opened by their URI.
        return replace(self, host_key_check=None)

    def libvirt_source(self, beside: Companions = Companions()) -> LibvirtSource:
        raise unsayable("a disk behind SSH: its schema has no such protocol")


def parse(scheme: str, rest: str) -> SshLocation:
    """Return the location of ``ssh:rest``; raises LocationError."""
    parts = split_uri(scheme, rest)
    userinfo = parts.userinfo or ""
    if ":" in userinfo:
        raise LocationError(
            "SSH URI has a password, and QEMU takes none",
            hint="load a key into the agent that SSH_AUTH_SOCK names",
        )
    host, port = parse_address(parts.address, scheme)
    if not host:
        raise LocationError("SSH URI names no host")
    if not parts.path:
        raise LocationError("SSH URI names no path", hint="write ssh://HOST/PATH")
    parameters = query_pairs(parts.query, "SSH")
    check = parameters.pop("host_key_check", None)
    for name in parameters:
        raise LocationError(f"SSH URI has the query parameter {quoted(name)}; there is only host_key_check")
    return SshLocation(
        host=host,
        port=DEFAULT_PORT if port is None else port,
        path=decoded(parts.path, "the path", "SSH"),
        user=decoded(userinfo, "the user", "SSH"),
        host_key_check=None if check is None else _parse_check(check),
    )


def _parse_check(text: str) -> HostKeyCheck:
    modes = {"no": CheckMode.NONE, "yes": CheckMode.KNOWN_HOSTS}
    if text in modes:
        return HostKeyCheck(mode=modes[text])
    kind, colon, fingerprint = text.partition(":")
    if not colon or kind not in list(HashType):
        raise LocationError(
            f"SSH URI has host_key_check={quoted(text)}", hint="it is no, yes, md5:HEX, sha1:HEX or sha256:HEX"
        )
    return HostKeyCheck(mode=CheckMode.HASH, hash_type=HashType(kind), fingerprint=_plain(fingerprint))


def _plain(fingerprint: str) -> str:
    """A fingerprint as it is kept; QEMU looks neither at colons nor at case."""
    return fingerprint.replace(":", "").lower()


def parse_filename(_driver: str, filename: str) -> SshLocation | None:
    """Return the location that QEMU reports (it encodes nothing in it, and writes no brackets)."""
    match = re.fullmatch(
        r"ssh://(?P<user>[^/]*)@(?P<host>[^/@]+):(?P<port>[0-9]{1,5})(?P<path>/.*)", filename, re.DOTALL
    )
    if match is None or "?host_key_check=" in match["path"]:
        # That may be a check, or the end of the file's name.
        return None
    return SshLocation(user=match["user"], host=match["host"], port=int(match["port"]), path=match["path"])


def from_options(_driver: str, fields: Fields) -> SshLocation:
    """Return the location of a ``json:`` description; raises LocationError."""
    server = fields.sub("server")
    if server is None:
        raise LocationError("json: ssh needs server")
    host = server.needed("host")
    port = server.number("port", 1, 65535)
    server.finish()
    return SshLocation(
        host=host,
        port=DEFAULT_PORT if port is None else port,
        path=fields.needed("path"),
        user=fields.text("user") or "",
        host_key_check=_check_options(fields.sub("host-key-check")),
    )


def _check_options(fields: Fields | None) -> HostKeyCheck | None:
    if fields is None:
        return None
    mode = fields.choice("mode", CheckMode)
    if mode is None:
        raise LocationError("json: host-key-check.mode is missing", hint=f"it is {', '.join(CheckMode)}")
    kind = fields.choice("type", HashType)
    fingerprint = fields.text("hash") or ""
    fields.finish()
    return HostKeyCheck(mode=mode, hash_type=kind, fingerprint=_plain(fingerprint))
