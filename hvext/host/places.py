"""Who was given which place: a symlink for each volume and place where it was attached, with the place as its target.

They lead nowhere, and are only read: to make one takes a single call, and every attach makes some. A link is called by
a checksum of its place and by its owner. What is here is a hint of what to look at, and no truth.

Without pathlib and hashlib, as in `hvext.host.files`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence

from hvext.core.identity import short_hash


class PlacesFolder:
    """The places in ``path``, each with its owners; nothing fails here: what cannot be written is not known.

    Places are texts without secrets, owners parts of a file's name.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def enter(self, owner: str, places: Sequence[str]) -> list[str]:
        """Write down that an owner has these places, and no others; return their other owners. May be repeated."""
        names = {f"{_checksum(place)}.{owner}": place for place in places}
        for name, place in names.items():
            self._link(name, place)
        every = self._names()
        for name in every:
            if name.endswith(f".{owner}") and name not in names:
                self._unlink(name)
        return self._beside(every, names)

    def beside(self, owner: str) -> list[str]:
        """Return the other owners of the places that an owner has."""
        every = self._names()
        return self._beside(every, {name: self._place(name) for name in every if name.endswith(f".{owner}")})

    def _beside(self, every: Sequence[str], own: Mapping[str, str]) -> list[str]:
        wanted = {name.partition(".")[0]: place for name, place in own.items()}
        if not wanted:
            return []
        same = [name for name in every if name.partition(".")[0] in wanted and name not in own]
        found = {name.partition(".")[2]: None for name in same if self._place(name) == wanted[name.partition(".")[0]]}
        return list(found)

    def leave(self, owner: str) -> None:
        """Write down that an owner has no place any more; may be repeated."""
        for name in self._names():
            if name.endswith(f".{owner}"):
                self._unlink(name)
        with contextlib.suppress(OSError):
            os.rmdir(self.path)

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.path)
        except OSError:
            return []

    def _link(self, name: str, place: str) -> None:
        # The folder goes with the last link in it, which may be now.
        for _attempt in range(3):
            with contextlib.suppress(FileExistsError):
                try:
                    os.symlink(place, f"{self.path}/{name}")
                except FileNotFoundError:
                    with contextlib.suppress(OSError):
                        os.makedirs(self.path, mode=0o700, exist_ok=True)
                    continue
                except OSError:
                    return
            return

    def _place(self, name: str) -> str:
        try:
            return os.readlink(f"{self.path}/{name}")
        except OSError:
            return ""

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(f"{self.path}/{name}")


def _checksum(place: str) -> str:
    return short_hash(place.encode(errors="surrogateescape"))
