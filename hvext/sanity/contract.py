"""Checks of the contract: the directory, every script's exit status, and the answer of attach."""

from __future__ import annotations

import re

from hvext.core.answer import check_block_path, parse_answer
from hvext.core.documentation import page
from hvext.core.provider import PARAMETERS_FILE, Action, FileKind
from hvext.core.uri import parse_uri
from hvext.core.uri.mask import masked
from hvext.core.volume import Volume
from hvext.errors import AnswerError, InputError, ProgramError, ProviderInvalid
from hvext.host.files import file_kind, opened_as
from hvext.sanity import storage
from hvext.sanity.check import MANUAL, PAGE, Fault, Need, Run, Skip, check
from hvext.sanity.trial import Trial
from hvext.sanity.watch import command_of, holds_pipe, processes_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_UNKNOWN = "hvsanity_no_such_parameter"
_ANSWER = f"{PAGE}, What attach may print"
_PARAMETER = r"[A-Za-z_][A-Za-z0-9_]*\Z"


@check("directory", "create", "all required scripts are there and executable", source=f"{MANUAL}, REFERENCE")
def directory(t: Trial) -> None:
    """Find the provider, and everything that is wrong with its directory."""
    try:
        t.provider = t.host.find(t.name)
    except ProviderInvalid as error:
        first = error.problems[0] if error.problems else ""
        named = next((action for action in Action if f"script {action!s} " in first), None)
        raise Fault(
            error.message,
            cure="add what is missing, and chmod +x every script: Ganeti refuses the whole provider otherwise",
            script=str(named or PARAMETERS_FILE),
        ) from error


@check(
    "parameters-list", PARAMETERS_FILE, "every parameter can become a variable, and is listed once",
    source=f"{MANUAL}, parameters.list", after=["directory"],
)  # fmt: skip
def parameters_list(t: Trial) -> None:
    """Look at the names in the list."""
    listed = [parameter.name for parameter in t.provider.parameters] if t.provider else []
    bad = [name for name in listed if not re.match(_PARAMETER, name)]
    if bad:
        raise Fault(
            f"{bad[0]!r} cannot become EXTP_{bad[0].upper()}, which a shell can read",
            cure="begin each line with a name of letters, digits and underscores, with no digit first; a blank, "
            "then what it means. There are no comments in this file",
        )
    upper = [name.upper() for name in listed]
    if twice := [name for name in upper if upper.count(name) > 1]:
        raise Fault(f"EXTP_{twice[0]} is listed twice", cure="list each parameter once: case makes no difference")


@check("verify-good", "verify", "verify takes the parameters of this run", source=f"{MANUAL}, verify",
       after=["directory"])  # fmt: skip
def verify_good(t: Trial) -> None:
    """Have the parameters checked with which all volumes are made."""
    run = t.run(Action.VERIFY, t.volume())
    if not run.ok:
        raise Fault(
            f"verify refuses the parameters that are given with -p: {run.ended}",
            cure="end with 0 when the parameters are good. It is given EXTP_ variables only, no VOL_NAME; "
            "EXTP_PROVIDER and EXTP_ACCESS are always among them",
            runs=[run],
        )


@check("verify-unknown", "verify", "verify refuses a parameter that there is not", source=f"{MANUAL}, verify",
       after=["verify-good"])  # fmt: skip
def verify_unknown(t: Trial) -> None:
    """Have a parameter checked that nobody knows."""
    volume = t.volume()
    run = t.run(Action.VERIFY, volume, parameters={**volume.parameters, _UNKNOWN: "1"})
    if run.ok:
        raise Fault(
            f"verify takes EXTP_{_UNKNOWN.upper()}, which is in no parameters.list: a misspelt parameter would be "
            "ignored for the whole life of a volume",
            cure="go through all EXTP_ variables, and end with a status that is not 0 and a message on stderr when "
            "one is not in parameters.list (EXTP_PROVIDER and EXTP_ACCESS are Ganeti's own)",
            runs=[run],
        )


@check("create", "create", "create makes a volume and ends with 0", source=f"{MANUAL}, create", after=["directory"])
def create(t: Trial) -> None:
    """Make a volume."""
    volume = t.volume()
    run = t.run(Action.CREATE, volume, size_mib=t.size_mib)
    if not run.ok:
        raise _basic(t, run, volume, size_mib=t.size_mib)


@check("attach", "attach", "attach of a new volume ends with 0", source=f"{MANUAL}, attach", after=["create"])
def attach(t: Trial) -> None:
    """Attach a volume; its answer is the next check's."""
    volume = t.existing()
    run = t.run(Action.ATTACH, volume)
    if not run.ok:
        raise _basic(t, run, volume)


@check("attach-answer", "attach", "attach prints a block device's path or nothing, then <hypervisor>:<uri> lines, and "
       "no other byte", source=_ANSWER, after=["attach"])  # fmt: skip
