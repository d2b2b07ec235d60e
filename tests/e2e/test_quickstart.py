"""The README's first command, with the package that is under test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.leftovers import RUNC, subdirectories
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
SCRIPT = Path(__file__).parent.parent.parent / "examples/quickstart.sh"
COMMANDS = ["run", "run --detach", "ps", "exec", "kill", "wait", "delete"]


def quickstart() -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT],
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
        result = quickstart()
        assert result.returncode == 0, result.stdout + result.stderr
        assert "hello from a container, as pid 1\n(exit code 7)\n" in result.stdout
        assert "in the same container:\n" in result.stdout
        assert "(exit code 3)\n" in result.stdout
        shown = [line for line in result.stdout.splitlines() if line.startswith("$ shimctl ")]
        for line, command in zip(shown, COMMANDS, strict=True):
            assert line.startswith(f"$ shimctl {command}")
        wait_until("nothing is left", lambda: traces() <= before)


def traces() -> set[str]:
    """Find what quickstarts leave: bundles, mounts in them, containers, processes."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found = {str(path) for path in Path("/tmp").glob("quickstart.*")}
    found |= {line for line in mounts if "/quickstart." in line}
    found |= {str(path) for space in subdirectories(RUNC) for path in subdirectories(space)}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "/quickstart." in line or "\0demo\0" in line:
            found.add(f"{entry.name}: {line}")
    return found
