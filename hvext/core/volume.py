"""A volume of an ExtStorage provider, and the disk it is for."""

from __future__ import annotations

import re
import uuid as uuid_module
from collections.abc import Mapping
from types import MappingProxyType

from hvext.core.identity import derived_uuid as derived_uuid
from hvext.core.secret import Secret, is_secret_name
from hvext.core.text import checked, quoted
from hvext.core.value import field, value_object
from hvext.errors import InputError

#: Parameters that hvext itself exports, as Ganeti does.
_RESERVED = ("PROVIDER", "ACCESS")
_NAME_BYTES = 255
_METADATA_CHARACTERS = 128


def check_volume_name(name: str) -> str:
    """Return ``name`` when it can name a volume.

    Ganeti makes names of the form ``UUID.ext.diskN``; any name of 1 to 255 bytes is taken that is not a path, does not
    look like an option and has no control characters, because scripts put it into file names and command lines.
    Raises InputError.
    """
    checked(name, "volume name")
    if not name or len(name.encode()) > _NAME_BYTES:
        raise InputError(f"volume name {quoted(name)} must have 1 to {_NAME_BYTES} bytes")
    if "/" in name or name in (".", "..") or name.startswith("-"):
        raise InputError(f"volume name {quoted(name)} must not contain '/', be '.' or '..', or start with '-'")
    if any(sign < " " or sign == "\x7f" for sign in name):
        raise InputError(f"volume name {quoted(name)} has control characters in it")
    return name


def metadata_text(text: str) -> str:
    """Return ``text`` as ``VOL_METADATA`` may hold it: Ganeti's alphabet, at most 128 characters.

    Source: Ganeti, lib/storage/extstorage.py, ExtStorageDevice.SetInfo.
    """
    text = re.sub(r"^[^A-Za-z0-9_+.]", "_", text)
    return re.sub(r"[^-A-Za-z0-9_+.]", "_", text)[:_METADATA_CHARACTERS]


def check_size_mib(size_mib: int, what: str = "size") -> int:
    """Return ``size_mib`` when it is a possible size in MiB; raises InputError."""
    if type(size_mib) is not int or not 1 <= size_mib < 1 << 43:
        raise InputError(f"{what} must be a whole number of MiB, 1 to {(1 << 43) - 1}; got {size_mib!r}")
    return size_mib


@value_object
class Volume:
    """A volume, as the scripts of its provider know it.

    ``name`` is ``VOL_NAME``; ``uuid`` is the uuid of the disk (``VOL_UUID``); ``cname`` the disk's name for people
    (``VOL_CNAME``), if it has one; ``parameters`` are exported as ``EXTP_<NAME>``. Raises InputError for anything a
    script could not be told.
    """

    name: str
    uuid: uuid_module.UUID
    cname: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("cname", self.cname or "")):
            if not isinstance(text, str):
                raise InputError(f"a volume's {what} must be text; got {text!r}")
        if not isinstance(self.uuid, uuid_module.UUID):
            raise InputError(f"a volume's uuid must be a uuid.UUID; got {self.uuid!r}", hint="uuid.UUID(text)")
        if not isinstance(self.parameters, Mapping):
            raise InputError("a volume's parameters must be a mapping of names to values")
        check_volume_name(self.name)
        if self.cname is not None:
            checked(self.cname, "volume cname")
        seen: dict[str, str] = {}
        for name, value in self.parameters.items():
            if not isinstance(name, str) or not isinstance(value, str):
                # The value is not quoted: it may be a secret.
                raise InputError(f"parameter {name!r} must be text, not {type(value).__name__}")
            if not (name.isascii() and name.isidentifier()):
                raise InputError(
                    f"parameter name {quoted(name)} cannot become an environment variable that a shell can read",
                    hint="use letters, digits and underscores, with no digit first",
                )
            if name.upper() in _RESERVED:
                raise InputError(
                    f"parameter {name!r} is exported by hvext itself", hint="choose the provider and access by name"
                )
            if name.upper() in seen:
                raise InputError(f"parameters {seen[name.upper()]!r} and {name!r} are both EXTP_{name.upper()}")
            seen[name.upper()] = name
            try:
                checked(value, "value")
            except InputError:
                # The error would quote it, and it may be a secret.
                raise InputError(f"the value of parameter {name!r} is no UTF-8 text, or has a NUL byte in it") from None
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """The values of those parameters whose names say that they are secrets."""
        return tuple(Secret(value) for name, value in self.parameters.items() if value and is_secret_name(name))
