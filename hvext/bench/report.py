"""A benchmark as one page that needs nothing else: no script, no other file, no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from itertools import groupby
from typing import Any

from hvext.bench import pictures
from hvext.bench.figures import Row, columns, rows
from hvext.bench.overall import DECISION_ALPHA, MIN_EFFECT, Finding
from hvext.bench.plots import SERIES
from hvext.bench.result import Result
from hvext.bench.statistics import Samples, Where
from hvext.bench.verdict import LevelVerdict, Verdict
from hvext.bench.words import percent_text
from hvext.core.page import document

#: A page that carries more of its own data than this is a burden: the data are left out then.
MOST_DATA_BYTES = 1_000_000
#: What a `Result` needs of fio's output.
_KEPT = ("total_ios", "iops", "bw_bytes")


#: Names of facts that are no words.
_NAMES = {"cpu": "CPU", "cpus": "CPUs", "qemu": "QEMU", "run_s": "seconds of a run", "warm_up_s": "seconds of warm-up"}


def html_report(result: Result, verdict: Verdict) -> str:
    """Return the page; raises InputError when matplotlib is missing."""
    samples = Samples(result)
    title = f"{result.volume.get('provider', '')}/{result.volume.get('name', '')}"
    parts = [
        f"<h1>{escape(title)}: block path or userspace?</h1>",
        _verdict(result, verdict),
        *(_place(samples, verdict, number, where) for number, where in enumerate(_order(samples, verdict))),
        _facts(result),
        _method(),
        _download(result),
    ]
    style = resources.files("hvext.bench").joinpath("report.css").read_text(encoding="utf-8")
    return document(f"hvext bench: {title}", style, parts)


def _order(samples: Samples, verdict: Verdict) -> list[Where]:
    """Return the places; those that decide come first."""
    levels = [level.level for level in verdict.levels]
    return sorted(samples.places, key=lambda where: levels.index(where.level) if where.level in levels else len(levels))


def _verdict(result: Result, verdict: Verdict) -> str:
    first, others = verdict.levels[:1], verdict.levels[1:]
    answer = str(verdict.recommendation)
    if verdict.access:
        answer = f"access={answer}"
    which = f" <small>{escape(verdict.access)}</small>" if verdict.access else ""
    badge = "the figures carry this" if verdict.certain else "not certain"
    kind = "faster" if verdict.certain else "slower"
    carried = "" if verdict.recommendation.to_json() is None else f' <span class="badge {kind}">{badge}</span>'
    lines = [
        f'<p class="muted">Recommendation{carried}</p>',
        f'<p class="answer">{escape(answer[:1].upper() + answer[1:] if not verdict.access else answer)}{which}</p>',
        f'<p class="reason">{escape(verdict.reason)}</p>',
        f"<p>{escape(verdict.advice)}</p>" if verdict.advice else "",
        *(_other_level(level) for level in others if first),
        "".join(f'<p class="muted">{escape(note)}</p>' for note in result.notes),
    ]
    return f'<section class="card verdict" aria-label="Recommendation">{"".join(lines)}</section>'


def _other_level(level: LevelVerdict) -> str:
    return f'<p class="muted">{escape(f"{level.reason} {level.advice}".strip())}</p>'


def _place(samples: Samples, verdict: Verdict, number: int, where: Where) -> str:
    words = where.words
    figures = pictures.place_pictures(samples, verdict, where, f"p{number}")
    drawn = "\n".join(
        f"<figure><h3>{escape(picture.title)}</h3>{picture.svg}"
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        for picture in figures
    )
    return (
        f"<section><h2>{escape(words[:1].upper() + words[1:])}</h2>\n"
        f"{_table(samples, verdict, where)}\n"
        f'<div class="plots">\n{drawn}\n</div></section>'
    )


def _table(samples: Samples, verdict: Verdict, where: Where) -> str:
    series = pictures.series_numbers(samples.result, verdict.baseline)
    every = rows(samples, verdict, where)
    shown = columns(every)
    names = ["Access", *(title for title, _, _ in shown), *(["Finding"] if any(row.finding for row in every) else [])]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    bodies = "".join(
        f'<tbody><tr><th scope="rowgroup" colspan="{len(names)}">{escape(workload)}</th></tr>'
        + "".join(_row(row, series[row.access], [field for _, _, field in shown]) for row in group)
        + "</tbody>"
        for workload, group in groupby(every, key=lambda row: row.workload)
    )
    label = escape(f"Figures {where.words}; speed and time against {verdict.baseline}")
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<thead><tr>{head}</tr></thead>{bodies}</table></div>"
        f'<p class="muted">Speed and time are against {escape(verdict.baseline)}. '
        "Findings are corrected for their number: an interval may leave out 0 where no difference is shown.</p>"
    )


def _row(row: Row, series: int, fields: Sequence[str]) -> str:
    key = f'<span class="key" style="background: var(--c{series % SERIES})"></span>'
    cells = "".join(f"<td>{escape(getattr(row, field))}</td>" for field in fields)
    finding = ""
    if row.finding is not None:
        kind = "" if row.finding is Finding.UNCLEAR else f" {row.finding}"
        finding = f'<span class="badge{kind}">{escape(str(row.finding))}</span>'
    return f'<tr><th scope="row">{key}{escape(row.access)}</th>{cells}<td>{finding}</td></tr>'


def _facts(result: Result) -> str:
    volume = dict(result.volume)
    for name in ("size_bytes", "span_bytes", "data_bytes"):
        if isinstance(volume.get(name), int):
            volume[name.removesuffix("_bytes")] = f"{volume.pop(name) / 2**20:,.0f} MiB"
    if "span" in volume:
        volume["measured part"] = volume.pop("span")
    if "data" in volume:
        volume["data in it"] = volume.pop("data")
    accesses = {access.name: _access_words(access.kind, access.words, access.options) for access in result.accesses}
    return (
        "<section><h2>What was measured</h2>"
        + '<div class="plots">'
        + _list("Host", {**result.host, "measured": result.created, "hvext": result.hvext})
        + _list("Volume and runs", {**volume, **result.settings})
        + "</div>"
        + _list("Accesses", accesses)
        + "</section>"
    )


def _access_words(kind: str, words: str, options: Mapping[str, str]) -> str:
    given = ", ".join(f"{name}={value}" for name, value in options.items())
    return f"{kind}: {words}" + (f" ({given})" if given else "")


def _list(title: str, values: Mapping[str, Any]) -> str:
    items = "".join(
        f"<dt>{escape(_NAMES.get(name, name.replace('_', ' ')))}</dt><dd>{escape(_value(value))}</dd>"
        for name, value in values.items()
        if value not in (None, "")
    )
    return f'<div class="card"><h3>{escape(title)}</h3><dl>{items}</dl></div>'


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(str(item) for item in value)
    return str(value)


def _method() -> str:
    lines = (
        "Each round runs every access one after the other, in an order that turns; the accesses of a round are "
        "compared with one another, so that what slows a whole round slows none of them more.",
        "Speed is the ratio of requests per second. Figures are medians over the rounds; a difference is the median "
        "of the means of all pairs of rounds, its interval and p are of the exact test that flips signs (Wilcoxon).",
        "A difference counts when the interval leaves out \u201cthe same\u201d, p is below 0.05 (for the "
        f"recommendation: {DECISION_ALPHA}) and it is at least {percent_text(MIN_EFFECT - 1)}; findings for single "
        "workloads are corrected for their number (Holm).",
        "Latency at depth 1 is the middle one of a request, with its fsync where there is one. CPU per I/O is that of "
        "QEMU, the storage\u2019s servers on this host and the kernel, without the program that makes the load.",
    )
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<section><h2>How it was compared</h2><div class="card"><ul>{items}</ul></div></section>'


def _download(result: Result) -> str:
    """Return a link to the data without the distributions: `hvext bench compare` reads them."""
    value = result.to_json()
    for run in value["runs"]:
        run["raw"] = _trimmed(run["raw"])
    data = base64.b64encode(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())
    if len(data) > MOST_DATA_BYTES:
        return ""
    name = f"bench-{result.volume.get('name', 'volume')}.json"
    return (
        f'<p class="screen"><a download="{escape(name)}" href="data:application/json;base64,{data.decode()}">'
        "The data of this page</a> (JSON, without the distributions of latency)</p>"
    )


def _trimmed(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a `Run` needs of fio's output but the bins; what is no output of fio's is short already."""
    jobs: list[dict[str, Any]] = []
    for job in raw.get("jobs", ())[:1]:
        name = next((name for name in ("mixed", "read", "write") if job.get(name, {}).get("total_ios")), None)
        jobs += [{name: _trimmed_section(job[name])}] if name else [{}]
    return {"jobs": jobs} if jobs else raw


def _trimmed_section(section: Mapping[str, Any]) -> dict[str, Any]:
    clat = section.get("clat_ns", {})
    return {name: section[name] for name in _KEPT} | {
        "clat_ns": {name: clat[name] for name in ("mean", "percentile") if name in clat}
    }
