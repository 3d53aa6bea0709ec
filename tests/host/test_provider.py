"""Finding providers and running their scripts: every provider here is a real directory of real scripts."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvext.core.access import Access
from hvext.core.disk import Disk
from hvext.core.provider import Action, Parameter
from hvext.core.volume import Volume
from hvext.errors import (
    AnswerError,
    InputError,
    ProviderError,
    ProviderInvalid,
    ProviderNotFound,
    ScriptFailed,
    ScriptTimeout,
)
from hvext.host.provider import ProviderHost, ScriptRun
from hvext.operations import volumes
from tests.conftest import need
from tests.host.oracle import short_folder
from tests.providers import REQUIRED, read_calls, write_provider

UUID = uuid.UUID("0a1b2c3d-0000-4000-8000-00000000000f")
VOLUME = Volume(name="0a1b.ext.disk0", uuid=UUID)
#: Far above what anything here takes, far below the sleeps in the scripts.
SOON_S = 60.0


def provider_host(folder: Path, **options: object) -> ProviderHost:
    return ProviderHost(search_path=(str(folder),), **options)  # type: ignore[arg-type]


def run_detach(folder: Path, script: str, **options: object) -> ScriptRun:
    """Make a provider ``p`` whose detach is ``script``, and run that."""
    write_provider(folder, "p", {"detach": script})
    host = provider_host(folder, **options)
    run = host.run(host.find("p"), Action.DETACH, VOLUME)
    assert run is not None
    return run


def runs(pid: int) -> bool:
    """Whether the process does more than wait for somebody to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[str]:
    """A real block device."""
    losetup = need("losetup", "mount")
    if os.geteuid() != 0:
        pytest.skip("only root makes loop devices")
    image = tmp_path / "image.raw"
    image.write_bytes(bytes(1 << 20))
    device = subprocess.run([losetup, "--find", "--show", image], check=True, capture_output=True, text=True).stdout
    try:
        yield device.strip()
    finally:
        subprocess.run([losetup, "--detach", device.strip()], check=True)


# --- Finding ---------------------------------------------------------------------------------------------------------


def test_the_first_directory_on_the_search_path_wins_even_when_it_is_not_valid(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    good = write_provider(second, "p")
    (first / "other").mkdir(parents=True)
    host = ProviderHost(search_path=(str(tmp_path / "missing"), str(first), str(second)))
    assert host.find("p").path == str(good)
    assert host.folder("p") == str(second)
    (first / "p").mkdir()
    with pytest.raises(ProviderInvalid, match=str(first)):
        host.find("p")
    assert host.folder("p") == str(first)


def test_a_file_with_a_providers_name_is_passed_over(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "p").touch()
    good = write_provider(second, "p")
    assert ProviderHost(search_path=(str(first), str(second))).find("p").path == str(good)


def test_a_provider_directory_may_be_a_symlink(tmp_path: Path) -> None:
    real = write_provider(tmp_path / "elsewhere", "p-1.2")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "p").symlink_to(real)
    assert provider_host(tmp_path / "path").find("p").path == str(tmp_path / "path" / "p")


def test_the_sample_provider_is_found_without_any_configuration() -> None:
    sample = ProviderHost().find("sample")
    assert sample.actions == frozenset(Action)
    assert "sample" in ProviderHost().names()


def test_a_missing_provider_is_reported_with_every_place_that_was_looked_at(tmp_path: Path) -> None:
    host = ProviderHost(search_path=(str(tmp_path / "a"), str(tmp_path / "b")))
    with pytest.raises(ProviderNotFound) as caught:
        host.find("p")
    assert str(tmp_path / "a") in caught.value.hint
    assert str(tmp_path / "b") in caught.value.hint


@pytest.mark.parametrize("name", ["", ".", "..", "../p", "a/p", "/p", "p.1", "p p", "p\n", "p\0", "ä", "-/../p"])
def test_no_name_leads_out_of_the_search_path(tmp_path: Path, name: str) -> None:
    write_provider(tmp_path, "p")
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="provider name"):
        provider_host(tmp_path / "a").find(name)