def attach_answer(t: Trial) -> None:
    """Read the answer, more strictly than hvext does when it uses one."""
    run = t.must(Action.ATTACH, t.existing())
    only = "print the answer to stdout and everything else to stderr: begin the script with 'exec 3>&1 1>&2', and "
    only += "print the answer to descriptor 3"
    try:
        attachment = parse_answer(run.raw)
    except AnswerError as error:
        raise Fault(masked(error.message), cure=_mended(run) or masked(error.hint) or only, runs=[run]) from error
    if attachment.warnings:
        raise Fault("; ".join(attachment.warnings), cure=only, runs=[run])
    if b"\r" in run.raw:
        raise Fault("the lines end in a carriage return", cure="end lines with \\n alone", runs=[run])
    if attachment.block_path is not None:
        try:
            check_block_path(attachment.block_path, file_kind(attachment.block_path))
        except AnswerError as error:
            raise Fault(error.message, cure=error.hint, runs=[run]) from error
    t.offered = attachment


@check("attach-uri", "attach", "every kvm: URI can be read as one, and QEMU opens it", source=page("uris"),
       after=["attach-answer"], needs=[Need.URI])  # fmt: skip
def attach_uri(t: Trial) -> None:
    """Have QEMU open all URIs."""
    _volume, offer = t.attached()
    for uri in offer.attachment.uris_for("kvm"):
        try:
            parse_uri(uri, look=opened_as)
        except InputError as error:
            raise Fault(
                masked(error.message), cure=error.hint or f"{page('uris')} has all forms", runs=[offer.run]
            ) from error
    unknown = []
    for way in offer.uris:
        try:
            storage.size_mib(way)
        except ProgramError as error:
            if not storage.lacks_driver(error):
                raise Fault(
                    f"QEMU cannot open {way.words}: {error.message}",
                    cure="print a URI only when what is behind it answers; paths in it are absolute",
                    runs=[offer.run],
                ) from error
            unknown.append(way)
            t.note(f"{way.words}: not looked at, the QEMU here cannot open it ({error.message})")
    t.unopenable = frozenset(way.location.driver for way in unknown)
    if unknown and len(unknown) == len(offer.uris):
        raise Skip("the QEMU of this host lacks the driver; Debian package qemu-block-extra or qemu-utils")


@check("size-path", "create", "the block device has the size that was asked for", source=f"{MANUAL}, create",
       after=["attach-answer"], needs=[Need.PATH])  # fmt: skip
def size_path(t: Trial) -> None:
    """Make a volume of an odd size, and look at it by its path."""
    _sized(t, by_path=True)


@check("size-uri", "create", "every URI shows the size that was asked for", source=f"{MANUAL}, create",
       after=["attach-uri", "size-path"], needs=[Need.URI])  # fmt: skip
def size_uri(t: Trial) -> None:
    """Make a volume of an odd size, and look at it by its URIs."""
    _sized(t, by_path=False)


@check("attach-again", "attach", "attach of an attached volume gives the same answer",
       source=f"{MANUAL}, attach: idempotent", after=["attach-answer"])  # fmt: skip
def attach_again(t: Trial) -> None:
    """Attach twice."""
    volume, first = t.attached()
    second = t.run(Action.ATTACH, volume)
    cure = "look first whether the volume is attached, in what the kernel or the storage says (losetup -j, rbd "
    cure += "showmapped), and print what is there"
    if not second.ok:
        raise Fault(f"the second attach failed: {second.ended}", cure=cure, runs=[first.run, second])
    if second.raw.split(b"\n") != first.run.raw.split(b"\n"):
        raise Fault("the second attach gave another answer", cure=cure, runs=[first.run, second])


@check("attach-lets-go", "attach", "no program that attach starts keeps its standard output open",
       source=f"{PAGE}, How providers are found and run", after=["attach"])  # fmt: skip
def attach_lets_go(t: Trial) -> None:
    """Look at the processes of an attached volume."""
    volume = t.existing()
    run = t.must(Action.ATTACH, volume)

    def holding() -> tuple[str, ...]:
        return tuple(f"{pid} ({command_of(pid)})" for pid in processes_of(volume.name) if holds_pipe(pid))

    if held := t.settled(holding, 1.0):
        raise Fault(
            f"process {held[0]} still has the script's standard output or error: Ganeti waits until it ends",
            cure="start daemons with setsid, stdin from and stdout and stderr to /dev/null or a log: "
            "setsid program </dev/null >/dev/null 2>&1 &",
            runs=[run],
        )


@check(
    "attach-unknown",
    "attach",
    "attach of a volume that there is not fails",
    source=_ANSWER,
    after=["attach"],
    needs=[Need.MAKING],
)
def attach_unknown(t: Trial) -> None:
    """Attach a volume that was never made."""
    run = t.run(Action.ATTACH, t.volume("unknown"))
    if run.ok:
        raise Fault(
            "attach of a volume that was never created ended with status 0",
            cure="end with a status that is not 0 after every failure: begin sh scripts with 'set -eu', and look "
            "whether the volume is there before anything else",
            runs=[run],
        )


