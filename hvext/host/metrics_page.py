"""The text that Prometheus reads: as text, in a file, and served over HTTP.

Needs the extra ``metrics`` (prometheus-client), which writes the text and answers the requests.

Source: Prometheus, "Exposition formats"; node_exporter, textfile collector.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvext.core.extras import library_missing
from hvext.core.metrics import Family, FamilyKind
from hvext.errors import HvextError, InputError

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import CollectorRegistry

#: A client that says nothing for so long is let go.
_SILENT_S = 10.0
#: Metrics name VMs and volumes: for the owner's group, not for everybody.
_SOCKET_MODE = 0o660
_ASK_S = 1.0
#: How often it is looked whether serving is over.
_POLL_S = 0.1

Collect = Callable[[], Sequence[Family]]


def page(families: Sequence[Family]) -> str:
    """Return the text of families; raises ProgramError where the extra is missing."""
    with _extra():
        from prometheus_client import generate_latest
    return generate_latest(_registry(lambda: families)).decode()


def write_page(path: str, families: Sequence[Family]) -> None:
    """Write the text of families to a file, which is there as a whole or as it was; raises HvextError."""
    with _extra():
        from prometheus_client import write_to_textfile
    try:
        write_to_textfile(path, _registry(lambda: families))
    except OSError as error:
        raise HvextError(f"cannot write the metrics to {path}: {error.strerror}") from error


@contextlib.contextmanager
def serving(address: str, collect: Collect) -> Iterator[str]:
    """Serve what ``collect`` returns, at ``HOST:PORT`` or a socket's path, in the block; yield where that is.

    ``collect`` is called for each request, in a thread of its own. Port 0 is any that is free. Raises InputError for an
    address that cannot be one or where the extra is missing, HvextError where nobody can listen.
    """
    target = _parse_address(address)
    with _extra():
        from prometheus_client import make_wsgi_app
    app = make_wsgi_app(_registry(collect))
    try:
        server = _server(target)
    except OSError as error:
        raise HvextError(
            f"cannot serve metrics at {address}: {error.strerror or error}",
            hint="another program listens there: choose another address" if error.errno == errno.EADDRINUSE else "",
        ) from error
    server.set_app(app)
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="hvext-metrics", daemon=True)
    thread.start()
    try:
        yield _shown(server.socket, target)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        if isinstance(target, str):
            Path(target).unlink(missing_ok=True)


@contextlib.contextmanager
def _extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise library_missing(str(error.name), "metrics need", "metrics") from error


def _registry(collect: Collect) -> CollectorRegistry:
    from prometheus_client.registry import Collector, CollectorRegistry

    class Families(Collector):
        def collect(self) -> Iterator[Metric]:
            for family in collect():
                yield _metric(family)

        def describe(self) -> list[Metric]:
            # Else it would be asked for everything while it is registered.
            return []

    registry = CollectorRegistry()
    registry.register(Families())
    return registry


def _metric(family: Family) -> Metric:
    from prometheus_client import metrics_core

    labels = list(family.labels)
    if family.kind is FamilyKind.SUMMARY:
        summary = metrics_core.SummaryMetricFamily(family.name, family.words, labels=labels)
        for sample in family.samples:
            summary.add_metric(_clean(sample.labels), count_value=sample.count, sum_value=sample.value)
        return summary
    make = metrics_core.CounterMetricFamily if family.kind is FamilyKind.COUNTER else metrics_core.GaugeMetricFamily
    metric = make(family.name, family.words, labels=labels)
    for sample in family.samples:
        metric.add_metric(_clean(sample.labels), sample.value)
    return metric


def _clean(labels: Sequence[str]) -> list[str]:
    """Return labels that can be written as UTF-8."""
    return [label.encode(errors="replace").decode() for label in labels]


def _parse_address(text: str) -> str | tuple[str, int]:
    path = text.removeprefix("unix:")
    if "/" in path:
        return path
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise InputError(
            f"metrics cannot be served at {text!r}",
            hint="give HOST:PORT, such as 127.0.0.1:9108 or [::]:9108, or the path of a socket",
        )
    return host.strip("[]"), int(port)


def _server(target: str | tuple[str, int]) -> Any:
    """Return a server that listens; raises OSError."""
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    class Handler(WSGIRequestHandler):
        timeout = _SILENT_S

        def log_message(self, *_words: object) -> None:
            """Log nothing."""

        def address_string(self) -> str:
            return "client"

        def get_environ(self) -> dict[str, Any]:
            # A client of a Unix socket has no address.
            self.client_address = self.client_address if isinstance(self.client_address, tuple) else ("", 0)
            return super().get_environ()

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        address_family = socket.AF_UNIX if isinstance(target, str) else _family(*target)

        def server_bind(self) -> None:
            if not isinstance(target, str):
                super().server_bind()
                return
            _make_room(target)
            before = os.umask(0o777 & ~_SOCKET_MODE)
            try:
                self.socket.bind(target)
            finally:
                os.umask(before)
            self.server_name, self.server_port = "localhost", 0
            self.setup_environ()

        def handle_error(self, *_request: object) -> None:
            """Say nothing of a client that has left."""

    return Server(target, Handler)  # type: ignore[arg-type]


def _family(host: str, port: int) -> socket.AddressFamily:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]


def _make_room(path: str) -> None:
    """Remove a socket that nobody listens at any more; raises OSError for anything else that is there."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(_ASK_S)
        try:
            asking.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
    raise OSError(errno.EADDRINUSE, "somebody listens there already")


def _shown(listening: socket.socket, target: str | tuple[str, int]) -> str:
    if isinstance(target, str):
        return target
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
