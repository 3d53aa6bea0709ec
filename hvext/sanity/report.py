"""What the kit found, for people in a terminal, and as JUnit XML for whoever collects test results."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from hvext.sanity.check import Check, Outcome, Run, Verdict
from hvext.sanity.kit import Verdicts

_WIDTH = 100
_MARKS = {Verdict.PASSED: "ok  ", Verdict.FAILED: "FAIL", Verdict.SKIPPED: "skip"}
#: Of what a script printed, as much is shown.
_SHOWN = 600
#: As many checks that are skipped for one reason are named.
_NAMED = 6


def line(outcome: Outcome) -> str:
    """Return one line about a check."""
    what = outcome.check.says if outcome.verdict is Verdict.PASSED else outcome.words
    return f"{_MARKS[outcome.verdict]}  {outcome.check.name:22} {outcome.seconds:6.2f} s  {what}"


def folded(outcomes: Sequence[Outcome]) -> str:
    """Return a line for each reason for which checks were skipped, those of another one's failure first."""
    names: dict[str, list[str]] = {}
    for outcome in sorted(outcomes, key=lambda each: not each.because):
        if outcome.verdict is Verdict.SKIPPED:
            names.setdefault(outcome.words, []).append(outcome.check.name)
    lines = []
    for words, these in names.items():
        if len(these) <= _NAMED:
            lines.append(_wrapped("skip  ", f"{', '.join(these)}: {words}"))
        else:
            lines.append(f"skip  {len(these)} checks: {words}; --verbose lists them")
    return "\n".join(lines)


def listed(checks: Sequence[Check]) -> str:
    """Return all checks with their rules and where these are written."""
    return "\n".join(f"{each.level:8}  {each.name:22} {each.says}\n{'':33}{each.source}" for each in checks)


def summary(verdicts: Verdicts) -> str:
    """Return what is to be changed, what was seen besides, and how it ended."""
    parts = [failure(outcome) for outcome in verdicts.of(Verdict.FAILED)]
    parts += ["\n".join([*_times(verdicts), *_block("note", verdicts.notes)])]
    if verdicts.left:
        parts.append("\n".join(_block("LEFT BEHIND, to be removed by hand", verdicts.left)))
    counts = ", ".join(f"{len(verdicts.of(verdict))} {verdict}" for verdict in Verdict)
    parts.append(f"{verdicts.provider}, level {verdicts.level}: {counts} in {verdicts.seconds:.1f} s")
    return "\n" + "\n\n".join(parts)


def failure(outcome: Outcome) -> str:
    """Return what a failed check has to say: the rule, what happened, what to change, and the evidence."""
    lines = [f"FAIL  {outcome.check.name}: {outcome.check.says}"]
    for title, text in (
        ("what happened", outcome.words),
        ("what to change", _cured(outcome)),
        ("where it stands", outcome.check.source),
    ):
        lines.append(_wrapped(f"      {title:16}", text))
    for run in outcome.runs:
        lines += _evidence(run)
    return "\n".join(lines)


def junit(verdicts: Verdicts) -> str:
    """Return the JUnit XML of a run: one test case for each check.

    Source: the schema that Jenkins and GitLab read; characters that XML does not have are replaced.
    """
    suite = Element(
        "testsuite",
        name=f"hvext sanity {verdicts.provider}",
        tests=str(len(verdicts.outcomes)),
        failures=str(len(verdicts.of(Verdict.FAILED))),
        skipped=str(len(verdicts.of(Verdict.SKIPPED))),
        errors="0",
        time=f"{verdicts.seconds:.3f}",
    )
    for outcome in verdicts.outcomes:
        case = SubElement(
            suite,
            "testcase",
            classname=f"extstorage.{verdicts.provider}",
            name=outcome.check.name,
            time=f"{outcome.seconds:.3f}",
        )
        if outcome.verdict is Verdict.FAILED:
            SubElement(case, "failure", message=_clean(outcome.words)).text = _clean(failure(outcome))
        elif outcome.verdict is Verdict.SKIPPED:
            SubElement(case, "skipped", message=_clean(outcome.words))
    if told := [*verdicts.notes, *(f"left behind: {words}" for words in verdicts.left)]:
        SubElement(suite, "system-out").text = _clean("\n".join(told))
    root = Element("testsuites")
    root.append(suite)
    indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _cured(outcome: Outcome) -> str:
    return f"in {outcome.check.script}: {outcome.cure}"


def _times(verdicts: Verdicts) -> list[str]:
    if not verdicts.times_s:
        return []
    lines = [f"      {'time per action':16}{'runs':>6} {'median':>9} {'longest':>9}"]
    for action, taken in verdicts.times_s.items():
        middle = sorted(taken)[len(taken) // 2]
        lines.append(f"      {action:16}{len(taken):6} {middle:7.3f} s {max(taken):7.3f} s")
    return lines


def _block(title: str, texts: Sequence[str]) -> list[str]:
    return [_wrapped(f"      {title}: ", text) for text in texts]


def _evidence(run: Run) -> list[str]:
    given = " ".join(f"{name}={value}" for name, value in run.environment.items())
    lines = [f"      {run.script}: {run.ended}, {run.seconds:.3f} s", f"        given   {given}"]
    for name, text in (("stdout", run.stdout), ("stderr", run.stderr)):
        if text.strip():
            lines.append(textwrap.indent(text.rstrip("\n")[-_SHOWN:], f"        {name}  ", lambda _line: True))
    return lines


def _wrapped(head: str, text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=head, subsequent_indent=" " * min(len(head), 22))


def _clean(text: str) -> str:
    """Return a text that XML 1.0 can hold: what it does not have is replaced."""
    return "".join(sign if _exists(sign) else "\ufffd" for sign in text)


def _exists(sign: str) -> bool:
    if sign < " ":
        return sign in "\t\n"
    return not "\ud800" <= sign <= "\udfff" and sign not in "\ufffe\uffff"
