"""libvirt: the second way to a guest. hvext works without it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from hvext.core.extras import install_words
from hvext.core.finding import Finding, Severity
from hvext.core.uri.mask import masked
from hvext.host import process
from hvext.host.files import program_path
from hvext.operations.doctor.ask import Ask, Needs

_LIMIT_S = 4.0
_DEFAULT = "qemu:///system"
_START = "apt-get install libvirt-daemon-system && systemctl start libvirtd"


def look(ask: Ask, _needs: Needs) -> Iterator[Finding]:
    """Yield whether a daemon answers, and whether Python can talk to it."""
    yield _daemon(ask)
    tried = "looked for the Python package libvirt-python"
    try:
        found = f"libvirt-python {version('libvirt-python')}"
    except PackageNotFoundError:
        yield Finding(
            id="libvirt.python",
            severity=Severity.ABSENT,
            tried=tried,
            found="it is not installed",
            cure=_library(),
        )
    else:
        yield Finding(id="libvirt.python", severity=Severity.OK, tried=tried, found=found)


def _library() -> str:
    """Return what installs the library; in a virtual environment it is built there."""
    words = install_words("libvirt")
    if sys.prefix == sys.base_prefix:
        return words
    return f"apt-get install libvirt-dev pkg-config python3-dev gcc && {words}"


def _daemon(ask: Ask) -> Finding:
    uri = os.environ.get("LIBVIRT_DEFAULT_URI") or _DEFAULT
    # By its own tool, in a process that can be ended: the library waits for a daemon that hangs.
    program = program_path("virsh")
    tried = f"virsh -c {masked(uri)} version --daemon"
    if program is None:
        return _none(Severity.ABSENT, tried, "there is no virsh", f"apt-get install libvirt-clients; {_START}")
    env = {name: os.environ[name] for name in ("PATH", "HOME", "XDG_RUNTIME_DIR") if name in os.environ}
    ended = process.run(
        [program, "-c", uri, "version", "--daemon"],
        env={**env, "LC_ALL": "C"},
        timeout_s=_LIMIT_S,
        cancel=ask.cancel,
    )
    if ended.timed_out:
        found = f"it did not answer within {_LIMIT_S:g} s"
        return _none(Severity.WARNING, tried, found, "systemctl restart libvirtd")
    said = ended.stdout.decode(errors="replace").splitlines()
    if ended.status == 0:
        wanted = ("Using library", "Running hypervisor", "Running against daemon")
        found = "; ".join(line for line in said if line.startswith(wanted))
        return Finding(id="libvirt.daemon", severity=Severity.OK, tried=tried, found=found)
    lines = [line.removeprefix("error: ") for line in ended.stderr.decode(errors="replace").splitlines()]
    words = masked("; ".join(line for line in lines if line) or f"status {ended.status}")
    # A host without libvirt has the client at most.
    gone = "No such file or directory" in words
    if "Permission denied" in words or "authentication" in words:
        return _none(Severity.WARNING, tried, words, "run it as root, or usermod --append --groups libvirt USER")
    return _none(Severity.ABSENT if gone else Severity.WARNING, tried, words, _START)


def _none(severity: Severity, tried: str, found: str, cure: str) -> Finding:
    return Finding(id="libvirt.daemon", severity=severity, tried=tried, found=found, cure=cure)
