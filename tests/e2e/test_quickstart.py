"""The programs that README names, with the package that is under test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commandlines import command_lines
from tests.e2e.leftovers import RUNC, subdirectories
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
EXAMPLES = Path(__file__).parent.parent.parent / "examples"
NAMES = ("quickstart", "survive")
COMMANDS = ["run", "run --detach", "ps", "exec", "kill", "wait", "delete"]


def run(name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [EXAMPLES / name],
        env=os.environ | {"TRIO_SHIM_VENV": sys.prefix},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_quickstart_works_and_works_again() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    before = traces()
    for _ in range(2):
        result = run("quickstart.sh")
        assert result.returncode == 0, result.stdout + result.stderr
        assert "hello from a container, as pid 1\n(exit code 7)\n" in result.stdout
        assert "in the same container:\n" in result.stdout
        assert "(exit code 3)\n" in result.stdout
        shown = [line for line in result.stdout.splitlines() if line.startswith("$ shimctl ")]
        for line, command in zip(shown, COMMANDS, strict=True):
            assert line.startswith(f"$ shimctl {command}")
        wait_until("nothing is left", lambda: traces() <= before)


def test_a_container_survives_ten_kills_and_an_upgrade_of_its_shim() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    before = traces()
    result = run("survive.sh")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("\n$ kill -9 ") == 10
    assert "\n$ shimctl upgrade --force survivor\nsurvivor  " in result.stdout
    assert "(shimctl wait returned 7)\n" in result.stdout
    assert "and no number is missing)\n" in result.stdout
    wait_until("nothing is left", lambda: traces() <= before)


def traces() -> set[str]:
    """Find what the programs leave: bundles, mounts in them, containers, processes."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found = {str(path) for name in NAMES for path in Path("/tmp").glob(f"{name}.*")}
    found |= {line for line in mounts for name in NAMES if f"/{name}." in line}
    found |= {str(path) for space in subdirectories(RUNC) for path in subdirectories(space)}
    for pid, words in command_lines():
        line = b" ".join(words).decode(errors="replace")
        if any(f"/{name}." in line for name in NAMES) or b"demo" in words:
            found.add(f"{pid}: {line}")
    return found