def test_listing_names_every_directory_once_valid_or_not_and_nothing_else(tmp_path: Path) -> None:
    write_provider(tmp_path / "a", "both")
    write_provider(tmp_path / "b", "both")
    (tmp_path / "b" / "broken").mkdir()
    (tmp_path / "b" / "not.a.name").mkdir()
    (tmp_path / "b" / "file").touch()
    host = ProviderHost(search_path=(str(tmp_path / "a"), str(tmp_path / "missing"), str(tmp_path / "b")))
    assert host.names() == ("both", "broken")


def test_a_relative_search_path_leads_to_scripts_that_can_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_provider(tmp_path / "providers", "p", {"detach": "pwd"})
    monkeypatch.chdir(tmp_path)
    host = ProviderHost(search_path=("providers",))
    run = host.run(host.find("p"), Action.DETACH, VOLUME)
    assert run is not None
    assert run.stdout.decode() == f"{tmp_path}/providers/p\n"


def test_a_search_path_in_one_text_is_not_taken_for_a_list_of_letters() -> None:
    with pytest.raises(InputError, match="list of directories"):
        ProviderHost(search_path="/srv:/usr")


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_time_limit_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        ProviderHost(timeout_s=limit)
    with pytest.raises(InputError, match="above 0"):
        ProviderHost(timeouts_s={"attach": limit})


def test_a_time_limit_for_an_unknown_action_is_refused() -> None:
    with pytest.raises(InputError, match="'atach'"):
        ProviderHost(timeouts_s={"atach": 1})


