"""What the journal knows of one VM: its disks, what is meant to become of them, and what was begun and not ended.

QEMU is the truth about what is plugged, the storage about what is attached. A record tells what neither of them knows:
which provider, volume and parameters a disk has, and whether it is meant to be there. No secret is in it: parameters
that are secrets are named, and their values are in a private file of the host for as long as the volume is attached.
"""

from __future__ import annotations

import contextlib
import json
import uuid as uuid_module
from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from operator import attrgetter

from hvext.core.disk import Disk
from hvext.core.secret import is_secret_name
from hvext.core.value import field, fields, replace, value_object
from hvext.errors import InputError, JournalError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORMAT = 1
_FILE = "the journal's record"


class Operation(StrEnum):
    """What can be done to a disk, as the journal writes it down."""

    START = "start"
    PLUG = "plug"
    UNPLUG = "unplug"
    REPOINT = "repoint"
    RESIZE = "resize"
    FAIL_OVER = "fail over"
    MIGRATE = "migrate"


class Intent(StrEnum):
    """Whether a disk is meant to be in the guest."""

    PRESENT = "present"
    ABSENT = "absent"


@value_object
class ProcessId:
    """One process of one boot of a host: its number alone may be given again.

    ``ticks`` is its start time as the kernel counts it; ``boot`` the id of the host's boot.
    """

    pid: int
    ticks: int
    boot: str


@value_object
class Unfinished:
    """An operation that was begun and whose end was not written down.

    ``step`` is the step that was about to be done; ``by`` the process that did it, None for what waits for somebody
    (a migration between its commands); ``script`` that of a provider's script that was started; ``since`` is seconds
    since 1970; ``details`` what the operation has to know to be
    finished, such as a new size.
    """

    operation: Operation
    since: float
    by: ProcessId | None = None
    step: str = ""
    script: ProcessId | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@value_object
class DiskRecord:
    """One disk of a VM: ``disk`` has all its parameters but ``withheld``, the names of those that are secrets.

    ``failed_over`` tells that it is elsewhere than its access choice says, because its storage had died;
    ``keep_attached`` that its volume is not to be detached when the guest lets the disk go. ``since`` is when the disk
    came to the storage it is at, in seconds since 1970; None where that is not known.
    """

    disk: Disk
    withheld: tuple[str, ...] = ()
    intent: Intent = Intent.PRESENT
    failed_over: bool = False
    keep_attached: bool = False
    since: float | None = None
    unfinished: Unfinished | None = None

    @classmethod
    def of(cls, disk: Disk, *, unfinished: Unfinished | None = None, **values: Any) -> DiskRecord:
        """Return the record of a disk, without its secrets; a plug or start that begins brings it to its storage."""
        parameters = disk.volume.parameters
        withheld = tuple(sorted(name for name in parameters if is_secret_name(name)))
        if unfinished is not None and unfinished.operation in (Operation.PLUG, Operation.START):
            values.setdefault("since", unfinished.since)
        disk = _with_parameters(disk, _without(parameters, withheld))
        return cls(disk=disk, withheld=withheld, unfinished=unfinished, **values)

    @property
    def stays_attached(self) -> bool:
        """Whether its volume is not to be detached, by the unplug that is under way or pending."""
        return self.keep_attached or bool(self.unfinished and self.unfinished.details.get("keep_attached"))

    def whole(self, secrets: Mapping[str, str]) -> Disk:
        """Return the disk with the secrets among its parameters; raises JournalError when one is not there."""
        missing = [name for name in self.withheld if name not in secrets]
        if missing:
            raise JournalError(
                f"the secret parameters of {self.words} are not on this host any more: {', '.join(missing)}",
                hint="name the disk with all its parameters: -p, --parameter-file",
            )
        own = {name: secrets[name] for name in self.withheld}
        return _with_parameters(self.disk, {**self.disk.volume.parameters, **own})

    @property
    def attached(self) -> bool:
        """Whether the volume is attached for this VM, as far as is known: an unplug of any disk is written down."""
        return self.unfinished is None or bool(self.unfinished.details.get("attached", True))

    @property
    def migrating(self) -> bool:
        """Whether a migration has begun that is not finished, on its source or on its target."""
        return self.unfinished is not None and self.unfinished.operation is Operation.MIGRATE

    @property
    def leaving(self) -> bool:
        """Whether that is on its source."""
        return self.migrating and self.unfinished is not None and not self.unfinished.details.get("incoming")

    @property
    def words(self) -> str:
        """The volume, for people."""
        return f"{self.disk.provider}/{self.disk.volume.name}"


#: All that a record says but for what is unfinished.
_but_work = attrgetter(*(each.name for each in fields(DiskRecord) if each.name != "unfinished"))


@value_object
class Changes:
    """Lines behind a record: ``matters`` tells whether they have to outlive the host, as which volumes are attached.

    ``first`` tells whether they have to before anything else is done: another host goes on from there.
    """

    text: str
    matters: bool
    first: bool = False


