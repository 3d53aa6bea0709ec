"""Whether a guest really runs: under emulation, and under KVM."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from hvext.core.finding import Finding, Severity
from hvext.core.value import replace
from hvext.errors import ProgramError
from hvext.host.boot import boot
from hvext.host.opening import Opened, Way, try_paths
from hvext.operations.doctor.ask import Ask, Needs
from hvext.operations.doctor.trial import check_program

#: A healthy KVM takes a tenth of a second for it.
_KVM_LIMIT_S = 3.0
_TCG_LIMIT_S = 8.0
_DEVICE = "/dev/kvm"
_EMULATED = "guests run, by emulation (-accel tcg), many times slower"


def look(ask: Ask, _needs: Needs) -> Iterator[Finding]:
    """Yield what a boot of a few instructions came to, under each accelerator."""
    try:
        check_program(ask.qemu, ask.cancel)
    except ProgramError:
        # The subject "qemu" says so.
        return
    tried = "booted a sector of seven bytes of code under -accel tcg"
    booted = boot(ask.qemu, "tcg", limit_s=_TCG_LIMIT_S, cancel=ask.cancel)
    if booted.words:
        yield Finding(
            id="acceleration.tcg",
            severity=Severity.WARNING,
            tried=tried,
            found=booted.words,
            cure="apt-get install --reinstall qemu-system-x86 seabios",
        )
    else:
        found = f"it ran after {booted.duration_s * 1000:.0f} ms"
        yield Finding(id="acceleration.tcg", severity=Severity.OK, tried=tried, found=found)
    yield _kvm(ask)


def _kvm(ask: Ask) -> Finding:
    # QEMU opens it before it changes its root.
    who = replace(ask.identity, chroot="")
    tried = f"opened {_DEVICE} {who.words}"
    try:
        (opened,) = try_paths([(_DEVICE, Way.USE)], who, cancel=ask.cancel)
    except ProgramError as error:
        return _no_kvm(tried, error.message, "see what is said above")
    if opened.code:
        return _no_kvm(tried, f"{_DEVICE}: {opened.words}", _kvm_cure(opened, ask))
    tried = f"booted the same sector under -accel kvm, with a limit of {_KVM_LIMIT_S:g} s"
    booted = boot(ask.qemu, "kvm", limit_s=_KVM_LIMIT_S, cancel=ask.cancel)
    if not booted.words:
        found = f"it ran after {booted.duration_s * 1000:.0f} ms"
        return Finding(id="acceleration.kvm", severity=Severity.OK, tried=tried, found=found)
    if booted.hung:
        cure = "start guests with -accel tcg; on a virtual machine, have its host offer nested virtualization"
        return _no_kvm(tried, f"{_DEVICE} can be opened, and a guest hangs in it: {booted.words}", cure)
    return _no_kvm(tried, booted.words, "look at dmesg | grep -i kvm; until then start guests with -accel tcg")


def _no_kvm(tried: str, found: str, cure: str) -> Finding:
    return Finding(
        id="acceleration.kvm", severity=Severity.WARNING, tried=tried, found=f"{found}; {_EMULATED}", cure=cure
    )


def _kvm_cure(opened: Opened, ask: Ask) -> str:
    if opened.code in (errno.EACCES, errno.EPERM):
        return f"usermod --append --groups kvm {ask.identity.name or 'USER'}, and log in again"
    flags = _processor_flags()
    for flag, module in (("vmx", "kvm_intel"), ("svm", "kvm_amd")):
        if flag in flags:
            return f"modprobe {module}; in a container, show it {_DEVICE}"
    return "switch virtualization on in the firmware; on a virtual machine, have its host offer nested virtualization"


def _processor_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    lines = (line.partition(":")[2].split() for line in text.splitlines() if line.startswith("flags"))
    return frozenset(next(lines, ()))