@pytest.mark.parametrize(("name", "value"), [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0")])
def test_environment_that_cannot_be_is_refused(name: str, value: str) -> None:
    with pytest.raises(InputError, match="environment variable"):
        ProviderHost(environment={name: value})


# --- The rules of a provider directory -------------------------------------------------------------------------------


def problems(folder: Path) -> tuple[str, ...]:
    with pytest.raises(ProviderInvalid) as caught:
        provider_host(folder).find("p")
    for problem in caught.value.problems:
        assert problem in caught.value.message
    return caught.value.problems


@pytest.mark.parametrize("action", REQUIRED)
def test_a_provider_without_a_required_script_is_not_valid(tmp_path: Path, action: str) -> None:
    (write_provider(tmp_path, "p") / action).unlink()
    assert problems(tmp_path) == (f"script {action} is missing",)


@pytest.mark.parametrize("action", list(Action))
def test_a_script_that_is_not_executable_makes_the_provider_invalid_optional_or_not(
    tmp_path: Path, action: Action
) -> None:
    path = write_provider(tmp_path, "p") / action
    path.write_text("#!/bin/sh\n")
    path.chmod(0o644)
    assert problems(tmp_path) == (f"script {action} is not executable",)


@pytest.mark.parametrize("action", list(Action))
def test_a_directory_in_the_place_of_a_script_makes_the_provider_invalid(tmp_path: Path, action: Action) -> None:
    path = write_provider(tmp_path, "p") / action
    path.unlink(missing_ok=True)
    path.mkdir()
    assert problems(tmp_path) == (f"script {action} is a directory, not a regular file",)


def test_a_fifo_or_device_in_the_place_of_a_script_is_not_executed(tmp_path: Path) -> None:
    provider = write_provider(tmp_path, "p")
    (provider / "attach").unlink()
    os.mkfifo(provider / "attach", 0o755)
    (provider / "open").symlink_to("/dev/null")
    assert problems(tmp_path) == (
        "script attach is a FIFO, not a regular file",
        "script open is a character device, not a regular file",
    )


def test_symlinked_scripts_are_followed_and_dangling_ones_are_missing(tmp_path: Path) -> None:
    provider = write_provider(tmp_path, "p")
    (provider / "attach").rename(provider / "real")
    (provider / "attach").symlink_to("real")
    (provider / "snapshot").symlink_to("../nowhere")
    (provider / "close").symlink_to("real")
    found = provider_host(tmp_path).find("p")
    assert Action.ATTACH in found.actions
    assert Action.CLOSE in found.actions
    assert Action.SNAPSHOT not in found.actions
    (provider / "real").unlink()
    assert problems(tmp_path) == ("script attach is missing",)


def test_optional_scripts_may_be_left_out(tmp_path: Path) -> None:
    write_provider(tmp_path, "p")
    assert provider_host(tmp_path).find("p").actions == {Action(name) for name in REQUIRED}


@pytest.mark.parametrize(
    ("action", "known"),
    [
        (Action.CREATE, {"size_mib": 1}),
        (Action.ATTACH, {}),
        (Action.REMOVE, {}),
        (Action.GROW, {"size_mib": 1, "new_size_mib": 2}),
        (Action.SNAPSHOT, {"snapshot_name": "s", "snapshot_size_mib": 1}),
    ],
)
def test_a_misspelt_parameter_is_refused_before_it_means_another_volume(
    tmp_path: Path, action: Action, known: dict[str, object]
) -> None:
    scripts = dict.fromkeys((*REQUIRED, "snapshot"), "exit 0")
    write_provider(tmp_path / "p", "some", scripts, "DIR where volumes are\npool which\n", record=tmp_path / "calls")
    typed = ProviderHost(search_path=(str(tmp_path / "p"),), strict=True)
    passed_on = ProviderHost(search_path=(str(tmp_path / "p"),))
    provider = typed.find("some")
    wrong, right = (Volume(name="v", uuid=uuid.UUID(int=1), parameters={name: "/x"}) for name in ("dirr", "dir"))
    with pytest.raises(InputError, match="provider 'some' has no parameter 'dirr'") as caught:
        typed.run(provider, action, wrong, **known)
    assert "DIR, pool" in caught.value.hint
    assert read_calls(tmp_path / "calls") == []
    typed.run(provider, action, right, **known)
    # Ganeti passes on whatever it has, and what is attached is let go with whatever it was attached with.
    passed_on.run(provider, action, wrong, **known)
    typed.run(provider, Action.DETACH, wrong)
    assert [call.action for call in read_calls(tmp_path / "calls")] == [action, action, "detach"]


def test_parameters_are_read_and_may_be_none(tmp_path: Path) -> None:
    provider = write_provider(tmp_path, "p")
    assert provider_host(tmp_path).find("p").parameters == ()
    (provider / "parameters.list").write_text("pool   the pool's name\n\nplain\nü  Größe\t\n")
    assert provider_host(tmp_path).find("p").parameters == (
        Parameter(name="pool", description="the pool's name"),
        Parameter(name="plain", description=""),
        Parameter(name="ü", description="Größe"),
    )


def test_a_missing_parameters_list_makes_the_provider_invalid(tmp_path: Path) -> None:
    (write_provider(tmp_path, "p") / "parameters.list").unlink()
    assert problems(tmp_path) == ("parameters.list is missing",)


def test_a_directory_as_parameters_list_makes_the_provider_invalid(tmp_path: Path) -> None:
    path = write_provider(tmp_path, "p") / "parameters.list"
    path.unlink()
    path.mkdir()
    assert problems(tmp_path) == ("parameters.list is a directory",)


def test_a_parameters_list_that_is_not_utf8_makes_the_provider_invalid(tmp_path: Path) -> None:
    (write_provider(tmp_path, "p") / "parameters.list").write_bytes(b"pool the \xff pool\n")
    (problem,) = problems(tmp_path)
    assert problem.startswith("parameters.list cannot be read: ")
    assert "0xff" in problem


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    provider = tmp_path / "p"
    provider.mkdir()
    (provider / "close").touch(mode=0o644)
    assert problems(tmp_path) == (
        *(f"script {action} is missing" for action in REQUIRED),
        "script close is not executable",
        "parameters.list is missing",
    )


# --- What a script is told -------------------------------------------------------------------------------------------

NAME = {"VOL_NAME": VOLUME.name}
WHO = {**NAME, "VOL_UUID": str(UUID)}
TABLE = {
    Action.CREATE: ({"size_mib": 10}, {**WHO, "VOL_SIZE": "10"}),
    Action.ATTACH: ({}, WHO),
    Action.DETACH: ({}, WHO),
    Action.REMOVE: ({}, WHO),
    Action.GROW: ({"size_mib": 10, "new_size_mib": 20}, {**WHO, "VOL_SIZE": "10", "VOL_NEW_SIZE": "20"}),
    Action.SETINFO: ({"metadata": "originstname+a b"}, {**WHO, "VOL_METADATA": "originstname+a_b"}),
    Action.SNAPSHOT: (
        {"snapshot_name": "s.ext.disk0", "snapshot_size_mib": 30},
        {**NAME, "VOL_SNAPSHOT_NAME": "s.ext.disk0", "VOL_SNAPSHOT_SIZE": "30"},
    ),
    Action.OPEN: ({"exclusive": False}, {**WHO, "VOL_OPEN_EXCLUSIVE": "False"}),
    Action.CLOSE: ({}, WHO),
    Action.VERIFY: ({}, {}),
}


@pytest.mark.parametrize("action", list(Action))
def test_a_script_gets_exactly_what_the_interface_defines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: Action
) -> None:
    values, expected = TABLE[action]
    for name in ("VOL_SIZE", "VOL_NAME", "VOL_JUNK", "EXTP_JUNK", "LD_LIBRARY_PATH", "BASH_ENV", "ENV", "LC_CTYPE"):
        monkeypatch.setenv(name, "junk")
    monkeypatch.setenv("HOME", "/home/somebody")
    provider = write_provider(tmp_path, "p", {str(action): "exit 0"}, record=tmp_path / "record")
    volume = Volume(name=VOLUME.name, uuid=UUID, parameters={"pool": "a b'\"\n$x", "Snake_Case": ""})
    host = provider_host(tmp_path)
    host.run(host.find("p"), action, volume, access=Access.KERNELSPACE, **values)
    (call,) = read_calls(tmp_path / "record")
    assert call.environment == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C",
        "HOME": "/home/somebody",
        "EXTP_POOL": "a b'\"\n$x",
        "EXTP_SNAKE_CASE": "",
        "EXTP_PROVIDER": "p",
        "EXTP_ACCESS": "kernelspace",
        **expected,
    }
    assert (call.action, call.arguments, call.cwd) == (action, 0, str(provider))


