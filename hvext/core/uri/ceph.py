r"""What Ceph's client library takes as options: monitors, ways to log in, and the configuration file for all the rest.

QEMU gives every option of an ``rbd:`` URI to the library. A block node has fields for the monitors and the ways to log
in; what has no field goes into a private configuration file, behind the contents of the one that the URI names, in the
section ``[client.USER]``: the library reads the last of equal sections last, and prefers that one to ``[client]`` and
``[global]``. Its value then wins, as it does in a URI.

The library takes the cluster's name, which is part of its keyring's default name, from the name of the configuration
file; so the private file has the name of the one that it stands for, in a folder of its own.
Source: Ceph's documentation, "Configuring Ceph", "Monitor Config Reference"; run against librados 16.2 and 18.2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hvext.core.secret import is_secret_name
from hvext.core.text import quoted
from hvext.core.uri.syntax import bracketed, check_host, check_port
from hvext.core.value import value_object
from hvext.errors import LocationError

DEFAULT_CONF = "/etc/ceph/ceph.conf"
#: The user that the library takes when none is named.
DEFAULT_USER = "admin"
#: QEMU's RbdAuthMode.
AUTH_MODES = ("cephx", "none")
_BLANK = " \t\v\f"
_OPTION_NAME = r"[a-z][a-z0-9_]*\Z"
_MONITOR = r"(?:\[(?P<v6>[^\]]*:[^\]]*)\]|(?P<name>[^:\[\]]+)):(?P<port>[0-9]{1,5})"
#: Words for the protocol, which Ceph takes in front of an address.
_PROTOCOLS = ("v1", "v2", "any")
#: What an option may be taken for, and is not: in a configuration file, Ceph would pass over it without a word.
_NO_OPTIONS = frozenset("id conf pool namespace image snapshot snap user name cluster server mon monitor".split())
#: What a section's name can hold: Ceph 16 aborts the whole process at what is not ASCII.
_USER = r"[!-~](?:[ -~]*[!-~])?\Z"
#: With these, the library takes the text for several files, or for one of another name.
_SEVERAL_FILES = r"[,;$]|^~"


@value_object
class Monitor:
    """A monitor of the cluster: host name, IPv4 or bare IPv6 address, and port."""

    host: str
    port: int

    def __post_init__(self) -> None:
        check_host(self.host)
        check_port(self.port)
        if "%" in self.host:
            raise LocationError(f"Ceph monitor {quoted(self.host)}: Ceph takes no zone of an IPv6 address")
        if self.host in _PROTOCOLS:
            raise LocationError(f"Ceph monitor {quoted(self.host)}: that word names a protocol, no host")

    def __str__(self) -> str:
        return f"{bracketed(self.host)}:{self.port}"


def parse_monitors(text: str) -> tuple[Monitor, ...] | None:
    """Return the monitors of a ``mon_host`` list; None when it says more than host and port of each.

    A monitor without a port is looked for at two ports with two protocols, which no single port says.
    """
    monitors = []
    for part in filter(None, re.split(r"[;, \t]+", text)):
        match = re.fullmatch(_MONITOR, part)
        if match is None:
            return None
        try:
            monitors.append(Monitor(host=match["v6"] or match["name"], port=int(match["port"])))
        except LocationError:
            return None
    return tuple(monitors) or None


def parse_auth_modes(text: str) -> tuple[str, ...] | None:
    """Return the ways to log in that a list names; None when there are some that QEMU has no word for."""
    modes = tuple(dict.fromkeys(part for part in re.split(r"[;,= \t]+", text) if part))
    return modes if modes and set(modes) <= set(AUTH_MODES) else None


def option_name(text: str) -> str:
    """Return the name of an option as Ceph keeps it, with ``_`` for blanks; raises LocationError."""
    name = re.sub(r"\s+", "_", text.strip())
    if not re.match(_OPTION_NAME, name):
        raise LocationError(
            f"rbd: Ceph has no option {quoted(text)}", hint="their names are lower-case letters, digits and '_'"
        )
    if name in _NO_OPTIONS:
        raise LocationError(
            f"rbd: Ceph has no option {quoted(text)}",
            hint="the image is rbd:POOL/NAMESPACE/IMAGE@SNAPSHOT, the user id=USER, the file conf=FILE, without blanks",
        )
    if is_secret_name(name):
        raise LocationError(
            f"rbd: option {quoted(name)} would hold a secret, and only key can",
            hint="put it into a Ceph configuration file and name that with :conf=FILE",
        )
    return name


def check_option_value(name: str, value: str) -> None:
    """Raise LocationError for a value that cannot be written into a configuration file."""
    if not value:
        raise LocationError(f"rbd: option {name} has no value", hint="leave it out for Ceph's default")
    if re.search(r"[\r\n]", value):
        raise LocationError(f"rbd: option {name} has a line end in its value, which no Ceph configuration can hold")
    if value != value.strip(_BLANK):
        raise LocationError(
            f"rbd: option {name} has blanks around its value, which Ceph drops from its configuration",
            hint="leave them out",
        )


def section(user: str, options: Sequence[tuple[str, str]]) -> str:
    """Return the lines of a configuration file that set options for a user; raises LocationError.

    Values are in quotes, which Ceph 16 needs for what is not ASCII, with a backslash before what it would not keep
    there.
    """
    user = user or DEFAULT_USER
    if not re.match(_USER, user) or re.search(r"[\]#;\\]", user):
        raise LocationError(
            f"rbd: the cephx user {quoted(user)} cannot be named in a Ceph configuration, which {options[0][0]} needs",
            hint="leave the option out, or put it into a Ceph configuration file and name that with :conf=FILE",
        )
    lines = [f'{name} = "{_escaped(value)}"' for name, value in options]
    # The first line ends whatever the file before it ends in, a backslash too.
    return "\n".join(["", f"[client.{user}]", *lines, ""])


def _escaped(value: str) -> str:
    return re.sub(r"([\\\"#;])", r"\\\1", value)


def check_extendable(conf: str, option: str) -> None:
    """Raise LocationError for a configuration file that cannot stand before more options."""
    if re.search(_SEVERAL_FILES, conf):
        raise LocationError(
            f"rbd: conf {quoted(conf)} names more than one file to Ceph, so option {option} has no place",
            hint="name one file, with none of ',', ';' and '$' in its path",
        )
    if not conf.startswith("/") or conf.endswith(("/", "/.", "/..")):
        raise LocationError(
            f"rbd: conf {quoted(conf)} is not the absolute path of a file, which option {option} needs",
            hint="write the whole path",
        )
