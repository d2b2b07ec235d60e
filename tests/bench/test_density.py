"""The measurement of many containers runs, and its daemons are as many as it says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.e2e
@pytest.mark.slow
def test_five_containers_are_measured_with_each_kind_of_sharing(
    measured: Callable[..., list[str]],
) -> None:
    containerd = shutil.which("containerd")
    assert containerd is not None
    shares = [word for share in ("namespace", "pod", "2") for word in ("--share", share)]
    path = str(Path(containerd).parent)
    printed = measured(
        "density", "--containers", "5", "--restarts", "1", *shares, "--containerd", path
    )
    rows = [line.split("|")[1:-1] for line in printed if "trio " in line[:8]]
    assert {row[0].strip(): float(row[3]) for row in rows} == {
        "trio namespace": 1,
        "trio pod": 5,
        "trio 2": 3,
    }
    assert all(float(cell) > 0 for row in rows for cell in row[1:])
