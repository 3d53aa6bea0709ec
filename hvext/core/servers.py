"""Which server a location connects to, as a key: connections to one server are counted together."""

from __future__ import annotations

from urllib.parse import urlsplit

from hvext.core.uri import Location


def server_key(location: Location) -> str:
    """Return the server behind a location, the same for all volumes on it; a local path is a server of its own."""
    options = location.blockdev()
    server = options.get("server") or options.get("portal")
    if isinstance(server, list):
        # A cluster is entered by any of them.
        server = server[0]
    if isinstance(server, dict):
        server = ":".join(str(server[part]) for part in ("host", "port", "path", "cid") if part in server)
    if server is None and "url" in options:
        server = urlsplit(str(options["url"])).netloc
    if server is None:
        server = options.get("conf") or options.get("filename") or options.get("path") or ""
    return f"{location.driver}:{server}"
