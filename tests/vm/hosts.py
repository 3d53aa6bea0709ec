"""Two hosts on one machine: network namespaces with a line between them, and a provider that looks where it is.

Each host has folders of its own for what serves a volume there: its sockets and loop devices do not exist on the
other. The folder with the volumes is shared, as a SAN is.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvext.core.disk import Disk
from hvext.core.provider import Action
from hvext.host.provider import DEFAULT_SEARCH_PATH, ProviderHost
from hvext.operations import volumes
from tests.conftest import need
from tests.host.oracle import absent
from tests.providers import Call, read_calls, write_provider

PROVIDER = "everywhere"
_SAMPLE = Path(DEFAULT_SEARCH_PATH[-1]) / "sample"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One of the two hosts: its network, and its view of the provider."""

    name: str
    folder: Path
    namespace: str
    address: str
    providers: ProviderHost
    record: Path

    @property
    def prefix(self) -> tuple[str, ...]:
        """An argv that runs what is put behind it on this host."""
        return ("nsenter", f"--net=/run/netns/{self.namespace}", "--")

    def offer(self, access: str) -> None:
        """Have the provider offer a ``path``, a ``uri`` or ``both`` here from now on."""
        path, nbd = {"path": ("yes", "no"), "uri": ("no", "yes"), "both": ("yes", "yes")}[access]
        (self.folder / "settings").write_text(f"export EXTP_PATH={path} EXTP_NBD={nbd}\n")

    def break_action(self, action: str, exclusive: str = "") -> None:
        """Have an action (an ``open`` of that kind) fail here from now on."""
        (self.folder / f"broken-{action}{exclusive}").touch()

    def mend(self) -> None:
        """Have all actions work again."""
        for path in self.folder.glob("broken-*"):
            path.unlink()

    def attached(self, disk: Disk) -> bool:
        """Whether anything serves a volume here, or says so."""
        return bool([*(self.folder / "run").glob("*/state")]) or self.opened(disk) != ""

    def opened(self, disk: Disk) -> str:
        """How a volume is open here: exclusive, shared, or not at all."""
        path = Path(disk.volume.parameters["dir"]) / disk.volume.name / "open" / self.name
        return path.read_text().split()[0] if path.exists() else ""

    def cut(self) -> None:
        """Take the line to the other host down: nothing gets through, and nobody is told."""
        _ip("-n", self.namespace, "link", "set", "line", "down")

    def join(self) -> None:
        """Bring the line up again."""
        _ip("-n", self.namespace, "link", "set", "line", "up")
        while "state UP" not in _ip("-n", self.namespace, "link", "show", "line"):
            time.sleep(0.05)
        # That nobody answered while it was down is not to be remembered.
        _ip("-n", self.namespace, "neighbour", "flush", "all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """The two hosts, and the storage that both reach."""

    one: Host
    two: Host
    folder: Path

    def disk(self, name: str = "vol", **options: Any) -> Disk:
        """Return a disk on the volume ``name``."""
        own = {"dir": str(self.folder / "volumes")}
        return Disk.from_mapping({"provider": PROVIDER, "volume": name, "parameters": own, **options})

    def create(self, name: str = "vol", *, size_mib: int = 64, **options: Any) -> Disk:
        """Make a volume, and return a disk on it."""
        disk = self.disk(name, **options)
        volumes.create_volume(self.one.providers, disk, size_mib)
        return disk

    def calls(self) -> list[tuple[str, str, str]]:
        """Return host, action with the kind of an ``open``, and volume of all calls so far, in order."""
        return [
            (call.environment["HVEXT_HOST"], _words(call), call.volume)
            for call in read_calls(self.one.record)
            if call.action != Action.CREATE
        ]

    def forget_calls(self) -> None:
        """Begin a new list of calls."""
        (self.one.record / "calls").unlink(missing_ok=True)


def _words(call: Call) -> str:
    kind = call.environment.get("VOL_OPEN_EXCLUSIVE")
    return call.action if kind is None else f"{call.action} {'exclusive' if kind == 'True' else 'shared'}"


@contextlib.contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Two hosts inside the block; what serves volumes on them is ended after it."""
    need("ip", "iproute2")
    need("nsenter", "util-linux")
    need("losetup", "mount")
    tag = f"hvx{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory(prefix="hvext-") as short, contextlib.ExitStack() as stack:
        folder = Path(short)
        for number in (1, 2):
            _namespace(f"{tag}-{number}", stack)
        _ip("-n", f"{tag}-1", "link", "add", "line", "type", "veth", "peer", "name", "line", "netns", f"{tag}-2")
        made = Hosts(
            one=_host("one", folder, f"{tag}-1", "10.77.0.1"),
            two=_host("two", folder, f"{tag}-2", "10.77.0.2"),
            folder=folder,
        )
        yield made
        for host in (made.one, made.two):
            host.mend()
            for path in (folder / "volumes").glob("*"):
                host.providers.run(host.providers.find(PROVIDER), Action.DETACH, made.disk(path.name).volume)


def _namespace(name: str, stack: contextlib.ExitStack) -> None:
    try:
        _ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        absent(f"no network namespaces here: {error.stderr}")
    stack.callback(_ip, "netns", "delete", name)
    _ip("-n", name, "link", "set", "lo", "up")


def _host(name: str, folder: Path, namespace: str, address: str) -> Host:
    own = folder / name
    own.mkdir()
    record = folder / "calls"
    _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "line")
    _ip("-n", namespace, "link", "set", "line", "up")
    scripts = {str(action): _script(action, own, namespace) for action in Action if action is not Action.SNAPSHOT}
    write_provider(own / "providers", PROVIDER, scripts, "dir of volumes\napi_token of the storage\n", record=record)
    host = Host(
        name=name,
        folder=own,
        namespace=namespace,
        address=address,
        providers=ProviderHost(search_path=(str(own / "providers"),), environment={"HVEXT_HOST": name}),
        record=record,
    )
    host.offer("both")
    return host


def _script(action: Action, own: Path, namespace: str) -> str:
    """Run the sample provider's script on this host, unless the action is to fail here."""
    quoted = shlex.quote(str(own))
    mark = f'{quoted}/broken-{action}"${{VOL_OPEN_EXCLUSIVE:-}}"'
    return (
        f'if [ -e {mark} ]; then echo "{action} is broken" >&2; exit 1; fi\n'
        f". {quoted}/settings\n"
        f"export EXTP_RUN={quoted}/run EXTP_HOST={own.name}\n"
        f"nsenter --net=/run/netns/{namespace} -- {shlex.quote(str(_SAMPLE / action))}"
    )


def _ip(*words: str) -> str:
    environment = {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, env=environment).stdout
