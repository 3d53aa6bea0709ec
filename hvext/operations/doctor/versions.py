"""Which versions there are: what every report begins with."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hvext.core.documentation import page
from hvext.core.extras import library_words
from hvext.core.finding import Finding, Severity
from hvext.operations.doctor.ask import Ask, Needs

_OLDEST_PYTHON = (3, 11)


def look(_ask: Ask, _needs: Needs) -> Iterator[Finding]:
    """Yield what there is to say about versions."""
    kernel = os.uname()
    cpus = len(os.sched_getaffinity(0))
    yield Finding(
        id="versions.system",
        severity=Severity.OK,
        tried="read /etc/os-release, asked the kernel",
        found=f"{_distribution()}, {kernel.sysname} {kernel.release} {kernel.machine}, {cpus} processors",
    )
    yield _python()
    yield _package("versions.hvext", "hvext", f"install it: {page('install')}")
    yield _package("versions.qmp", "qemu.qmp", library_words("qemu.qmp>=0.0.5", "python3-qemu.qmp"))


def _python() -> Finding:
    old = sys.version_info < _OLDEST_PYTHON
    return Finding(
        id="versions.python",
        severity=Severity.ERROR if old else Severity.OK,
        tried="asked the interpreter",
        found=f"Python {sys.version.split()[0]}, {sys.executable}",
        cure="run hvext with Python 3.11 or later",
    )


def _package(check: str, name: str, cure: str) -> Finding:
    tried = f"looked for the Python package {name}"
    try:
        found = f"{name} {version(name)}"
    except PackageNotFoundError:
        severity = Severity.ERROR if check == "versions.qmp" else Severity.WARNING
        return Finding(id=check, severity=severity, tried=tried, found=f"{name} is not installed", cure=cure)
    return Finding(id=check, severity=Severity.OK, tried=tried, found=found)


def _distribution() -> str:
    try:
        lines = Path("/etc/os-release").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown distribution"
    named = (line.partition("=")[2].strip("\"'") for line in lines if line.startswith("PRETTY_NAME="))
    return next(named, "unknown distribution")
