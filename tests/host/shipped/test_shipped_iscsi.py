"""The provider of iSCSI units, with units that are there and units that are made, on a real tgtd with CHAP."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import need
from tests.servers.iscsi import TARGET, IscsiTarget
from tests.servers.iscsi import USER as CHAP_USER
from tests.shipped import NAME, WITH_TGT, Place, has_pattern, qemu_io

FAKE_ISCSIADM = """\
#!/bin/sh
# A kernel that logs in: the unit's file becomes a loop device.
state={state} file={file}
case "$*" in
*session*)
    [ -e $state ] || {{ echo "iscsiadm: No active sessions." >&2; exit 21; }}
    printf 'Target: iqn.2000-01.org.example:other (non-flash)\\n\\tCurrent Portal: {portal},1\\n'
    printf '\\t\\tscsi1 Channel 00 Id 0 Lun: {lun}\\n\\t\\t\\tAttached scsi disk sdz\\t\\tState: running\\n'
    printf 'Target: {target} (non-flash)\\n\\tCurrent Portal: {portal},1\\n\\tPersistent Portal: {portal},1\\n'
    printf '\\t\\tHost Number: 6\\tState: running\\n\\t\\tscsi6 Channel 00 Id 0 Lun: 0\\n'
    printf '\\t\\tscsi6 Channel 00 Id 0 Lun: {lun}\\n'
    printf '\\t\\t\\tAttached scsi disk %s\\t\\tState: running\\n' "$(cat $state)"
    ;;
