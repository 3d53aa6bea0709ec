"""What fio prints.

Source: fio(1), "JSON output".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from hvext.errors import ProgramError


def parse_fio(text: str, *, status: int = 0, words: str = "") -> Mapping[str, Any]:
    """Return fio's output; raises ProgramError when it says that something went wrong."""
    start = text.find("{")
    try:
        # Warnings come before the JSON, in the same file.
        value = cast("Mapping[str, Any]", json.loads(text[start:])) if start >= 0 else {}
    except ValueError:
        value = {}
    error = next((job["error"] for job in value.get("jobs", ()) if job.get("error")), 0)
    if status or error or not value:
        said = " ".join((words + " " + (text[:start] if start > 0 else "")).split())[-600:]
        raise ProgramError(f"fio failed (status {status}, error {error}): {said or 'it said nothing'}")
    return value
