"""Fixtures of the tests of events: a disk that can fail, and the ear for the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.events.disks import Disk, Said, listening, mounted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def said() -> Iterator[Said]:
    with listening() as said:
        yield said
