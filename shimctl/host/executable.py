"""The executable that a shim was started from, and its version.

A manager writes the path of the executable into the bundle.  If it did not, the path
is that of the shim's process.

Source: containerd core/runtime/v2/manager.go for the file; pkg/shim/shim.go for
``-v``.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

_TIMEOUT = 5.0  # s
_MAX_VERSION = 4096  # characters of the version


def executable_of(bundle: str, pid: int) -> str:
    """Return the path of the shim's executable, empty if it is unknown."""
    if bundle:
        with suppress(OSError, ValueError):
            data = (Path(bundle) / "shim-binary-path").read_bytes()
            if path := os.fsdecode(data.removesuffix(b"\n")):
                return path
    with suppress(psutil.Error, OSError):
        path = psutil.Process(pid).exe() if pid else ""
        # If the process is an interpreter, its path is not that of the executable.
        if not Path(path).name.startswith("python"):
            return path
    return ""


async def version_of(executable: str) -> str:
    """Return the output of ``executable -v``, empty if that fails or takes more than 5 s."""
    import trio  # late: a list of containers needs no versions

    output = b""
    with suppress(OSError), trio.move_on_after(_TIMEOUT):
        done = await trio.run_process(
            [executable, "-v"],
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        output = done.stdout if done.returncode == 0 else b""
    return output.decode(errors="replace").strip()[:_MAX_VERSION]
