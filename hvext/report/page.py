"""The page: no script, no other file, no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources

from hvext.core.observation import ObservedDisk, ObservedVm
from hvext.core.page import document
from hvext.core.record import Operation
from hvext.core.statistics import Kind
from hvext.report.content import Benchmark, Content
from hvext.report.graph import drawn
from hvext.report.timeline import time_text, timeline

_MIB = 1 << 20
#: What a guest's states mean for whoever looks at the page.
_GOOD, _BAD = ("running",), ("io-error", "internal-error", "silent", "unreachable")

#: Those in which an error has stopped the guest.
_STOPPED = ("io-error", "internal-error")


def html_page(content: Content) -> str:
    """Return the page."""
    styles = [resources.files("hvext.report").joinpath("page.css").read_text(encoding="utf-8")]
    parts = [
        f"<h1>Disks of {escape(content.host)}</h1>",
        _summary(content),
        *(_vm(vm) for vm in content.vms),
        timeline(content.history),
        _benchmarks(content.benchmarks),
        f'<p class="muted">Made by hvext {escape(content.version)} at {time_text(content.taken)} UTC.</p>',
    ]
    return document(f"hvext: disks of {content.host}", "\n".join(styles), parts)


def _summary(content: Content) -> str:
    disks = content.disks
    warnings = sum(not each.note for disk in disks for each in disk.warnings)
    failed = sum(past.operation is Operation.FAIL_OVER for past in content.history)
    still = sum(vm.state in _STOPPED for vm in content.vms)
    numbers = [
        ("VMs", len(content.vms), ""),
        ("guests that stand still", still, "bad"),
        ("disks", len(disks), ""),
        ("by URI", sum(disk.access == "userspace" for disk in disks), ""),
        ("by block device", sum(disk.access == "kernelspace" for disk in disks), ""),
        ("away from their access", sum(bool(disk.record and disk.record.failed_over) for disk in disks), "bad"),
        ("operations pending", sum(disk.pending is not None for disk in disks), "bad"),
        ("warnings", warnings, "bad"),
        ("failovers so far", failed, ""),
    ]
    tiles = "".join(
        f'<div class="tile{f" {kind}" if kind and number else ""}"><b>{number}</b><span>{name}</span></div>'
        for name, number, kind in numbers
    )
    broken = "".join(f'<p class="warning">{escape(words)}</p>' for words in content.broken)
    nothing = "" if content.vms else "<p>No VM of this host has a disk of hvext, as far as its journal knows.</p>"
    return f'<section aria-label="Summary"><div class="tiles">{tiles}</div>{broken}{nothing}</section>'


def _vm(vm: ObservedVm) -> str:
    kind = "good" if vm.state in _GOOD else "bad" if vm.state in _BAD else ""
    said = f'<p class="muted">{escape(vm.words)}</p>' if vm.words else ""
    disks = "".join(_disk(disk) for disk in vm.disks) or '<p class="muted">It has no disk of hvext.</p>'
    badge = f'<span class="badge {kind}">{escape(vm.state)}</span>'
    return f"<section><h2>VM {escape(vm.name)} {badge}</h2>{said}{disks}</section>"


def _disk(disk: ObservedDisk) -> str:
    warnings = "".join(
        f'<p class="{"note" if each.note else "warning"}">{escape(each.words)}</p>' for each in disk.warnings
    )
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>" for name, words in _facts(disk))
    return f'<article class="card"><h3>{escape(disk.volume)}</h3>{warnings}{drawn(disk)}<dl>{facts}</dl></article>'


def _facts(disk: ObservedDisk) -> Iterator[tuple[str, str]]:
    record, running = disk.record, disk.running
    if record and disk.since is not None:
        away = ", after a failover" if record.failed_over else ""
        yield "there since", f"{time_text(disk.since)} UTC{away}"
    if running and running.root:
        yield "size", f"{running.root.size_bytes / _MIB:,.0f} MiB{', read-only' if running.root.read_only else ''}"
    if disk.counts is not None:
        for kind, each in disk.counts.kinds.items():
            if each.completed or each.failed:
                size = f", {each.bytes / _MIB:,.1f} MiB" if kind in (Kind.READ, Kind.WRITE) else ""
                latency = f", {1000 * each.latency_s:.2f} ms each" if each.latency_s is not None else ""
                failed = f", {each.failed:,} failed" if each.failed else ""
                yield str(kind), f"{each.completed:,}{size}{latency}{failed}"
    if disk.pending is not None:
        yield "pending", f"{disk.pending.operation}: {disk.pending.state}"
    if disk.offered is not None and disk.offered.error:
        yield "its provider", disk.offered.error
    yield "uuid", str(disk.uuid)


def _benchmarks(benchmarks: Sequence[Benchmark]) -> str:
    if not benchmarks:
        return ""
    cards = "".join(
        f'<div class="card verdict"><p class="muted">{escape(each.volume)}, {escape(each.made)} '
        f'<span class="badge {"good" if each.certain else ""}">'
        f"{'the figures carry this' if each.certain else 'not certain'}</span></p>"
        f'<p class="answer">{escape(each.answer)}</p><p>{escape(each.reason)}</p></div>'
        for each in benchmarks
    )
    return f"<section><h2>Which access is faster</h2>{cards}</section>"
