"""What the servers have in common: a program that can be killed and frozen, and storage that is read without QEMU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tests.servers.program import Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server: ``service`` is the program that clients speak to, ``folder`` holds all of its files."""

    service: Service
    folder: Path

    def kill(self) -> None:
        """Kill the server at once, as a crash would."""
        self.service.kill()

    def restart(self) -> None:
        """Start it again at the same address, with the same storage; kills it first when it still runs."""
        self.service.restart()

    def freeze(self) -> None:
        """Stop it where it is: connections stay open and nothing answers."""
        self.service.freeze()

    def thaw(self) -> None:
        """Let a frozen server go on."""
        self.service.thaw()


@dataclass(frozen=True, slots=True, kw_only=True)
class FileServer(Server):
    """A server whose volumes are files, which a test may read and change behind its back."""

    def path(self, name: str) -> Path:
        """The file behind a volume."""
        return self.folder / "volumes" / name

    def create(self, name: str, size_bytes: int) -> None:
        """Make a volume of zeros, or give one another size."""
        with self.path(name).open("ab") as file:
            file.truncate(size_bytes)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Read what the storage holds."""
        return read_file(self.path(name), offset, length)

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Change what the storage holds, durably."""
        with self.path(name).open("r+b") as file:
            file.seek(offset)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def read_file(path: Path, offset: int, length: int) -> bytes:
    """Return bytes of a file."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)
