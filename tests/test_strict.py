"""A skipped test is a failure in the project's own run, and only there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = """
import pytest
import trio

@pytest.mark.e2e
def test_needs_a_daemon() -> None:
    pytest.skip("no daemon here")

@pytest.mark.skipif(True, reason="not on this host")
def test_needs_a_host() -> None:
    pass

async def test_in_a_nursery() -> None:
    async with trio.open_nursery():
        pytest.skip("no nursery here")

async def test_of_a_machine() -> None:
    async with trio.open_nursery():
        pytest.skip("this machine has no loop devices")
"""


def run(tmp_path: Path, strict: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\ntrio_mode = true\nmarkers = e2e: needs daemons\n"
    )
    (tmp_path / "test_it.py").write_text(TESTS)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-ra", tmp_path],
        cwd=tmp_path,
        env=os.environ | {"CI_STRICT": strict, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_skipped_test_of_any_ring_fails_a_strict_run(tmp_path: Path) -> None:
    result = run(tmp_path, "1")
    assert result.returncode == pytest.ExitCode.TESTS_FAILED
    # A skip by a mark or a fixture comes before the test: pytest calls that an error.
    assert "2 failed, 1 skipped, 1 error" in result.stdout
    for reason in ("no daemon here", "not on this host", "no nursery here"):
        assert f"this test was skipped: {reason}" in result.stdout


def test_a_strict_run_accepts_a_skip_for_a_property_of_the_machine(tmp_path: Path) -> None:
    result = run(tmp_path, "1")
    assert "SKIPPED [1]" in result.stdout
    assert "this machine has no loop devices" in result.stdout


def test_elsewhere_a_skip_stays_a_skip_and_has_its_reason(tmp_path: Path) -> None:
    result = run(tmp_path, "0")
    assert result.returncode == pytest.ExitCode.OK
    assert "4 skipped" in result.stdout
    assert "no nursery here" in result.stdout