@value_object
class VmRecord:
    """What is known of one VM.

    ``monitors`` are the addresses of its monitors that hvext was connected to, newest first; ``process`` is its QEMU;
    None while it has not been seen.
    """

    name: str
    monitors: tuple[str, ...] = ()
    process: ProcessId | None = None
    disks: Mapping[uuid_module.UUID, DiskRecord] = field(default_factory=dict)

    def with_disk(self, record: DiskRecord) -> VmRecord:
        """Return this with a disk added or replaced."""
        return replace(self, disks={**self.disks, record.disk.volume.uuid: record})

    def without_disk(self, uuid: uuid_module.UUID) -> VmRecord:
        """Return this without a disk; one that is not there is no error."""
        return replace(self, disks={key: record for key, record in self.disks.items() if key != uuid})

    def seen(self, monitor: str, process: ProcessId | None) -> VmRecord:
        """Return this after a connection to its QEMU."""
        others = tuple(address for address in self.monitors if address != monitor)
        return replace(self, monitors=(monitor, *others)[:8], process=process or self.process)

    def to_json(self) -> str:
        """Return the text of the record's file."""
        value = {
            "format": FORMAT,
            "name": self.name,
            "monitors": list(self.monitors),
            "process": _process_json(self.process),
            "disks": [_disk_json(record) for record in self.disks.values()],
        }
        return _line(value)

    def changes_since(self, before: VmRecord, among: Collection[uuid_module.UUID] | None = None) -> Changes | None:
        """Return what makes this of ``before`` when it is put behind it in the file; None where only the whole does.

        All other disks than those ``among`` which to look are the same in both: to look at hundreds takes its time.
        """
        if (self.name, self.monitors, self.process) != (before.name, before.monitors, before.process):
            return None
        if among is not None and len(among) == 1:
            (uuid,) = among
            now, former = self.disks.get(uuid), before.disks.get(uuid)
            if now is not None and former is not None:
                # The next step of an operation, which is what is written most often.
                migrating = now.migrating or former.migrating
                return Changes(text=_line(_change(now, former)), matters=migrating, first=migrating)
        looked_at = {**before.disks, **self.disks} if among is None else dict.fromkeys(among)
        gone = [uuid for uuid in looked_at if uuid in before.disks and uuid not in self.disks]
        there = [self.disks[uuid] for uuid in looked_at if uuid in self.disks]
        changed = [record for record in there if before.disks.get(record.disk.volume.uuid) is not record]
        old = [before.disks.get(record.disk.volume.uuid) for record in changed]
        lines = [_line({"gone": str(uuid)}) for uuid in gone]
        lines += [_line(_change(each, former)) for each, former in zip(changed, old, strict=True)]
        migrating = any(each.migrating for each in (*changed, *old) if each is not None)
        migrating = migrating or any(before.disks[uuid].migrating for uuid in gone)
        return Changes(text="".join(lines), matters=bool(gone) or None in old or migrating, first=migrating)

    @classmethod
    def from_json(cls, text: str, where: str = _FILE) -> VmRecord:
        """Return the record that a file holds, with all changes behind it; raises JournalError, which names ``where``.

        A last change that is not whole never happened: whoever wrote it was killed, or the host was.
        """
        try:
            value, end = json.JSONDecoder().raw_decode(text)
            if value["format"] != FORMAT:
                raise JournalError(
                    f"{where} has format {value['format']}, and this hvext knows {FORMAT}",
                    hint="a newer hvext wrote it: use that one",
                )
            items = {item["disk"]["uuid"]: item for item in value["disks"]}
            for change in _changes(text[end:].lstrip()):
                if "gone" in change:
                    items.pop(change["gone"], None)
                elif "at" in change:
                    items[change["at"]] = items[change["at"]] | {"unfinished": change["unfinished"]}
                else:
                    items[change["disk"]["disk"]["uuid"]] = change["disk"]
            records = [_disk_record(item) for item in items.values()]
            return cls(
                name=value["name"],
                monitors=tuple(value["monitors"]),
                process=_process(value["process"]),
                disks={record.disk.volume.uuid: record for record in records},
            )
        except (ValueError, KeyError, TypeError, InputError, RecursionError) as error:
            raise JournalError(
                f"{where} cannot be read: {error!r}",
                hint="hvext writes these files whole: somebody else changed it. What QEMU has, hvext disks shows",
            ) from error


def is_whole(text: str) -> bool:
    """Return whether the last change in a record's file is whole, so that another may be put behind it."""
    try:
        json.loads(text[text.rfind("\n", 0, -1) + 1 :])
    except ValueError:
        return False
    return text.endswith("\n")


def _changes(text: str) -> list[Any]:
    *ended, last = text.split("\n")
    lines = [line for line in ended if line.strip()]
    # What stands behind the last line's end was not written to its end; and a line may be torn in another way.
    if not last:
        with contextlib.suppress(ValueError):
            return [json.loads(line) for line in lines]
        return [json.loads(line) for line in lines[:-1]]
    return [json.loads(line) for line in lines]


