"""The provider of Ceph's images, on a real cluster with cephx."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.servers.ceph import NAMESPACE, POOL, CephCluster
from tests.servers.program import environment, tool
from tests.shipped import NAME, Place, has_pattern, qemu_io

FAKE_RBD = """\
#!{python}
import json, os, subprocess, sys, time
real, state, words = "/usr/bin/rbd", {state!r}, sys.argv[1:]
option = lambda name: words[words.index(name) + 1]
mapped = json.load(open(state)) if os.path.exists(state) else None
if words[:2] == ["device", "list"]:
    print(json.dumps([mapped["listed"]] if mapped else []))
elif words[0] == "map":
    image, parts = next(word for word in words if word.count("/") and not word.startswith("/")), None
    *where, name = image.split("/")
    file = state + ".image"
    open(file, "w").close()
    node = dict(driver="rbd", pool=where[0], image=name, conf=option("--conf"), user=option("--id"))
    node.update({{"node-name": "v"}}, **(dict(namespace=where[1]) if where[1:] else {{}}))
    export = dict(type="fuse", id="e", mountpoint=file, writable=True, growable=True) | {{"node-name": "v"}}
    subprocess.run(["setsid", "qemu-storage-daemon", "--daemonize", "--pidfile", state + ".pid", "--blockdev",
                    json.dumps(node), "--export", json.dumps(export)], check=True, stdout=2)
    losetup = ["losetup", "--find", "--show", "--direct-io=on", file]
    device = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
    listed = dict(id="0", pool=where[0], namespace="".join(where[1:]), name=name, snap="-", device=device)
    json.dump({{"listed": listed, "file": file}}, open(state + ".new", "w"))
    os.rename(state + ".new", state)
    print(device)
elif words[0] == "unmap":
    subprocess.run(["losetup", "--detach", mapped["listed"]["device"]], check=True)
    subprocess.run(["umount", mapped["file"]])
    os.kill(int(open(state + ".pid").read()), 15)
    os.unlink(state)
else:
    done = subprocess.run([real, *words])
    if words[0] == "resize" and mapped and done.returncode == 0:
        subprocess.run(["truncate", "-s", option("--size"), mapped["file"]], check=True)
        subprocess.run(["losetup", "--set-capacity", mapped["listed"]["device"]], check=True)
    sys.exit(done.returncode)
