"""Certificates, made with GnuTLS's certtool: for a server, for its clients, and for those who trust somebody else.

The folders have the layout that QEMU's ``tls-creds-x509`` and nbdkit's ``--tls-certificates`` read.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import need
from tests.host.oracle import short_folder
from tests.servers.program import environment, tool

_LIFE = "expiration_days = 30\n"
_SIGNER = f"ca\ncert_signing_key\n{_LIFE}"
_TEMPLATES = {
    "servers": f"cn = hvext test servers\n{_SIGNER}",
    "clients": f"cn = hvext test clients\n{_SIGNER}",
    "others": f"cn = somebody else\n{_SIGNER}",
    "server": "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\nip_address = ::1\n"
    f"tls_www_server\nencryption_key\nsigning_key\n{_LIFE}",
    "client": f"cn = hvext test client\ntls_www_client\nencryption_key\nsigning_key\n{_LIFE}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Folders of certificates. The server's is for ``localhost``, 127.0.0.1 and ::1; ``ca`` signed it.

    Another authority signs the clients. Both are in ca-cert.pem: QEMU wants its own certificate to be good by the same
    file as the other side's. So each of the clients below is refused for one reason only.

    ``server``: ca-cert.pem, server-cert.pem, server-key.pem and dh-params.pem (without which QEMU as a server would
    compute them, for seconds). ``client``: ca-cert.pem, client-cert.pem, client-key.pem. ``anonymous``: only
    ca-cert.pem. ``wrong_ca``: as the client, but it does not know who signs servers, and refuses the server.
    ``stranger``: a client's certificate that somebody else signed: the server refuses it.
    """

    ca: Path
    server: Path
    client: Path
    anonymous: Path
    wrong_ca: Path
    stranger: Path


@contextlib.contextmanager
def certificates() -> Iterator[Certificates]:
    """Certificates that exist inside the block; made in 0.1 s, worth sharing by the tests of a session."""
    certtool = need("certtool", "gnutls-bin")
    with short_folder() as folder:
        env = environment(folder)

        def make(words: str, out: str) -> Path:
            tool([certtool, *words.split(), "--outfile", str(folder / out)], env)
            return folder / out

        def sign(name: str, authority: str | None, out: str) -> Path:
            template = folder / f"{name}.template"
            template.write_text(_TEMPLATES[name])
            words = f"--load-privkey {folder}/{name}.key --template {template}"
            if authority is None:
                return make(f"--generate-self-signed {words}", out)
            signer = f"--load-ca-certificate {folder}/{authority}.crt --load-ca-privkey {folder}/{authority}.key"
            return make(f"--generate-certificate {words} {signer}", out)

        for name in _TEMPLATES:
            make("--generate-privkey --key-type ecdsa --curve secp256r1", f"{name}.key")
        servers, clients, others = (sign(name, None, f"{name}.crt") for name in ("servers", "clients", "others"))
        server, client = sign("server", "servers", "server.crt"), sign("client", "clients", "client.crt")
        stranger = sign("client", "others", "stranger.crt")
        both, all_three = folder / "both.crt", folder / "all.crt"
        both.write_text(servers.read_text() + clients.read_text())
        all_three.write_text(both.read_text() + others.read_text())
        parameters = make("--get-dh-params --sec-param medium", "dh-params")

        def lay_out(name: str, files: dict[str, Path]) -> Path:
            (folder / name).mkdir()
            for file, source in files.items():
                shutil.copy(source, folder / name / file)
            return folder / name

        def lay_out_client(name: str, authorities: Path, certificate: Path) -> Path:
            key = folder / "client.key"
            files = {"ca-cert.pem": authorities, "client-cert.pem": certificate, "client-key.pem": key}
            return lay_out(name, files)

        server_files = {"ca-cert.pem": both, "server-cert.pem": server, "server-key.pem": folder / "server.key"}
        yield Certificates(
            ca=servers,
            server=lay_out("server", {**server_files, "dh-params.pem": parameters}),
            client=lay_out_client("client", both, client),
            anonymous=lay_out("anonymous", {"ca-cert.pem": both}),
            wrong_ca=lay_out_client("wrong-ca", clients, client),
            stranger=lay_out_client("stranger", all_three, stranger),
        )
