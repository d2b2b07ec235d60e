"""The keeper of these tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.start.keeping import Bench

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    for daemon in bench.daemons:
        daemon.close()
        bench.keeper.ended(daemon.process.pid, 0)
