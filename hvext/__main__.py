"""``python -m hvext``."""

from __future__ import annotations

import sys

from hvext.cli import main

sys.exit(main())
