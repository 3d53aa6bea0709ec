"""Private views of mounts, network and processes, for servers that insist on places of their own."""

from __future__ import annotations

from tests.conftest import need
from tests.host.oracle import absent
from tests.servers.program import ServerError, environment, tool


def namespaces(*options: str) -> tuple[str, ...]:
    """An argv that runs what is put behind it in new namespaces.

    ``options`` are those of unshare, ``--mount`` among them. Skips the test where this machine does not let us make
    them, or mount something in them.
    """
    argv = (need("unshare", "util-linux"), *options)
    try:
        tool([*argv, "mount", "-t", "tmpfs", "hvext-test", "/run"], environment("/nowhere"))
    except ServerError as error:
        absent(f"no namespaces with mounts of their own here: {error}")
    return argv
