"""Attaching and detaching: what is attached when something goes wrong, and how much runs side by side."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hvext.core.disk import Disk
from hvext.errors import AccessError, AnswerError, HvextError, InputError, OperationFailed, ScriptFailed, ScriptTimeout
from hvext.host.process import Cancel
from hvext.host.provider import ProviderHost
from hvext.operations.attachments import attach, attach_all, detach, detach_all, offer
from hvext.operations.start import start_disks, stop_disks
from tests.providers import Call, actions, most_at_once, read_calls, write_provider

ROOT = Path(__file__).parents[2]
SOON_S = 60.0
ANSWER = 'printf "\\nkvm:nbd://host/$VOL_NAME\\n"'


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "record"


@pytest.fixture
def provide(tmp_path: Path, record: Path) -> Callable[..., ProviderHost]:
    """A function that makes a provider ``p`` whose calls are recorded; attach, open and close have bodies."""

    def make(*, timeouts_s: dict[str, float] | None = None, **scripts: str) -> ProviderHost:
        bodies = {"attach": ANSWER, "open": "exit 0", "close": "exit 0", **scripts}
        write_provider(tmp_path / "providers", "p", bodies, record=record)
        return ProviderHost(search_path=(str(tmp_path / "providers"),), timeouts_s=timeouts_s or {})

    return make


def disk(volume: str = "v", **values: object) -> Disk:
    return Disk.from_mapping({"provider": "p", "volume": volume, **values})


def disks(count: int) -> list[Disk]:
    return [disk(f"v{number}") for number in range(count)]


def only_for(volumes: str, script: str) -> str:
    """An attach that does something special for some volumes (a pattern of sh) and answers for the others."""
    return f"case $VOL_NAME in {volumes}) {script} ;; esac; {ANSWER}"


def processes_below(folder: Path) -> list[int]:
    """The processes that work in a folder or below."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").readlink().is_relative_to(folder):
                found.append(int(entry.name))
    return found


# --- One disk --------------------------------------------------------------------------------------------------------


def test_attach_runs_once_then_open_and_at_the_end_detach(provide: Callable[..., ProviderHost], record: Path) -> None:
    host = provide()
    attached = attach(host, disk())
    assert attached.choice.chosen.text == "nbd://host/v"
    detach(host, disk())
    calls = read_calls(record)
    assert actions(calls, "v") == ["attach", "open", "detach"]
    assert most_at_once(calls) == 1
    assert calls[1].environment["VOL_OPEN_EXCLUSIVE"] == "True"


def test_a_volume_can_be_opened_for_sharing(provide: Callable[..., ProviderHost], record: Path) -> None:
    attach(provide(), disk(), exclusive=False)
    (call,) = read_calls(record, "open")
    assert call.environment["VOL_OPEN_EXCLUSIVE"] == "False"


def test_the_wished_access_is_told_to_every_script(provide: Callable[..., ProviderHost], record: Path) -> None:
    host = provide()
    wished = disk(access="userspace")
    attach(host, wished)
    detach(host, wished)
    assert [call.environment["EXTP_ACCESS"] for call in read_calls(record)] == ["userspace"] * 3


def test_detaching_may_be_repeated(provide: Callable[..., ProviderHost], record: Path) -> None:
    host = provide()
    detach(host, disk())
    detach(host, disk())
    assert actions(read_calls(record), "v") == ["detach"] * 2


def test_asking_for_the_offer_leaves_the_volume_attached(provide: Callable[..., ProviderHost], record: Path) -> None:
    host = provide()
    assert offer(host, disk()).attachment.uris_for("kvm") == ("nbd://host/v",)
    with pytest.raises(AccessError):
        offer(host, disk(access="kernelspace"))
    assert actions(read_calls(record), "v") == ["attach", "attach"]


@pytest.mark.parametrize(
    ("scripts", "access", "error", "words", "expected"),
    [
        ({"attach": "echo oops"}, None, AnswerError, "line 1 of attach's answer is 'oops'", []),
        ({"attach": "echo /dev/null"}, None, AnswerError, "is a character device", []),
        ({}, "kernelspace", AccessError, "printed no block device path", []),
        ({"attach": "printf '\\nkvm:vxhs://h/v/i\\n'"}, "userspace", AccessError, "'vxhs'", []),
        ({"open": "echo 'open elsewhere' >&2; exit 5"}, None, ScriptFailed, "open elsewhere", ["open"]),
        ({"open": "sleep 1000"}, None, ScriptTimeout, "after its limit of 1 s", ["open"]),
        ({"attach": "sleep 1000"}, None, ScriptTimeout, "after its limit of 1 s", []),
    ],
)
def test_a_volume_that_cannot_be_used_is_detached_again(
    provide: Callable[..., ProviderHost],
    record: Path,
    scripts: dict[str, str],
    access: str | None,
    error: type[HvextError],
    words: str,
    expected: list[str],
) -> None:
    limits = dict.fromkeys(scripts, 1.0) if error is ScriptTimeout else {}
    host = provide(timeouts_s=limits, **scripts)
    with pytest.raises(error) as caught:
        attach(host, disk(access=access or "prefer-userspace"))
    assert words in caught.value.message
    assert actions(read_calls(record), "v") == ["attach", *expected, "detach"]


