"""The ground on which checks stand: throw-away volumes of one provider, and the runs of its scripts.

Every volume has the token of the trial in its name and at the beginning of its uuid. Nothing without it is touched,
and what has it can be found on the host afterwards.
"""

from __future__ import annotations

import secrets as random_secrets
import time
import uuid as uuid_module
from collections.abc import Callable, Mapping
from pathlib import Path

from hvext.core.answer import Attachment, check_block_path, parse_answer
from hvext.core.environment import VARIABLES, script_environment
from hvext.core.provider import Action, Provider
from hvext.core.secret import MASK, ROLES, Secret, is_secret_name
from hvext.core.uri.mask import SHORTEST, masked
from hvext.core.value import field, replace, value_object
from hvext.core.volume import Volume
from hvext.errors import AnswerError, ProviderError, ScriptFailed, ScriptTimeout
from hvext.host.files import file_kind
from hvext.host.private import read_secret_file
from hvext.host.provider import ProviderHost
from hvext.sanity import storage
from hvext.sanity.check import Need, NotReady, Run, Skip
from hvext.sanity.storage import Way
from hvext.sanity.watch import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PREFIX = "hvsanity-"
_METADATA = "originstname+sanity.example.com"
_LEAVING = frozenset({"detach-leaves-nothing", "removed-is-gone", "remove-leaves-nothing"})
_OPTIONAL = {Need.SNAPSHOT: Action.SNAPSHOT, Need.OPEN: Action.OPEN, Need.CLOSE: Action.CLOSE}
#: A value for each variable, to find out which one a script misses.
_SAMPLES = {
    "VOL_SIZE": "{size}",
    "VOL_NEW_SIZE": "{size}",
    "VOL_CNAME": "sanity",
    "VOL_METADATA": _METADATA,
    "VOL_SNAPSHOT_NAME": "{name}.snap",
    "VOL_SNAPSHOT_SIZE": "{size}",
    "VOL_OPEN_EXCLUSIVE": "True",
}


@value_object
class Settings:
    """What the caller asks of a trial.

    ``parameters`` are given to every script; ``size_mib`` is the size of the volumes; ``watched`` are folders that
    nobody but this provider uses meanwhile: whatever is new in them is left over. ``places`` are for a provider that
    makes no storage: the parameters of what is there already, a place for each volume that is there at a time, with
    at least twice the size. The data on them are lost.
    """

    parameters: Mapping[str, str] = field(default_factory=dict)
    places: tuple[Mapping[str, str], ...] = ()
    size_mib: int = 32
    watched: tuple[str, ...] = ()


@value_object
class Offer:
    """An attached volume: the run of ``attach``, what it offers, and the ways to its bytes."""

    run: Run
    attachment: Attachment
    ways: tuple[Way, ...]

    @property
    def paths(self) -> tuple[Way, ...]:
        """The way by the block path, if there is one."""
        return tuple(way for way in self.ways if way.is_path)

    @property
    def uris(self) -> tuple[Way, ...]:
        """The ways by URIs, the preferred one first."""
        return tuple(way for way in self.ways if not way.is_path)


class _State:
    """What is known of one volume: whether it was made, is attached, or may have been touched at all."""

    def __init__(self, volume: Volume, place: int) -> None:
        self.volume = volume
        self.place = place
        self.fresh = True
        self.made = False
        self.attached = False
        self.touched = False

    @property
    def is_there(self) -> bool:
        """Whether its place may be taken."""
        return self.fresh or self.made or self.attached or self.touched


