"""Every URI of the corpus is the same storage for hvext as for QEMU itself, or stands in the list of disagreements."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hvext.core.uri import Location, Opened, parse_uri
from hvext.core.uri.location import Companions, PrivateFile
from hvext.errors import InputError
from hvext.host.private import write_private
from tests.conftest import need
from tests.corpus.disagreements import DISAGREEMENTS, RELEASES, Verdict
from tests.corpus.meaning import meaning
from tests.corpus.page import PAGE, section, written
from tests.corpus.recorder import Call, Record, Recorder, build_shim, recorder
from tests.corpus.uris import CORPUS, Kind, Row
from tests.host.oracle import absent

#: Rows whose options leave no trace in the calls, or are the default: they look like another row's.
_INVISIBLE = (
    *("nbd-uri-query-reconnect-delay", "nbd-uri-query-open-timeout", "nbd-unix-socket-and-reconnect-delay"),
    *("json-nbd-reconnect", "json-number-text", "nvme-namespace-7", "ssh-check-yes"),
)
_PROTOCOLS = tuple(dict.fromkeys(row.protocol for row in CORPUS))


@dataclass(frozen=True)
class Answer:
    """What hvext makes of a text: a location and what QEMU does with its options, or a refusal in words."""

    location: Location | None = None
    refusal: str = ""
    record: Record | None = None
    files: tuple[PrivateFile, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A recording QEMU and its release."""

    recorder: Recorder
    release: str

    def hvext(self, row: Row) -> Answer:
        location, refusal = _read(row.uri)
        if location is None or not location.block_node:
            return Answer(location=location, refusal=refusal)
        beside = Companions(node="corpus", folder=os.environ["HVEXT_RUNTIME_DIR"])
        needs = location.needs(beside)
        write_private(needs.files)
        options = {"driver": location.driver, **location.blockdev(beside)}
        record = self.recorder.as_node(options, objects=needs.objects, direct=row.direct)
        return Answer(location=location, record=record, files=needs.files)

    def verdict(self, row: Row) -> tuple[Verdict, str]:
        """Return the verdict on a row, and what it comes from in words."""
        qemu = self.recorder.as_uri(row.uri, direct=row.direct)
        hvext = self.hvext(row)
        said = f"  QEMU: {qemu}\n  hvext: {hvext.location or hvext.refusal}\n  its node: {hvext.record}"
        if hvext.location is None:
            return (Verdict.STRICTER if qemu.taken else Verdict.REFUSED), said
        if hvext.record is not None and not hvext.record.taken:
            return (Verdict.DIFFERENT if qemu.taken else Verdict.UNOPENED), said
        if not qemu.taken:
            return Verdict.WIDER, said
        same = hvext.record is not None and meaning(hvext.record, hvext.files) == meaning(qemu)
        return (Verdict.SAME if same else Verdict.DIFFERENT), said


def _read(text: str) -> tuple[Location | None, str]:
    """hvext's location for a text, or what it says instead."""
    try:
        return parse_uri(text, look=lambda _path: Opened.FILE), ""
    except InputError as error:
        return None, str(error)


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module", params=["installed", "second"])
def asked(request: pytest.FixtureRequest, shim: Path) -> Iterator[Asked]:
    """The QEMU of this machine, and one of another release that a script unpacks beside it."""
    if request.param == "installed":
        qemu = need("qemu-system-x86_64", "qemu-system-x86")
    else:
        qemu = str(request.getfixturevalue("second_qemu") / "bin/qemu-system-x86_64")
    said = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"version ([0-9]+\.[0-9]+)", said)
    if release is None or release[1] not in RELEASES:
        absent(f"{qemu} is none of the releases that were asked, {', '.join(RELEASES)}: {said}")
    with recorder(qemu, shim) as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HVEXT_RUNTIME_DIR", str(running.folder / "private"))
        yield Asked(running, release[1])


def expected(release: str) -> dict[str, Verdict]:
    return {row: entry.verdict for entry in DISAGREEMENTS if release in entry.releases for row in entry.ids}


@pytest.mark.parametrize("protocol", _PROTOCOLS)
def test_a_uri_opens_what_qemu_would_open(asked: Asked, protocol: str) -> None:
    wrong = []
    listed = expected(asked.release)
    for row in CORPUS:
        if row.protocol != protocol:
            continue
        verdict, said = asked.verdict(row)
        agreed = {Kind.VALID: (Verdict.SAME,), Kind.INVALID: (Verdict.REFUSED,)}.get(
            row.kind, (Verdict.SAME, Verdict.REFUSED)
        )
        if verdict not in ((listed[row.id],) if row.id in listed else agreed):
            wrong.append(f"{row.id}: {row.uri[:200]!r}\n  {verdict}; listed: {listed.get(row.id)}\n{said[:2000]}")
    assert not wrong, "\n".join([f"{len(wrong)} rows, QEMU {asked.release}", *wrong])


@pytest.mark.parametrize("protocol", _PROTOCOLS)
def test_different_locations_are_told_apart(asked: Asked, protocol: str) -> None:
    places: dict[tuple[Call, ...], Location] = {}
    for row in CORPUS:
        if row.protocol == protocol and row.id not in _INVISIBLE:
            answer = asked.hvext(row)
            if answer.location is not None and answer.record is not None and answer.record.taken:
                place = places.setdefault(meaning(answer.record, answer.files), answer.location)
                assert place == answer.location, row.id


def test_the_corpus_is_large_and_its_ids_are_unique() -> None:
    ids = [row.id for row in CORPUS]
    assert len(set(ids)) == len(ids) >= 330


def test_each_disagreement_is_listed_once_and_about_a_row() -> None:
    for release in RELEASES:
        ids = [row for entry in DISAGREEMENTS if release in entry.releases for row in entry.ids]
        assert len(set(ids)) == len(ids)
        assert set(ids) <= {row.id for row in CORPUS if row.kind is Kind.ODD}


def test_the_page_lists_every_disagreement() -> None:
    assert written() == section(), f"{PAGE} is not what disagreements.py says: run python -m tests.corpus.page"


@pytest.mark.parametrize("protocol", _PROTOCOLS)
def test_no_password_of_the_corpus_is_shown(protocol: str) -> None:
    shown = []
    for row in CORPUS:
        if row.protocol == protocol and "s3cret" in row.uri:
            location, refusal = _read(row.uri)
            words = f"{location!r} {location.words} {location.uri()}" if location else refusal
            shown += [f"{row.id}: {words}"] if "s3cret" in words else []
    assert not shown, "\n".join(shown)


@pytest.mark.parametrize("protocol", _PROTOCOLS)
def test_a_location_of_the_corpus_survives_being_written_as_a_uri(protocol: str) -> None:
    changed = []
    for row in CORPUS:
        location, _refusal = _read(row.uri)
        if row.protocol == protocol and location is not None:
            text = location.uri(reveal=True)
            again, refusal = _read(text)
            changed += [f"{row.id}: {text[:200]!r}: {again or refusal}"] if again != location else []
    assert not changed, "\n".join(changed)
