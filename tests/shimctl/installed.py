"""Programs that `shimctl install` wrote, and their files."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from tests.shimctl import tool

if TYPE_CHECKING:
    from pathlib import Path


def run(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        args, capture_output=True, text=True, check=False, timeout=60, env=os.environ | environ
    )


def shimctl(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return tool.shimctl(*args, env=os.environ | environ)


def files_in(prefix: Path) -> set[str]:
    return {str(path.relative_to(prefix)) for path in prefix.rglob("*") if not path.is_dir()}
