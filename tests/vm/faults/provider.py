"""A provider that counts: the shipped one behind scripts that write every call down, and misbehave when told to."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from hvext.core.provider import Action
from hvext.host.provider import SHIPPED
from tests.providers import write_provider

NAME = "counted"
#: The parameter that is a secret, and what every script has to be given.
SECRET = "api_token"

_SCRIPT = """\
folder={folder}
{side}
say() {{ printf '%s %s %s %s\\n' {action} "${{VOL_UUID:-}}" "$1" $$ >>"$folder/{calls}"; }}
printf 'script {action}\\n' >>"$folder/trace"
[ "${{EXTP_API_TOKEN:-}}" = "$(cat "$folder/token")" ] || {{ say wrong-secret; echo "a wrong secret" >&2; exit 1; }}
unset EXTP_API_TOKEN
fault=
if [ -e "$folder/armed-script" ]; then
    read -r word at <"$folder/armed-script"
    case $at in "" | {action}) fault=$word; rm -f "$folder/armed-script" ;; esac
fi
say begin
case $fault in
fail) say refused; echo "told to fail" >&2; exit 1 ;;
hang) exec sleep 1000 ;;
kill-driver) kill -KILL "$(cat "$folder/pid")"; sleep 1 ;; # what nobody ends goes on, later
kill-qemu) kill -KILL "$(cat "$folder/qemu")" ;;
slow) sleep 0.3 ;;
esac
status=0
if [ "$fault" = nonsense ]; then
    {real} >&2 || status=$?
    echo "what is this"
else
    {real} || status=$?
fi
if [ "$status" = 0 ]; then say ok; else say "failed-$status"; fi
exit "$status"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The provider in ``folder``/providers; it takes its orders from ``folder``, where it writes its calls.

    On another ``side`` than the first one (a name, for a second host) it serves volumes from folders of its own.
    """

    folder: Path
    side: str = ""

    @property
    def search_path(self) -> str:
        """Where hvext finds it."""
        return str(self.folder / f"providers{self.side}")

    def write(self) -> None:
        """Write its scripts."""
        scripts = {
            str(action): _SCRIPT.format(
                folder=shlex.quote(str(self.folder)),
                action=action,
                real=shlex.quote(f"{SHIPPED}/sample/{action}"),
                side=f'export EXTP_RUN="$folder/run{self.side}" EXTP_HOST={self.side}' if self.side else "",
                calls=f"calls{self.side}",
            )
            for action in Action
        }
        write_provider(Path(self.search_path), NAME, scripts, f"{SECRET} a secret\n")

    def forget(self) -> None:
        """Begin a new list of calls."""
        (self.folder / f"calls{self.side}").unlink(missing_ok=True)

    def calls(self) -> list[tuple[str, str, str, str]]:
        """Return action, uuid, what happened and process of all calls so far, in order."""
        path = self.folder / f"calls{self.side}"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [tuple(line.split(" ")) for line in lines]
        return [(each[0], each[1], each[2], each[3]) for each in found]

    def balance(self, uuid: str, *, attached: bool, before: bool) -> list[str]:
        """Return what is wrong with the calls for a volume that was attached ``before``, and is to be now or not.

        A detach that succeeded ends every attach that began before it; one that was refused changed nothing.
        """
        maybe = certain = before
        wrong = []
        for action, its, what, _pid in self.calls():
            if its != uuid:
                continue
            if what == "wrong-secret" or (action == Action.DETACH and what.startswith("failed")):
                wrong.append(f"{action}: {what}")
            if action == Action.ATTACH and what == "begin":
                maybe = True
            elif action == Action.ATTACH and what == "ok":
                certain = True
            elif action == Action.DETACH and what == "begin":
                certain = False
            elif action == Action.DETACH and what == "ok":
                maybe = certain = False
            elif action == Action.DETACH and what == "refused":
                certain = maybe
            elif action == Action.ATTACH and what == "refused":
                maybe = certain
        if attached and not certain:
            wrong.append("a detach came after the last attach of a disk that is in the guest")
        if not attached and maybe:
            wrong.append("no detach ended the last attach")
        return wrong
