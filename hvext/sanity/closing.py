"""Checks of everything that was run until now: exit statuses, secrets, and what is left over."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from hvext.core.documentation import page
from hvext.core.provider import Action
from hvext.core.secret import is_secret_name
from hvext.core.value import replace
from hvext.core.volume import Volume
from hvext.host.provider import ProviderHost
from hvext.sanity.check import MANUAL, PAGE, Fault, Skip, check
from hvext.sanity.trial import Trial
from hvext.sanity.watch import processes_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LEFTOVERS = "leftovers"
#: The checks that look at what all others have done.
LAST = ("exit-status", "secrets-output", LEFTOVERS)
#: What interpreters print when a command of a script fails, and the script goes on.
_UNHEARD = re.compile(
    r"^\S+: (?:line )?\d+: .*(?:not found|cannot (?:create|open)|No such file|Permission denied|parameter not set"
    r"|unbound variable|[Ss]yntax error|[Bb]ad substitution|Illegal number|Is a directory|Read-only file system)"
    r"|^Traceback \(most recent call last\)",
    re.MULTILINE,
)


@check("exit-status", "setinfo", "a script that fails does not end with 0", source=f"{PAGE}, What attach may print",
       after=["attach-unknown"])  # fmt: skip
def exit_status(t: Trial) -> None:
    """Look through all runs for scripts that ended with 0 after their shell or Python had complained."""
    for run in t.runs:
        said = _UNHEARD.search(run.stderr) if run.ok and run.check not in t.failed else None
        if said:
            raise Fault(
                f"{run.action!s} ended with 0 after its interpreter had said: {said[0].strip()}",
                cure="begin sh scripts with 'set -eu' (bash: also pipefail), let Python raise, and end with a status "
                "that is not 0 whenever something was not done",
                runs=[run],
                script=str(run.action),
            )


@check("secrets-argv", "attach", "no secret is on the command line of a program", source=f"{page('uris')}, secrets",
       after=["remove"])  # fmt: skip
def secrets_argv(t: Trial) -> None:
    """Run the life of a volume while looking at the command lines of all its processes."""
    _need_secrets(t)
    with _looking(t) as (host, found):
        volume = t.volume("secret")
        size: dict[str, Any] = {"size_mib": t.size_mib}
        grown: dict[str, Any] = {"size_mib": t.size_mib, "new_size_mib": t.size_mib + 1}
        for action, values in (
            (Action.VERIFY, {}), (Action.CREATE, size), (Action.SETINFO, t.metadata()), (Action.ATTACH, {}),
            (Action.GROW, grown), (Action.DETACH, {}), (Action.REMOVE, {}),
        ):  # fmt: skip
            found.action = action
            run = t.run(action, volume, host=host, **values)
            found.look_at(processes_of(volume.name))
            if found.seen:
                name, program = found.seen[0]
                raise Fault(
                    f"while {action!s} ran, the value of the parameter {name!r} was an argument of {program}: every "
                    "user of the host can read it",
                    cure="hand it over in a file of mode 0600, through standard input or in the environment",
                    runs=[run],
                    script=str(action),
                )


@check("secrets-output", "attach", "no secret is printed", source=f"{PAGE}, What attach may print", after=["remove"])
def secrets_output(t: Trial) -> None:
    """Look through what all runs have printed."""
    _need_secrets(t)
    for run in t.runs:
        if run.spilled:
            raise Fault(
                f"{run.action!s} printed the value of the parameter {run.spilled[0]!r}",
                cure="print no secret; with 'set -x' a shell prints them all. In a URI of attach, name the user alone",
                runs=[run],
                script=str(run.action),
            )


@check(LEFTOVERS, "remove", "nothing of all the volumes is left on the host", source=f"{MANUAL}, remove",
       after=["directory"])  # fmt: skip
def leftovers(t: Trial) -> None:
    """Look for all that has the trial's token, and for whatever is new in the folders that are watched."""
    t.clean_up()
    if t.remaining:
        failed = [run for run in t.runs if not run.ok and run.volume in t.remaining][-2:]
        raise Fault(
            f"the volume {t.remaining[0]} could not be removed",
            cure="let detach and remove succeed whatever state an interrupted script has left",
            runs=failed,
        )
    left = t.settled(lambda: (*t.watch.of(), *t.watch.new_files(t.settings.watched)))
    if left:
        raise Fault(
            f"after everything was removed there is still {', '.join(left[:5])}",
            cure="have detach end what attach began, and remove delete what any script has made",
        )


def _need_secrets(t: Trial) -> None:
    declared = [each.name for each in t.provider.parameters if is_secret_name(each.name)] if t.provider else []
    if not t.secrets and declared:
        raise Skip(f"no value of at least 4 characters was given for {declared[0]} (--parameter-file)")
    if not t.secrets:
        raise Skip("the provider has no parameter whose name says that it is a secret")


class _Found:
    """Command lines with secrets; ``look_at`` is called from a thread of its own, too."""

    def __init__(self, secrets: dict[str, str]) -> None:
        self._secrets = secrets
        self.seen: list[tuple[str, str]] = []
        self.action = Action.VERIFY

    def look_at(self, pids: list[int]) -> None:
        for pid in pids:
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                for name, value in self._secrets.items():
                    if value.encode() in words:
                        self.seen.append((name, Path(os.fsdecode(words.split(b"\0")[0])).name))


@contextlib.contextmanager
def _looking(t: Trial) -> Iterator[tuple[ProviderHost, _Found]]:
    """Look at the children of every script all the time while it runs: some live for a moment only."""
    found = _Found(t.secrets)
    scripts: list[int] = []
    ended = threading.Event()

    def started(_volume: Volume, pid: int) -> None:
        scripts.append(pid)

    def look() -> None:
        while not ended.is_set():
            found.look_at(_family(scripts[-1:]))
            time.sleep(0.0005)

    thread = threading.Thread(target=look, name="sanity-secrets", daemon=True)
    thread.start()
    try:
        yield replace(t.host, on_start=started), found
    finally:
        ended.set()
        thread.join()


def _family(pids: list[int]) -> list[int]:
    """Return processes and all their descendants."""
    family = list(pids)
    for pid in family:
        with contextlib.suppress(OSError):
            family += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return family


CHECKS = (exit_status, secrets_argv, secrets_output, leftovers)
