"""The run of a measurement as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]


@pytest.fixture
def measured() -> Callable[..., list[str]]:
    """Run ``python -m tests.bench.NAME`` with fork servers; return the lines that it prints."""

    def run(name: str, *args: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", f"tests.bench.{name}", *args],
            cwd=ROOT,
            env={**os.environ, "TRIO_SHIM_FORKSERVER": "on"},
            capture_output=True,
            text=True,
            timeout=300 * PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run