def test_a_disks_own_name_and_the_callers_extra_environment_reach_the_script(tmp_path: Path) -> None:
    write_provider(tmp_path, "p", record=tmp_path / "record")
    volume = Volume(name="v", uuid=UUID, cname="web data")
    host = provider_host(tmp_path, environment={"http_proxy": "http://proxy:3128", "VOL_NAME": "never"})
    host.run(host.find("p"), Action.DETACH, volume)
    (call,) = read_calls(tmp_path / "record")
    assert set(call.environment) == {
        *("PATH", "LC_ALL", "HOME", "EXTP_PROVIDER", "EXTP_ACCESS"),
        *("VOL_NAME", "VOL_UUID", "VOL_CNAME", "http_proxy"),
    }
    assert (call.environment["VOL_CNAME"], call.environment["VOL_NAME"]) == ("web data", "v")
    assert call.environment["http_proxy"] == "http://proxy:3128"


def test_a_value_that_an_action_does_not_take_or_lacks_runs_nothing(tmp_path: Path) -> None:
    write_provider(tmp_path, "p", record=tmp_path / "record")
    host = provider_host(tmp_path)
    with pytest.raises(InputError, match="takes no VOL_SIZE"):
        host.run(host.find("p"), Action.DETACH, VOLUME, size_mib=1)
    with pytest.raises(InputError, match="needs VOL_NEW_SIZE"):
        host.run(host.find("p"), Action.GROW, VOLUME, size_mib=1)
    assert read_calls(tmp_path / "record") == []


def test_a_script_that_reads_its_input_finds_none(tmp_path: Path) -> None:
    assert run_detach(tmp_path, "cat; echo end").stdout == b"end\n"


@pytest.mark.parametrize("interpreter", ["sh", "bash", "python3"])
def test_scripts_in_any_language_are_run(tmp_path: Path, interpreter: str) -> None:
    body = {
        "sh": 'echo "$VOL_NAME"',
        "bash": 'names=("$VOL_NAME"); echo "${names[@]}"',
        "python3": "import os\nprint(os.environ['VOL_NAME'])",
    }[interpreter]
    need(interpreter, interpreter)
    assert run_detach(tmp_path, f"#!/usr/bin/env {interpreter}\n{body}\n").stdout.decode() == f"{VOLUME.name}\n"


