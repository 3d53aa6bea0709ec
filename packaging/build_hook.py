"""What hatchling does beside packing files: man pages, completions and docs are put in, for wheel and sdist."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: Where an sdist has them: what is built of it needs no library that writes them.
_KEPT = "packaging/made"


class Hook(BuildHookInterface[Any]):
    """Puts what scripts/man-pages writes into share/ of a wheel, and into packaging/made/ of an sdist."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files; none to an editable wheel, which is a link to the checkout."""
        if version == "editable":
            return
        folder = Path(self.root, _KEPT)
        if not folder.is_dir():
            self._made = tempfile.TemporaryDirectory(prefix="hvext-")
            folder = Path(self._made.name)
            subprocess.run([sys.executable, f"{self.root}/scripts/man-pages", str(folder)], check=True)
        files = {str(path): str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()}
        if self.target_name == "sdist":
            build_data["force_include"].update({path: f"{_KEPT}/{name}" for path, name in files.items()})
        else:
            build_data.setdefault("shared_data", {}).update(files)

    def finalize(self, *_arguments: Any) -> None:
        """Remove what was written for this package."""
        made = getattr(self, "_made", None)
        if made is not None:
            made.cleanup()
