"""TLS for NBD: certificates or a pre-shared key, as a URI names them and as QEMU's credential objects.

``tls-certificates=DIR`` holds ca-cert.pem and, where the server asks clients for one, client-cert.pem and
client-key.pem; ``tls-psk-file=FILE`` has lines of ``USER:KEY``. Without either it is the certificates in
``/etc/pki/qemu``. Only paths are in here: QEMU reads the files.
Source: the NBD project's doc/uri.md; nbd_connect_uri(3); QEMU's manual, "TLS setup for network services".
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from hvext.core.text import checked, quoted
from hvext.core.uri.location import Companions, Needs, PrivateFile
from hvext.core.uri.syntax import check_host
from hvext.core.value import value_object
from hvext.errors import LocationError

#: Where QEMU's manual and libvirt look for certificates.
CERTIFICATES = "/etc/pki/qemu"
#: The query parameters that ``nbds`` has and ``nbd`` has not.
TLS_NAMES = ("tls-type", "tls-certificates", "tls-hostname", "tls-verify-peer", "tls-psk-file")
#: The only name under which QEMU looks for pre-shared keys in a folder.
_KEYS = "keys.psk"
_ROLE = "tls"
_VERIFY = {"1": True, "true": True, "0": False, "false": False}


@value_object
class Certificates:
    """TLS with the X.509 certificates in ``folder``.

    The server's certificate must be for ``hostname``, by default the host that is connected to; without ``verify`` any
    certificate will do, and anybody can be the server.
    """

    folder: str = CERTIFICATES
    hostname: str = ""
    verify: bool = True

    def __post_init__(self) -> None:
        _check_path(self.folder, "tls-certificates")
        if self.hostname:
            check_host(self.hostname)

    @property
    def user(self) -> str:
        return ""

    @property
    def query(self) -> Mapping[str, str]:
        """The query parameters that say this."""
        return {
            **({"tls-certificates": self.folder} if self.folder != CERTIFICATES else {}),
            **({"tls-hostname": self.hostname} if self.hostname else {}),
            **({} if self.verify else {"tls-verify-peer": "0"}),
        }

    def blockdev(self, beside: Companions) -> dict[str, object]:
        """Return the options of the nbd driver that ask for TLS."""
        named = {"tls-hostname": self.hostname} if self.hostname else {}
        return {"tls-creds": beside.object_id(_ROLE), **named}

    def needs(self, beside: Companions) -> Needs:
        """Return the credentials object."""
        lax = {} if self.verify else {"verify-peer": False}
        return Needs(objects=(_credentials("x509", beside, self.folder) | lax,))


@value_object
class PresharedKey:
    """TLS with the key that ``file`` has for ``user``; QEMU's own default user is ``qemu``."""

    file: str
    user: str = ""

    def __post_init__(self) -> None:
        _check_path(self.file, "tls-psk-file")
        checked(self.user, "NBD user name", error=LocationError)
        if any(sign in self.user for sign in ":\r\n"):
            raise LocationError(
                f"NBD user name {quoted(self.user)} cannot be in a file of pre-shared keys, whose lines are USER:KEY"
            )

    @property
    def query(self) -> Mapping[str, str]:
        """The query parameters that say this."""
        return {"tls-psk-file": self.file}

    def blockdev(self, beside: Companions) -> dict[str, object]:
        """Return the options of the nbd driver that ask for TLS."""
        return {"tls-creds": beside.object_id(_ROLE)}

    def needs(self, beside: Companions) -> Needs:
        """Return the credentials object, and the link under the name that QEMU looks for where the file has another."""
        folder, _slash, name = self.file.rpartition("/")
        user = {"username": self.user} if self.user else {}
        if name == _KEYS:
            return Needs(objects=(_credentials("psk", beside, folder or "/") | user,))
        folder = beside.path(_ROLE)
        return Needs(
            objects=(_credentials("psk", beside, folder) | user,),
            files=(PrivateFile(path=f"{folder}/{_KEYS}", link=self.file),),
        )


Tls = Certificates | PresharedKey


def take_tls(user: str, query: MutableMapping[str, str]) -> Tls:
    """Return what the user name and the TLS parameters of an ``nbds`` URI say; takes these out of ``query``.

    Raises LocationError.
    """
    kind = query.pop("tls-type", "psk" if "tls-psk-file" in query else "x509")
    if kind == "psk":
        return _take_key(user, query)
    if kind != "x509":
        raise LocationError(
            f"NBD URI asks for tls-type {quoted(kind)}", hint="it is x509 or psk: anonymous TLS proves nothing"
        )
    if "tls-psk-file" in query:
        raise LocationError("NBD URI has tls-psk-file with tls-type=x509")
    if user:
        raise LocationError(
            f"NBD URI has the user name {quoted(user)} without tls-psk-file=FILE",
            hint="with certificates, the client's certificate says who it is",
        )
    verify = query.pop("tls-verify-peer", "1")
    if verify not in _VERIFY:
        raise LocationError(f"NBD URI has tls-verify-peer={quoted(verify)}", hint="it is 1 or 0")
    return Certificates(
        folder=_taken(query, "tls-certificates", CERTIFICATES),
        hostname=_taken(query, "tls-hostname", ""),
        verify=_VERIFY[verify],
    )


def _take_key(user: str, query: MutableMapping[str, str]) -> PresharedKey:
    for name in ("tls-certificates", "tls-hostname", "tls-verify-peer"):
        if name in query:
            raise LocationError(
                f"NBD URI has {name}, which goes with certificates, beside a pre-shared key", hint="leave one out"
            )
    if "tls-psk-file" not in query:
        raise LocationError("NBD URI has tls-type=psk without tls-psk-file=FILE")
    return PresharedKey(file=query.pop("tls-psk-file"), user=user)


def _taken(query: MutableMapping[str, str], name: str, default: str) -> str:
    value = query.pop(name, None)
    if value == "":
        raise LocationError(f"NBD URI has an empty {name}=", hint="leave it out")
    return default if value is None else value


def _check_path(path: str, what: str) -> None:
    checked(path, what, error=LocationError)
    if not path.startswith("/"):
        raise LocationError(f"{what} {quoted(path)} is not an absolute path")


def _credentials(kind: str, beside: Companions, folder: str) -> dict[str, object]:
    return {"qom-type": f"tls-creds-{kind}", "id": beside.object_id(_ROLE), "endpoint": "client", "dir": folder}
