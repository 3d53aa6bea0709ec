"""The command line as its users see it: every test starts the real program."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from hvext.cli.output import place_text
from hvext.core.identity import DiskNames
from hvext.core.volume import derived_uuid
from hvext.host import process
from tests.conftest import need
from tests.providers import actions, read_calls, write_provider

ROOT = Path(__file__).parents[2]
COMMANDS = (
    *("providers", "provider", "create", "remove", "grow", "attach", "detach", "open", "close", "setinfo", "snapshot"),
    *("verify", "args", "explain", "plug", "unplug", "repoint", "resize", "disks", "capabilities"),
    *("demo", "audit", "recover", "watch", "migrate-begin", "migrate-listen", "migrate", "migrate-finish"),
    *("migrate-cancel", "stop", "bench", "bench-compare", "bench-report", "tune", "sanity", "new-provider", "doctor"),
    *("metrics", "top", "report", "completion", "resume"),
)
SOON_S = 60.0
NO_DISK = "00000000-1111-4222-8333-444444444444"
RBD_AND_PATH = "/dev/rbd0\nkvm:rbd:pool/image\nxen-pvm:phy:x\n"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run of the program ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The JSON error on standard error."""
        assert self.status != 0
        assert self.out == ""
        return json.loads(self.err)["error"]


def hvext(*words: str, stdin: bytes = b"", status: int | None = None, **environment: str) -> Ended:
    """Run the program to its end; ``status`` is what it must end with."""
    ended = subprocess.run(
        [sys.executable, "-m", "hvext", *words],
        cwd=ROOT,
        env={**os.environ, "HOME": tempfile.gettempdir(), **environment},
        input=stdin,
        capture_output=True,
        timeout=SOON_S,
        check=False,
    )
    result = Ended(ended.returncode, ended.stdout.decode(), ended.stderr.decode())
    assert "Traceback" not in result.err, result.err
    if status is not None:
        assert result.status == status, result
    return result


# --- Help and start-up -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = hvext(command, "--help", status=0)
    assert result.out.startswith(f"usage: hvext {command.replace('bench-', 'bench ')} ")
    assert result.err == ""


def test_the_program_lists_its_commands() -> None:
    out = hvext("--help", status=0).out
    listed = {line[4:].split("  ")[0] for line in out.splitlines() if line.startswith("    ") and line[4] != " "}
    # As the documentation spells them.
    assert listed == {command.replace("bench-", "bench ") for command in COMMANDS}


@pytest.mark.parametrize("words", [["--help"], ["explain", "--offline", "ANSWER"], ["providers"]])
def test_starting_loads_nothing_of_weight(tmp_path: Path, words: list[str]) -> None:
    answer = tmp_path / "answer"
    answer.write_text(RBD_AND_PATH)
    program = """
import contextlib, sys
from hvext.cli import main
with contextlib.suppress(SystemExit):
    main(sys.argv[1:])
heavy = {"asyncio", "qemu", "libvirt", "rich", "matplotlib", "concurrent.futures"}
print("loaded:", sorted(heavy & set(sys.modules)))
"""
    words = [word.replace("ANSWER", str(answer)) for word in words]
    out = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert out.endswith("loaded: []\n")
    assert len(out.splitlines()) > 1


@pytest.mark.parametrize(
    "module", ["hvext.cli", "argparse", "hvext.cli.output", "hvext.cli.parser", "hvext.cli.volumes"]
)
def test_ctrl_c_while_a_command_is_loaded_ends_it_without_a_word(module: str) -> None:
    program = """
import runpy, signal, sys

class Impatient:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == module:
            signal.raise_signal(signal.SIGINT)

module = sys.argv[1]
sys.argv = ["hvext", "attach", "sample", "v"]
sys.meta_path.insert(0, Impatient)
runpy.run_module("hvext", run_name="__main__")
"""
    argv = [sys.executable, "-c", program, module]
    done = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


#: What runs programs, and what knows of running guests: neither is needed to read an answer.
_OF_PROGRAMS = {
    "subprocess",
    "tempfile",
    "concurrent.futures",
    "logging",
    "datetime",
    "threading",
    "hvext.host.process",
}
#: What takes as long to load as all of a short command.
_OF_WEIGHT = {
    "base64",
    "gettext",
    "ipaddress",
    "pathlib",
    "platform",
    "random",
    "urllib.parse",
    "dataclasses",
    "inspect",
    "typing",
    "concurrent.futures",
    "logging",
    "tempfile",
    "shutil",
    "hashlib",
    "datetime",
    "difflib",
    "hvext.core.schema",
    "hvext.core.uri.description",
    "hvext.core.uri.rbd",
}
_OF_GUESTS = {"asyncio", "qemu", "socket", "hvext.operations.steps", "hvext.host.qmp", "hvext.host.machine"}


def loaded(*words: str, **environment: str) -> set[str]:
    """The modules that a command has loaded when it is done."""
    program = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    program += "from hvext.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=ROOT, check=True, capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip
    return set(done.stderr.split())


