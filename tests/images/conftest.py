"""A layout, and a store of the test's own."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from shimctl.images import Store
from shimctl.images.tools import TOOLS
from tests.images.layouts import Layout

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("SHIMCTL_IMAGES", str(tmp_path / "store"))
    return Store()


@pytest.fixture
def tools() -> None:
    """Be skipped, or fail in the project's own run, where images cannot be made."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() or missing:
        pytest.skip(f"needs root and {', '.join(missing)}")
