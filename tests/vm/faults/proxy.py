"""A program that stands before QEMU's monitor, then becomes QEMU: ``proxy.py FOLDER qemu-system-x86_64 …``.

It listens beside QEMU's own socket ``qmp`` (in ``proxy``), leaves a child there that hands on every line, and executes
QEMU: who connects sees QEMU's process behind the socket. The child ends with QEMU.

What it does at the next command when ``armed-qmp`` is there: ``cut`` the connection once the command was sent on,
``delay`` all that QEMU says, ``kill-driver`` (the process whose number is in ``pid``), ``kill-qemu``. With ``change``
behind the word, at the next command that changes something.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

#: Longer than the driver's limit for a command.
DELAY_S = 1.4
_LOOKS = ("query-", "qom-list", "qom-get", "qmp_capabilities", "device-list")
_START_S = 20.0
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Listen, leave a child that hands on, become QEMU."""
    folder, argv = Path(sys.argv[1]), sys.argv[2:]
    real = next(word.split("path=")[1].split(",")[0] for word in argv if word.startswith("socket,id=qmp,"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(Path(real).with_name("proxy")))
    listener.listen(8)
    qemu = os.getpid()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        while os.getppid() == qemu:
            client, _address = listener.accept()
            with client:
                _serve(client, real, folder, qemu)
        os._exit(0)
    listener.close()
    os.execvp(argv[0], argv)  # noqa: S606


def _serve(client: socket.socket, real: str, folder: Path, qemu: int) -> None:
    with socket.socket(socket.AF_UNIX) as upstream:
        deadline = time.monotonic() + _START_S
        while upstream.connect_ex(real):
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        pending = ""
        while True:
            readable, _, _ = select.select([client, upstream], [], [])
            try:
                if upstream in readable:
                    said = upstream.recv(1 << 20)
                    if not said:
                        return
                    client.sendall(said)
                if client in readable:
                    heard = client.recv(1 << 20)
                    if not heard:
                        return
                    commands, pending = _commands(pending + heard.decode())
                    for text in commands:
                        if not _command(text, upstream, folder, qemu):
                            return
            except OSError:
                return


def _commands(text: str) -> tuple[list[str], str]:
    """Return the commands in a text, which nothing need divide, and what was begun behind them."""
    found = []
    while text := text.lstrip():
        try:
            end = json.JSONDecoder().raw_decode(text)[1]
        except ValueError:
            break
        found.append(text[:end])
        text = text[end:]
    return found, text


def _command(text: str, upstream: socket.socket, folder: Path, qemu: int) -> bool:
    """Hand one command on; False when the connection ends with it."""
    command = json.loads(text)
    name = command.get("execute") or command["exec-oob"]
    changes = not name.startswith(_LOOKS)
    fault = _take(folder, changes=changes) if name != "qmp_capabilities" else ""
    with (folder / "trace").open("a") as trace:
        trace.write(f"qmp {name}\n")
    if fault == "kill-qemu":
        os.kill(qemu, signal.SIGKILL)
        time.sleep(_START_S)
    upstream.sendall(text.encode())
    if fault == "kill-driver":
        os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
    if fault == "delay":
        time.sleep(DELAY_S)
    return fault != "cut"


def _take(folder: Path, *, changes: bool) -> str:
    """Return what is to be done at this command; empty when nothing."""
    armed = folder / "armed-qmp"
    try:
        kind, _space, when = armed.read_text().partition(" ")
        if when == "change" and not changes:
            return ""
        armed.unlink()
    except FileNotFoundError:
        return ""
    return kind


if __name__ == "__main__":
    main()
