"""An NBD server: nbdkit over a folder, where each file is an export of its name."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from tests.conftest import need
from tests.host.oracle import short_folder
from tests.secrecy import remember
from tests.servers.certificates import Certificates
from tests.servers.program import Service, free_port, running
from tests.servers.server import FileServer

#: The user name that goes with the pre-shared key.
PSK_USER = "hvext"


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdServer(FileServer):
    """A running NBD server. New connections see another size of an export.

    It is behind ``socket`` or else at ``host``:``port``. With ``certificates`` it demands TLS and a certificate of the
    same authority from the client (QEMU: ``tls-creds-x509`` with the folder ``certificates.client``, and over the
    socket ``tls-hostname=localhost``). With a ``key`` it demands TLS with that pre-shared key (QEMU: ``tls-creds-psk``
    with the folder ``psk`` and the username ``PSK_USER``).
    """

    socket: Path | None = None
    port: int | None = None
    certificates: Certificates | None = None
    key: str | None = field(default=None, repr=False)
    host: str = "127.0.0.1"

    @property
    def psk(self) -> Path:
        """The folder with the file keys.psk."""
        return self.folder / "psk"

    def uri(self, name: str) -> str:
        """The URI of an export. TLS is not part of it: QEMU knows no ``nbds:``."""
        if self.socket is not None:
            return f"nbd+unix:///{quote(name, safe='')}?socket={self.socket}"
        return f"nbd://{self.host}:{self.port}/{quote(name, safe='')}"


@contextlib.contextmanager
def nbd_server(
    *, tcp: bool = False, certificates: Certificates | None = None, psk: bool = False
) -> Iterator[NbdServer]:
    """An NBD server on a unix socket, or on a TCP port; in the clear, with certificates, or with a pre-shared key."""
    nbdkit = need("nbdkit", "nbdkit")
    with short_folder() as folder:
        (folder / "volumes").mkdir()
        socket = None if tcp else folder / "nbd.sock"
        port = free_port() if tcp else None
        key = remember(secrets.token_hex(32)) if psk else None
        pid_file = folder / "pid"
        argv = [nbdkit, "--foreground", "--pidfile", str(pid_file)]
        argv += ["--unix", str(socket)] if socket else ["--ipaddr", "127.0.0.1", "--port", str(port)]
        if certificates is not None:
            argv += ["--tls=require", f"--tls-certificates={certificates.server}", "--tls-verify-peer"]
        if key is not None:
            keys = folder / "psk" / "keys.psk"
            keys.parent.mkdir()
            keys.write_text(f"{PSK_USER}:{key}\n")
            argv += ["--tls=require", f"--tls-psk={keys}"]
        argv += ["file", f"dir={folder}/volumes"]
        # The process number is written once the socket listens.
        marks = [pid_file] if socket is None else [pid_file, socket]
        with running(Service(argv, folder=folder, name="nbdkit", marks=marks)) as service:
            yield NbdServer(
                service=service, folder=folder, socket=socket, port=port, certificates=certificates, key=key
            )
