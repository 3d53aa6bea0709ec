"""The environment in which a provider's script runs.

Source: ganeti-extstorage-interface(7), "Common environment"; Ganeti, lib/storage/extstorage.py,
_ExtStorageEnvironment (which also exports the parameters ``provider`` and ``access``).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from hvext.core.access import Access
from hvext.core.provider import Action, check_provider_name
from hvext.core.text import checked
from hvext.core.volume import Volume, check_size_mib, check_volume_name, metadata_text
from hvext.errors import InputError

_VOLUME = ("VOL_NAME", "VOL_UUID", "VOL_CNAME")
#: Which variables each script gets, besides ``EXTP_*``; every other one is absent there.
VARIABLES: Mapping[Action, frozenset[str]] = MappingProxyType(
    {
        Action.CREATE: frozenset({*_VOLUME, "VOL_SIZE"}),
        Action.ATTACH: frozenset(_VOLUME),
        Action.DETACH: frozenset(_VOLUME),
        Action.REMOVE: frozenset(_VOLUME),
        Action.GROW: frozenset({*_VOLUME, "VOL_SIZE", "VOL_NEW_SIZE"}),
        Action.SETINFO: frozenset({*_VOLUME, "VOL_METADATA"}),
        Action.SNAPSHOT: frozenset({"VOL_NAME", "VOL_SNAPSHOT_NAME", "VOL_SNAPSHOT_SIZE"}),
        Action.OPEN: frozenset({*_VOLUME, "VOL_OPEN_EXCLUSIVE"}),
        Action.CLOSE: frozenset(_VOLUME),
        Action.VERIFY: frozenset(),
    }
)


def script_environment(
    action: Action,
    provider: str,
    volume: Volume,
    *,
    access: Access = Access.PREFER_USERSPACE,
    size_mib: int | None = None,
    new_size_mib: int | None = None,
    metadata: str | None = None,
    snapshot_name: str | None = None,
    snapshot_size_mib: int | None = None,
    exclusive: bool | None = None,
) -> dict[str, str]:
    """Return the interface's variables for one run of a script: strings, sizes in MiB.

    ``size_mib`` is the size for ``create`` and the OLD size for ``grow``. A value that the action does not take, or
    that it needs and does not get, raises InputError. ``EXTP_ACCESS`` is one of Ganeti's two words.
    """
    values: dict[str, str | None] = {
        "VOL_NAME": volume.name,
        "VOL_UUID": str(volume.uuid),
        "VOL_CNAME": volume.cname,
        "VOL_SIZE": None if size_mib is None else str(check_size_mib(size_mib)),
        "VOL_NEW_SIZE": None if new_size_mib is None else str(check_size_mib(new_size_mib, "new size")),
        "VOL_METADATA": None if metadata is None else metadata_text(checked(metadata, "metadata")),
        "VOL_SNAPSHOT_NAME": None if snapshot_name is None else check_volume_name(snapshot_name),
        "VOL_SNAPSHOT_SIZE": (
            None if snapshot_size_mib is None else str(check_size_mib(snapshot_size_mib, "snapshot size"))
        ),
        "VOL_OPEN_EXCLUSIVE": None if exclusive is None else str(exclusive),
    }
    wanted = VARIABLES[action]
    for name, value in values.items():
        if name not in _VOLUME and value is not None and name not in wanted:
            raise InputError(f"{action!s} takes no {name}")
        if name != "VOL_CNAME" and value is None and name in wanted:
            raise InputError(f"{action!s} needs {name}")
    environment = {name: value for name, value in values.items() if name in wanted and value is not None}
    parameters = {
        **volume.parameters,
        "provider": check_provider_name(provider),
        "access": str(Access.KERNELSPACE if access is Access.KERNELSPACE else Access.USERSPACE),
    }
    return environment | {f"EXTP_{name.upper()}": value for name, value in parameters.items()}
