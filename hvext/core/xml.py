"""What XML 1.0 can and cannot hold."""

from __future__ import annotations

import re

from hvext.core.text import quoted
from hvext.errors import RenderError

_IMPOSSIBLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def checked_xml(text: str, what: str) -> str:
    """Return ``text`` when XML 1.0 can hold it; raises RenderError that names ``what`` otherwise."""
    match = _IMPOSSIBLE.search(text)
    if match:
        raise RenderError(
            f"libvirt XML cannot hold {what} {quoted(text)}: character {match.start() + 1} does not exist in XML 1.0",
            hint="use the -blockdev, -drive or QMP form",
        )
    return text
