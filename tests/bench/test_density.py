"""The measurement of many containers runs, and its daemons are as many as it says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.waiting import PATIENCE

ROOT = Path(__file__).parents[2]


@pytest.mark.e2e
@pytest.mark.slow
def test_five_containers_are_measured_with_each_kind_of_sharing() -> None:
    containerd = shutil.which("containerd")
    assert containerd is not None
    argv = [sys.executable, "-m", "tests.bench.density", "--containers", "5", "--restarts", "1"]
    shares = [word for share in ("namespace", "pod", "2") for word in ("--share", share)]
    done = subprocess.run(
        [*argv, *shares, "--containerd", str(Path(containerd).parent)],
        cwd=ROOT,
        env={**os.environ, "TRIO_SHIM_FORKSERVER": "on"},
        capture_output=True,
        text=True,
        timeout=300 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if "trio " in line[:8]]
    assert {row[0].strip(): float(row[3]) for row in rows} == {
        "trio namespace": 1,
        "trio pod": 5,
        "trio 2": 3,
    }
    assert all(float(cell) > 0 for row in rows for cell in row[1:])
