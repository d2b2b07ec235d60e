"""A rig for each test, and the proof that nothing outlives it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.process.rig import Rig, open_rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with open_rig() as rig:
        yield rig