def test_what_layers_call_again_and_again_loads_only_what_it_needs(tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    answer.write_text(RBD_AND_PATH)
    explained = loaded("explain", "--offline", str(answer))
    assert "hvext.core.plan" in explained
    assert not (_OF_PROGRAMS | _OF_GUESTS | {"hvext.host.provider", "hvext.core.record"}) & explained
    write_provider(tmp_path / "providers", "files", {"attach": "echo; echo kvm:file:/dev/null"})
    state = {"HVEXT_STATE_DIR": str(tmp_path / "state"), "HVEXT_RUNTIME_DIR": str(tmp_path / "run")}
    words = ("--search-path", str(tmp_path / "providers"), "--log-dir", "none", "--disk", "provider=files,volume=v")
    started = loaded("args", "--format", "xml", *words, **state)
    assert "hvext.core.record" in started
    assert not (_OF_GUESTS | _OF_WEIGHT | {"hvext.core.migration", "hvext.operations.capabilities"}) & started
    need("qemu-system-x86_64", "qemu-system-x86")
    # What QEMU can do is kept by the first one.
    state |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    loaded("args", *words, **state)
    started = loaded("args", *words, **state)
    assert "hvext.core.capability" in started
    not_needed = {"xml", "difflib", "hvext.core.domain_xml", "hvext.operations.capabilities"}
    assert not (_OF_GUESTS | (_OF_WEIGHT - {"hvext.core.schema"}) | not_needed) & started
    answer.write_text("/dev/nbd0\nkvm:nbd+unix:///v?socket=/run/nbd.sock\n")
    explained = loaded("explain", "--offline", str(answer))
    assert "hvext.core.uri.nbd" in explained
    assert not (_OF_WEIGHT | {"pathlib", "urllib.parse", "ipaddress", "locale"}) & explained


@pytest.mark.parametrize(
    ("steps", "left_out"),
    [
        ("light.import_argparse(); light.import_uuid(); light.import_subprocess()", True),
        ("import gettext, platform; light.import_argparse(); light.import_uuid(); light.import_subprocess()", False),
        # As with a Python whose modules need more of the others than is known here.
        ("light._import_beside('argparse', gettext={}); light._import_beside('uuid', platform={})", True),
    ],
)
def test_modules_that_are_left_out_are_there_for_whoever_needs_them(steps: str, left_out: bool) -> None:
    program = f"""
import sys
from hvext.cli import light
{steps}
assert ({{"gettext", "platform", "locale", "selectors"}}.isdisjoint(sys.modules)) is {left_out}
import argparse, gettext, platform, subprocess, uuid
said = subprocess.run(["printf", r"\\303\\251"], check=True, capture_output=True, text=True).stdout
import locale
assert subprocess.run(["cat"], check=True, capture_output=True, input=b"x" * 200000).stdout == b"x" * 200000
assert locale.setlocale and said == b"\\303\\251".decode(locale.getencoding())
assert gettext.translation and platform.python_version() and argparse.ArgumentParser() and uuid.UUID(int=1).hex
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_importing_the_library_loads_nothing_of_weight() -> None:
    program = "import sys, hvext; print({'asyncio', 'qemu', 'subprocess', 'hvext.core'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert out == "set()\n"


def test_a_path_is_shown_as_plug_names_it_whatever_qemu_opens_it_as() -> None:
    shown = [place_text(text) for text in ("host_device:/dev/loop12", "file:/a:b", "nbd://h/x", "file.raw", "", None)]
    assert shown == ["/dev/loop12", "/a:b", "nbd://h/x", "file.raw", "-", "-"]


# --- Wrong words -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["frobnicate"], "invalid choice: 'frobnicate'; hvext --help lists the commands"),
        (["plu"], "invalid choice: 'plu'; hvext --help lists the commands; did you mean plug?"),
        (["sanity", "--level", "stres"], "'data', 'stress'); did you mean stress?"),
        (["create", "sample", "v"], "the following arguments are required: --size"),
        (["create", "sample", "v", "--size", "1G"], "sizes are whole numbers of MiB (1024 for 1G); got '1G'"),
        (["create", "sample", "v", "--size", "big"], "sizes are whole numbers of MiB (1024 for 1 GiB); got 'big'"),
        (["create", "sample", "v", "--size", "0"], "size must be a whole number of MiB"),
        (["create", "sample", "a/b", "--size", "1"], "volume name 'a/b'"),
        (["create", "../sample", "v", "--size", "1"], "provider name '../sample'"),
        (["detach", "sample", "v", "--disk-uuid", "7"], "'7' is not a uuid"),
        (["detach", "sample", "v", "--timeout", "0"], "--timeout: must be a number of seconds above 0; got '0'"),
        (["detach", "sample", "v", "--timeout", "soon"], "--timeout: must be a number of seconds above 0; got 'soon'"),
        (["detach", "sample", "v", "--action-timeout", "detach=x"], "--action-timeout takes ACTION=SECONDS"),
        (["detach", "sample", "v", "--action-timeout", "detach"], "--action-timeout takes NAME=VALUE"),
        (["detach", "sample", "v", "--action-timeout", "detatch=5"], "no action 'detatch'"),
        (["detach", "sample", "v", "-p", "dir"], "-p takes NAME=VALUE; got 'dir'"),
        (["detach", "sample", "v", "-p", "=x"], "-p takes NAME=VALUE; got '=x'"),
        (["detach", "sample", "v", "-p", "a=1", "-p", "a=2"], "-p a is given twice"),
        (["detach", "sample", "v", "-p", "a=1", "-p", "A=2"], "are both EXTP_A"),
        (["detach", "sample", "v", "-p", "a-b=1"], "'a-b' cannot become an environment variable"),
        (["detach", "sample", "v", "-p", "access=1"], "exported by hvext itself"),
        (["detach", "sample", "v", "--env", "x"], "--env takes NAME=VALUE"),
        (["plug", "--qmp", "x", "sample", "v", "-o", "colour=red"], "there is no disk option 'colour'"),
        (["unplug", "--qmp", "x"], "name the disk by PROVIDER and VOLUME, or by --disk-uuid"),
        (["unplug", "--qmp", "x", "sample"], "name the disk by PROVIDER and VOLUME"),
        (["unplug", "--qmp", "x", "sample", "v", "--wait", "nan"], "--wait: must be a number of seconds above 0"),
        (["repoint", "--qmp", "x", "sample", "v"], "either --to LOCATION or --access ACCESS"),
        (["disks", "--qmp", ""], "the QMP address is empty"),
        (["explain", "/no/such/file"], "cannot read /no/such/file: No such file or directory"),
        (["explain", "/"], "cannot read /: Is a directory"),
        (["args"], "no disks are given"),
        (["args", "--disk", "provider=sample,volum=v"], "a disk needs volume=; did you mean it by 'volum'?"),
        (["attach", "sample", "v", "-p", "dri=/x"], "no parameter 'dri'; did you mean dir?"),
        (["verify", "sample", "-p", "dri=/x"], "no parameter 'dri'; did you mean dir?"),
        (["verify", "sample", "-p", "foo=x"], "hint: its parameters.list has: dir, "),
        (["resize", "--qmp", "x", "sample", "v", "--new-size", "1G"], "numbers of MiB (1024 for 1G); got '1G'"),
        (["resize", "--qmp", "x", "sample", "v", "--new-size", "9", "--size", "big"], "sizes are whole numbers of MiB"),
        (["resize", "--qmp", "x", "--new-size", "9"], "name the disk by PROVIDER and VOLUME, or by --disk-uuid"),
        (["resize", "--qmp", "x", "--new-size", "9", "--disk-uuid", NO_DISK], "hint: the provider grows the volume"),
        (["repoint", "--qmp", "x", "--disk-uuid", NO_DISK, "--to", ""], "--to is empty: it takes a URI or an absolute"),
        (["repoint", "--qmp", "x", "--disk-uuid", NO_DISK, "--to", "-"], "no location on standard input"),
        (["audit", "--connect", "x"], "hint: libvirt's guests are in the journal too: --vm NAME names one"),
        (["resume", "--connect=x"], "then virsh -c URI resume NAME"),
    ],
)
def test_a_wrong_command_or_value_ends_with_2_and_says_what_is_wrong(words: list[str], complaint: str) -> None:
    result = hvext(*words, status=2)
    assert complaint in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["audit", "--qmp-timeout", "x"], "argument --qmp-timeout: must be a number of seconds above 0; got 'x'"),
        (
            ["plug", "--qmp", "x", "sample", "v", "--conect"],
            "unrecognized arguments: --conect; did you mean --connect?",
        ),
        (["plug", "--qmpp", "x"], "unrecognized arguments: --qmpp; did you mean --qmp?"),
        (
            ["resize", "--qmp", "x", "a", "b", "--newsize=9"],
            "unrecognized arguments: --newsize; did you mean --new-size?",
        ),
        (["create", "sample", "v"], "the following arguments are required: --size"),
        (["plug", "--verbose"], "one of the arguments --qmp --connect is required"),
        (["plug", "--verb"], "unrecognized arguments: --verb; did you mean --verbose?"),
        (["audit", "--qmp-time", "5"], "unrecognized arguments: --qmp-time 5; did you mean --qmp-timeout?"),
        (
            ["unplug", "--qmp", "x", "--disk", "provider=a,volume=b"],
            "unrecognized arguments: --disk; did you mean --disk-uuid?",
        ),
        (["grow", "--size", "1", "--new-size", "2", "--", "--v"], "the following arguments are required: VOLUME"),
        (["audit", "--conect", "y"], "unrecognized arguments: --conect y"),
    ],
)
def test_a_wrong_word_is_told_without_a_screen_of_usage_before_it(words: list[str], line: str) -> None:
    command = f"hvext {words[0]}"
    assert hvext(*words, status=2).err == f"{command}: error: {line}\nhint: {command} --help\n"


def test_a_failure_ends_with_1_and_a_hint_on_standard_error(tmp_path: Path) -> None:
    result = hvext("provider", "nonesuch", "--search-path", str(tmp_path), status=1)
    assert result.out == ""
    hint = f"looked for its directory in {tmp_path}; --search-path DIR looks in another"
    assert result.err == f"hvext: there is no provider 'nonesuch'\nhint: {hint}\n"


@pytest.mark.parametrize(
    "words", [["provider", "samplle"], ["create", "samplle", "v", "--size", "1"], ["sanity", "samplle"]]
)
def test_a_provider_that_is_not_on_this_host_is_a_failure_of_all_commands_alike(words: list[str]) -> None:
    error = hvext(*words, "--json", status=1).error
    assert (error["type"], error["message"]) == (
        "ProviderNotFound",
        "there is no provider 'samplle'; did you mean sample?",
    )


def test_errors_are_json_where_json_was_asked_for(tmp_path: Path) -> None:
    result = hvext("provider", "nonesuch", "--search-path", str(tmp_path), "--json", status=1)
    assert result.error == {
        "type": "ProviderNotFound",
        "message": "there is no provider 'nonesuch'",
        "hint": f"looked for its directory in {tmp_path}; --search-path DIR looks in another",
    }
    assert hvext("args", "--json", status=2).error["type"] == "InputError"


# --- explain ---------------------------------------------------------------------------------------------------------


def explain(answer: str, *words: str) -> Any:
    return hvext("explain", "-", "--offline", "--json", *words, stdin=answer.encode()).json


def test_explain_tells_what_is_offered_what_is_chosen_and_all_renderings() -> None:
    said = explain(RBD_AND_PATH)
    assert set(said) >= {"attachment", "chosen", "blockdev", "device", "argv", "drive", "xml"}
    assert said["attachment"] == {
        "block_path": "/dev/rbd0",
        "uris": [
            {"hypervisor": "kvm", "uri": "rbd:pool/image"},
            {"hypervisor": "xen-pvm", "uri": "phy:x"},
        ],
        "warnings": [],
    }
    assert set(said["chosen"]) == {"access", "uri", "reason"}
    assert (said["chosen"]["access"], said["chosen"]["uri"]) == ("userspace", "rbd:pool/image")
    protocol, raw = said["blockdev"]
    assert (protocol["driver"], protocol["pool"], protocol["image"]) == ("rbd", "pool", "image")
    assert (raw["driver"], raw["file"]) == ("raw", protocol["node-name"])
    assert (said["device"]["driver"], said["device"]["drive"]) == ("virtio-blk-pci", raw["node-name"])
    assert said["argv"][::2] == ["-blockdev", "-blockdev", "-device"]
    assert [json.loads(word) for word in said["argv"][1::2]] == [protocol, raw, said["device"]]
    assert said["drive"][::2] == ["-drive", "-device"]
    assert etree.fromstring(said["xml"]).find("source").get("name") == "pool/image"


@pytest.mark.parametrize(
    ("answer", "words", "chosen"),
    [
        ("/dev/sdx", [], {"access": "kernelspace", "path": "/dev/sdx"}),
        (RBD_AND_PATH, ["--access", "userspace"], {"access": "userspace", "uri": "rbd:pool/image"}),
        (RBD_AND_PATH, ["--access", "kernelspace"], {"access": "kernelspace", "path": "/dev/rbd0"}),
        ("\nkvm:nbd+unix:///x?socket=/s", [], {"access": "userspace", "uri": "nbd+unix:///x?socket=/s"}),
        ("\nkvm:nbd://h/a\nkvm:nbd://h/b", [], {"access": "userspace", "uri": "nbd://h/a"}),
        ("/dev/sdx\nkvm:vxhs://h/v/i", [], {"access": "kernelspace", "path": "/dev/sdx"}),
        (RBD_AND_PATH, ["--hypervisor", "xen-pvm"], {"access": "userspace", "uri": "phy:x"}),
        (RBD_AND_PATH, ["--hypervisor", "XEN-PVM"], {"access": "userspace", "uri": "phy:x"}),
        (RBD_AND_PATH, ["--hypervisor", "xen-hvm"], {"access": "kernelspace", "path": "/dev/rbd0"}),
    ],
)
def test_explain_chooses_as_a_plug_would(answer: str, words: list[str], chosen: dict[str, str]) -> None:
    said = explain(answer, *words)
    assert said["chosen"].pop("reason")
    assert said["chosen"] == chosen


def test_explain_renders_nothing_of_qemus_for_another_hypervisor() -> None:
    said = explain(RBD_AND_PATH, "--hypervisor", "xen-pvm")
    assert set(said) == set(explain(RBD_AND_PATH))
    assert (said["blockdev"], said["device"], said["argv"], said["drive"], said["xml"]) == ([], None, [], [], None)


def test_explain_fails_when_the_wished_access_is_not_offered() -> None:
    result = hvext("explain", "-", "--offline", "--access", "kernelspace", stdin=b"\nkvm:rbd:p/i", status=1)
    assert "hint: " in result.err
    assert "printed no block device path" in result.err
    for words in (["--hypervisor", "xen-pvm"], ["--hypervisor", "xen-pvm", "--access", "kernelspace"]):
        assert hvext("explain", "-", "--offline", *words, stdin=b"\nkvm:rbd:p/i").status == 1


def test_explain_names_nodes_after_the_uuid_it_is_given() -> None:
    uuid = derived_uuid("p", "v")
    said = explain(RBD_AND_PATH, "--disk-uuid", str(uuid))
    names = DiskNames(uuid)
    assert said["blockdev"][1]["node-name"] == names.root
    assert said["device"]["id"] == names.device
    assert explain(RBD_AND_PATH)["device"]["id"] != names.device
    assert hvext("explain", "-", "--offline", "--disk-uuid", "x", stdin=b"/dev/x").status == 2


def test_explain_takes_disk_options() -> None:
    said = explain(RBD_AND_PATH, "-o", "device=scsi-hd", "-o", "bps_total=1000", "-o", "serial=a,b")
    assert said["device"]["driver"] == "scsi-hd"
    assert said["objects"][0]["limits"] == {"bps-total": 1000}
    assert "serial=a,,b" in said["drive"][-1]


def test_explain_looks_at_the_block_device_unless_it_is_offline(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer = f"{tmp_path}/file\n".encode()
    assert hvext("explain", "-", "--offline", stdin=answer).status == 0
    result = hvext("explain", "-", stdin=answer, status=1)
    assert "but it is a regular file" in result.err
    assert "does not exist" in hvext("explain", "-", stdin=b"/dev/none-such\n", status=1).err


def test_explain_reads_a_file_and_tells_people_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "answer").write_text("/dev/rbd0\n kvm:rbd:pool/image\n")
    result = hvext("explain", str(tmp_path / "answer"), "--offline", status=0)
    assert (
        "block path  /dev/rbd0\nuri         kvm: rbd:pool/image\nchosen      userspace: rbd:pool/image\n" in result.out
    )
    for title in ("\nargv:\n", "\ndrive:\n", "\nlibvirt XML:\n<disk"):
        assert title in result.out
    assert result.err.startswith("warning: line 2: blanks")


@pytest.mark.parametrize("junk", [b"\xff\xfe\x00", bytes(range(256)), b"\x7fELF\x02\x01\x01\x00", b"\n" * 100000, b""])
def test_explain_refuses_binary_junk_in_words(junk: bytes) -> None:
    result = hvext("explain", "-", "--offline", stdin=junk, status=1)
    assert result.err.startswith("hvext: attach printed ")


# --- Providers -------------------------------------------------------------------------------------------------------


def test_providers_are_listed_with_what_is_wrong_with_them(tmp_path: Path) -> None:
    write_provider(tmp_path, "good", {"open": "exit 0"}, "pool the pool\nuser\n")
    (tmp_path / "bad").mkdir()
    listed = hvext("providers", "--search-path", str(tmp_path), "--json").json
    bad, good = listed
    assert set(bad) == set(good)
    assert (bad["name"], bad["valid"], bad["path"]) == ("bad", False, f"{tmp_path}/bad")
    assert "script attach is missing" in bad["problems"]
    assert (good["name"], good["valid"], good["path"], good["problems"]) == ("good", True, f"{tmp_path}/good", [])
    assert good["parameters"][0] == {"name": "pool", "description": "the pool"}
    header, first, second = hvext("providers", "--search-path", str(tmp_path), status=0).out.splitlines()
    assert header.split() == ["PROVIDER", "DIRECTORY", "STATE"]
    assert first.split()[:2] == ["bad", f"{tmp_path}/bad"]
    assert "script attach is missing; " in first
    assert second.split() == ["good", f"{tmp_path}/good", "valid"]


def test_one_provider_is_shown_or_all_that_is_wrong_with_it(tmp_path: Path) -> None:
    write_provider(tmp_path, "good", {"open": "exit 0"}, "pool the pool\nuser\n")
    (tmp_path / "bad").mkdir()
    out = hvext("provider", "good", "--search-path", str(tmp_path), status=0).out
    assert "without     snapshot close (optional)\n" in out
    assert "parameters  pool  the pool\n            user\n" in out
    assert hvext("provider", "good", "--search-path", str(tmp_path), "--json").json["actions"][-1] == "open"
    error = hvext("provider", "bad", "--search-path", str(tmp_path), "--json", status=1).error
    assert error["type"] == "ProviderInvalid"
    assert error["message"].count("is missing") == 8


def test_no_providers_at_all_are_an_empty_list(tmp_path: Path) -> None:
    assert hvext("providers", "--search-path", str(tmp_path), "--json").json == []
    assert hvext("providers", "--search-path", str(tmp_path), status=0).out == f"no providers in {tmp_path}\n"


def test_a_folder_of_the_search_path_that_is_not_there_is_said(tmp_path: Path) -> None:
    done = hvext("providers", "--search-path", f"{tmp_path}:{tmp_path}/nope", status=0)
    assert done.err == f"warning: there is no folder {tmp_path}/nope\n"
    assert hvext("providers", status=0).err == ""


def test_a_relative_search_path_works(tmp_path: Path) -> None:
    write_provider(tmp_path, "p", {"detach": "pwd >&2; exit 4"})
    words = ["--search-path", os.path.relpath(tmp_path, ROOT), "--log-dir", "none"]
    assert f"ended with status 4; last lines of stderr: {tmp_path}/p" in hvext("detach", "p", "v", *words, status=1).err


# --- The life of a volume --------------------------------------------------------------------------------------------

Run = Callable[..., Ended]


@pytest.fixture
def sample() -> Iterator[Run]:
    """A function that runs a command on a volume of the shipped sample provider; nothing of it is left afterwards."""
    need("losetup", "mount")
    need("qemu-storage-daemon", "qemu-system-common")
    if os.geteuid() != 0:
        pytest.skip("only root makes loop devices")
    # A socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="hvx-") as folder:
        where = ["-p", f"dir={folder}/d", "-p", f"run={folder}/r", "--log-dir", f"{folder}/log"]

        def run(command: str, *words: str, volume: str = "v", **options: Any) -> Ended:
            return hvext(command, "sample", volume, *where, *words, **options)

        try:
            yield run
        finally:
            left = [path.name for path in Path(folder, "d").glob("[a-z]*")]
            ends = [run(command, volume=name) for name in left for command in ("detach", "remove")]
            assert all(end.status == 0 for end in ends), ends


def test_a_volume_lives_from_create_to_remove(sample: Run) -> None:
    assert sample("create", "--size", "8", status=0).out == "sample/v: created\n"
    assert sample("create", "--size", "8", status=1).out == ""
    path, uri = sample("attach", status=0).out.splitlines()
    assert Path(path).is_block_device()
    assert uri.startswith("kvm:nbd+unix:///v?socket=")
    again = sample("attach", "--json").json
    assert (again["block_path"], again["uris"]) == (path, [{"hypervisor": "kvm", "uri": uri.removeprefix("kvm:")}])
    assert (again["chosen"]["access"], again["warnings"]) == ("userspace", [])
    assert sample("attach", "--access", "kernelspace", "--json").json["chosen"]["path"] == path
    grown = sample("grow", "--size", "8", "--new-size", "12", "--json").json
    assert grown == {"provider": "sample", "volume": "v", "state": "grown", "size_mib": 12, "changed": True}
    assert sample("grow", "--size", "12", "--new-size", "12", "--json").json["changed"] is False
    assert "cannot be shrunk" in sample("grow", "--size", "12", "--new-size", "8", status=2).err
    assert sample("setinfo", "--metadata", "originstname+web", status=0).out == "sample/v: metadata stored\n"
    assert sample("close", status=0).out == "sample/v: closed\n"
    assert sample("open", "--shared", status=0).out == "sample/v: opened\n"
    assert "is attached" in sample("remove", status=1).err
    told = {"provider": "sample", "volume": "v", "state": "detached", "warnings": []}
    assert sample("detach", "--json").json == told
    assert sample("detach", status=0).out == "sample/v: detached\n"
    taken = sample("snapshot", "--snapshot-name", "s", "--snapshot-size", "12", status=0)
    assert taken.out == "sample/v: snapshot s taken\n"
    assert sample("remove", status=0).out == "sample/v: removed\n"
    assert sample("attach", volume="s", status=0).out.startswith("/dev/loop")


def test_a_failed_script_is_told_with_its_words_and_its_log(sample: Run) -> None:
    result = sample("attach", status=1)
    assert "attach of provider 'sample' for volume 'v' ended with status 1; last lines of stderr: sample:" in result.err
    log = result.err.rpartition("hint: the whole output is in ")[2].strip()
    assert "status 1 after" in Path(log).read_text()


def test_parameters_are_verified_without_a_volume(sample: Run) -> None:
    words = ["verify", "sample", "--log-dir", "none"]
    assert hvext(*words, "-p", "candidates=2", status=0).out == "sample: the parameters are good\n"
    assert hvext(*words, "--json").json == {"provider": "sample", "state": "verified"}
    error = hvext(*words, "-p", "candidates=3", status=1).err
    assert error.startswith("hvext: verify of provider 'sample' ended with status 1; ")
    assert "must be 1 or 2" in error


# --- args ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def provided(tmp_path: Path) -> list[str]:
    """The words that lead to a recorded provider ``p`` whose volumes are NBD exports."""
    answer = 'printf "\\nkvm:nbd://host/$VOL_NAME\\n"; [ "$VOL_NAME" != bad ]'
    write_provider(tmp_path / "providers", "p", {"attach": answer}, record=tmp_path / "record")
    return ["--search-path", str(tmp_path / "providers"), "--log-dir", "none"]


def attached(tmp_path: Path) -> set[str]:
    """The volumes that are attached now."""
    calls = read_calls(tmp_path / "record")
    return {call.volume for call in calls if actions(calls, call.volume)[-1] != "detach"}


def test_args_prints_qemus_arguments_in_the_disks_order(tmp_path: Path, provided: list[str]) -> None:
    disks = ["--disk", "provider=p,volume=a,bootindex=1", "--disk", "provider=p,volume=b,device=scsi-hd"]
    argv = hvext("args", *disks, *provided, "--json").json
    assert argv[::2] == ["-blockdev", "-blockdev", "-device", "-blockdev", "-blockdev", "-device", "-device"]
    values = [json.loads(word) for word in argv[1::2]]
    assert (values[0]["export"], values[3]["export"]) == ("a", "b")
    assert [value.get("driver") for value in values[5:]] == ["virtio-scsi-pci", "scsi-hd"]
    assert attached(tmp_path) == {"a", "b"}


def test_args_in_words_can_be_pasted_into_a_shell(provided: list[str]) -> None:
    words = ["args", "--disk", "provider=p,volume=a,serial=it's $1 *", *provided]
    printed = hvext(*words, status=0).out
    read_back = subprocess.run(["sh", "-c", f"printf '%s\\n' {printed}"], check=True, capture_output=True, text=True)
    assert read_back.stdout.splitlines() == hvext(*words, "--json").json


def test_args_prints_all_four_formats(provided: list[str]) -> None:
    words = ["args", "--disk", "provider=p,volume=a", *provided, "--format"]
    assert hvext(*words, "blockdev", "--json").json[0] == "-blockdev"
    assert hvext(*words, "drive", "--json").json[0] == "-drive"
    commands = [json.loads(line) for line in hvext(*words, "qmp", status=0).out.splitlines()]
    assert [command["execute"] for command in commands] == ["blockdev-add", "blockdev-add", "device_add"]
    assert hvext(*words, "qmp", "--json").json == commands
    xml = hvext(*words, "xml", status=0).out
    assert etree.fromstring(xml).tag == "disk"
    assert hvext(*words, "xml", "--json").json == xml


def test_a_comma_in_a_value_of_a_disk_is_doubled(tmp_path: Path, provided: list[str]) -> None:
    hvext("args", "--disk", "provider=p,volume=a,,b,param.list=x,,y,,,,z,cname=c", *provided, status=0)
    (call,) = read_calls(tmp_path / "record", "attach")
    assert (call.volume, call.environment["EXTP_LIST"], call.environment["VOL_CNAME"]) == ("a,b", "x,y,,z", "c")


def test_disks_are_read_as_json_from_an_option_a_file_or_standard_input(tmp_path: Path, provided: list[str]) -> None:
    disks = [{"provider": "p", "volume": f"v{number}", "parameters": {"pool": "a,b"}} for number in range(3)]
    (tmp_path / "disks.json").write_text(json.dumps(disks))
    expected = hvext("args", "--disks", str(tmp_path / "disks.json"), *provided, "--json").json
    assert hvext("args", "--disks", "-", *provided, "--json", stdin=json.dumps(disks).encode()).json == expected
    options = [word for disk in disks for word in ("--disk", json.dumps(disk))]
    assert hvext("args", *options, *provided, "--json").json == expected
    assert {call.environment["EXTP_POOL"] for call in read_calls(tmp_path / "record", "attach")} == {"a,b"}


@pytest.mark.parametrize(
    ("words", "stdin", "complaint"),
    [
        (["--disk", "provider=p"], b"", "a disk needs volume="),
        (["--disk", "provider=p,volume"], b"", "--disk takes KEY=VALUE,…; got 'volume'"),
        (["--disk", "provider=p,volume=a,"], b"", "got ''"),
        (["--disk", "provider=p,volume=a,volume=b"], b"", "--disk has volume twice"),
        (["--disk", "provider=p,volume=a,colour=red"], b"", "no disk option 'colour'"),
        (["--disk", "provider=p,volume=a,access=maybe"], b"", "access must be one of"),
        (["--disk", "provider=p", "--disk", "volume=v"], b"", "the 1st --disk: a disk needs volume="),
        (["--disk", "provider=p,volume=a", "--disk", "volume=v"], b"", "the 2nd --disk: a disk needs provider="),
        (["--disk", "provider=p,volume=a", "--disk", "volume=v"], b"", "hint: each --disk is a whole disk: provider="),
        (["--disks", "-"], b'[{"provider": "p", "volume": "a"}, {"volume": "b"}]', "the 2nd disk in -: a disk needs"),
        (["--disks", "-"], b"root:x:0", "cannot read disks from -: it is no JSON (line 1, column 1)"),
        (["--disks", "-"], b"\n", "cannot read disks from -: it is no JSON (it is empty)"),
        (["--disk", "{"], b"", "--disk is not JSON (line 1, column 2)"),
        (["--disk", '{"provider":"p","volume":3}'], b"", "a disk's volume must be text, not int"),
        (["--disks", "-"], b"", "cannot read disks from -"),
        (["--disks", "-"], b"{}", "- must hold a JSON list of disks"),
        (["--disks", "-"], b"[3]", "- must hold a JSON list of disks"),
        (["--disks", "-"], b"\xff", "cannot read disks from -"),
        (["--disks", "-"], b"[" * 100000, "cannot read disks from -"),
        (["--disks", "/no/such/file"], b"", "cannot read disks from /no/such/file"),
        (["--disk", "provider=p,volume=a", "--disk", "provider=p,volume=a"], b"", "the same uuid"),
    ],
)
def test_disks_that_make_no_sense_are_refused_and_nothing_is_attached(
    tmp_path: Path, provided: list[str], words: list[str], stdin: bytes, complaint: str
) -> None:
    assert complaint in hvext("args", *words, *provided, stdin=stdin, status=2).err
    assert read_calls(tmp_path / "record") == []


def test_nothing_stays_attached_when_one_disk_fails(tmp_path: Path, provided: list[str]) -> None:
    words = [word for name in ("a", "bad", "c") for word in ("--disk", f"provider=p,volume={name}")]
    error = hvext("args", *words, *provided, "--json", status=1).error
    assert error["type"] == "OperationFailed"
    assert "p/bad: attach of provider 'p'" in error["message"]
    assert error["undone"] == ["attach p/a", "attach p/c"]
    assert attached(tmp_path) == {"bad"}
    assert actions(read_calls(tmp_path / "record"), "bad") == ["attach"]


def test_nothing_stays_attached_when_the_wished_format_is_impossible(tmp_path: Path, provided: list[str]) -> None:
    disk = "provider=p,volume=a,iothread=mine"
    assert "libvirt XML" in hvext("args", "--disk", disk, *provided, "--format", "xml", status=1).err
    assert attached(tmp_path) == set()


def into_closed_pipe(*words: str) -> Ended:
    """Run the program with a standard output that nobody reads."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "hvext", *words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=write_end,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(write_end)
    return Ended(ended.returncode, "", ended.stderr.decode())


def test_a_reader_that_went_away_is_no_reason_for_a_traceback(tmp_path: Path, provided: list[str]) -> None:
    (tmp_path / "answer").write_text(RBD_AND_PATH)
    for words in (["providers", *provided], ["explain", "--offline", str(tmp_path / "answer")]):
        assert into_closed_pipe(*words) == Ended(1, "", "")


def test_nothing_stays_attached_when_nobody_reads_the_arguments(tmp_path: Path, provided: list[str]) -> None:
    assert into_closed_pipe("args", "--disk", "provider=p,volume=a", *provided) == Ended(1, "", "")
    assert actions(read_calls(tmp_path / "record"), "a") == ["attach", "detach"]


@pytest.mark.parametrize(
    ("redirection", "status", "words"),
    [
        (">/dev/full", 1, "hvext: cannot write the result: No space left on device\n"),
        (">&-", 0, ""),
        ("<&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
    ],
)
def test_closed_or_full_streams_cause_no_traceback(
    provided: list[str], redirection: str, status: int, words: str
) -> None:
    script = f'exec "$@" {redirection}'
    ended = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-m", "hvext", "providers", *provided],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr.decode()) == (status, words)


def test_a_change_that_was_done_is_told_of_where_its_result_cannot_be_written(
    tmp_path: Path, provided: list[str]
) -> None:
    attach = ["attach", "p", "a", *provided]
    told = into_closed_pipe(*attach)
    assert told == Ended(1, "", "hvext: done, but the result could not be written: Broken pipe\n")
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    for words, said in (
        (attach, "done, but the result could not be written"),
        ([*attach, "--dry-run"], "cannot write"),
    ):
        with open("/dev/full", "wb") as full:  # noqa: PTH123
            argv = [sys.executable, "-m", "hvext", *words]
            ended = subprocess.run(argv, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, env=unbuffered, check=False)
        assert (ended.returncode, ended.stderr.decode().startswith(f"hvext: {said}")) == (1, True), ended.stderr
    assert actions(read_calls(tmp_path / "record"), "a")[0] == "attach"


def test_a_page_goes_to_a_file_or_a_pipe_by_its_name_and_not_to_a_file_called_minus(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    for words in (
        ["report", "--html", "-"],
        ["bench", "sample", "v", "--html", "-"],
        ["bench", "sample", "v", "--out", "-"],
    ):
        refused = hvext(*words, status=2, HVEXT_STATE_DIR=state)
        assert ("- is no name of a file here" in refused.err, "/dev/stdout" in refused.err) == (True, True)
    assert not (ROOT / "-").exists()
    stdout = Path("/dev/stdout").readlink()
    assert hvext("report", "--html", "/dev/stdout", status=0, HVEXT_STATE_DIR=state).out.startswith("<!doctype html>")
    assert Path("/dev/stdout").readlink() == stdout
    page = tmp_path / "page"
    link = tmp_path / "link"
    link.symlink_to(page)
    page.write_text("old")
    hvext("report", "--html", str(link), status=0, HVEXT_STATE_DIR=state)
    assert (link.is_symlink(), page.read_text().startswith("<!doctype html>")) == (True, True)


def test_text_that_the_terminal_cannot_show_is_printed_all_the_same(tmp_path: Path) -> None:
    folder = f"{tmp_path}/ü"
    out = hvext("providers", "--search-path", folder, status=0, PYTHONIOENCODING="ascii").out
    assert out == f"no providers in {tmp_path}/\\xfc\n"


# --- The monitor of a guest ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(path: Path, greeting: bytes | None) -> Iterator[None]:
    """A socket at ``path`` whose one client is told ``greeting``, or which never takes a client."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        server.settimeout(SOON_S)

        def serve() -> None:
            with contextlib.suppress(OSError):
                client, _address = server.accept()
                with client:
                    client.sendall(greeting or b"")
                    client.recv(1)

        thread = threading.Thread(target=serve)
        if greeting is not None:
            thread.start()
        try:
            yield
        finally:
            if greeting is not None:
                server.shutdown(socket.SHUT_RDWR)
                thread.join()


@pytest.fixture
def short(tmp_path: Path) -> Iterator[Path]:
    """A folder with a path that is short enough for a socket in it."""
    with tempfile.TemporaryDirectory(prefix="hvx-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("command", [["disks"], ["plug", "sample", "v"], ["unplug", "sample", "v"]])
def test_a_monitor_that_is_not_there_is_named_with_how_to_make_one(short: Path, command: list[str]) -> None:
    result = hvext(*command, "--qmp", f"{short}/none", status=1)
    assert f"cannot connect to the QMP monitor at {short}/none: No such file or directory" in result.err
    assert "hint: QEMU makes one with -chardev socket" in result.err


def test_a_monitor_that_nobody_listens_at_is_named(short: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{short}/dead")
    error = hvext("disks", "--qmp", f"{short}/dead", "--json", status=1).error
    assert (error["type"], "Connection refused" in error["message"]) == ("MonitorError", True)


@pytest.mark.parametrize("command", [["disks"], ["plug", "sample", "v"]])
def test_a_folder_and_a_file_are_told_from_a_socket_that_nobody_listens_at(short: Path, command: list[str]) -> None:
    (short / "file").write_text("")
    for path, kind in ((short, "a directory"), (short / "file", "a regular file")):
        error = hvext(*command, "--qmp", str(path), "--json", status=1).error
        assert error["message"] == f"cannot connect to the QMP monitor at {path}: this is {kind}, and no socket"


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b'{"not": "QMP"}\n', b"\xff\xff\n", b"[]\n", b"\n"])
def test_a_socket_that_speaks_something_else_is_told_from_a_monitor(short: Path, greeting: bytes) -> None:
    with listening(short / "other", greeting):
        result = hvext("disks", "--qmp", f"{short}/other", "--qmp-timeout", "20", status=1)
    assert f"cannot connect to the QMP monitor at {short}/other: " in result.err
    assert "hint: QEMU makes one with" in result.err


def test_a_socket_that_says_nothing_does_not_hang(short: Path) -> None:
    with listening(short / "silent", None):
        result = hvext("disks", "--qmp", f"{short}/silent", "--qmp-timeout", "1", status=1)
    assert "did not greet within 1 s" in result.err


@pytest.fixture
def monitor(short: Path) -> Iterator[Path]:
    """The QMP socket of a real QEMU without a guest."""
    qemu = need("qemu-system-x86_64", "qemu-system-x86")
    path = short / "qmp"
    argv = [qemu, "-machine", "none", "-nodefaults", "-display", "none", "-S", "-object", "iothread,id=io"]
    argv += ["-qmp", f"unix:{path},server=on,wait=off"]
    with process.start(argv, env=dict(os.environ), log_path=short / "log") as running:
        deadline = time.monotonic() + SOON_S
        while not path.exists():
            assert running.alive, running.log_tail()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield path


def test_a_monitor_that_is_busy_is_told_from_one_that_is_gone(monitor: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(monitor))
        assert b"QMP" in other.recv(4096)
        error = hvext("disks", "--qmp", str(monitor), "--qmp-timeout", "1", "--json", status=1).error
    assert error["type"] == "MonitorError"
    assert "did not greet" in error["message"]
    assert "one client at a time" in error["hint"]


@contextlib.contextmanager
def waiting_for_another(at: Path, monitor: Path) -> Iterator[None]:
    """A monitor that greets, and then accepts a second client before it reads; as QEMU rarely does when it starts."""
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as behind:
        server.bind(str(at))
        server.listen()
        server.settimeout(SOON_S)
        behind.connect(str(monitor))

        def serve() -> None:
            with contextlib.suppress(OSError):
                client, _address = server.accept()
                with client:
                    client.sendall(behind.recv(4096))
                    other, _address = server.accept()
                    other.close()
                    while ready := select.select([client, behind], [], [], SOON_S)[0]:
                        for end in ready:
                            if not (data := end.recv(65536)):
                                return
                            (behind if end is client else client).sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            for end in (server, behind):
                end.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_qemu_that_waits_for_another_client_is_given_one(monitor: Path, short: Path) -> None:
    with waiting_for_another(short / "stuck", monitor):
        assert hvext("disks", "--qmp", f"{short}/stuck", "--json").json == []


def test_a_guest_without_disks_has_none(monitor: Path) -> None:
    assert hvext("disks", "--qmp", str(monitor), "--json").json == []
    assert hvext("disks", "--qmp", str(monitor), status=0).out == "the guest has no disks of hvext\n"