@check("setinfo", "setinfo", "setinfo ends with 0", source=f"{MANUAL}, setinfo", after=["create"])
def setinfo(t: Trial) -> None:
    """Store what Ganeti stores with each volume."""
    run = t.run(Action.SETINFO, t.existing(), **t.metadata())
    if not run.ok:
        raise Fault(
            f"setinfo failed: {run.ended}",
            cure="store VOL_METADATA, or do nothing and end with 0: Ganeti runs it for every disk it makes",
            runs=[run],
        )


@check("open", "open", "open ends with 0, also when it is repeated", source=f"{MANUAL}, open",
       after=["attach-answer"], needs=[Need.OPEN])  # fmt: skip
def open_exclusively(t: Trial) -> None:
    """Open a volume twice for this host alone."""
    volume, _offer = t.attached()
    for _time in range(2):
        run = t.run(Action.OPEN, volume, exclusive=True)
        if not run.ok:
            raise Fault(f"open failed: {run.ended}", cure=_OPEN_CURE, runs=[run])


@check("open-shared", "open", "open takes both modes, one after the other", source=f"{MANUAL}, VOL_OPEN_EXCLUSIVE",
       after=["open"], needs=[Need.OPEN])  # fmt: skip
def open_shared(t: Trial) -> None:
    """Open a volume as a migration does: exclusively, shared, exclusively again."""
    volume, _offer = t.attached()
    for exclusive in (True, False, True):
        run = t.run(Action.OPEN, volume, exclusive=exclusive)
        if not run.ok:
            raise Fault(f"open with VOL_OPEN_EXCLUSIVE={exclusive} failed: {run.ended}", cure=_OPEN_CURE, runs=[run])


@check("close", "close", "close ends with 0, also when it is repeated", source=f"{MANUAL}, close",
       after=["attach-answer"], needs=[Need.CLOSE])  # fmt: skip
def close(t: Trial) -> None:
    """Close a volume twice."""
    volume, _offer = t.attached()
    for _time in range(2):
        run = t.run(Action.CLOSE, volume)
        if not run.ok:
            raise Fault(
                f"close failed: {run.ended}",
                cure="end with 0 when nothing can be written any more, also when that was so before",
                runs=[run],
            )


_OPEN_CURE = "take True and False in VOL_OPEN_EXCLUSIVE in any order; the last one counts"


_NEVER_BEGINS = "begin with a line that names an interpreter (#!/bin/sh), and have lines end with a line feed alone"
_NEVER_ENDS = (
    "have it end: a program in it waits, for an answer (it has no standard input), for the network, for a lock that is "
    "held, or for a server that it started and that should go on by itself (setsid … &)"
)


def _mended(run: Run) -> str:
    """Return what to print instead of a device's name without its folder; empty when that is not what it is."""
    first = run.raw.split(b"\n")[0].decode(errors="replace")
    if first and not first.startswith("/") and file_kind(f"/dev/{first}") is FileKind.BLOCK_DEVICE:
        return "the path must be absolute: print /dev/ before the name"
    return ""


def _basic(t: Trial, run: Run, volume: Volume, **values: Any) -> Fault:
    """Return the fault of a script that fails at its plainest, with the variable that it misses if that is why."""
    script = str(run.action)
    words = f"{script} failed: {run.ended}"
    cure = "end with 0 on success; what it printed is below. It runs in the provider's directory, without arguments, "
    cure += "and has no environment but PATH, LC_ALL, HOME and what is listed below"
    if run.status is None:
        return Fault(words, cure=_NEVER_ENDS if run.late else _NEVER_BEGINS, runs=[run])
    missing = t.missing_variable(run.action, volume, **values)
    if missing:
        words += f"; with {missing} in its environment it succeeds"
        cure = f"do without {missing}: it is not given to {script}"
        cure += "; ask the storage for the size" if "SIZE" in missing else ""
    if missing == "VOL_CNAME":
        cure = "do without VOL_CNAME where there is none (${VOL_CNAME:-}): not every disk has a name"
    return Fault(words, cure=cure, runs=[run])


def _sized(t: Trial, *, by_path: bool) -> None:
    wanted = t.size_mib + 1
    volume = t.existing(size_mib=wanted)
    offer = t.attach(volume)
    for way in offer.paths if by_path else t.openable(offer):
        found = storage.size_mib(way)
        if found < wanted:
            raise Fault(
                f"VOL_SIZE was {wanted}, and the {way.name} {way.words} has {found:g} MiB",
                cure="VOL_SIZE is in MiB (1048576 bytes): round up, never down, where the storage has units of its own",
                runs=[run for run in t.runs if run.volume == volume.name],
            )


CHECKS = (
    directory, parameters_list, verify_good, verify_unknown, create, attach, attach_answer, attach_uri, size_path,
    size_uri, attach_again, attach_lets_go, attach_unknown, setinfo, open_exclusively, open_shared, close,
)  # fmt: skip