@pytest.mark.parametrize(
    ("script", "words", "hint"),
    [
        ("#!/usr/bin/nosuch\n", "No such file or directory; its first line is '#!/usr/bin/nosuch'", "an interpreter"),
        ("#!/bin/sh\r\nexit 0\r\n", r"first line is '#!/bin/sh\\r'", r"CRLF.*sed -i 's/\\r\$//'"),
        ("", "Exec format error; it is empty", "#!/bin/sh"),
    ],
    ids=["no-interpreter", "crlf", "empty"],
)
def test_a_script_that_cannot_be_started_is_told_with_its_first_line(
    tmp_path: Path, script: str, words: str, hint: str
) -> None:
    provider_folder = write_provider(tmp_path, "p")
    (provider_folder / "detach").write_bytes(script.encode())
    host = provider_host(tmp_path)
    with pytest.raises(ProviderError, match=words) as refused:
        host.run(host.find("p"), Action.DETACH, VOLUME)
    assert re.search(hint, refused.value.hint)


def test_a_provider_that_is_one_file_under_many_names_knows_its_name(tmp_path: Path) -> None:
    provider = tmp_path / "p"
    provider.mkdir()
    (provider / "all").write_text('#!/bin/sh\necho "${0##*/} in $(pwd)"\n')
    (provider / "all").chmod(0o755)
    (provider / "parameters.list").touch()
    for action in Action:
        (provider / action).symlink_to("all")
    host = provider_host(tmp_path)
    for action in Action:
        run = host.run(host.find("p"), action, VOLUME, **TABLE[action][0])
        assert run is not None
        assert run.stdout.decode() == f"{action} in {provider}\n"


# --- Time limits and failures ----------------------------------------------------------------------------------------


def test_a_script_over_its_time_is_ended_with_all_it_started_and_its_words_are_kept(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"""
        echo 'waiting for the array' >&2
        echo half an answer
        sleep 1000 & echo $! >>{pids}
        sh -c 'sleep 1000 & echo $! >>{pids}; wait' &
        echo $$ >>{pids}
        wait
    """
    with pytest.raises(ScriptTimeout) as caught:
        run_detach(tmp_path, script, timeout_s=1.0, log_directory=str(tmp_path / "log"))
    assert "detach of provider 'p' for volume '0a1b.ext.disk0' was ended after its limit of 1 s" in caught.value.message
    assert "waiting for the array" in caught.value.message
    assert "half an answer" in caught.value.message
    numbers = [int(line) for line in pids.read_text().split()]
    assert len(numbers) == 3
    assert not any(runs(pid) for pid in numbers)
    log = Path(caught.value.log).read_text()
    assert caught.value.log in caught.value.hint
    assert "waiting for the array\n" in log
    assert "half an answer\n" in log
    assert "status -15 after" in log


def test_one_action_may_have_a_time_limit_of_its_own(tmp_path: Path) -> None:
    write_provider(tmp_path, "p", {"attach": "sleep 1000", "detach": "sleep 0.5"})
    host = provider_host(tmp_path, timeouts_s={"attach": 0.1})
    provider = host.find("p")
    with pytest.raises(ScriptTimeout, match=r"limit of 0\.1 s"):
        host.run(provider, Action.ATTACH, VOLUME)
    host.run(provider, Action.DETACH, VOLUME)


def test_an_attach_that_leaves_a_server_holding_its_output_answers_at_once(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    write_provider(tmp_path, "p", {"attach": f"sleep 1000 & echo $! >{pid}; printf '\\nkvm:nbd://host/x\\n'"})
    host = provider_host(tmp_path, timeout_s=500)
    started = time.monotonic()
    try:
        attachment = host.attach(host.find("p"), VOLUME)
        assert time.monotonic() - started < SOON_S
        assert attachment.uris_for("kvm") == ("nbd://host/x",)
        assert runs(int(pid.read_text()))
    finally:
        os.kill(int(pid.read_text()), 9)


def test_a_failed_script_is_told_with_its_status_and_last_words(tmp_path: Path) -> None:
    with pytest.raises(ScriptFailed) as caught:
        run_detach(tmp_path, "seq 100 >&2; echo 'pool is full'; exit 42")
    assert caught.value.status == 42
    assert "detach of provider 'p' for volume '0a1b.ext.disk0' ended with status 42" in caught.value.message
    assert "last lines of stderr: 81 | 82" in caught.value.message
    assert "last lines of stdout: pool is full" in caught.value.message
    assert (caught.value.log, caught.value.hint) == ("", "")


def test_a_script_that_fails_in_silence_is_told_to_have_printed_nothing(tmp_path: Path) -> None:
    with pytest.raises(ScriptFailed, match="ended with status 1; it printed nothing"):
        run_detach(tmp_path, "exit 1")


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (15, "SIGTERM"), (40, "signal 40")])
def test_the_signal_that_killed_a_script_is_named(tmp_path: Path, number: int, name: str) -> None:
    with pytest.raises(ScriptFailed, match=f"was killed by {name}") as caught:
        run_detach(tmp_path, f"kill -{number} $$; sleep 100")
    assert caught.value.status == -number


