"""A disk: a provider's volume, the access that is wished, and how the guest sees it."""

from __future__ import annotations

from collections.abc import Mapping

from hvext.core.access import Access
from hvext.core.identity import DiskNames, derived_uuid
from hvext.core.identity import parse_uuid as parse_uuid
from hvext.core.options import DiskOptions, of_kind
from hvext.core.provider import check_provider_name
from hvext.core.secret import ROLES, Secret, check_roles
from hvext.core.text import quoted
from hvext.core.value import field, value_object
from hvext.core.volume import Volume
from hvext.errors import InputError


@value_object
class Disk:
    """What a hypervisor layer asks for: one disk of one guest.

    ``secret_files`` are paths of files with the secrets that the provider's URIs lack, by role (``password``, ``key``,
    ``cookie``, ``proxy_password``).
    """

    provider: str
    volume: Volume
    access: Access = Access.PREFER_USERSPACE
    secret_files: Mapping[str, str] = field(default_factory=dict)
    options: DiskOptions = field(default_factory=DiskOptions)

    def __post_init__(self) -> None:
        check_provider_name(_text(self.provider, "provider"))
        if type(self.access) is not Access:
            object.__setattr__(self, "access", of_kind("access", self.access, Access))
        of_kind("volume", self.volume, Volume)
        of_kind("options", self.options, DiskOptions)
        if not isinstance(self.secret_files, Mapping):
            raise InputError("secret_files must be a mapping of roles to paths")
        for role, path in self.secret_files.items():
            _text(path, f"secret_files of {_text(role, 'secret role')}")
        check_roles(self.secret_files)

    @property
    def secrets(self) -> Mapping[str, Secret]:
        """The secrets among the provider's parameters, by role: those that have a role's name."""
        parameters = {name.lower(): value for name, value in self.volume.parameters.items() if value}
        return {role: Secret(parameters[role]) for role in ROLES if role in parameters}

    @property
    def names(self) -> DiskNames:
        """The names that this disk has in QEMU."""
        return DiskNames(self.volume.uuid)

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> Disk:
        """Return the disk that a JSON object or ``key=value`` pairs describe.

        Keys: ``provider``, ``volume``, ``uuid``, ``cname``, ``access``; provider parameters either as an object
        ``parameters`` or as ``param.NAME``; ``secret.ROLE`` names the file of a secret; all others are disk options.
        Without ``uuid`` it is derived from provider, volume and parameters. Raises InputError.
        """
        rest = dict(values)
        for key in ("provider", "volume"):
            if values.get(key) is None:
                raise InputError(f"a disk needs {key}={_given_for(key, values)}")
        provider, name = (_text(rest.pop(key), key) for key in ("provider", "volume"))
        uuid = rest.pop("uuid", None)
        cname = rest.pop("cname", None)
        access = rest.pop("access", Access.PREFER_USERSPACE)
        if access not in tuple(Access):
            raise InputError(f"access must be one of {', '.join(Access)}; got {access!r}")
        parameters = rest.pop("parameters", {})
        if not isinstance(parameters, Mapping):
            raise InputError("parameters must be an object of names and values")
        given = dict(parameters)
        for key in [key for key in rest if key.startswith("param.")]:
            given[key.removeprefix("param.")] = rest.pop(key)
        texts = {_text(key, "parameter"): _text(value, f"parameter {key}") for key, value in given.items()}
        files = {key: _text(rest.pop(key), key) for key in [key for key in rest if key.startswith("secret.")]}
        volume = Volume(
            name=name,
            uuid=derived_uuid(provider, name, texts) if uuid is None else parse_uuid(_text(uuid, "uuid")),
            cname=None if cname is None else _text(cname, "cname"),
            parameters=texts,
        )
        return cls(
            provider=provider,
            volume=volume,
            access=Access(str(access)),
            secret_files={key.removeprefix("secret."): path for key, path in files.items()},
            options=DiskOptions.from_mapping(rest),
        )

    def to_mapping(self) -> dict[str, object]:
        """Return the disk as ``from_mapping`` takes it and JSON can hold it, with the values of its parameters."""
        volume = self.volume
        values: dict[str, object] = {"provider": self.provider, "volume": volume.name, "uuid": str(volume.uuid)}
        if volume.cname is not None:
            values["cname"] = volume.cname
        if self.access is not Access.PREFER_USERSPACE:
            values["access"] = str(self.access)
        if volume.parameters:
            values["parameters"] = dict(volume.parameters)
        values |= {f"secret.{role}": path for role, path in self.secret_files.items()}
        return values | self.options.to_mapping()


def _given_for(key: str, values: Mapping[str, object]) -> str:
    """Return the key that was given in place of a missing one, in words; empty where none is like it."""
    from difflib import get_close_matches

    others = [name for name in values if name not in ("provider", "volume")]
    like = get_close_matches(key, others, 1)
    return f"; did you mean it by {quoted(like[0])}?" if like else ""


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        # What it is instead is not quoted: it may be a secret.
        raise InputError(f"a disk's {key} must be text, not {type(value).__name__}")
    return value
