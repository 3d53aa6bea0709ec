"""Has a script go on under the Python of the checkout's .venv, which has what it needs: import it before all else."""

import os
import sys
from pathlib import Path

_PYTHON = Path(__file__).resolve().parents[1] / ".venv/bin/python"

if sys.prefix == sys.base_prefix and _PYTHON.exists():
    os.execv(_PYTHON, [str(_PYTHON), *sys.argv])  # noqa: S606