@pytest.mark.parametrize("first", ["#!/no/such/interpreter\n", "#!\n", "#! \nexit 0\n"])
def test_a_script_without_an_interpreter_is_explained(tmp_path: Path, first: str) -> None:
    with pytest.raises(ProviderError, match=r"provider 'p': cannot start .*/p/detach") as caught:
        run_detach(tmp_path, first)
    assert "#!/bin/sh" in caught.value.hint


def test_a_script_without_a_first_line_for_the_kernel_is_explained(tmp_path: Path) -> None:
    provider = write_provider(tmp_path, "p")
    (provider / "detach").write_text("exit 0\n")
    host = provider_host(tmp_path)
    with pytest.raises(ProviderError, match="Exec format error") as caught:
        host.run(host.find("p"), Action.DETACH, VOLUME)
    assert "#!/bin/sh" in caught.value.hint


def test_a_parameter_too_long_for_the_kernel_is_not_blamed_on_the_interpreter(tmp_path: Path) -> None:
    write_provider(tmp_path, "p")
    host = provider_host(tmp_path)
    volume = Volume(name="v", uuid=UUID, parameters={"big": "x" * (1 << 20)})
    with pytest.raises(ProviderError, match="Argument list too long") as caught:
        host.run(host.find("p"), Action.DETACH, volume)
    assert caught.value.hint == ""


def test_output_without_end_is_bounded_in_memory_and_in_the_log(tmp_path: Path) -> None:
    script = "echo first; head -c 50000000 /dev/zero | tr '\\0' x; echo; echo last"
    run = run_detach(tmp_path, script, log_directory=str(tmp_path / "log"))
    assert len(run.stdout) < 1 << 18
    assert run.stdout.startswith(b"first\n")
    assert run.stdout.endswith(b"last\n")
    log = Path(run.log).read_bytes()
    assert len(log) < (1 << 20) + 1000
    assert b"the rest is left out" in log
    assert b"\nstatus 0 after" in log


# --- Logs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", list(Action))
def test_every_action_leaves_a_log_named_as_ganeti_names_it(tmp_path: Path, action: Action) -> None:
    write_provider(tmp_path, "p", {str(action): "echo out; echo err >&2"})
    logs = tmp_path / "var" / "log"
    host = provider_host(tmp_path, log_directory=str(logs))
    old = os.umask(0)
    try:
        run = host.run(host.find("p"), action, VOLUME, **TABLE[action][0])
    finally:
        os.umask(old)
    assert run is not None
    (log,) = logs.iterdir()
    assert run.log == str(log)
    assert re.fullmatch(
        rf"{action}-p-0a1b\.ext\.disk0-\d{{4}}-\d\d-\d\d_\d\d_\d\d_\d\d_\d{{6}}-{os.getpid()}\.log", log.name
    )
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    head, *lines = log.read_text().splitlines()
    assert head.endswith(f"{tmp_path}/p/{action} for volume 0a1b.ext.disk0")
    assert sorted(lines[:2]) == ["err", "out"]
    assert re.fullmatch(r"status 0 after \d+\.\d{3} s", lines[-1])


def test_the_log_of_a_failed_script_is_kept_and_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(ScriptFailed) as caught:
        run_detach(tmp_path, "echo details >&2; exit 3", log_directory=str(tmp_path / "log"))
    assert caught.value.log in caught.value.hint
    text = Path(caught.value.log).read_text()
    assert "details\n" in text
    assert "status 3 after" in text


def test_a_volume_with_the_longest_possible_name_can_be_logged(tmp_path: Path) -> None:
    write_provider(tmp_path, "p")
    host = provider_host(tmp_path, log_directory=str(tmp_path / "log"))
    run = host.run(host.find("p"), Action.DETACH, Volume(name="ü" * 127, uuid=UUID))
    assert run is not None
    assert Path(run.log).exists()


