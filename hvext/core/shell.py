"""A disk's volume as hvext's own commands name it, for hints that can be typed as they stand."""

from __future__ import annotations

import shlex
from collections.abc import Collection

from hvext.core.disk import Disk
from hvext.core.identity import derived_uuid
from hvext.core.secret import is_secret_name


def volume_arguments(disk: Disk, withheld: Collection[str] = ()) -> str:
    """Return provider, volume and parameters; a secret one, or one that is ``withheld``, is to be in a file FILE."""
    secret = {*withheld, *filter(is_secret_name, disk.volume.parameters)}
    parameters = {name: value for name, value in disk.volume.parameters.items() if name not in secret}
    words = [f"-p {shlex.quote(f'{name}={value}')}" for name, value in sorted(parameters.items())]
    words += [f"--parameter-file {name}=FILE" for name in sorted(secret)]
    if disk.volume.uuid != derived_uuid(disk.provider, disk.volume.name, parameters):
        words.append(f"--disk-uuid {disk.volume.uuid}")
    return " ".join((disk.provider, shlex.quote(disk.volume.name), *words))