"""


@pytest.fixture
def mapping(rbd: Place, ceph: CephCluster) -> Place:
    """The provider on a host whose `rbd` can map: a loop device on a file that is the image."""
    tools, state = rbd.folder / "tools", rbd.folder / "mapped"
    tools.mkdir()
    conf = rbd.folder / "mapping.conf"
    conf.write_text(f"{ceph.conf.read_text()}keyring = {ceph.keyring}\n")
    (tools / "rbd").write_text(FAKE_RBD.format(python=sys.executable, state=str(state)))
    (tools / "rbd").chmod(0o755)
    rbd.path = f"{tools}:/usr/bin:/bin:/usr/sbin"
    rbd.parameters |= {"path": "yes", "conf": str(conf)}
    return rbd


def test_a_mapped_image_and_its_uri_show_the_same_bytes_and_sizes(mapping: Place) -> None:
    mapping.create()
    ways = mapping.attach()
    assert len(ways) == 2
    assert mapping.attach() == ways
    for pattern, (written, read) in enumerate([(ways[0], ways[1]), (ways[1], ways[0])], 1):
        qemu_io(written, f"write -P {pattern} 0 64k")
        assert has_pattern(read, pattern)
    assert "detach it first" in mapping.refuse("remove")
    mapping.grow(24)
    assert [qemu_io(way, "length").strip() for way in ways] == ["24 MiB", "24 MiB"]
    with Path(ways[0][0]).open("rb"):
        assert f"process {os.getpid()}" in mapping.refuse("detach")
    mapping.do("detach")
    mapping.do("detach")
    mapping.do("remove")


def test_without_a_kernel_client_the_first_line_is_empty(rbd: Place, ceph: CephCluster) -> None:
    rbd.create()
    if not Path("/sys/bus/rbd").exists():
        assert rbd.do("attach").startswith("\nkvm:rbd:")
    assert rbd.do("attach", path="no") == f"\nkvm:{ceph.uri(NAME)}\n"
    assert "cannot map image" in rbd.refuse("attach", path="yes") or Path("/sys/bus/rbd").exists()


def test_a_snapshot_keeps_the_bytes_of_its_moment_and_outlives_the_image(rbd: Place, ceph: CephCluster) -> None:
    rbd.create()
    (way,) = rbd.attach(path="no")
    qemu_io(way, "write -P 1 0 64k")
    wanted = {"VOL_SNAPSHOT_NAME": "s", "VOL_SNAPSHOT_SIZE": "20"}
    rbd.do("snapshot", variables=wanted)
    assert "already there" in rbd.refuse("snapshot", variables=wanted)
    qemu_io(way, "write -P 2 0 64k")
    (copy,) = rbd.attach("s", path="no")
    assert has_pattern(copy, 1)
    assert has_pattern(way, 2)
    assert qemu_io(copy, "length").strip() == "20 MiB"
    assert "ask for at least" in rbd.refuse("snapshot", variables={"VOL_SNAPSHOT_NAME": "t", "VOL_SNAPSHOT_SIZE": "1"})
    rbd.do("remove")
    assert has_pattern(copy, 1)
    rbd.do("remove", "s")
    assert ceph.rbd("ls", POOL) == ""


#: What `snapshot` and `create` of the tests are given.
WANTED = {"VOL_SIZE": "16", "VOL_SNAPSHOT_NAME": "s", "VOL_SNAPSHOT_SIZE": "16"}


def kill_behind(rbd: Place, step: str, action: str) -> None:
    """Kill an action, and all of its session, when a step of the tool is done."""
    tools, there = rbd.folder / "tools", rbd.folder / "there"
    tools.mkdir()
    real = need("rbd", "ceph-common")
    (tools / "rbd").write_text(
        f'#!/bin/sh\n{real} "$@" || exit\ncase "$*" in "{step} "*) touch {there}; exec sleep 60; esac\n'
    )
    (tools / "rbd").chmod(0o755)
    rbd.path = f"{tools}:/usr/bin:/bin"
    process = rbd.start(action, NAME, WANTED, {})
    while not there.exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    rbd.path = "/usr/bin:/bin"


@pytest.mark.parametrize("step", ["create", "snap create", "clone"])
def test_an_image_that_a_killed_action_left_behind_is_made_anew(rbd: Place, step: str) -> None:
    action = "create" if step == "create" else "snapshot"
    if action == "snapshot":
        rbd.create()
    kill_behind(rbd, step, action)
    if step != "snap create":
        rbd.do(action, variables=WANTED)
    rbd.do("remove")
    rbd.do("remove", "s")


def test_a_volume_that_took_the_name_of_a_killed_snapshot_is_not_cleared_away(rbd: Place) -> None:
    rbd.create()
    kill_behind(rbd, "clone", "snapshot")
    rbd.do("remove", "s")
    rbd.create("s")
    (way,) = rbd.attach("s", path="no")
    qemu_io(way, "write -P 5 0 64k")
    assert "already there" in rbd.refuse("snapshot", variables=WANTED)
    assert has_pattern(way, 5)
    assert "choose another name" in rbd.refuse("snapshot", variables={**WANTED, "VOL_SNAPSHOT_NAME": NAME})
    rbd.do("remove", "s")
    rbd.do("remove")


@pytest.mark.nightly
def test_a_killed_snapshot_is_made_again(rbd: Place) -> None:
    rbd.create()
    (way,) = rbd.attach(path="no")
    for number in range(8):
        wanted = {"VOL_SNAPSHOT_NAME": "s", "VOL_SNAPSHOT_SIZE": "16"}
        qemu_io(way, f"write -P {number} 0 64k")
        process = rbd.start("snapshot", NAME, wanted, {})
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=random.uniform(0.1, 0.6))  # noqa: S311
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            rbd.do("snapshot", variables=wanted)
        assert has_pattern(rbd.attach("s", path="no")[-1], number)
        rbd.do("remove", "s")
    rbd.do("remove")


def test_the_pool_namespace_prefix_and_user_lead_to_the_image(rbd: Place, ceph: CephCluster) -> None:
    rbd.parameters |= {"namespace": NAMESPACE, "prefix": "vm-"}
    rbd.do("verify")
    rbd.create()
    assert ceph.rbd("ls", f"{POOL}/{NAMESPACE}").split() == [f"vm-{NAME}"]
    assert rbd.do("attach", path="no") == f"\nkvm:{ceph.uri(f'vm-{NAME}', namespace=NAMESPACE)}\n"
    rbd.do("setinfo", variables={"VOL_METADATA": "originstname+web"})
    meta = json.loads(ceph.rbd("image-meta", "list", "--format", "json", f"{POOL}/{NAMESPACE}/vm-{NAME}"))
    assert meta == {"hvext.metadata": "originstname+web"}
    rbd.do("remove")


def test_a_mistaken_parameter_of_rbd_is_named(rbd: Place) -> None:
    mistakes: list[tuple[dict[str, str], str]] = [
        ({"pool": "none"}, "cannot look into none"),
        ({"namespace": "none"}, "cannot look into volumes/none"),
        ({"id": "nobody"}, "client.nobody cannot look into volumes"),
        ({"keyring": "/none"}, "cannot read /none; correct the parameter keyring"),
        ({"conf": "ceph.conf"}, "it must be an absolute path"),
        ({"pool": "a/b"}, "the parameter pool is 'a/b'"),
        ({"path": "maybe"}, "it must be auto or yes or no"),
        ({"timeout": "soon"}, "a number of seconds"),
    ]
    for parameters, words in mistakes:
        assert words in rbd.refuse("verify", **parameters)


@contextlib.contextmanager
def opened_by_qemu(way: list[str]) -> Iterator[None]:
    """A user of an image, as a guest is one."""
    argv = ["qemu-io", "-f", "raw", "-t", "none", *way]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=0) as client:
        assert client.stdin
        assert client.stdout
        client.stdin.write("write 0 4k\n")
        while not client.stdout.readline().startswith("4 KiB"):
            pass
        yield
        client.stdin.close()


def test_an_image_in_use_is_not_removed(rbd: Place) -> None:
    rbd.create()
    (way,) = rbd.attach(path="no")
    with opened_by_qemu(way):
        assert "is in use" in rbd.refuse("remove")
    rbd.do("remove")


def test_nobody_waits_for_a_guest_that_has_the_image_when_no_action_was_interrupted(rbd: Place) -> None:
    tools, calls = rbd.folder / "tools", rbd.folder / "calls"
    tools.mkdir()
    (tools / "rbd").write_text(f'#!/bin/sh\necho "$1" >>{calls}\nexec {need("rbd", "ceph-common")} "$@"\n')
    (tools / "rbd").chmod(0o755)
    rbd.create()
    (way,) = rbd.attach(path="no")
    with opened_by_qemu(way):
        rbd.do("setinfo", variables={"VOL_METADATA": "originstname+web"})
        rbd.grow(24)
        rbd.path = f"{tools}:/usr/bin:/bin"
        assert "is in use" in rbd.refuse("remove")
    assert calls.read_text().split().count("rm") == 1
    assert "status" not in calls.read_text().split()
    rbd.do("remove")


@pytest.fixture
def forgetful(ceph: CephCluster) -> Iterator[None]:
    """A cluster that gives up a client that was killed after 4 s, in place of 30."""
    osd = [need("ceph", "ceph-common"), "--admin-daemon", str(ceph.folder / "osd.0.asok"), "config"]
    tool([*osd, "set", "osd_client_watch_timeout", "4"], environment(ceph.folder))
    yield
    tool([*osd, "unset", "osd_client_watch_timeout"], environment(ceph.folder))


#: Actions, what each of them is given, and the step of the tool that opens the image for writing.
OPENING = {
    "setinfo": ("image-meta", {"VOL_METADATA": "originstname+web"}),
    "grow": ("resize", {"VOL_NEW_SIZE": "24"}),
    "remove": ("rm", {}),
}


def kill_while_open(rbd: Place, ceph: CephCluster, action: str) -> None:
    """Kill an action, and all of its session, while its tool has the image open."""
    tools = rbd.folder / "tools"
    tools.mkdir()
    step, wanted = OPENING[action]
    # The tool itself is through in no time: in its place is a client that opens the image just so, and stays.
    stays = f"exec {need('qemu-io', 'qemu-utils')} -f raw -c 'sleep 60000' {shlex.quote(ceph.uri(NAME))}"
    real = need("rbd", "ceph-common")
    (tools / "rbd").write_text(f'#!/bin/sh\n[ "$1" != {step} ] || {stays}\nexec {real} "$@"\n')
    (tools / "rbd").chmod(0o755)
    rbd.path = f"{tools}:/usr/bin:/bin"
    process = rbd.start(action, NAME, wanted, {})
    while not watchers(ceph):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    rbd.path = "/usr/bin:/bin"


def watchers(ceph: CephCluster) -> list[object]:
    """Whom the cluster takes for users of the image."""
    found: list[object] = json.loads(ceph.rbd("status", "--format", "json", f"{POOL}/{NAME}"))["watchers"]
    return found


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("action", ["setinfo", "remove"])
def test_an_image_whose_last_action_was_killed_is_removed_at_the_first_try(
    rbd: Place, ceph: CephCluster, action: str
) -> None:
    rbd.create()
    kill_while_open(rbd, ceph, action)
    rbd.do("remove")
    assert ceph.rbd("ls", POOL) == ""


@pytest.mark.nightly
@pytest.mark.parametrize("action", ["setinfo", "grow"])
def test_an_image_whose_killed_action_was_repeated_is_removed_at_the_first_try(
    rbd: Place, ceph: CephCluster, action: str
) -> None:
    rbd.create()
    kill_while_open(rbd, ceph, action)
    # After 10 s it goes on without the killed client, which counts as a user for 20 more.
    rbd.do(action, variables=OPENING[action][1])
    rbd.do("attach", path="no")
    rbd.do("detach", path="no")
    rbd.do("remove")
    assert ceph.rbd("ls", POOL) == ""


def test_a_missing_pool_or_namespace_is_not_taken_for_a_removed_image(rbd: Place) -> None:
    for action in ("remove", "attach"):
        assert "error opening pool" in rbd.refuse(action, pool="none")
        assert "namespace 'none' does not exist" in rbd.refuse(action, namespace="none")
