"""shimctl as the tests call it: as a process, or its main function."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shimctl.cli import main
from tests import warm

if TYPE_CHECKING:
    from collections.abc import Mapping

PATIENCE = 60  # s for what should take a fraction of one


def command_line(*argv: str | Path) -> list[str]:
    """Return the command line of shimctl with these arguments."""
    return [sys.executable, "-m", "shimctl", *map(str, argv)]


def shimctl(
    *argv: str | Path,
    stdin: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    patience: float = PATIENCE,
) -> subprocess.CompletedProcess[str]:
    """Run shimctl as a process, without the start of an interpreter."""
    words = [str(word) for word in argv]
    return warm.run("shimctl", words, stdin=stdin, cwd=cwd, env=env, timeout=patience)


def called(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    """Do the same in this process: most of the time of a command is the start of one."""
    out, err = io.StringIO(), io.StringIO()
    code: object
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(word) for word in argv])
        except SystemExit as exc:
            code = exc.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def mounts_with(*marks: str) -> list[str]:
    """Return the lines of the mount table that contain one of ``marks``."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if any(mark in line for mark in marks)]


def values(done: subprocess.CompletedProcess[str]) -> Any:
    """Return the values of the JSON that a command printed, which must have succeeded."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