def _line(value: object) -> str:
    # In ASCII: of a line that was torn in the middle of a character, nothing could be read any more.
    return json.dumps(value) + "\n"


def namesakes(disk: Disk, record: VmRecord) -> tuple[str, ...]:
    """Return warnings of the disks of a VM whose volume has this one's name and other parameters: it may be meant."""
    return tuple(
        f"VM {record.name} has {known.words} {_in_those_words(known)}"
        for known in record.disks.values()
        if (known.disk.provider, known.disk.volume.name) == (disk.provider, disk.volume.name)
        and not same_volume(known.disk, disk)
    )


def _in_those_words(known: DiskRecord) -> str:
    if given := shown_parameters(known.disk):
        return f"with other parameters ({given}): if that is the one, name it with those"
    which = f"with no parameters but {', '.join(known.withheld)}" if known.withheld else "without parameters"
    return f"{which}: if that is the one, name it {which}"


def parameters_there(disk: Disk) -> str:
    """Return the hint that says how a disk's volume is named elsewhere, without secrets."""
    if given := shown_parameters(disk):
        return f"its parameters there: {given}"
    return "there it has no parameters, or secret ones alone"


def shown_parameters(disk: Disk) -> str:
    """Return a volume's parameters for people, without secrets; empty where it has no others."""
    values = sorted(disk.volume.parameters.items())
    return ", ".join(f"{name}={value}" for name, value in values if not is_secret_name(name))


def same_volume(one: Disk, other: Disk, resolved: Callable[[str], str] | None = None) -> bool:
    """Whether two disks are on the same volume, as far as names tell: the secrets among the parameters do not.

    With ``resolved``, which returns the one spelling of a value that has several, these are one.
    """
    if (one.provider, one.volume.name) != (other.provider, other.volume.name):
        return False
    (*_names, mine), (*_others, theirs) = _place(one), _place(other)
    if mine == theirs:
        return True
    if resolved is None or mine.keys() != theirs.keys():
        return False
    return all(value == theirs[name] or resolved(value) == resolved(theirs[name]) for name, value in mine.items())


def volume_key(disk: Disk) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """Return what two disks have in common if and only if they are on the `same_volume`: to look many up."""
    provider, name, named = _place(disk)
    return provider, name, tuple(sorted(named.items()))


def _place(disk: Disk) -> tuple[str, str, dict[str, str]]:
    named = {name.upper(): value for name, value in disk.volume.parameters.items() if not is_secret_name(name)}
    return disk.provider, disk.volume.name, named


def _without(values: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, value in values.items() if name not in names}


def _with_parameters(disk: Disk, parameters: Mapping[str, str]) -> Disk:
    return replace(disk, volume=replace(disk.volume, parameters=parameters))


def _change(record: DiskRecord, before: DiskRecord | None) -> dict[str, object]:
    """Return what makes ``record`` of what stood there before; most often, an operation's next step, or its end."""
    if before is not None and _but_work(before) == _but_work(record):
        return {"at": str(record.disk.volume.uuid), "unfinished": _work_json(record.unfinished)}
    return {"disk": _disk_json(record)}


def _work_json(work: Unfinished | None) -> dict[str, object] | None:
    return (
        None
        if work is None
        else {
            "operation": str(work.operation),
            "since": work.since,
            "by": _process_json(work.by),
            "step": work.step,
            "script": _process_json(work.script),
            "details": dict(work.details),
        }
    )


def _disk_json(record: DiskRecord) -> dict[str, object]:
    value: dict[str, object] = {"disk": record.disk.to_mapping(), "intent": str(record.intent)}
    if record.withheld:
        value["withheld"] = list(record.withheld)
    if record.failed_over:
        value["failed_over"] = True
    if record.keep_attached:
        value["keep_attached"] = True
    if record.since is not None:
        value["since"] = record.since
    if (work := record.unfinished) is not None:
        value["unfinished"] = _work_json(work)
    return value


def _disk_record(value: Mapping[str, Any]) -> DiskRecord:
    work = value.get("unfinished")
    return DiskRecord(
        disk=Disk.from_mapping(value["disk"]),
        withheld=tuple(value.get("withheld", ())),
        intent=Intent(value["intent"]),
        failed_over=bool(value.get("failed_over", False)),
        keep_attached=bool(value.get("keep_attached", False)),
        since=None if value.get("since") is None else float(value["since"]),
        unfinished=None
        if work is None
        else Unfinished(
            operation=Operation(work["operation"]),
            since=float(work["since"]),
            by=_process(work["by"]),
            step=work["step"],
            script=_process(work["script"]),
            details=dict(work["details"]),
        ),
    )


def _process_json(process: ProcessId | None) -> dict[str, object] | None:
    return None if process is None else {"pid": process.pid, "ticks": process.ticks, "boot": process.boot}


def _process(value: Mapping[str, Any] | None) -> ProcessId | None:
    return None if value is None else ProcessId(pid=int(value["pid"]), ticks=int(value["ticks"]), boot=value["boot"])
