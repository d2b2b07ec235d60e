"""Leaves out tests whose subject another setting of the shims changes.

With SHIM_TEST_SHARE those of a daemon of one container or pod, marked ``unshared``; with
SHIM_TEST_SURVIVE those of a killed daemon that is not replaced, marked ``mortal``.
:mod:`tests.isolation` makes the settings for the shims of a worker.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_LEFT_OUT = {"SHIM_TEST_SHARE": "unshared", "SHIM_TEST_SURVIVE": "mortal"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for variable, marker in _LEFT_OUT.items():
        if os.environ.get(variable):
            found = [item for item in items if item.get_closest_marker(marker)]
            config.hook.pytest_deselected(items=found)
            items[:] = [item for item in items if item not in found]
