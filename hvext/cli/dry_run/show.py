"""Printing what would be done."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hvext.cli.output import print_json, print_table
from hvext.operations.dry_run.planned import Planned


def show(arguments: argparse.Namespace, plan: Planned) -> int:
    """Print one operation, in JSON as an object."""
    return _show(arguments, [plan], plan.to_json())


def show_all(arguments: argparse.Namespace, plans: Sequence[Planned]) -> int:
    """Print several operations, in JSON as a list; 1 when one of them is refused."""
    return _show(arguments, plans, [plan.to_json() for plan in plans])


def _show(arguments: argparse.Namespace, plans: Sequence[Planned], value: object) -> int:
    if arguments.json:
        print_json(value)
    else:
        for plan in plans:
            _print(plan)
        if asked := list(dict.fromkeys(words for plan in plans for words in plan.looked_at)):
            print(f"looked at: {', '.join(asked)}")
    return 1 if any(plan.refused for plan in plans) else 0


def _print(plan: Planned) -> None:
    if plan.refused is not None:
        print(f"{plan.operation}: refused: {plan.refused.message}")
        if plan.refused.hint:
            print(f"hint: {plan.refused.hint}", file=sys.stderr)
        return
    print(f"{plan.operation}: " + ("these would be the steps" if plan.steps else "there is nothing to do"))
    if plan.steps:
        rows = [(str(number), step.name, step.way_back) for number, step in enumerate(plan.steps, 1)]
        print_table(("", "STEP", "TAKEN BACK BY"), rows)
    for note in plan.notes:
        print(f"note: {note}")
    if plan.xml:
        print("with this XML:")
        print(plan.xml, end="" if plan.xml.endswith("\n") else "\n")
