"""Where the process of a command begins: ``hvext``, and ``python -m hvext``."""

from __future__ import annotations

import gc
import signal
import sys


def main() -> int:
    """Run the command of the process's own line and return its exit status."""
    # What is loaded now stays, and none of it is garbage. Where a command lasts, hvext.cli looks for garbage again.
    gc.disable()
    # Until the command runs there is nothing to tidy up, and while modules are loaded one exception may become another.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from hvext.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
