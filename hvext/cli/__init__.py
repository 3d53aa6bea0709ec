"""The command line.

Results go to standard output, progress and errors to standard error. Exit status: 0 done, 1 failed, 2 the command or
a value in it was wrong and nothing was tried.

``hvext --help`` loads argparse and nothing else of weight; each command's module is loaded when it runs.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from hvext.cli import light
from hvext.errors import HvextError, InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_INTERRUPTED = 130
_RESULT_BYTES = 1 << 20
#: Commands that are in no journal, and take away all that they made.
_TIDIED = ("bench", "tune", "new-provider")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; without ``argv`` it is that of the process, which may end here.

    `hvext.__main__` is where the process begins.
    """
    light.import_argparse()
    from hvext.cli.output import open_streams
    from hvext.cli.parser import ALONE

    open_streams()
    words = _joined(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ALONE:
        light.import_uuid()
        if words[0] != "explain":
            light.import_subprocess()
        if argv is None:
            _run_and_end(words)
    if argv is None:
        gc.enable()
    return _run(words)


def _run_and_end(words: Sequence[str]) -> NoReturn:
    """Run a short command and end the process.

    Nearly all that it has is needed until its end, and then the kernel takes it back at once: to look for garbage, and
    to take down each module, takes a tenth of its time.
    """
    status = _run(words)
    for stream in (sys.stdout, sys.stderr):
        # What failed to be written has its message and status already.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _run(words: Sequence[str]) -> int:
    from hvext.cli.output import print_error, stop_output
    from hvext.cli.parser import parse_line

    arguments = parse_line(words)
    module, _, function = arguments.run.partition(":")
    if getattr(arguments, "dry_run", False):
        module = f"dry_run.{module}"
    changes = hasattr(arguments, "dry_run") and words[0] not in _TIDIED
    changed = False
    if changes:
        _write_at_the_end()
    try:
        run = getattr(importlib.import_module(f"hvext.cli.{module}"), function)
        if getattr(arguments, "log", None) or getattr(arguments, "log_file", None):
            from hvext.cli.log import logged

            run = logged(run, words[0])
        _be_tidy_when_ended()
        status = run(arguments)
        changed = changes and not arguments.dry_run and not status
        sys.stdout.flush()
    except HvextError as error:
        print_error(error, as_json=getattr(arguments, "json", False))
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt as reason:
        # It is over: there is nothing left that a second one could end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        interrupted = _interrupted(reason, changes=changes)
        print_error(interrupted, as_json=getattr(arguments, "json", False))
        return _INTERRUPTED
    except OSError as error:
        # Providers and QEMU raise errors of their own: what has no name is standard output.
        stop_output()
        if changed or not isinstance(error, BrokenPipeError):
            what = "done, but the result could not be written" if changed else "cannot write the result"
            print_error(
                HvextError(f"{error.filename or what}: {error.strerror}"), as_json=getattr(arguments, "json", False)
            )
        return 1
    return int(status or 0)


def _write_at_the_end() -> None:
    """Have what is printed written when the command is over: where that fails, all was done, and can be told to be.

    Whoever tells Python to buffer nothing, and a long result, would have it fail before.
    """
    # In another program, and in tests, it is theirs.
    ours, out = sys.stdout is sys.__stdout__, sys.stdout
    if ours and not out.isatty():
        sys.stdout = open(  # noqa: SIM115
            out.fileno(), "w", _RESULT_BYTES, encoding=out.encoding, errors=out.errors, closefd=False
        )


def _interrupted(reason: KeyboardInterrupt, *, changes: bool) -> HvextError:
    """Return the error of a command that Ctrl-C has ended, with where to look after one that ``changes`` something."""
    if reason.args:
        # Its own words: nothing is left of it.
        return HvextError(f"interrupted; {', '.join(map(str, reason.args))}")
    hint = "hvext audit says whether anything is left unfinished; the same command again, or hvext recover, finishes it"
    return HvextError("interrupted", hint=hint if changes else "")


def _joined(words: Sequence[str]) -> Sequence[str]:
    """Return the line with the two words of a command that has two as one: ``bench compare``."""
    if tuple(words[:2]) in (("bench", "compare"), ("bench", "report")):
        return [f"{words[0]}-{words[1]}", *words[2:]]
    return words


def _be_tidy_when_ended() -> None:
    """Have SIGTERM and SIGHUP do what Ctrl-C does: scripts run in sessions of their own and would go on for ever.

    Until now, these and Ctrl-C have ended the process at once, as nothing was begun.
    """
    from hvext.host import patience

    handlers = {signal.SIGINT: patience.interrupt, signal.SIGTERM: _interrupt, signal.SIGHUP: _interrupt}
    for number, handler in handlers.items():
        # Whoever ignores them (nohup) has a reason; in a thread that is not the main one, signals are the caller's.
        if signal.getsignal(number) is signal.SIG_DFL:
            with contextlib.suppress(ValueError):
                signal.signal(number, handler)


def _interrupt(_number: int, _frame: object) -> None:
    if not callable(signal.getsignal(signal.SIGINT)):
        raise KeyboardInterrupt
    # Inside an event loop that is not Python's own handler, but one that cancels.
    signal.raise_signal(signal.SIGINT)