def test_a_log_that_cannot_be_written_is_an_error_before_the_script_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    write_provider(tmp_path, "p", record=tmp_path / "record")
    host = provider_host(tmp_path, log_directory=str(tmp_path / "file" / "log"))
    with pytest.raises(ProviderError, match=r"cannot write the log .*/file/log/detach-p-") as caught:
        host.run(host.find("p"), Action.DETACH, VOLUME)
    for way in ("--log-dir none", "HVEXT_LOG_DIR"):
        assert way in caught.value.hint
    assert read_calls(tmp_path / "record") == []


def test_a_full_log_directory_does_not_end_a_script_in_the_middle_of_its_work(tmp_path: Path) -> None:
    logs = tmp_path / "log"
    logs.mkdir()
    mount = [need("mount", "mount"), "-t", "tmpfs", "-o", "size=16k", "none", str(logs)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this user cannot mount a file system")
    try:
        run = run_detach(tmp_path, "head -c 100000 /dev/zero; echo done", log_directory=str(logs))
        assert run.stdout.endswith(b"done\n")
        assert Path(run.log).stat().st_size <= 16384
    finally:
        subprocess.run(["umount", str(logs)], check=True)


# --- Scripts that a provider may lack --------------------------------------------------------------------------------


def test_a_snapshot_that_a_provider_cannot_make_is_an_error(tmp_path: Path) -> None:
    write_provider(tmp_path, "p")
    host = provider_host(tmp_path)
    with pytest.raises(ProviderError, match="no snapshot was made"):
        host.run(host.find("p"), Action.SNAPSHOT, VOLUME, snapshot_name="s", snapshot_size_mib=1)


@pytest.mark.parametrize(("action", "values"), [(Action.OPEN, {"exclusive": True}), (Action.CLOSE, {})])
def test_a_provider_without_open_or_close_needs_none(tmp_path: Path, action: Action, values: dict[str, bool]) -> None:
    write_provider(tmp_path, "p")
    host = provider_host(tmp_path)
    assert host.run(host.find("p"), action, VOLUME, **values) is None


# --- Growing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk() -> Disk:
    return Disk(provider="p", volume=VOLUME)


def test_growing_to_the_size_that_is_there_runs_no_script(tmp_path: Path, disk: Disk) -> None:
    write_provider(tmp_path, "p", record=tmp_path / "record")
    assert volumes.grow_volume(provider_host(tmp_path), disk, old_size_mib=10, new_size_mib=10) == volumes.Grown(
        changed=False, size_mib=10
    )
    assert read_calls(tmp_path / "record") == []


def test_shrinking_is_refused_and_runs_no_script(tmp_path: Path, disk: Disk) -> None:
    write_provider(tmp_path, "p", record=tmp_path / "record")
    with pytest.raises(InputError, match="cannot be shrunk to 9 MiB"):
        volumes.grow_volume(provider_host(tmp_path), disk, old_size_mib=10, new_size_mib=9)
    assert read_calls(tmp_path / "record") == []


def test_growing_tells_the_script_the_old_and_the_new_size(tmp_path: Path, disk: Disk) -> None:
    write_provider(tmp_path, "p", record=tmp_path / "record")
    assert volumes.grow_volume(provider_host(tmp_path), disk, old_size_mib=10, new_size_mib=11).changed
    (call,) = read_calls(tmp_path / "record", "grow")
    assert (call.environment["VOL_SIZE"], call.environment["VOL_NEW_SIZE"]) == ("10", "11")


# --- The answer of attach --------------------------------------------------------------------------------------------


@pytest.fixture
def attach(tmp_path: Path) -> Callable[..., object]:
    """A function that runs an attach which prints a text, and returns what hvext makes of it."""

    def run(answer: str, status: int = 0) -> object:
        script = f"printf %s {shlex.quote(answer)}; echo 'words on stderr' >&2; exit {status}"
        write_provider(tmp_path, "p", {"attach": script})
        host = provider_host(tmp_path)
        got = host.attach(host.find("p"), VOLUME)
        return got.block_path, got.uris_for("kvm"), len(got.warnings)

    return run


@pytest.mark.parametrize(
    ("answer", "uris", "warnings"),
    [
        ("D", (), 0),
        ("D\n", (), 0),
        ("D\r\nkvm:rbd:p/i\r\n", ("rbd:p/i",), 0),
        ("D\nkvm:rbd:p/i", ("rbd:p/i",), 0),
        ("D\nKvM:rbd:p/i\nkvm:nbd://h/x\n", ("rbd:p/i", "nbd://h/x"), 0),
        ("D\n\nxen-pvm:x\n\nkvm:rbd:p/i\n", ("rbd:p/i",), 0),
        (" D \nkvm:rbd:p/i \n", ("rbd:p/i",), 2),
        ("D\n kvm:rbd:p/i", ("rbd:p/i",), 1),
        ("D\nkvm:\n", (), 1),
        ("D\nrbd:p/i\n", (), 1),
    ],
)
def test_a_real_block_device_is_accepted_with_whatever_follows(
    attach: Callable[..., object], loop_device: str, answer: str, uris: tuple[str, ...], warnings: int
) -> None:
    assert attach(answer.replace("D", loop_device)) == (loop_device, uris, warnings)


def test_a_symlink_to_a_block_device_is_a_block_device(
    attach: Callable[..., object], loop_device: str, tmp_path: Path
) -> None:
    link = tmp_path / "by-id"
    link.symlink_to(loop_device)
    assert attach(f"{link}\n") == (str(link), (), 0)


def test_an_empty_first_line_and_a_uri_need_no_device(attach: Callable[..., object]) -> None:
    assert attach("\nkvm:nbd://h/x") == (None, ("nbd://h/x",), 0)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("file", "is a regular file"),
        ("missing", "does not exist"),
        ("folder", "is a directory"),
        ("dangling", "does not exist"),
        ("file/below", "is not accessible"),
        ("socket", "is a FIFO"),
    ],
)
def test_a_path_that_is_no_block_device_is_named_with_what_it_is(
    attach: Callable[..., object], path: str, words: str
) -> None:
    # A long path would be quoted shortened.
    with short_folder() as folder:
        (folder / "file").touch()
        (folder / "folder").mkdir()
        (folder / "dangling").symlink_to("missing")
        os.mkfifo(folder / "socket")
        with pytest.raises(AnswerError) as caught:
            attach(f"{folder / path}\nkvm:nbd://h/x\n")
    assert caught.value.message == f"attach printed '{folder / path}' as the block device, but it {words}"


