"""The providers on the search path: their folders, their rules, their interpreters, their programs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from hvext.core.documentation import page
from hvext.core.finding import Finding, Severity
from hvext.core.provider import Action, Provider
from hvext.errors import InputError, ProviderInvalid, ProviderNotFound
from hvext.host.files import program_path
from hvext.host.provider import DEFAULT_SEARCH_PATH
from hvext.operations.doctor.ask import Ask, Needs, shipped

#: Where a provider's scripts find programs, beside PATH.
_ADMIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_FIRST_LINE = 256
_EXECUTABLE = " is not executable"


def look(ask: Ask, needs: Needs) -> Iterator[Finding]:
    """Yield what is found about the folders, and about each provider."""
    yield from _path(ask)
    names = ask.providers or tuple(dict.fromkeys((*ask.host.names(), *sorted(needs.providers))))
    good = []
    for name in names:
        faults = list(_one(name, ask, needs))
        yield from faults
        if not any(fault.id != "providers.tool" for fault in faults):
            good.append(name)
    if good:
        yield Finding(
            id="providers.provider", severity=Severity.OK, tried="looked at every script", found=", ".join(good)
        )


def _path(ask: Ask) -> Iterator[Finding]:
    tried = "listed each folder of the search path"
    there = []
    for folder in ask.host.search_path:
        try:
            next(Path(folder).iterdir(), None)
            there.append(folder)
        except OSError as error:
            # Of Ganeti's folders a host has those that it needs.
            if isinstance(error, FileNotFoundError) and folder in DEFAULT_SEARCH_PATH:
                continue
            missing = isinstance(error, FileNotFoundError)
            yield Finding(
                id="providers.path",
                about=folder,
                severity=Severity.WARNING,
                tried=tried,
                found=f"{folder}: {error.strerror}",
                cure=f"correct --search-path, or mkdir -p {shlex.quote(folder)}"
                if missing
                else f"chmod a+rx {shlex.quote(folder)}",
            )
    if there:
        yield Finding(id="providers.path", severity=Severity.OK, tried=tried, found=", ".join(there))


def _one(name: str, ask: Ask, needs: Needs) -> Iterator[Finding]:
    """Yield what is wrong with a provider; one that nobody asked for, and no VM has, may be half-written."""
    bad = Severity.ERROR if name in needs.providers else Severity.WARNING
    tried = "looked at the files of the provider"
    try:
        provider = ask.host.find(name)
    except (InputError, ProviderNotFound) as error:
        cure = "hvext providers lists those there are"
        yield Finding(
            id="providers.provider",
            about=name,
            severity=bad,
            tried=tried,
            found=f"{error.message}: {error.hint}" if error.hint else error.message,
            cure=cure,
        )
        return
    except ProviderInvalid as error:
        folder = f"{ask.host.folder(name)}/{name}"
        yield Finding(
            id="providers.provider",
            about=name,
            severity=bad,
            tried=tried,
            found="; ".join(error.problems),
            cure=_cure(folder, name, error.problems),
        )
        return
    yield from _interpreters(provider, bad)
    yield from _tools(name, ask, needs)


def _cure(folder: str, name: str, problems: tuple[str, ...]) -> str:
    words = [problem.removesuffix(_EXECUTABLE) for problem in problems if problem.endswith(_EXECUTABLE)]
    closed = [shlex.quote(f"{folder}/{word.removeprefix('script ')}") for word in words]
    cures = [f"chmod +x {' '.join(closed)}"] if closed else []
    if len(closed) < len(problems):
        cures.append(
            f"write what is missing in {folder}; hvext new-provider makes a whole one, {page('providers')} says what"
        )
    return "; ".join(cures) or f"hvext sanity {name}"


def _interpreters(provider: Provider, bad: Severity) -> Iterator[Finding]:
    faults: dict[str, list[str]] = {}
    for action in Action:
        if action in provider.actions and (fault := _interpreter_fault(provider.script(action))):
            faults.setdefault(fault, []).append(str(action))
    for fault, actions in faults.items():
        windows = "line end" in fault
        scripts = " ".join(shlex.quote(f"{provider.path}/{action}") for action in actions)
        cure = f"sed -i 's/\\r$//' {scripts}" if windows else f"install it, or correct the first line of {scripts}"
        yield Finding(
            id="providers.interpreter",
            about=provider.name,
            severity=bad,
            tried="read the first line of each script",
            found=f"{', '.join(actions)}: {fault}",
            cure=cure,
        )


def _interpreter_fault(script: str) -> str:
    """Return what is wrong with the first line of a script, which need not be text at all; empty when nothing is."""
    try:
        with Path(script).open("rb") as file:
            line = file.readline(_FIRST_LINE)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if line.startswith(b"\x7fELF"):
        return ""
    if not line.startswith(b"#!"):
        return "its first line names no interpreter (#!/bin/sh), so the kernel does not start it"
    if line.endswith(b"\r\n"):
        return "its first line ends in a line end of Windows, which the kernel takes for a part of the name"
    words = os.fsdecode(line[2:]).split()
    if not words or program_path(words[0]) is None:
        return f"its interpreter {words[0] if words else '(none)'} is not there"
    wanted = next((word for word in words[1:] if not word.startswith("-") and "=" not in word), None)
    if Path(words[0]).name == "env" and wanted and _found(wanted) is None:
        return f"its interpreter {wanted} is not there"
    return ""


def _tools(name: str, ask: Ask, needs: Needs) -> Iterator[Finding]:
    known = shipped(name, ask.host)
    if known is None:
        return
    tried = f"looked for what the provider {name} runs"
    missing = [each for each in known.tools if _found(each[0]) is None]
    lacking = [each for each in known.extras if _found(each[0]) is None]
    for program, package in missing:
        yield Finding(
            id="providers.tool",
            about=f"{name}: {program}",
            severity=Severity.ERROR if name in needs.providers else Severity.ABSENT,
            tried=tried,
            found=f"{name}: {program} is not installed, which its scripts run",
            cure=f"apt-get install {package}",
        )
    for program, package in lacking:
        yield Finding(
            id="providers.tool",
            about=f"{name}: {program}",
            severity=Severity.ABSENT,
            tried=tried,
            found=f"{name}: {program} is not installed: no block device beside the URI",
            cure=f"apt-get install {package}",
        )
    if good := [each[0] for each in (*known.tools, *known.extras) if each not in (*missing, *lacking)]:
        yield Finding(id="providers.tool", about=name, severity=Severity.OK, tried=tried, found=", ".join(good))


def _found(program: str) -> str | None:
    return program_path(program) or next(
        (path for folder in _ADMIN if (path := program_path(f"{folder}/{program}"))), None
    )
