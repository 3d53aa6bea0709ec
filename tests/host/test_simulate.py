from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hvext.host import process

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/simulate-outage"
SMALL = ("--nodes", "20", "--guests", "10", "--outage", "30", "--capacity", "50", "--queue", "2000")


def simulate(*words: str) -> process.Finished:
    return process.run([str(SCRIPT), *words], env={"PATH": "/usr/bin:/bin"}, timeout_s=120)


def results(*words: str) -> list[dict[str, Any]]:
    done = simulate(*SMALL, "--json", *words)
    assert done.status == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["results"]
    return found


def test_the_same_seed_gives_the_same_table_and_another_seed_another_one() -> None:
    first, again, other = (simulate(*SMALL, "--no-naive", "--seed", seed).stdout for seed in ("3", "3", "4"))
    assert first == again
    assert first != other


def test_the_fleet_never_exceeds_its_nodes_limits_and_all_guests_come_back() -> None:
    rows = results("--no-naive", "--per-server", "2,10")
    assert len(rows) == 8
    for row in rows:
        limit = 20 * (row["pace"]["per_server_s"] + 2)
        assert max(row["per_second"]) <= max(row["away"]["peak_per_s"], row["back"]["peak_per_s"]) <= limit
        assert (row["recovered"], row["lost"]) == (200, 0)
        assert 0 < row["recovery_s"]["p50"] <= row["recovery_s"]["p99"] <= row["recovery_s"]["last"]


def test_a_watch_without_limits_keeps_the_storage_down() -> None:
    naive, *limited = results("--guests", "50", "--per-server", "10", "--tolerated", "2", "--patience", "60")
    assert naive["lost"] > 0
    assert limited[-1]["lost"] == 0


def test_help_names_every_setting() -> None:
    text = simulate("--help").stdout.decode()
    for option in ("--seed", "--json", "--nodes", "--guests", "--capacity", "--timeout", "--silent", "--per-server"):
        assert option in text


@pytest.mark.parametrize("words", [("--nodes", "0"), ("--jitter", "2"), ("--per-server", "x"), ("--concurrent", "0")])
def test_a_fleet_that_cannot_be_is_refused(words: tuple[str, str]) -> None:
    done = simulate(*words)
    assert done.status == 2
    assert b"usage:" in done.stderr
    assert b"Traceback" not in done.stderr
