"""A web server: nginx, in the clear and with TLS, with places that want a password or a cookie. It is only read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from tests.conftest import need
from tests.host.oracle import short_folder
from tests.secrecy import new_secret
from tests.servers.certificates import Certificates
from tests.servers.namespaces import namespaces
from tests.servers.program import Service, environment, free_port, listens, running, tool
from tests.servers.server import FileServer

USER = "reader"
COOKIE = "token"

#: Where libcurl looks for authorities; QEMU has no option for it.
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_SITES = """\
    location /open/ {{ alias {folder}/volumes/; }}
    location /password/ {{ alias {folder}/volumes/; auth_basic hvext; auth_basic_user_file {folder}/passwords; }}
    location /cookie/ {{ alias {folder}/volumes/; if ($cookie_{cookie} != "{token}") {{ return 403; }} }}
"""
_CONF = """\
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/tmp-body;
  proxy_temp_path {folder}/tmp-proxy;
  fastcgi_temp_path {folder}/tmp-fastcgi;
  uwsgi_temp_path {folder}/tmp-uwsgi;
  scgi_temp_path {folder}/tmp-scgi;
  keepalive_requests 100000;
  server {{
    listen 127.0.0.1:{port};
{sites}  }}
  server {{
    listen 127.0.0.1:{tls_port} ssl;
    ssl_certificate {certificates}/server-cert.pem;
    ssl_certificate_key {certificates}/server-key.pem;
{sites}  }}
}}
"""


class Place(StrEnum):
    """What a part of the site wants before it gives a volume."""

    OPEN = "open"
    PASSWORD = "password"
    COOKIE = "cookie"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebServer(FileServer):
    """A running web server at ``port`` and, with TLS, at ``tls_port``.

    ``USER`` with ``password`` may read at ``Place.PASSWORD``; ``cookie`` (``name=value``, a secret) opens
    ``Place.COOKIE``. A QEMU that starts with ``prefix`` trusts ``certificates``, any other does not.
    """

    port: int
    tls_port: int
    password: str = field(repr=False)
    token: str = field(repr=False)
    certificates: Certificates
    host: str = "127.0.0.1"

    @property
    def cookie(self) -> str:
        """The cookie as QEMU's ``cookie-secret`` wants it."""
        return f"{COOKIE}={self.token}"

    @property
    def prefix(self) -> tuple[str, ...]:
        """An argv that runs what is put behind it with this server's authority in place of the system's."""
        script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
        return (*namespaces("--mount"), "sh", "-c", script, "sh", str(self.certificates.ca), _BUNDLE)

    def uri(self, name: str, place: Place = Place.OPEN, *, tls: bool = True) -> str:
        """The URI of a volume, without user and password."""
        return self._uri(name, place, "", tls=tls)

    def uri_with_password(self, name: str, *, tls: bool = True, password: str | None = None) -> str:
        """The URI of a volume at ``Place.PASSWORD`` with user and password, or with another password."""
        return self._uri(name, Place.PASSWORD, f"{USER}:{password or self.password}@", tls=tls)

    def _uri(self, name: str, place: Place, user: str, *, tls: bool) -> str:
        scheme, port = ("https", self.tls_port) if tls else ("http", self.port)
        return f"{scheme}://{user}{self.host}:{port}/{place}/{name}"


@contextlib.contextmanager
def web_server(certificates: Certificates) -> Iterator[WebServer]:
    """A web server; ready after 0.1 s."""
    nginx, openssl = need("/usr/sbin/nginx", "nginx-light"), need("openssl", "openssl")
    need(_BUNDLE, "ca-certificates")
    with short_folder() as folder:
        (folder / "volumes").mkdir()
        password, token = new_secret(), new_secret()
        port, tls_port = free_port(), free_port()
        # In a file: a command line can be read by everybody.
        plain = folder / "plain"
        plain.write_text(f"{password}\n")
        hashed = tool([openssl, "passwd", "-apr1", "-in", str(plain)], environment(folder))
        (folder / "passwords").write_text(f"{USER}:{hashed}")
        sites = _SITES.format(folder=folder, cookie=COOKIE, token=token)
        conf = folder / "nginx.conf"
        conf.write_text(
            _CONF.format(folder=folder, port=port, tls_port=tls_port, certificates=certificates.server, sites=sites)
        )
        service = Service(
            [nginx, "-c", str(conf), "-e", f"{folder}/error.log"],
            folder=folder,
            name="nginx",
            ready=lambda: listens(port) and listens(tls_port),
        )
        with running(service):
            yield WebServer(
                service=service,
                folder=folder,
                port=port,
                tls_port=tls_port,
                password=password,
                token=token,
                certificates=certificates,
            )
