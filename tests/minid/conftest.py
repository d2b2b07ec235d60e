"""A minid for each test, on a machine that has its tools."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests import sharedserver
from tests.minid.manager import Manager, open_manager

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def manager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    for tool in ("runc", "busybox"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    if os.geteuid() != 0:
        pytest.skip("needs root")
    sharedserver.use(request, monkeypatch)
    with open_manager() as manager:
        yield manager
