"""Asking a vhost-user server whether it serves: QEMU would wait for its answer with everything else stopped.

Source: QEMU, docs/interop/vhost-user.rst: message header, VHOST_USER_GET_FEATURES.
"""

from __future__ import annotations

import socket
import struct

from hvext.errors import QemuError

_GET_FEATURES = 1
_VERSION = 1
#: Request, flags and size of what follows; the answer has eight bytes of features behind it.
_HEADER = struct.Struct("=III")
_ANSWER_BYTES = _HEADER.size + 8


def check_vhost_user(path: str, *, timeout_s: float) -> None:
    """Return when the server behind a unix socket answers; raises QemuError, which says why not.

    The server must take one connection after another: this is closed before QEMU's is made.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout_s)
        try:
            client.connect(path)
            client.sendall(_HEADER.pack(_GET_FEATURES, _VERSION, 0))
            answer = b""
            while len(answer) < _ANSWER_BYTES and (piece := client.recv(_ANSWER_BYTES - len(answer))):
                answer += piece
        except TimeoutError as error:
            raise QemuError(
                f"the vhost-user server at {path} does not answer",
                hint="it is stopped, or serves another guest already: it serves one at a time",
            ) from error
        except (ConnectionResetError, BrokenPipeError):
            answer = b""
        except OSError as error:
            raise QemuError(
                f"nothing answers at {path}: {error.strerror}", hint="is the server running, and is the path right?"
            ) from error
    if len(answer) < _ANSWER_BYTES or _HEADER.unpack_from(answer)[0] != _GET_FEATURES:
        raise QemuError(f"what answers at {path} is no vhost-user server", hint="is it the socket of another protocol?")
