"""With SHIM_TEST_SHARE, leaves out the tests whose subject is a daemon of one container or pod.

:mod:`tests.isolation` makes the setting for the shims of a worker.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not os.environ.get("SHIM_TEST_SHARE"):
        return
    unshared = [item for item in items if item.get_closest_marker("unshared")]
    config.hook.pytest_deselected(items=unshared)
    items[:] = [item for item in items if item not in unshared]
