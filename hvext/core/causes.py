"""What QEMU's words about storage that it could not open mean, and what to do about it.

QEMU passes on what its client libraries say, which names the symptom. The words were collected from QEMU 7.2 and 10.0
with real servers that refused, or were not there (``tests/vm/test_protocol_errors.py``).
"""

from __future__ import annotations

import re

_GONE = "nothing answers there: is the server running, and are host and port right?"
_NAME = "the server has no volume of that name"
_MODULE = (
    "the module with this driver is not installed (Debian package qemu-block-extra), or is of another build than this "
    "QEMU: then the guest has to be started anew"
)
_LOGIN = "is the password right? It is taken from the URI, from the provider's parameter 'password', or from --secret"
#: The driver's name (a pattern), QEMU's words (a pattern), and the hint; the first that fits counts.
_CAUSES: tuple[tuple[str, str, str], ...] = (
    (".*", r"Unknown driver", _MODULE),
    (
        ".*",
        r"Bus '.*' does not support hotplugging",
        "what is on that bus stays until the guest ends: shut it down, then hvext stop. The next time, name a "
        "pcie-root-port with the disk option bus=",
    ),
    ("file|host_device|host_cdrom", r"No such file", "is the path right? On QEMU's host there is nothing at it"),
    (
        ".*",
        r"connect to '/.*Permission denied",
        "the user whom QEMU runs as may not write to that socket, or not search a folder that leads there",
    ),
    (".*", r"connect to '/", "nobody listens at that socket: is the server running?"),
    (".*", r"address resolution failed|Name or service not known|resolve host", "is the host's name right?"),
    (".*", r"Unable to access credentials", "QEMU found no certificate or key there, or its user may not read it"),
    ("nbd", r"export not available|not present|export .* unknown", _NAME),
    ("nbd", r"TLS negotiation required", "the server wants TLS: write nbds:// in place of nbd://"),
    ("nbd", r"Denied by server for option 5", "the server has no TLS: write nbd:// in place of nbds://"),
    ("nbd", r"hasn't got a known issuer", "the server's certificate is not signed by the authority in ca-cert.pem"),
    (
        "nbd",
        r"does not match the hostname",
        "the certificate is another host's: tls-hostname=NAME says whose it may be",
    ),
    ("nbd", r"not found in PSK file", "that file has no key for the user: each of its lines is USER:KEY"),
    (
        "nbd",
        r"TLS channel|TLS handshake|Broken pipe|reset by peer",
        "the server did not accept the client's certificate or key",
    ),
    ("iscsi", r"Authentication failure", f"the target refused user and password: {_LOGIN}"),
    ("iscsi", r"no password was given", f"a user alone cannot log in: {_LOGIN}"),
    ("iscsi", r"Target not found", "the server has no target of that name"),
    ("iscsi", r"LOGICAL_UNIT_NOT_SUPPORTED", "the target has no unit of that number"),
    ("iscsi", r"iscsi_service failed|reconnect", _GONE),
    ("ssh", r"does not match host_key_check", "another server answers there, or it has a new host key"),
    (
        "ssh",
        r"no host key|known_hosts|host key",
        "QEMU's user has not met that host: host_key_check=sha256:… names its key",
    ),
    ("ssh", r"failed to authenticate", "QEMU takes keys from the ssh-agent in its own environment (SSH_AUTH_SOCK)"),
    ("ssh", r"No such file", _NAME),
    ("https?|ftps?", r"error: 404", _NAME),
    ("https?|ftps?", r"error: 40[13]|Access denied|Login denied", f"the server refused the login: {_LOGIN}"),
    ("https|ftps", r"certificate|SSL", "the host does not know who signed the server's certificate (sslverify)"),
    ("rbd", r"error connecting: Permission denied", "the cluster refused user and key: are id and key right?"),
    ("rbd", r"error connecting: No such file", "there is no key for that user: is the keyring there, and readable?"),
    ("rbd", r"error connecting", "are the configuration, the monitors' addresses and the key right?"),
    ("rbd", r"error opening pool", "the cluster has no pool of that name, or the user may not see it"),
    ("rbd", r"error reading header", "the pool (or namespace) has no image of that name"),
    ("gluster", r"failed to connect", "is the server running, and has it a volume of that name?"),
    ("gluster", r"Could not open image", "the volume has no file of that name"),
    ("nfs", r"NFS3ERR_NOENT|No such file", _NAME),
    ("nfs", r"mount", "is the server running, and does it export that directory to this host?"),
)


def hint_for(driver: str, description: str) -> str:
    """Return what a user can do about storage that could not be opened; empty where the words say it all."""
    for own, words, hint in _CAUSES:
        if re.fullmatch(own, driver) and re.search(words, description, re.IGNORECASE):
            return hint
    if re.search(r"refused|No such file|timed out|No route|unreachable|(?:Couldn't|Could not) connect", description):
        return _GONE
    return ""
