"""An iSCSI target: tgtd with one target behind CHAP, whose units are files."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import need
from tests.host.oracle import short_folder
from tests.secrecy import remember
from tests.servers.program import (
    ServerError,
    Service,
    environment,
    free_port,
    running,
    tool,
)
from tests.servers.server import FileServer

TARGET = "iqn.2001-04.org.example:hvext"
USER = "initiator"


@dataclass(frozen=True, slots=True, kw_only=True)
class IscsiTarget(FileServer):
    """A running target ``TARGET`` at ``portal``, for ``USER`` with ``password``.

    Each unit made with `create` has a number, beginning with 1. They are still there after
    `kill` and `restart`.
    """

    port: int
    password: str = field(repr=False)
    units: dict[str, int] = field(default_factory=dict)
    host: str = "127.0.0.1"

    @property
    def portal(self) -> str:
        """Address and port."""
        return f"{self.host}:{self.port}"

    def uri(self, name: str) -> str:
        """The URI with neither user nor password."""
        return f"iscsi://{self.portal}/{TARGET}/{self.units[name]}"

    def uri_with_password(self, name: str, *, password: str | None = None) -> str:
        """The URI with user and password, or with another password."""
        return f"iscsi://{USER}%{password or self.password}@{self.portal}/{TARGET}/{self.units[name]}"

    def create(self, name: str, size_bytes: int) -> None:
        """Make a unit of zeros."""
        FileServer.create(self, name, size_bytes)
        self.units[name] = len(self.units) + 1
        self._offer(name)

    def restart(self) -> None:
        """Start tgtd again with the same target, account and units; libiscsi reconnects by itself."""
        self.service.restart()
        self.set_up()

    def set_up(self) -> None:
        """Tell a tgtd that has just started what it has; the last step lets initiators in."""
        self.admin("--mode target --op new --tid 1 --targetname", TARGET)
        for name in self.units:
            self._offer(name)
        self.admin("--mode account --op new --user", USER, "--password", self.password)
        self.admin("--mode account --op bind --tid 1 --user", USER)
        self.admin("--mode target --op bind --tid 1 -I ALL")

    def admin(self, words: str, *more: str) -> str:
        """Run tgtadm on this tgtd; returns what it printed."""
        argv = [need("/usr/sbin/tgtadm", "tgt"), "-C", str(self.port), "--lld", "iscsi", *words.split(), *more]
        return tool(argv, _environment(self.folder))

    def _offer(self, name: str) -> None:
        unit = f"--mode logicalunit --op new --tid 1 --lun {self.units[name]} --bstype=rdwr --blocksize=512 -b"
        self.admin(unit, str(self.path(name)))


def _environment(folder: Path) -> dict[str, str]:
    # The socket is this path with a dot and the number that -C gives.
    return environment(folder, TGT_IPC_SOCKET=str(folder / "control"))


@contextlib.contextmanager
def iscsi_target() -> Iterator[IscsiTarget]:
    """A target without units yet; ready after 0.1 s."""
    tgtd, tgtadm = need("/usr/sbin/tgtd", "tgt"), need("/usr/sbin/tgtadm", "tgt")
    with short_folder() as folder:
        (folder / "volumes").mkdir()
        port = free_port()
        env = _environment(folder)
        show = [tgtadm, "-C", str(port), "--lld", "iscsi", "--mode", "system", "--op", "show"]

        def answers() -> bool:
            with contextlib.suppress(ServerError):
                return bool(tool(show, env))
            return False

        service = Service(
            [tgtd, "-f", "-C", str(port), "-t", "2", "--iscsi", f"portal=127.0.0.1:{port}"],
            folder=folder,
            name="tgtd",
            marks=[folder / f"control.{port}"],
            ready=answers,
            env=env,
        )
        # CHAP wants 12 characters at least.
        target = IscsiTarget(service=service, folder=folder, port=port, password=remember(secrets.token_hex(8)))
        with running(service):
            target.set_up()
            yield target
