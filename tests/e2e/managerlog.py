"""The part of a manager's log that was written during a test, for the report of its failure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

_SHOWN = 6000  # bytes
_start = pytest.StashKey[int]()


def begin(request: pytest.FixtureRequest, log: Path) -> None:
    """Note where the test begins in ``log``."""
    request.node.stash[_start] = log.stat().st_size


def add_to(
    report: pytest.TestReport,
    item: pytest.Item,
    title: str,
    log: Path,
    longest: float = float("inf"),
) -> None:
    """Add the end of that part to the report of a failure, without lines over ``longest``."""
    if report.failed and log.exists():
        text = log.read_bytes()[item.stash.get(_start, 0) :].decode(errors="replace")
        lines = [line for line in text.splitlines(keepends=True) if len(line) < longest]
        report.sections.append((title, "".join(lines)[-_SHOWN:]))
