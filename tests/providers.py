"""ExtStorage providers for tests: real directories of small sh scripts, which can write down how they were called."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REQUIRED = ("create", "remove", "grow", "attach", "detach", "setinfo", "verify")

_RECORD = """\
cat "/proc/$$/environ" >{folder}/$$.environ
pwd -P >{folder}/$$.cwd
read -r now rest </proc/uptime
printf 'begin %s %s %s %s %s\\n' $$ {name} {action} $# "$now" >>{folder}/calls
trap 'read -r now rest </proc/uptime; printf "end %s %s\\n" $$ "$now" >>{folder}/calls' EXIT
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One run of a script.

    ``begin`` and ``end`` are its places in the order of all beginnings and ends, ``begin_s`` and ``end_s`` the times
    (uptime, to 10 ms). The end is None for a script that still runs or was killed.
    """

    pid: int
    provider: str
    action: str
    arguments: int
    cwd: str
    environment: Mapping[str, str]
    begin: int
    begin_s: float
    end: int | None
    end_s: float | None

    @property
    def volume(self) -> str:
        """The name of the volume, empty for verify."""
        return self.environment.get("VOL_NAME", "")


def write_provider(
    folder: Path,
    name: str,
    scripts: Mapping[str, str] | None = None,
    parameters: str = "",
    *,
    record: Path | None = None,
) -> Path:
    """Write a provider directory ``folder/name`` and return it.

    ``scripts`` maps actions to the bodies of sh scripts; the required ones that are left out succeed silently. A text
    that begins with ``#!`` is written as it is. ``record`` is a folder where each call of a sh script is written down,
    for ``read_calls``; a body that replaces the shell with ``exec`` has no end there.
    """
    provider = folder / name
    provider.mkdir(parents=True)
    for action, body in {**dict.fromkeys(REQUIRED, "exit 0"), **(scripts or {})}.items():
        preamble = ""
        if record is not None:
            record.mkdir(parents=True, exist_ok=True)
            preamble = _RECORD.format(folder=shlex.quote(str(record)), name=name, action=action)
        path = provider / action
        path.write_text(body if body.startswith("#!") else f"#!/bin/sh\n{preamble}{body}\n")
        path.chmod(0o755)
    (provider / "parameters.list").write_text(parameters)
    return provider


def read_calls(record: Path, action: str | None = None) -> list[Call]:
    """Return the calls that are written down in ``record``, in the order in which they began."""
    path = record / "calls"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    ends = {words[1]: (place, float(words[2])) for place, words in enumerate(lines) if words[0] == "end"}
    calls = []
    for place, words in enumerate(lines):
        if words[0] != "begin" or action not in (None, words[3]):
            continue
        _begin, pid, provider, its_action, arguments, now = words
        variables = (record / f"{pid}.environ").read_bytes().decode().split("\0")
        end, end_s = ends.get(pid, (None, None))
        calls.append(
            Call(
                pid=int(pid),
                provider=provider,
                action=its_action,
                arguments=int(arguments),
                cwd=(record / f"{pid}.cwd").read_text().removesuffix("\n"),
                environment=dict(text.split("=", 1) for text in variables if text),
                begin=place,
                begin_s=float(now),
                end=end,
                end_s=end_s,
            )
        )
    return calls


def most_at_once(calls: list[Call]) -> int:
    """Return how many of the calls ran at the same moment; one without an end runs for ever."""
    edges = sorted([(call.begin, 1) for call in calls] + [(call.end, -1) for call in calls if call.end is not None])
    running = most = 0
    for _place, step in edges:
        running += step
        most = max(most, running)
    return most


def actions(calls: list[Call], volume: str) -> list[str]:
    """Return what was done with one volume, in order."""
    return [call.action for call in calls if call.volume == volume]
