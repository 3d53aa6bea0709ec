"""Which keyring Ceph's client library would take for an image.

Source: Ceph's documentation, "Configuring Ceph" and "User Management": the section of the user goes before ``client``
and ``global``, and of the files that ``keyring`` lists the first that can be read is taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from hvext.core.uri.ceph import DEFAULT_CONF, DEFAULT_USER
from hvext.core.uri.rbd import RbdLocation

_KEYRINGS = (
    "/etc/ceph/$cluster.$name.keyring",
    "/etc/ceph/$cluster.keyring",
    "/etc/ceph/keyring",
    "/etc/ceph/keyring.bin",
)


def keyrings(location: RbdLocation, conf: str) -> tuple[str, ...]:
    """Return the keyrings that are tried, given the text of the configuration file; none where no key is needed."""
    user = location.user or DEFAULT_USER
    settings = {**_settings(conf, user), **dict(location.options)}
    modes = location.auth or tuple(settings.get("auth_client_required", "cephx").replace(",", " ").split())
    if location.key is not None or "cephx" not in modes or settings.get("key"):
        return ()
    if settings.get("keyfile"):
        return (settings["keyfile"],)
    cluster = (location.conf or DEFAULT_CONF).rpartition("/")[2].removesuffix(".conf")
    values = {"cluster": cluster, "name": f"client.{user}", "id": user, "type": "client"}
    listed = re.split(r"[,;\s]+", settings["keyring"]) if settings.get("keyring") else _KEYRINGS
    paths = (re.sub(r"\$\{?(\w+)\}?", lambda match: values.get(match[1], match[0]), path) for path in listed)
    return tuple(path for path in paths if path.startswith("/"))


def _settings(conf: str, user: str) -> Mapping[str, str]:
    """The settings of a configuration that a user's client has; later sections in this order win."""
    sections: dict[str, dict[str, str]] = {"global": {}, "client": {}, f"client.{user}": {}}
    current: dict[str, str] = {}
    for line in conf.splitlines():
        text = re.split(r"(?<!\\)[#;]", line, maxsplit=1)[0].strip()
        if text.startswith("[") and text.endswith("]"):
            current = sections.setdefault(text[1:-1].strip(), {})
        elif "=" in text:
            name, _equals, value = text.partition("=")
            current[re.sub(r"[\s-]+", "_", name.strip())] = value.strip().strip("\"'")
    return {**sections["global"], **sections["client"], **sections[f"client.{user}"]}