def test_a_character_device_is_no_block_device(attach: Callable[..., object]) -> None:
    with pytest.raises(AnswerError, match="'/dev/null' as the block device, but it is a character device"):
        attach("/dev/null\n")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("", "neither a block device nor a URI"),
        ("\n\n", "neither a block device nor a URI"),
        ("kvm:rbd:p/i\n", "line 1 of attach's answer is 'kvm:rbd:p/i'"),
        ("multipath -> \nD\n", "line 1 of attach's answer is 'multipath ->'"),
    ],
)
def test_an_answer_that_offers_nothing_is_refused(
    attach: Callable[..., object], loop_device: str, answer: str, words: str
) -> None:
    with pytest.raises(AnswerError, match=re.escape(words)):
        attach(answer.replace("D", loop_device))


def test_an_answer_over_its_limit_is_refused_and_not_kept_in_memory(tmp_path: Path) -> None:
    write_provider(tmp_path, "p", {"attach": "echo; head -c 50000000 /dev/zero | tr '\\0' '\\n'"})
    host = provider_host(tmp_path)
    with pytest.raises(AnswerError, match="at most 65536"):
        host.attach(host.find("p"), VOLUME)


def test_bytes_that_are_no_text_are_refused_with_their_place(tmp_path: Path) -> None:
    write_provider(tmp_path, "p", {"attach": r"printf '\nkvm:nbd://\377\n'"})
    host = provider_host(tmp_path)
    with pytest.raises(AnswerError, match="line 2, at byte 11"):
        host.attach(host.find("p"), VOLUME)


def test_a_failed_attach_counts_as_failed_whatever_it_printed(attach: Callable[..., object], loop_device: str) -> None:
    with pytest.raises(ScriptFailed) as caught:
        attach(f"{loop_device}\nkvm:nbd://h/x\n", 1)
    assert "words on stderr" in caught.value.message
    assert f"last lines of stdout: {loop_device} | kvm:nbd://h/x" in caught.value.message
