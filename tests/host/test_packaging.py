"""What is shipped: man pages, the service, wheel and sdist, Debian packages."""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvext.cli import _joined
from hvext.cli.parser import whole_parser
from hvext.core.extras import DEBIAN
from hvext.host import process
from tests.conftest import need

ROOT = Path(__file__).parents[2]
SOON_S = 120.0
#: Far more than a build, and a Debian fetched from the network, take.
LONG_S = 1200
ANSWER = "/dev/rbd0\nkvm:rbd:pool/image\n"


def done(*argv: str | Path, stdin: str = "", cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """Run a program to its end, and return what it printed; it has to succeed."""
    ended = subprocess.run(
        [str(word) for word in argv],
        input=stdin,
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    assert ended.returncode == 0, f"{argv[0]} {ended.returncode}: {ended.stdout[-2000:]}{ended.stderr[-4000:]}"
    return ended.stdout


def warned(*argv: str | Path) -> str:
    """Run a program, and return all that it had to say on standard error, or as its result."""
    ended = subprocess.run(
        [str(word) for word in argv], capture_output=True, text=True, timeout=SOON_S, check=False, env=plain()
    )
    return ended.stderr


def plain() -> dict[str, str]:
    """An environment in which nothing of this checkout is found by chance."""
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}


# --- Man pages -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefix with man pages and completions."""
    folder = tmp_path_factory.mktemp("made")
    done(sys.executable, "scripts/man-pages", folder)
    return folder


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in whole_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def test_each_command_has_a_man_page_with_all_its_options(made: Path) -> None:
    folder = made / "share/man/man1"
    overview = (folder / "hvext.1").read_text().replace("\\-", "-")
    for name, parser in commands():
        assert f"hvext-{name}(1)" in overview
        page = (folder / f"hvext-{name}.1").read_text().replace("\\-", "-")
        for action in parser._actions:
            for option in action.option_strings:
                assert option in ("-h", "--help") or f"\\fB{option}\\fR" in page, f"{name} {option}"
            if action.help and "%" not in action.help and action.dest != "help":
                assert action.help.split("\n")[0].split("…")[0] in page, f"{name} {action.dest}"
        if parser.epilog:
            assert parser.epilog.splitlines()[0] in page
    assert len(list(folder.iterdir())) == 1 + len(list(commands()))


def examples() -> dict[str, list[tuple[str, str]]]:
    return tomllib.loads((ROOT / "packaging/examples.toml").read_text())


def test_each_example_is_a_line_that_the_command_takes() -> None:
    assert examples().keys() == {name for name, _parser in commands()}
    for name, lines in examples().items():
        assert 1 <= len(lines) <= 2
        for typed, does in lines:
            # What a shell makes of it: a pipe before hvext, a file behind it.
            words = shlex.split(typed.split(" | ")[-1].split(" >")[0])
            assert words[0] == "hvext"
            assert _joined(words[1:])[0] == name, typed
            whole_parser().parse_args(_joined(words[1:]))
            assert does.endswith("."), does


def test_each_man_page_has_the_examples_of_its_command(made: Path) -> None:
    for name, lines in examples().items():
        shown = done(
            need("man", "man-db"), "-P", "cat", "-l", made / f"share/man/man1/hvext-{name}.1",
            env=plain() | {"MANWIDTH": "1000"},
        )  # fmt: skip
        _, _, part = shown.partition("\nEXAMPLES\n")
        for typed, does in lines:
            assert f"       {typed}\n              {does}\n" in part


def test_a_man_page_names_pages_that_are_beside_it(made: Path) -> None:
    pages = {path.name for path in (made / "share/doc/hvext").iterdir()}
    assert pages == {path.name for path in (ROOT / "docs").glob("*.md")}
    named = set()
    for path in (made / "share/man/man1").iterdir():
        text = path.read_text().replace("\\-", "-")
        assert "docs/" not in text.lower(), path.name
        _, _, files = text.partition(".SH FILES")
        assert "share/doc/hvext" in files
        here = set(re.findall(r"[\w-]+\.md", text))
        assert here == set(re.findall(r"[\w-]+\.md", files)), path.name
        named |= here
    assert named <= pages
    assert {"failover.md", "scale.md", "sanity.md"} <= named


def described() -> dict[str, list[str]]:
    return tomllib.loads((ROOT / "packaging/pages.toml").read_text())


def test_each_man_page_names_pages_that_tell_of_its_command(made: Path) -> None:
    assert described().keys() == {name for name, _parser in commands()}
    for name, pages in described().items():
        text = (made / f"share/man/man1/hvext-{name}.1").read_text().replace("\\-", "-")
        assert f"for this page: {', '.join(pages)}" in text.partition(".SH FILES")[2], name
        for page in pages:
            told = (ROOT / "docs" / page).read_text()
            words = name.replace("bench-", "bench ").replace("repoint", "re-?point")
            assert re.search(rf"\b{words}\b", told, re.IGNORECASE), (name, page)
    assert described()["bench"] == ["bench.md"]


def test_no_link_of_an_installed_page_leads_to_what_is_not_installed(made: Path) -> None:
    folder = made / "share/doc/hvext"
    for page in folder.iterdir():
        for target in re.findall(r"\]\(([^)\s#]+)", page.read_text()):
            assert "://" in target or (folder / target).is_file(), (page.name, target)
    assert "| `sample` | a file" in (folder / "shipped-providers.md").read_text()


def test_the_page_of_errors_names_the_pages_that_its_entries_lead_to(made: Path) -> None:
    text = (made / "share/man/man7/hvext-errors.7").read_text().replace("\\-", "-")
    for words in ("migration.md has the order", "the fence [failover.md]", "All pages are listed in index.md"):
        assert words in text
    linked = set(re.findall(r"\]\(([\w-]+\.md)", (ROOT / "docs/troubleshooting.md").read_text().split("## By name")[1]))
    assert linked <= set(re.findall(r"[\w-]+\.md", text.partition(".SH FILES")[2]))


def test_debians_package_names_the_packages_that_hints_ask_for() -> None:
    control = (ROOT / "packaging/debian/control").read_text()
    named = set(re.findall(r"python3-[\w.-]+", "".join(re.findall(r"^(?:Suggests|Recommends): .*$", control, re.M))))
    assert {package for packages in DEBIAN.values() for package in packages} == named
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert DEBIAN.keys() == extras.keys() - {"docs", "packages", "dev"}


def test_no_man_page_gives_a_warning(made: Path) -> None:
    pages = sorted((made / "share/man").glob("man?/*"))
    lint = subprocess.run(
        [need("mandoc", "mandoc"), "-T", "lint", "-W", "warning", *pages], capture_output=True, text=True, check=False
    )
    assert lint.stdout + lint.stderr == ""
    assert warned(need("groff", "groff"), "-ww", "-man", "-z", *pages) == ""
    assert warned(need("man", "man-db"), "--warnings", "-l", made / "share/man/man1/hvext-plug.1") == ""


def test_help_that_looks_like_a_command_of_troff_is_in_the_page_all_the_same(tmp_path: Path) -> None:
    write = runpy.run_path(str(ROOT / "scripts/man-pages"))["_page"]
    parser = argparse.ArgumentParser(prog="hvext odd", description="Odd.", epilog="\\fB is no bold")
    parser.add_argument("--dot", help=".hidden is a file…")
    parser.add_argument("--quote", help="'-' is standard input")
    page = tmp_path / "hvext-odd.1"
    page.write_text(write(parser, "hvext-odd", "be odd"))
    shown = done(need("man", "man-db"), "-P", "cat", "-l", page, env=plain())
    for words in (".hidden is a file...", "'-' is standard input", "\\fB is no bold"):
        assert words in shown


# --- The service -----------------------------------------------------------------------------------------------------


def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    text = (ROOT / "packaging/systemd/hvext-watch.service").read_text()
    assert "ExecStart=/usr/bin/hvext watch " in text
    unit = tmp_path / "hvext-watch.service"
    # Where this hvext is: systemd looks whether the program exists.
    unit.write_text(text.replace("/usr/bin/hvext", shutil.which("true") or ""))
    checked = subprocess.run(
        [need("systemd-analyze", "systemd"), "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_unit_gives_the_watch_options_that_it_has() -> None:
    text = (ROOT / "packaging/systemd/hvext-watch.service").read_text()
    offered = (ROOT / "packaging/systemd/hvext-watch.default").read_text()
    for options in re.findall(r'HVEXT_WATCH_OPTIONS=(?:")?([^"\n]+)', text + offered):
        assert whole_parser().parse_args(["watch", *options.split()]).run == "watch:watch"


# --- Wheel and sdist -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of this checkout, and a wheel that was built of it and of nothing else."""
    folder = tmp_path_factory.mktemp("packages")
    build = "import sys; from hatchling import build; getattr(build, sys.argv[1])(sys.argv[2])"
    done(sys.executable, "-c", build, "build_sdist", folder)
    (sdist,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(sdist, folder)
    # In an environment like one that has hatchling alone: the sdist has the man pages.
    without = f"import sys; sys.modules.update(shtab=None, argparse_manpage=None); {build}"
    done(sys.executable, "-c", without, "build_wheel", folder, cwd=folder / sdist.name.removesuffix(".tar.gz"))
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def test_an_sdist_has_what_tests_and_builds_need_and_nothing_that_was_built(packages: tuple[Path, Path]) -> None:
    with tarfile.open(packages[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kept = done("git", "ls-files", "--cached").splitlines()
    assert {name for name in kept if (ROOT / name).is_file()} - names == set()
    assert {"packaging/made/share/man/man1/hvext.1", "packaging/debian/rules", "scripts/build-deb"} <= names
    built = (".venv/", "vm-images/out", ".git/", "dist/")
    assert not [name for name in names if name.startswith(built) or "__pycache__" in name]


def cure_of_a_wrong_name(*hvext: str | Path, cwd: Path) -> Path:
    """The page that an error names, which has to be there, with the heading."""
    ended = subprocess.run(
        [*map(str, hvext), "provider", "nosuch", "--json"],
        cwd=cwd, capture_output=True, text=True, env=plain(), timeout=SOON_S, check=False,
    )  # fmt: skip
    page, _, heading = json.loads(ended.stderr)["help"].partition("#")
    root = Path(str(hvext[1])) if hvext[0] == "chroot" else Path("/")
    assert f"### {heading}\n" in (root / page.lstrip("/")).read_text().lower()
    return Path(page)


def test_a_wheel_of_the_sdist_runs_in_an_environment_that_has_nothing_else(
    packages: tuple[Path, Path], tmp_path: Path
) -> None:
    _, wheel = packages
    venv.create(tmp_path / "empty", with_pip=False)
    python = tmp_path / "empty/bin/python"
    done(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel)
    hvext = tmp_path / "empty/bin/hvext"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert done(hvext, "--version", cwd=tmp_path, env=plain()) == f"hvext {version}\n"
    explained = done(hvext, "explain", "--offline", "-", stdin=ANSWER, cwd=tmp_path, env=plain())
    assert "userspace: rbd:pool/image" in explained
    listed = done(hvext, "providers", cwd=tmp_path, env=plain())
    shipped = sorted(path.name for path in (ROOT / "hvext/providers").iterdir() if (path / "attach").exists())
    states = {line.split()[0]: line.split()[-1] for line in listed.splitlines()[1:]}
    assert {name: states.get(name) for name in shipped} == dict.fromkeys(shipped, "valid")
    assert (tmp_path / "empty/share/man/man1/hvext-plug.1").is_file()
    assert cure_of_a_wrong_name(hvext, cwd=tmp_path).is_relative_to(tmp_path / "empty")
    assert (tmp_path / "empty/share/bash-completion/completions/hvext").is_file()


def test_a_wheel_names_the_licence_and_has_it(packages: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(packages[1]) as wheel:
        (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        (licence,) = (name for name in wheel.namelist() if name.endswith("/LICENSE"))
        assert "License-Expression: BSD-2-Clause" in wheel.read(metadata).decode()
        assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()


@pytest.mark.nightly
@pytest.mark.timeout(LONG_S)
def test_the_sdist_installs_with_all_it_needs_from_a_package_index(packages: tuple[Path, Path], tmp_path: Path) -> None:
    done(sys.executable, "-m", "venv", tmp_path / "empty")
    needed = f"{packages[0]}[completion,metrics]"
    done(tmp_path / "empty/bin/pip", "install", "--quiet", needed)
    hvext = tmp_path / "empty/bin/hvext"
    assert "complete" in done(hvext, "completion", "bash", cwd=tmp_path, env=plain())
    assert "virtio-blk" in done(hvext, "capabilities", cwd=tmp_path, env=plain() | {"HOME": str(tmp_path)})


# --- Words about it --------------------------------------------------------------------------------------------------


def test_the_version_that_is_shipped_has_its_entry_in_the_change_log() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(rf"^## \[{re.escape(version)}\] - (unreleased|\d{{4}}-\d\d-\d\d)$", log(), re.MULTILINE)


def log() -> str:
    return (ROOT / "CHANGELOG.md").read_text()


def test_every_entry_of_the_root_is_described() -> None:
    table = (ROOT / "docs/files.md").read_text()
    kept = done("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for entry in {name.partition("/")[0] + ("/" if "/" in name else "") for name in kept} - {".gitignore", ".ci/"}:
        assert f"| `{entry}" in table, entry


# --- Debian packages -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    """The packages, and a small Debian 12 that they are installed in."""
    for program, package in (("dpkg-buildpackage", "dpkg-dev"), ("debootstrap", "debootstrap")):
        need(program, package)
    folder = tmp_path_factory.mktemp("debian")
    maintainer = {"DEBFULLNAME": "hvext", "DEBEMAIL": "hvext@packages.debian.org"}
    built = done("scripts/build-deb", folder, env={**os.environ, **maintainer}).split()
    root = folder / "root"
    done("debootstrap", "--variant=minbase", "--include=python3,systemd,systemd-sysv", "bookworm", root, env=plain())
    for package in built:
        shutil.copy(package, root / "tmp")
    done("chroot", root, "sh", "-c", "dpkg -i /tmp/*.deb", env=plain())
    return [Path(package) for package in built], root


#: Run by the Debian when it has booted: looks at the service, and writes down what it sees.
LOOK = """#!/bin/sh
say() { echo "$@" >>/srv/shared/seen; }
said() { journalctl --sync; journalctl -u hvext-watch -o cat | grep -c "$1"; }
await() { for try in $(seq 100); do [ "$(said "$1")" -ge "$2" ] && return; sleep 0.2; done; }
await "guest1: watching" 1
pid=$(systemctl show --property=MainPID --value hvext-watch)
nsenter --target "$pid" --mount touch /usr/new 2>/dev/null || say "cannot write to /usr"
systemctl reload hvext-watch
await "watch: hurried" 1
kill -KILL "$pid"
await "guest1: watching" 2
say "watched $(said "guest1: watching") times, hurried $(said "watch: hurried") times"
systemctl stop hvext-watch
say "$(systemctl show --property=Result --value hvext-watch)"
kill -0 "$(cat /run/server)" && say "served"
systemctl poweroff --force --force
"""
#: A server that a provider has started: it belongs to the guests.
SERVER = """[Service]
ExecStartPost=/bin/sh -c '[ -e /run/server ] || { setsid sleep 4321 & echo $$! >/run/server; }'
"""
LOOKS = "[Unit]\nAfter=hvext-watch.service\n[Service]\nExecStart=/look\n[Install]\nWantedBy=multi-user.target\n"


@pytest.mark.nightly
@pytest.mark.timeout(LONG_S)
def test_the_service_watches_a_guest_comes_back_when_it_is_killed_and_spares_servers(
    debian: tuple[list[Path], Path], tmp_path: Path
) -> None:
    _, root = debian
    boot = need("systemd-nspawn", "systemd-container")
    for path, text in {
        "look": LOOK,
        "etc/default/hvext-watch": 'HVEXT_WATCH_OPTIONS="--qmp-glob /srv/shared"\n',
        "etc/systemd/system/look.service": LOOKS,
        "etc/systemd/system/hvext-watch.service.d/server.conf": SERVER,
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
        (root / path).chmod(0o755)
    done("chroot", root, "systemctl", "enable", "look", "hvext-watch", env=plain())
    argv = [need("qemu-system-x86_64", "qemu-system-x86"), "-S", "-machine", "pc", "-m", "16", "-nodefaults"]
    argv += ["-display", "none", "-name", "guest1", "-qmp", f"unix:{tmp_path}/qmp,server=on,wait=off"]
    with process.start(argv, env=dict(os.environ), log_path=tmp_path / "qemu.log"):
        quiet = ("--quiet", "--register=no", "--keep-unit", "--private-network")
        done(boot, "--boot", *quiet, f"--directory={root}", f"--bind={tmp_path}:/srv/shared", env=plain())
    seen = (tmp_path / "seen").read_text().splitlines()
    assert seen == ["cannot write to /usr", "watched 2 times, hurried 1 times", "success", "served"]


@pytest.mark.nightly
@pytest.mark.timeout(LONG_S)
def test_a_debian_package_runs_where_it_is_installed_and_leaves_nothing(debian: tuple[list[Path], Path]) -> None:
    _, root = debian

    def inside(*words: str, stdin: str = "") -> str:
        return done("chroot", root, *words, stdin=stdin, env=plain())

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert inside("hvext", "--version") == f"hvext {version}\n"
    states = [line.split()[-1] for line in inside("hvext", "providers").splitlines()[1:]]
    assert states
    assert set(states) == {"valid"}
    assert "userspace: rbd:pool/image" in inside("hvext", "explain", "--offline", "-", stdin=ANSWER)
    assert "qemu.qmp" in inside("python3", "-c", "import qemu.qmp; print(qemu.qmp.__name__)")
    assert (root / "usr/share/man/man1/hvext-watch.1.gz").is_file()
    without = subprocess.run(
        ["chroot", root, "hvext", "metrics"], capture_output=True, text=True, check=False, env=plain()
    )
    assert without.stderr.endswith("hint: apt install python3-prometheus-client\n"), without.stderr
    assert cure_of_a_wrong_name("chroot", root, "hvext", cwd=ROOT) == Path("/usr/share/doc/hvext/troubleshooting.md")
    assert (root / "lib/systemd/system/hvext-watch.service").is_file()
    inside("dpkg", "--purge", "hvext", "python3-qemu.qmp")
    # What it has written down and logged stays: guests may still have its disks.
    kept = (root / "tmp", root / "var", root / "etc/systemd/system/hvext-watch.service.d")
    assert [path for path in root.rglob("*hvext*") if not any(path.is_relative_to(other) for other in kept)] == []


@pytest.mark.nightly
@pytest.mark.timeout(LONG_S)
def test_lintian_finds_no_error_and_no_warning(debian: tuple[list[Path], Path]) -> None:
    packages, _ = debian
    found = done(need("lintian", "lintian"), "--allow-root", "--fail-on", "error,warning", *packages, env=plain())
    assert found == ""