def test_an_attach_that_says_no_is_not_followed_by_a_detach(provide: Callable[..., ProviderHost], record: Path) -> None:
    with pytest.raises(ScriptFailed, match="no such volume"):
        attach(provide(attach="echo 'no such volume' >&2; exit 1"), disk())
    assert actions(read_calls(record), "v") == ["attach"]


def test_a_volume_that_stays_attached_is_reported_with_both_reasons(provide: Callable[..., ProviderHost]) -> None:
    with pytest.raises(OperationFailed) as caught:
        attach(provide(open="exit 5", detach="echo 'device busy' >&2; exit 6"), disk())
    assert "ended with status 5" in caught.value.message
    assert "could not be detached again" in caught.value.message
    assert "device busy" in caught.value.message
    assert caught.value.left == ("p/v",)
    assert isinstance(caught.value.__cause__, ScriptFailed)


def test_a_failed_detach_is_told(provide: Callable[..., ProviderHost], record: Path) -> None:
    with pytest.raises(ScriptFailed, match="detach of provider 'p'"):
        detach(provide(detach="exit 1"), disk())
    assert actions(read_calls(record), "v") == ["detach"]


def test_a_cancelled_attach_is_detached(provide: Callable[..., ProviderHost], record: Path) -> None:
    cancel = Cancel()
    cancel.set()
    with pytest.raises(ScriptTimeout, match="because the operation was cancelled"):
        attach(provide(attach="sleep 1000"), disk(), cancel=cancel)
    assert actions(read_calls(record), "v")[-1:] == ["detach"]


# --- Many disks ------------------------------------------------------------------------------------------------------


