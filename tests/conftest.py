"""What all tests share: how a test says what it needs of the machine it runs on."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.secrecy import Secrecy, files_with_secrets

pytest_plugins = ("tests.second_qemu", "tests.ganeti", "tests.vm.failing", "pytester")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background, where shells ignore Ctrl-C: the programs under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Watch over the suite's secrets."""
    config.pluginmanager.register(Secrecy(), "hvext-secrecy")


@pytest.fixture(autouse=True, scope="session")
def _private_folder() -> Iterator[None]:
    """Private files in a folder of their own; none may be left at the end."""
    with tempfile.TemporaryDirectory(prefix="hvext-") as folder:
        os.environ["HVEXT_RUNTIME_DIR"] = f"{folder}/run"
        yield
        # Where volumes are attached stays known of a guest that a test ended with its disks in it.
        left = [str(path) for path in Path(folder).glob("run/**/*") if not path.is_dir()]
        del os.environ["HVEXT_RUNTIME_DIR"]
    assert not left, f"private files are left: {left}"


@pytest.fixture(autouse=True)
def _state_folder() -> Iterator[Path]:
    """A journal of its own for every test: the VMs of all tests have the same names."""
    with tempfile.TemporaryDirectory(prefix="hvext-") as folder:
        before = os.environ.get("HVEXT_STATE_DIR")
        os.environ["HVEXT_STATE_DIR"] = folder
        yield Path(folder)
        if before is None:
            del os.environ["HVEXT_STATE_DIR"]
        else:
            os.environ["HVEXT_STATE_DIR"] = before
        assert not files_with_secrets(Path(folder)), "a secret is in the journal"


#: Those that take longest come first: at the end, the workers that tests are given to are busy with small ones alike.
_LONGEST = ("vm/test_fault_matrix", "vm/test_migrate", "vm/test_watch", "vm/test_two", "vm/test_soak", "vm/", "host/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests in the order in which they are to begin, file by file."""

    def turn(item: pytest.Item) -> int:
        name = str(item.path.relative_to(Path(__file__).parent))
        return next((number for number, part in enumerate(_LONGEST) if name.startswith(part)), len(_LONGEST))

    items.sort(key=turn)


def need(program_or_path: str, package: str) -> str:
    """Return where the program (a name) or file (with a slash) is; skip the test where it is missing.

    ``package`` is the Debian package that has it. With HVEXT_REQUIRE_ALL=1 the test fails instead.
    """
    if "/" in program_or_path:
        found = program_or_path if Path(program_or_path).exists() else None
    else:
        found = shutil.which(program_or_path)
    if found is not None:
        return found
    message = f"{program_or_path} not found (Debian package {package})"
    if os.environ.get("HVEXT_REQUIRE_ALL") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
