"""From command-line arguments to hvext's values."""

from __future__ import annotations

import argparse
import os

from hvext.cli.words import options as options
from hvext.cli.words import pairs as pairs
from hvext.cli.words import split_commas as split_commas
from hvext.core.access import Access
from hvext.core.disk import Disk, parse_uuid
from hvext.core.secret import check_roles
from hvext.core.volume import Volume, derived_uuid
from hvext.errors import InputError
from hvext.host.files import user_state_folder
from hvext.host.private import read_secret_file
from hvext.host.provider import DEFAULT_SEARCH_PATH, DEFAULT_TIMEOUT_S, ProviderHost
from hvext.operations.telling import is_heard, tell_script


def provider_host(arguments: argparse.Namespace) -> ProviderHost:
    """Return where and how the command runs providers."""
    limits = pairs(arguments.action_timeout, "--action-timeout")
    try:
        timeouts_s = {action: float(seconds) for action, seconds in limits.items()}
    except ValueError as error:
        raise InputError(f"--action-timeout takes ACTION=SECONDS: {error}") from error
    path = arguments.search_path
    return ProviderHost(
        search_path=tuple(folder for folder in path.split(":") if folder) if path else DEFAULT_SEARCH_PATH,
        timeout_s=DEFAULT_TIMEOUT_S if arguments.timeout is None else arguments.timeout,
        timeouts_s=timeouts_s,
        log_directory=_log_directory(arguments.log_dir),
        environment=pairs(arguments.env, "--env"),
        on_end=tell_script if is_heard() else None,
        strict=bool(getattr(arguments, "parameter", None) or getattr(arguments, "parameter_file", None)),
    )


def _log_directory(wish: str | None) -> str | None:
    wish = wish or os.environ.get("HVEXT_LOG_DIR")
    if wish == "none":
        return None
    if wish:
        return wish
    return "/var/log/hvext" if os.geteuid() == 0 else f"{user_state_folder()}/log"


def disk(arguments: argparse.Namespace) -> Disk:
    """Return the disk that a command names by provider and volume."""
    uuid = arguments.disk_uuid
    values = parameters(arguments)
    return Disk(
        provider=arguments.provider,
        volume=Volume(
            name=arguments.volume,
            uuid=parse_uuid(uuid) if uuid else derived_uuid(arguments.provider, arguments.volume, values),
            cname=arguments.cname,
            parameters=values,
        ),
        access=Access(arguments.access or Access.PREFER_USERSPACE),
        secret_files=secret_files(arguments),
        options=options(arguments),
    )


def secret_files(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the files of ``--secret`` by role; raises InputError."""
    files = pairs(arguments.secret, "--secret", "ROLE=FILE")
    check_roles(files)
    return files


def parameters(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the provider's parameters of ``-p`` and ``--parameter-file``; raises InputError."""
    values = pairs(arguments.parameter, "-p")
    for name, path in pairs(arguments.parameter_file, "--parameter-file", "NAME=FILE").items():
        if name in values:
            raise InputError(f"parameter {name} is given twice")
        values[name] = read_secret_file(path)
    return values
