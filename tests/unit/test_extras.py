"""How a library that is missing is installed: for the Python that misses it."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from hvext.cli.completion import completion_script
from hvext.core.extras import DEBIAN, install_words, library_words
from hvext.errors import ProgramError


def test_a_virtual_environment_is_given_its_own_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/some/venv")
    monkeypatch.setattr(sys, "executable", "/some/my venv/bin/python")
    words = install_words("libvirt")
    assert words.startswith("'/some/my venv/bin/python' -m pip install 'hvext[libvirt]' (this is a virtual environment")
    assert "apt" not in words, "what apt installs is not seen there"


def test_debians_own_python_is_given_debians_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    for extra, packages in DEBIAN.items():
        words = install_words(extra)
        assert words.startswith(f"apt install {' '.join(packages)} for Debian's own Python"), extra
        assert words.endswith(f"/usr/bin/python3 -m pip install 'hvext[{extra}]'"), extra


def test_debians_package_of_hvext_is_given_nothing_of_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    folder = "/usr/lib/python3/dist-packages/hvext"
    assert library_words("hvext[completion]", "python3-shtab", package=folder) == "apt install python3-shtab"
    mine = library_words("hvext[completion]", "python3-shtab", package="/usr/local/lib/python3.11/dist-packages/hvext")
    assert "pip install" in mine


def test_a_shell_that_an_older_shtab_does_not_know_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("shtab")

    def complete(_parser: object, _shell: str) -> str:
        raise NotImplementedError("shell (fish) must be in {bash,zsh,tcsh}")

    vars(old).update(__version__="1.5.5", FILE={}, DIRECTORY={}, complete=complete)
    monkeypatch.setitem(sys.modules, "shtab", old)
    with pytest.raises(ProgramError, match=r"shtab 1\.5\.5 makes no completion for fish") as caught:
        completion_script("fish")
    assert "shtab 1.10" in caught.value.hint
