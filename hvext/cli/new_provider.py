"""``hvext new-provider``: a provider to begin with."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from hvext.cli.output import print_json
from hvext.core.provider import Action, check_provider_name
from hvext.errors import HvextError, InputError
from hvext.host.provider import load_provider

#: What the templates have in the place of the provider's name.
_NAME = "@NAME@"
_SKELETONS = Path(__file__).resolve().parent.parent / "skeletons"


def new_provider(arguments: argparse.Namespace) -> int:
    """Write the skeleton of a provider, and say what to do next."""
    parent = Path(arguments.folder).absolute()
    folder = write_skeleton(check_provider_name(arguments.name), arguments.language, parent)
    files = sorted(path.name for path in folder.iterdir())
    if arguments.json:
        print_json({"provider": arguments.name, "path": str(folder), "language": arguments.language, "files": files})
        return 0
    print(f"{folder}: {' '.join(files)}")
    print("It works as it is, with files as volumes (root is needed, for loop devices):")
    print(f"  hvext sanity --level contract --search-path {parent} {arguments.name} -p dir=/var/tmp/{arguments.name}")
    print("Put your storage in the places marked with HERE. What it has to keep to: docs/write-a-provider.md")
    return 0


def write_skeleton(name: str, language: str, parent: Path) -> Path:
    """Return the new folder ``parent/name`` with a provider written in ``language`` (``sh`` or ``python``).

    Raises InputError when there is something of that name, or no folder to put it in.
    """
    folder = parent / name
    try:
        folder.mkdir()
    except FileExistsError:
        raise InputError(f"{folder} is there already", hint="nothing is overwritten: choose another name") from None
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error.strerror}") from error
    try:
        _fill(folder, name, _SKELETONS / language)
        load_provider(str(parent), name)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise HvextError(f"cannot write {error.filename or folder}: {error.strerror}") from error
        raise
    return folder


def _fill(folder: Path, name: str, skeleton: Path) -> None:
    for template in sorted(skeleton.iterdir()):
        if not template.is_file():
            continue
        path = folder / template.name.removesuffix(".in")
        path.write_text(template.read_text(encoding="utf-8").replace(_NAME, name), encoding="utf-8")
        program = path.name in tuple(Action) or path.suffix == ".py"
        # Packages may lose the mode of data.
        path.chmod(0o755 if program else 0o644)
    if (folder / "provider.py").exists():
        for action in Action:
            (folder / str(action)).symlink_to("provider.py")
