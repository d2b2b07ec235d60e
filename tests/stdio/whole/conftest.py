"""A rig with the whole shim and real runc for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import sharedserver
from tests.process.rig import Rig, open_rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture(autouse=True)
def _warm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    sharedserver.use(request, monkeypatch)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with open_rig() as rig:
        yield rig
