from __future__ import annotations

import contextlib
import socket
import sys
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hvext.cli import main
from hvext.core.metrics import Family, FamilyKind, Sample, counter
from hvext.errors import HvextError, InputError
from hvext.host.metrics_page import page, serving, write_page
from tests.host.oracle import short_folder

ODD = 'a "quoted"\\ name\nin two lines, and \udcff'
FAMILIES = [
    counter("hvext_x", "Things.", ("vm",), [Sample(labels=(ODD,), value=3)]),
    Family(
        name="hvext_y_seconds",
        kind=FamilyKind.SUMMARY,
        words="Times.",
        labels=(),
        samples=(Sample(labels=(), value=0.5, count=2),),
    ),
]


def asked(family: socket.AddressFamily, address: str | tuple[str, int]) -> tuple[str, str]:
    """Return the head and the body of an answer over HTTP."""
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(5)
        client.connect(address)
        client.sendall(b"GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n")
        answer = b""
        while part := client.recv(65536):
            answer += part
    head, _, body = answer.decode().partition("\r\n\r\n")
    return head, body


def test_names_of_vms_cannot_break_the_page() -> None:
    samples = [sample for family in text_string_to_metric_families(page(FAMILIES)) for sample in family.samples]
    assert [(sample.name, sample.value) for sample in samples] == [
        ("hvext_x_total", 3),
        ("hvext_y_seconds_count", 2),
        ("hvext_y_seconds_sum", 0.5),
    ]
    assert samples[0].labels == {"vm": ODD.replace("\udcff", "?")}


def test_the_page_is_served_on_tcp_and_on_a_socket_for_its_group_alone() -> None:
    with serving("127.0.0.1:0", lambda: FAMILIES) as where:
        host, _, port = where.rpartition(":")
        head, body = asked(socket.AF_INET, (host, int(port)))
        assert " 200 " in head.splitlines()[0]
        assert body == page(FAMILIES)
    with short_folder() as folder:
        path = folder / "metrics.sock"
        for _again in (1, 2):
            with serving(str(path), lambda: FAMILIES) as where:
                assert where == str(path)
                assert path.stat().st_mode & 0o007 == 0
                assert asked(socket.AF_UNIX, where)[1] == page(FAMILIES)
                with pytest.raises(HvextError, match="listens there already"), serving(str(path), lambda: FAMILIES):
                    pass
            assert not path.exists()
        # One that a killed watch left.
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        with serving(f"unix:{path}", lambda: FAMILIES):
            assert asked(socket.AF_UNIX, str(path))[1] == page(FAMILIES)


def test_a_client_that_says_nothing_keeps_no_other_waiting() -> None:
    with serving("127.0.0.1:0", lambda: FAMILIES) as where:
        host, _, port = where.rpartition(":")
        with contextlib.ExitStack() as silent:
            for _client in range(20):
                silent.enter_context(socket.create_connection((host, int(port))))
            assert asked(socket.AF_INET, (host, int(port)))[1] == page(FAMILIES)
    assert not [thread for thread in threading.enumerate() if thread.name == "hvext-metrics"]


@pytest.mark.parametrize("address", ["nonsense", "1.2.3.4", "host:", ":9108", "127.0.0.1:65536"])
def test_what_is_no_address_is_refused_as_wrong(address: str) -> None:
    with pytest.raises(InputError, match="cannot be served at"), serving(address, lambda: FAMILIES):
        pass


def test_a_library_that_is_missing_is_no_wrong_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setitem(sys.modules, "prometheus_client.registry", None)
    monkeypatch.setitem(sys.modules, "prometheus_client.exposition", None)
    assert main(["metrics"]) == 1
    said = capsys.readouterr().err
    assert ", which metrics need, is not installed" in said
    assert "hvext[metrics]" in said


def test_a_file_in_the_way_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(HvextError, match="no socket"), serving(str(path), lambda: FAMILIES):
        pass
    assert path.read_text() == "precious"


def test_a_written_page_is_there_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "hvext.prom"
    write_page(str(path), FAMILIES)
    assert path.read_text() == page(FAMILIES)

    class Broken(tuple[Family, ...]):
        __slots__ = ()

        def __iter__(self) -> object:  # type: ignore[override]
            yield FAMILIES[0]
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        write_page(str(path), Broken())
    assert path.read_text() == page(FAMILIES)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(HvextError, match="cannot write the metrics"):
        write_page(str(tmp_path / "none" / "x.prom"), FAMILIES)
