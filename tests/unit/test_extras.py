"""How a library that is missing is installed: for the Python that misses it."""

from __future__ import annotations

import sys

import pytest

from hvext.core.extras import install_words


def test_a_virtual_environment_is_given_its_own_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/some/venv")
    monkeypatch.setattr(sys, "executable", "/some/my venv/bin/python")
    words = install_words("libvirt", "python3-libvirt")
    assert words.startswith("'/some/my venv/bin/python' -m pip install 'hvext[libvirt]' (this is a virtual environment")
    assert "apt" not in words, "what apt installs is not seen there"


def test_debians_own_python_is_given_debians_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    assert install_words("bench", "python3-rich").startswith("apt install python3-rich")
    assert install_words("top") == "/usr/bin/python3 -m pip install 'hvext[top]'"
