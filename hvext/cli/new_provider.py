"""``hvext new-provider``: a provider to begin with."""

from __future__ import annotations

import argparse
import errno
import os
import shutil
from pathlib import Path

from hvext.cli.output import print_json
from hvext.core.documentation import page_here
from hvext.core.provider import Action, check_provider_name
from hvext.errors import HvextError, InputError
from hvext.host.provider import load_provider
from hvext.operations.acts import Act, perform

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
    print(f"Put your storage in the places marked with HERE. What it has to keep to: {page_here('write-a-provider')}")
    return 0


def write_skeleton(name: str, language: str, parent: Path) -> Path:
    """Return the new folder ``parent/name`` with a provider written in ``language`` (``sh`` or ``python``).

    Raises InputError when there is something of that name, or no folder to put it in.
    """
    acts = skeleton_acts(name, language, parent)
    perform(acts)
    return parent / name


def skeleton_acts(name: str, language: str, parent: Path) -> list[Act]:
    """Return what writes a provider's folder; raises InputError as ``write_skeleton`` does."""
    folder, skeleton = parent / name, _SKELETONS / language
    if folder.exists() or folder.is_symlink():
        raise _is_there(folder)
    if not parent.is_dir():
        wrong = errno.ENOTDIR if parent.exists() else errno.ENOENT
        raise InputError(f"cannot make {folder}: {os.strerror(wrong)}")
    files = ", ".join(path.name.removesuffix(".in") for path in _templates(skeleton))
    fill = Act(
        name=f"write {files}",
        do=lambda: _written(folder, name, parent, skeleton),
        inverse=f"remove {folder}",
    )
    return [Act(name=f"make {folder}", do=lambda: _make(folder), inverse=f"remove {folder}"), fill]


def _is_there(folder: Path) -> InputError:
    return InputError(f"{folder} is there already", hint="nothing is overwritten: choose another name")


def _make(folder: Path) -> None:
    try:
        folder.mkdir()
    except FileExistsError:
        raise _is_there(folder) from None
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error.strerror}") from error


def _written(folder: Path, name: str, parent: Path, skeleton: Path) -> None:
    try:
        _fill(folder, name, skeleton)
        load_provider(str(parent), name)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise HvextError(f"cannot write {error.filename or folder}: {error.strerror}") from error
        raise


def _templates(skeleton: Path) -> list[Path]:
    return [path for path in sorted(skeleton.iterdir()) if path.is_file()]


def _fill(folder: Path, name: str, skeleton: Path) -> None:
    for template in _templates(skeleton):
        path = folder / template.name.removesuffix(".in")
        path.write_text(template.read_text(encoding="utf-8").replace(_NAME, name), encoding="utf-8")
        program = path.name in tuple(Action) or path.suffix == ".py"
        # Packages may lose the mode of data.
        path.chmod(0o755 if program else 0o644)
    if (folder / "provider.py").exists():
        for action in Action:
            (folder / str(action)).symlink_to("provider.py")