def test_sixteen_disks_whose_attach_takes_a_second_start_in_under_three(
    provide: Callable[..., ProviderHost], record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = provide(attach=f"sleep 1; {ANSWER}")
    wished = disks(16)
    started = time.monotonic()
    argv = start_disks(host, wished).argv()
    elapsed_s = time.monotonic() - started
    calls = read_calls(record, "attach")
    slept_s = sum(call.end_s - call.begin_s for call in calls if call.end_s is not None)
    with capsys.disabled():
        print(f"\n16 disks whose attach takes {slept_s:.2f} s together started in {elapsed_s:.2f} s")
    assert most_at_once(calls) == 16
    assert elapsed_s < slept_s * 3 / 16
    assert [word for word in argv if word.startswith("-")].count("-device") == 16


def test_disks_come_back_in_their_order_however_long_each_takes(provide: Callable[..., ProviderHost]) -> None:
    host = provide(attach=only_for("v0", "sleep 0.3"))
    attached = attach_all(host, disks(4))
    assert [item.choice.chosen.text for item in attached] == [f"nbd://host/v{number}" for number in range(4)]


def test_no_disks_are_nothing_to_do(provide: Callable[..., ProviderHost]) -> None:
    assert attach_all(provide(), []) == []
    assert detach_all(ProviderHost(), []) == []


def test_when_one_disk_fails_the_others_are_detached_and_it_is_named(
    provide: Callable[..., ProviderHost], record: Path
) -> None:
    host = provide(attach=only_for("v1", "echo 'pool gone' >&2; exit 7"))
    with pytest.raises(OperationFailed) as caught:
        attach_all(host, disks(4))
    error = caught.value
    assert "cannot attach 1 of 4 disks: p/v1: " in error.message
    assert "pool gone" in error.message
    assert "the other 3 were detached again" in error.message
    assert (error.step, error.undone, error.left) == ("attach", ("attach p/v0", "attach p/v2", "attach p/v3"), ())
    assert isinstance(error.__cause__, ScriptFailed)
    calls = read_calls(record)
    assert actions(calls, "v1") == ["attach"]
    for volume in ("v0", "v2", "v3"):
        assert actions(calls, volume) == ["attach", "open", "detach"]


def test_every_disk_that_fails_is_named(provide: Callable[..., ProviderHost]) -> None:
    with pytest.raises(OperationFailed, match=r"2 of 3 disks: p/v0: .*; p/v2: "):
        attach_all(provide(attach=only_for("v0|v2", "exit 1")), disks(3))


def test_disks_that_cannot_be_detached_again_are_told(provide: Callable[..., ProviderHost]) -> None:
    host = provide(
        attach=only_for("v1", "exit 7"), open="[ $VOL_NAME != v3 ]", detach="[ $VOL_NAME != v2 -a $VOL_NAME != v3 ]"
    )
    with pytest.raises(OperationFailed) as caught:
        attach_all(host, disks(4))
    error = caught.value
    assert "were detached again" not in error.message
    assert error.undone == ()
    assert len(error.left) == 2
    assert error.left[0] == "p/v3"
    assert error.left[1].startswith("p/v2: detach of provider 'p'")
    for words in error.left:
        assert words in error.message


def test_detaching_all_goes_on_after_a_failure(provide: Callable[..., ProviderHost], record: Path) -> None:
    (words,) = detach_all(provide(detach="[ $VOL_NAME != v1 ]"), disks(3))
    assert words.startswith("p/v1: detach of provider 'p'")
    assert len(read_calls(record, "detach")) == 3


def wait_for(record: Path, enough: Callable[[list[Call]], bool]) -> None:
    deadline = time.monotonic() + SOON_S
    while not enough(read_calls(record)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("command", "number"),
    [("args", signal.SIGINT), ("attach", signal.SIGINT), ("args", signal.SIGTERM), ("args", signal.SIGHUP)],
)
def test_ctrl_c_or_an_end_from_outside_leaves_neither_scripts_nor_attached_volumes(
    provide: Callable[..., ProviderHost], record: Path, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    host = provide(attach=only_for("slow*", "sleep 1000 & sleep 1000"))
    volumes = [f"quick{number}" for number in range(4)] + [f"slow{number}" for number in range(4)]
    if command == "attach":
        volumes = ["slow0"]
    words = [f"--disk=provider=p,volume={name}" for name in volumes] if command == "args" else ["p", *volumes]
    started = subprocess.Popen(
        [sys.executable, "-m", "hvext", command, *words, "--search-path", host.search_path[0], "--log-dir", "none"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Whoever starts the tests in the background may have them ignore it.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    try:
        quick = sum(name.startswith("quick") for name in volumes)

        def begun(calls: list[Call]) -> bool:
            opened = [call for call in calls if call.action == "open" and call.end is not None]
            return len(opened) == quick and sum(call.action == "attach" for call in calls) == len(volumes)

        wait_for(record, begun)
        assert processes_below(tmp_path)
        started.send_signal(number)
        out, err = started.communicate(timeout=SOON_S)
    finally:
        started.kill()
        started.wait()
    assert (started.returncode, out, err.splitlines()[0]) == (130, b"", b"hvext: interrupted")
    assert processes_below(tmp_path) == []
    calls = read_calls(record)
    for name in volumes:
        opened = ["open"] if name.startswith("quick") else []
        assert actions(calls, name) == ["attach", *opened, "detach"]


# --- The disks of an instance ----------------------------------------------------------------------------------------


def scsi(volume: str, **values: object) -> Disk:
    return disk(volume, device="scsi-hd", **values)


def devices(argv: list[str]) -> list[str]:
    return [value for option, value in zip(argv[::2], argv[1::2], strict=True) if option == "-device"]


def addresses(host: ProviderHost, wished: list[Disk]) -> list[tuple[object, object, object]]:
    start = start_disks(host, wished)
    stop_disks(host, wished)
    return [tuple(item.plan.device.get(key) for key in ("bus", "scsi-id", "lun")) for item in start.disks]  # type: ignore[misc]


def test_scsi_disks_that_name_no_controller_share_one(provide: Callable[..., ProviderHost]) -> None:
    host = provide()
    start = start_disks(host, [scsi("a"), disk("b"), scsi("c")])
    assert [item.plan.controller for item in start.disks] == [{"driver": "virtio-scsi-pci", "id": "scsi0"}, None, None]
    assert [item.index for item in start.disks] == [0, 0, 1]
    first, *_others = devices(start.argv())
    assert '"virtio-scsi-pci"' in first
    assert addresses(host, [scsi("a"), disk("b"), scsi("c")]) == [
        ("scsi0.0", 0, 0),
        (None, None, None),
        ("scsi0.0", 1, 0),
    ]


def test_addresses_that_are_given_out_keep_clear_of_those_that_are_fixed(provide: Callable[..., ProviderHost]) -> None:
    wished = [scsi("a"), scsi("b", scsi_id=0, lun=0), scsi("c", scsi_id=1), scsi("d", scsi_id=1), scsi("e", lun=3)]
    assert addresses(provide(), wished) == [
        ("scsi0.0", 1, 0),
        ("scsi0.0", 0, 0),
        ("scsi0.0", 1, 1),
        ("scsi0.0", 1, 2),
        ("scsi0.0", 0, 3),
    ]


def test_disks_on_a_controller_of_the_callers_are_left_where_they_are(provide: Callable[..., ProviderHost]) -> None:
    start = start_disks(provide(), [scsi("a", bus="mine"), scsi("b", bus="mine"), scsi("c", bus="scsi0")])
    assert [item.plan.controller for item in start.disks] == [None, None, None]
    assert [item.plan.device.get("scsi-id") for item in start.disks] == [None, None, None]


def test_the_iothread_of_a_shared_scsi_controller_belongs_to_no_disk(provide: Callable[..., ProviderHost]) -> None:
    start = start_disks(provide(), [scsi("a", iothread="auto"), scsi("b", iothread="auto")])
    first, second = (item.plan for item in start.disks)
    assert first.controller is not None
    assert first.controller["iothread"] == "scsi0-iothread"
    assert [item["id"] for item in first.objects] == ["scsi0-iothread"]
    assert second.objects == ()


@pytest.mark.parametrize(
    ("wished", "words"),
    [
        ([disk("a"), disk("a")], "the same uuid"),
        ([disk("a"), disk("b", uuid=str(disk("a").volume.uuid))], "disks 'a' and 'b' have the same uuid"),
        (
            [disk("a"), disk("a", uuid="0a1b2c3d-0000-4000-8000-00000000000f")],
            "disks 'a' and 'a' have the same volume: p/a",
        ),
        ([disk("a", bootindex=1), disk("b", bootindex=1)], "the same bootindex: 1"),
        ([disk("a", bus="rp1"), disk("b", bus="rp1")], "the same place: bus=rp1, addr=00.0"),
        ([disk("a", bus="rp1"), disk("b", bus="rp1", addr="0x0")], "the same place: bus=rp1, addr=00.0"),
        ([disk("a", bus="pci.0", addr="5"), disk("b", bus="pci.0", addr="05.0")], "the same place"),
        ([scsi("a", bus="s", scsi_id=1, lun=2), scsi("b", bus="s", scsi_id=1, lun=2)], "the same place"),
        ([scsi("a", scsi_id=1, lun=2), scsi("b", scsi_id=1, lun=2)], "bus=scsi0, scsi_id=1, lun=2"),
        ([scsi("a", iothread="io1"), scsi("b", iothread="io2")], "wants another iothread"),
        ([scsi("a"), scsi("b", iothread="auto")], "wants another iothread"),
        ([scsi("a", iothread="auto", bus="mine")], "iothread of its controller"),
        ([scsi("a", bus="scsi0"), scsi("b")], "names the SCSI controller 'scsi0', which is made for disk 'b'"),
    ],
)
def test_disks_in_each_others_way_are_refused_before_anything_is_attached(
    provide: Callable[..., ProviderHost], record: Path, wished: list[Disk], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        start_disks(provide(), wished)
    assert words in caught.value.message
    assert read_calls(record) == []


@pytest.mark.parametrize(
    "wished",
    [
        [disk("a", bus="pci.0"), disk("b", bus="pci.0")],
        [disk("a", bus="pcie.0", addr="5"), disk("b", bus="pcie.0", addr="5.1")],
        [scsi("a", bus="s", scsi_id=1), scsi("b", bus="s", scsi_id=1)],
        [scsi("a", iothread="io1", bus="s1"), scsi("b", iothread="io2", bus="s2")],
        [disk("a", iothread="auto"), disk("b", iothread="auto"), scsi("c")],
    ],
)
def test_disks_that_get_along_are_not_refused(provide: Callable[..., ProviderHost], wished: list[Disk]) -> None:
    assert len(start_disks(provide(), wished).disks) == len(wished)


def test_stopping_lets_every_volume_go(provide: Callable[..., ProviderHost], record: Path) -> None:
    host = provide()
    start = start_disks(host, disks(3))
    assert stop_disks(host, [item.attached.disk for item in start.disks]) == []
    assert all(actions(read_calls(record), f"v{number}")[2:] == ["detach"] for number in range(3))
