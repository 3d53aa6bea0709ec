"""Points in time as text: seconds since 1970 for programs, and for people."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_text(seconds: float) -> str:
    """Return a time as JSON of hvext has it: ISO 8601 with milliseconds, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def local_text(seconds: float) -> str:
    """Return a time for people: to the second, in the time zone of this process, which it names."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(" ", "seconds")