*--login*) basename "$(losetup --find --show --direct-io=on $file)" >$state.new; mv $state.new $state ;;
*--logout*) losetup --detach /dev/$(cat $state); rm $state ;;
*--rescan*) losetup --set-capacity /dev/$(cat $state) ;;
esac
"""


@pytest.fixture
def initiator(iscsi: Place, target: IscsiTarget) -> Place:
    """The provider on a host whose kernel has an initiator."""
    tools = iscsi.folder / "tools"
    tools.mkdir()
    unit = next(name for name, number in target.units.items() if str(number) == iscsi.parameters["lun"])
    words = {"portal": target.portal, "target": TARGET, "lun": iscsi.parameters["lun"]}
    script = FAKE_ISCSIADM.format(state=tools / "state", file=shlex.quote(str(target.path(unit))), **words)
    (tools / "iscsiadm").write_text(script)
    (tools / "iscsiadm").chmod(0o755)
    iscsi.path = f"{tools}:/usr/bin:/bin:/usr/sbin"
    iscsi.parameters["path"] = "yes"
    return iscsi


def test_a_disk_of_the_kernel_and_its_uri_show_the_same_bytes(initiator: Place) -> None:
    initiator.create()
    ways = initiator.attach()
    assert len(ways) == 2
    assert initiator.attach() == ways
    for pattern, (written, read) in enumerate([(ways[0], ways[1]), (ways[1], ways[0])], 1):
        qemu_io(written, f"write -P {pattern} 0 64k")
        assert has_pattern(read, pattern)
    assert "detach it first" in initiator.refuse("remove")
    initiator.grow(24)
    assert qemu_io(ways[0], "length").strip() == "24 MiB"
    with Path(ways[0][0]).open("rb"):
        assert f"process {os.getpid()}" in initiator.refuse("detach")
    initiator.do("detach")
    initiator.do("detach")


def test_a_unit_keeps_its_bytes_unless_zeros_are_asked_for(iscsi: Place) -> None:
    iscsi.create()
    (way,) = iscsi.attach(path="no")
    qemu_io(way, "write -P 5 0 64k")
    iscsi.create()
    iscsi.do("remove")
    assert has_pattern(way, 5)
    iscsi.do("remove", zero="yes")
    assert has_pattern(way, 0)
    qemu_io(way, "write -P 5 15M 64k")
    iscsi.do("create", variables={"VOL_SIZE": "16"}, zero="yes")
    assert "verification failed" not in qemu_io(way, "read -P 0 0 16M")


def test_the_password_is_in_no_argument_and_on_no_output(iscsi: Place, target: IscsiTarget) -> None:
    tools = iscsi.folder / "tools"
    tools.mkdir()
    real = need("qemu-img", "qemu-utils")
    (tools / "qemu-img").write_text(f'#!/bin/sh\ncat /proc/$$/cmdline >>{tools}/seen\nexec {real} "$@"\n')
    (tools / "qemu-img").chmod(0o755)
    iscsi.path = f"{tools}:/usr/bin:/bin"
    iscsi.do("attach", password=target.password, password_file="")
    (iscsi.folder / "line").write_text(f"{target.password}\n")
    iscsi.do("attach", password_file=str(iscsi.folder / "line"))
    said = iscsi.do("attach") + iscsi.refuse("attach", lun="99") + iscsi.refuse("create", variables={"VOL_SIZE": "99"})
    seen = (tools / "seen").read_bytes()
    assert b"secret,id=chap,file=" in seen
    assert target.password.encode() not in seen
    assert target.password not in said


def test_a_mistaken_parameter_of_iscsi_is_named(iscsi: Place) -> None:
    mistakes: list[tuple[dict[str, str], str]] = [
        ({"lun": "99"}, "cannot look at unit 99"),
        ({"lun": "x"}, "the parameter lun is 'x'"),
        ({"lun": "16384"}, "0 to 16383"),
        ({"target": "iqn.2001-04.org.example:none"}, "cannot look at unit"),
        ({"target": "disk"}, "begins with iqn., eui. or naa."),
        ({"portal": "a b"}, "HOST, HOST:PORT or [IPV6]:PORT"),
        ({"portal": ""}, "the parameter portal is not set"),
        ({"user": ""}, "is set, but user is not"),
        ({"password_file": ""}, "the parameter password_file is not set"),
        ({"password_file": "/none"}, "cannot read /none"),
        ({"user": "somebody"}, "Authentication failure"),
    ]
    for parameters, words in mistakes:
        assert words in iscsi.refuse("verify", **parameters)


def test_made_units_are_volumes_of_their_own_behind_chap(made: Place) -> None:
    made.do("verify")
    for number, name in enumerate(("a", NAME), 1):
        made.create(name, 16)
        (way,) = made.attach(name, path="no")
        qemu_io(way, f"write -P {number} 0 64k")
    assert "already" in made.refuse("create", variables={"VOL_SIZE": "16"})
    made.grow(24)
    made.grow(24)
    assert "would cut off data" in made.refuse("grow", variables={"VOL_NEW_SIZE": "8"})
    for number, name in enumerate(("a", NAME), 1):
        (way,) = made.attach(name, path="no")
        assert has_pattern(way, number)
    assert qemu_io(way, "length").strip() == "24 MiB"
    assert made.refuse("attach", "none")
    with pytest.raises(subprocess.CalledProcessError):
        qemu_io([word.replace(f",user={CHAP_USER},password-secret=s", "") for word in way], "length")
    for action in ("detach", "detach", "remove", "remove"):
        made.do(action)
        made.do(action, "a")


def test_a_made_unit_that_somebody_uses_is_neither_removed_nor_taken_away_to_grow(made: Place) -> None:
    made.create()
    (way,) = made.attach(path="no")
    argv = ["qemu-io", *way]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=0) as client:
        assert client.stdin
        assert client.stdout
        client.stdin.write("write 0 4k\n")
        while not client.stdout.readline().startswith("4 KiB"):
            pass
        assert "somebody is logged in" in made.refuse("remove")
        assert "unplug it" in made.refuse("grow", variables={"VOL_NEW_SIZE": "24"})
        client.stdin.close()
    made.do("remove")


@pytest.mark.parametrize(
    ("action", "step"),
    [
        pytest.param("create", "target --op new", marks=pytest.mark.nightly),
        ("create", "-b"),
        pytest.param("grow", "truncate", marks=pytest.mark.nightly),
        ("grow", "--op delete"),
    ],
)
def test_a_unit_that_a_killed_action_left_half_made_is_finished(made: Place, action: str, step: str) -> None:
    tools, there = made.folder / "tools", made.folder / "there"
    tools.mkdir()
    for program in ("tgtadm", "truncate"):
        real = shutil.which(program, path=WITH_TGT)
        (tools / program).write_text(
            f'#!/bin/sh\n{real} "$@" || exit\ncase "$0 $*" in *"{step}"*) touch {there}; exec sleep 60; esac\n'
        )
        (tools / program).chmod(0o755)
    size = {"create": {"VOL_SIZE": "16"}, "grow": {"VOL_NEW_SIZE": "24"}}[action]
    if action == "grow":
        made.create()
    made.path = f"{tools}:{WITH_TGT}"
    process = made.start(action, NAME, size, {})
    while not there.exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    made.path = WITH_TGT
    made.do(action, variables=size)
    (way,) = made.attach(path="no")
    assert qemu_io(way, "length").split()[0] == next(iter(size.values()))
    made.do("remove")


def test_a_mistaken_parameter_for_made_units_is_named(made: Place) -> None:
    mistakes: list[tuple[dict[str, str], str]] = [
        ({"tgtadm": "targetcli"}, "a command with the program tgtadm in it"),
        ({"tgtadm": "none/tgtadm"}, "the program none/tgtadm is not installed"),
        ({"backing": ""}, "the parameter backing is not set"),
        ({"backing": "b"}, "it must be an absolute path"),
        ({"lun": "1"}, "the parameters tgtadm and lun are set"),
    ]
    for parameters, words in mistakes:
        assert words in made.refuse("verify", **parameters)
