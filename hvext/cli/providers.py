"""``hvext providers`` and ``hvext provider``."""

from __future__ import annotations

import argparse

from hvext.cli.arguments import provider_host
from hvext.cli.output import print_json, print_table, print_warnings
from hvext.core.file_kind import FileKind
from hvext.core.provider import OPTIONAL_ACTIONS, Action, Provider
from hvext.errors import ProviderInvalid
from hvext.host.files import file_kind
from hvext.host.provider import ProviderHost


def list_providers(arguments: argparse.Namespace) -> int:
    """Print all providers on the search path, valid or not."""
    host = provider_host(arguments)
    if arguments.search_path:
        # Of Ganeti's own path, most machines have not all folders.
        missing = [each for each in host.search_path if file_kind(each) is not FileKind.DIRECTORY]
        print_warnings([f"there is no folder {each}" for each in missing])
    found = [_look(host, name) for name in host.names()]
    if arguments.json:
        print_json(found)
        return 0
    if not found:
        print("no providers in " + ", ".join(host.search_path))
        return 0
    rows = [[str(row["name"]), str(row["path"]), _problems(row) or "valid"] for row in found]
    print_table(("PROVIDER", "DIRECTORY", "STATE"), rows)
    return 0


def show_provider(arguments: argparse.Namespace) -> int:
    """Print one provider; fails when it is not valid."""
    provider = provider_host(arguments).find(arguments.provider)
    if arguments.json:
        print_json(_described(provider))
        return 0
    print(f"name        {provider.name}\ndirectory   {provider.path}")
    print("scripts     " + " ".join(action for action in Action if action in provider.actions))
    missing = [str(action) for action in Action if action in OPTIONAL_ACTIONS - provider.actions]
    if missing:
        print("without     " + " ".join(missing) + " (optional)")
    for index, parameter in enumerate(provider.parameters):
        print(f"{'parameters' if index == 0 else '':10}  {parameter.name}  {parameter.description}".rstrip())
    return 0


def _look(host: ProviderHost, name: str) -> dict[str, object]:
    try:
        return _described(host.find(name))
    except ProviderInvalid as error:
        path = f"{host.folder(name)}/{name}"
        return {"name": name, "valid": False, "path": path, "actions": [], "parameters": [], "problems": error.problems}


def _described(provider: Provider) -> dict[str, object]:
    return {
        "name": provider.name,
        "valid": True,
        "path": provider.path,
        "actions": [str(action) for action in Action if action in provider.actions],
        "parameters": [{"name": item.name, "description": item.description} for item in provider.parameters],
        "problems": [],
    }


def _problems(row: dict[str, object]) -> str:
    problems = row["problems"]
    return "; ".join(problems) if isinstance(problems, list | tuple) else ""
