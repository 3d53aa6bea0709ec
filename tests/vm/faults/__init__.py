"""Faults at any place of an operation: a driver that can be killed, a monitor and a provider that do as they are told.

All of them share a folder. ``trace`` there has one line for each step, QMP command and script, in their order. Whoever
finds ``armed-qmp`` or ``armed-script`` there takes it away and does what is written in it, once.
"""

import pytest

pytest.register_assert_rewrite(
    "tests.vm.faults.matrix", "tests.vm.faults.migrate", "tests.vm.faults.start", "tests.vm.faults.world"
)