class Trial:
    """Volumes and runs of one provider; not for several threads, except ``run``."""

    def __init__(self, host: ProviderHost, name: str, settings: Settings, folder: Path) -> None:
        self.name = name
        self.settings = settings
        self.folder = folder
        self.token = random_secrets.token_hex(4)
        # Whether unknown parameters are refused is for the scripts to show.
        self.host = replace(host, log_directory=str(folder / "logs"), strict=False)
        self.provider: Provider | None = None
        #: What attach offered first; None until then.
        self.offered: Attachment | None = None
        self.runs: list[Run] = []
        self.notes: list[str] = []
        #: Which check is under way.
        self.check = ""
        #: The checks that have failed so far, and the drivers that the QEMU of this host lacks.
        self.failed: list[str] = []
        self.unopenable: frozenset[str] = frozenset()
        self.watch = Watch(self.token, self._folders(), str(folder))
        self._states: dict[str, _State] = {}
        self._patterns = 0

    @property
    def prefix(self) -> str:
        """What all names of volumes begin with, but for those that are as Ganeti makes them."""
        return f"{PREFIX}{self.token}-"

    @property
    def size_mib(self) -> int:
        """The size of the volumes."""
        return self.settings.size_mib

    @property
    def secrets(self) -> dict[str, str]:
        """The values of the parameters that are secrets by their names, and long enough to be looked for."""
        return {
            name: value
            for name, value in self.settings.parameters.items()
            if is_secret_name(name) and len(value) >= SHORTEST
        }

    @property
    def _roles(self) -> dict[str, Secret]:
        """The secrets that URIs lack: parameters with a role's name, and what is in a parameter ROLE_file's file."""
        found = {}
        for role in ROLES:
            if value := self.settings.parameters.get(role):
                found[role] = Secret(value)
            elif path := self.settings.parameters.get(f"{role}_file"):
                found[role] = Secret(read_secret_file(path))
        return found

    def capabilities(self) -> frozenset[Need]:
        """Return what the provider has, as far as it is known by now."""
        found = {need for need, action in _OPTIONAL.items() if self.provider and action in self.provider.actions}
        if not self.settings.places:
            found.add(Need.MAKING)
        if self.offered and self.offered.block_path:
            found.add(Need.PATH)
        if self.offered and storage.has_uri(self.offered):
            found.add(Need.URI)
        return frozenset(found)

    @property
    def always_leaves(self) -> bool:
        """Whether it is known that something is left of every volume: no other check is about that, then."""
        return not _LEAVING.isdisjoint(self.failed)

    def script(self, action: Action) -> str:
        """Return the path of a script."""
        return self.provider.script(action) if self.provider else f"{self.name}/{action!s}"

    # --- Volumes -----------------------------------------------------------------------------------------------------

    def volume(self, label: str = "v", *, name: str | None = None, cname: str | None = None) -> Volume:
        """Return a new volume that is nowhere yet; it is removed when the check ends. ``name`` holds the token."""
        rest = str(uuid_module.uuid4())[8:]
        place = self._free_place()
        there = self.settings.places[place] if self.settings.places else {}
        volume = Volume(
            name=name or f"{self.prefix}{len(self.runs)}-{label}.ext.disk0",
            uuid=uuid_module.UUID(self.token + rest),
            cname=cname,
            parameters={**self.settings.parameters, **there},
        )
        if self.token not in volume.name:
            raise ValueError(f"{volume.name!r} is no name of a throw-away volume")
        self._states[volume.name] = _State(volume, place)
        return volume

    def _free_place(self) -> int:
        taken = {state.place for state in self._states.values() if state.is_there}
        free = (number for number in range(len(self.settings.places) or 1) if number not in taken)
        place = next(free, -1 if self.settings.places else 0)
        if place < 0:
            raise Skip(f"it takes more volumes at a time than there are places (--place): {len(taken)}")
        return place

    def existing(self, label: str = "v", *, size_mib: int | None = None) -> Volume:
        """Return a volume that was created."""
        volume = self.volume(label)
        self.must(Action.CREATE, volume, size_mib=size_mib or self.size_mib)
        return volume

    def attached(self, label: str = "v") -> tuple[Volume, Offer]:
        """Return a volume that was created and attached."""
        volume = self.existing(label)
        return volume, self.attach(volume)

    def attach(self, volume: Volume) -> Offer:
        """Attach a volume and return what it offers; raises NotReady."""
        run = self.must(Action.ATTACH, volume)
        try:
            attachment = parse_answer(run.raw)
            if attachment.block_path is not None:
                check_block_path(attachment.block_path, file_kind(attachment.block_path))
        except AnswerError as error:
            raise NotReady(masked(error.message), action=Action.ATTACH, runs=[run]) from error
        ways, skipped = storage.ways(attachment, self._roles)
        for words in skipped:
            self.note(words)
        return Offer(run=run, attachment=attachment, ways=ways)

    def openable(self, offer: Offer) -> tuple[Way, ...]:
        """Return the URIs that the QEMU of this host has drivers for; raises Skip when there is none."""
        found = tuple(way for way in offer.uris if way.location.driver not in self.unopenable)
        if not found:
            raise Skip("the QEMU of this host cannot open the URI; Debian packages qemu-utils, qemu-block-extra")
        return found

    def reachable(self, offer: Offer) -> tuple[Way, ...]:
        """Return the path and those URIs that are known to lead somewhere."""
        if "attach-uri" in self.failed:
            return offer.paths
        return (*offer.paths, *(way for way in offer.uris if way.location.driver not in self.unopenable))

    def first_way(self, offer: Offer) -> Way:
        """Return the plainest way to the bytes: the path, or the first URI; raises Skip when there is none."""
        return offer.paths[0] if offer.paths else self.openable(offer)[0]

    def detach(self, volume: Volume) -> Run:
        """Detach a volume; raises NotReady."""
        return self.must(Action.DETACH, volume)

    def remove(self, volume: Volume) -> Run:
        """Remove a volume; raises NotReady."""
        return self.must(Action.REMOVE, volume)

    def metadata(self) -> dict[str, Any]:
        """Return what ``setinfo`` is given."""
        return {"metadata": _METADATA}

    def pattern(self) -> int:
        """Return a byte that was not written for the last 250 times."""
        self._patterns += 1
        return self._patterns % 250 + 1

    def note(self, words: str) -> None:
        """Tell something that is no fault; once."""
        if words not in self.notes:
            self.notes.append(words)

    # --- Runs --------------------------------------------------------------------------------------------------------

    def run(
        self,
        action: Action,
        volume: Volume,
        *,
        host: ProviderHost | None = None,
        parameters: Mapping[str, str] | None = None,
        **values: Any,
    ) -> Run:
        """Run a script as every operation of hvext runs it, and return how it ended, whatever that is."""
        if self.provider is None:
            raise NotReady("the provider is not valid")
        told = volume if parameters is None else replace(volume, parameters=dict(parameters))
        begun = time.monotonic()
        state = self._states[volume.name]
        before = (state.made, state.attached)
        self._begins(action, state, values)
        raw, stderr, error, status, output, late = b"", "", "", 0, "", False
        try:
            ended = (host or self.host).run(self.provider, action, told, **values)
            if ended is not None:
                raw, stderr = ended.stdout, ended.stderr
                _forget(ended.log)
        except ProviderError as problem:
            error = problem.message
            status = problem.status if isinstance(problem, ScriptFailed) else None  # type: ignore[assignment]
            output = _forget(getattr(problem, "log", ""))
            late = isinstance(problem, ScriptTimeout)
        run = Run(
            action=action,
            script=self.script(action),
            volume=volume.name,
            environment=self._shown(action, told, values),
            status=status,
            raw=raw,
            stdout=masked(raw.decode(errors="replace"), told.secrets),
            stderr=masked(stderr, told.secrets) or output,
            error=error,
            seconds=time.monotonic() - begun,
            check=self.check,
            late=late,
            spilled=self._spilled(action, raw, stderr, output),
        )
        self.runs.append(run)
        self._ended(state, run, before)
        return run

    def must(self, action: Action, volume: Volume, **values: Any) -> Run:
        """Run a script that has to succeed for the check to go on; raises NotReady."""
        run = self.run(action, volume, **values)
        if not run.ok:
            raise NotReady(f"{action!s} failed: {run.error}", action=action, runs=[run])
        return run

    def missing_variable(self, action: Action, volume: Volume, **values: Any) -> str:
        """Return a variable of other scripts with which a script that failed succeeds; empty when there is none."""
        for name, text in _SAMPLES.items():
            if name in VARIABLES[action] and name != "VOL_CNAME":
                continue
            value = text.format(size=self.size_mib, name=volume.name)
            host = replace(self.host, environment={**self.host.environment, name: value})
            if self.run(action, volume, host=host, **values).ok:
                return name
        return ""

    def _begins(self, action: Action, state: _State, values: Mapping[str, Any]) -> None:
        """Take down what will have to be undone if the script is ended in the middle."""
        state.fresh = False
        state.touched = state.touched or action is not Action.VERIFY
        if action is Action.CREATE:
            state.made = True
        if action is Action.ATTACH:
            state.attached = True
        if action is Action.SNAPSHOT:
            copy = self._states[values["snapshot_name"]]
            copy.touched = True
            copy.made = state.made

    def _ended(self, state: _State, run: Run, before: tuple[bool, bool]) -> None:
        refused = run.status is not None and run.status > 0
        if refused and run.action in (Action.CREATE, Action.ATTACH):
            # It has to clean up after itself.
            state.made, state.attached = before
        elif run.action is Action.DETACH and run.ok:
            state.attached = False
        elif run.action is Action.REMOVE and run.ok:
            state.made = state.touched = False
        elif run.action is Action.GROW and run.ok and state.made:
            # Ganeti attaches before it grows, and so do some scripts themselves.
            state.attached = True

    def _shown(self, action: Action, volume: Volume, values: Mapping[str, Any]) -> dict[str, str]:
        variables = script_environment(action, self.name, volume, **values)
        hidden = {f"EXTP_{name.upper()}" for name in volume.parameters if is_secret_name(name)}
        return {name: MASK if name in hidden else masked(value) for name, value in variables.items()}

    def _spilled(self, action: Action, raw: bytes, stderr: str, output: str) -> tuple[str, ...]:
        """Return the secret parameters whose values were printed; attach may have them in its URIs."""
        where = stderr if action is Action.ATTACH else stderr + raw.decode(errors="replace")
        found = [name for name, value in self.secrets.items() if value in where]
        # What a script that failed has printed is known without its secrets only.
        hidden = bool(self.secrets) and MASK in output and "://" not in output
        return tuple(found or (["a secret"] if hidden else []))

    # --- Afterwards --------------------------------------------------------------------------------------------------

    def clean_up(self) -> None:
        """Detach and remove all volumes that are still there; may be repeated."""
        for name, state in list(self._states.items()):
            if state.attached:
                self.run(Action.DETACH, state.volume)
            if state.made or state.touched:
                # What was refused may have left something; where it has not, remove may refuse as well.
                self.run(Action.REMOVE, state.volume)
            if not (state.attached or state.made):
                del self._states[name]

    @property
    def remaining(self) -> tuple[str, ...]:
        """The volumes that could not be removed, or not be detached."""
        return tuple(self._states)

    def settled(self, look: Callable[[], tuple[str, ...]], limit_s: float = 2.0) -> tuple[str, ...]:
        """Return what is still there, in words, once it is nothing or ``limit_s`` is over."""
        deadline = time.monotonic() + limit_s
        while (found := look()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def _folders(self) -> tuple[str, ...]:
        named = [value for value in self.settings.parameters.values() if value.startswith("/") and value.strip("/")]
        return (*named, *self.settings.watched)


def _forget(log: str) -> str:
    """Return what a script printed, as its log file has it without secrets, and remove that file."""
    if not log:
        return ""
    text = Path(log).read_text(errors="replace")
    Path(log).unlink()
    body = text.partition("\n")[2]
    return body.rpartition("\nstatus ")[0] or body
