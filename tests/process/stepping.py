"""Kills this process before a chosen line of its code.

A copy of this file is a module of a build of the shim, whose daemons call :func:`arm`.  The file
that ``SHIM_TEST_STEPS`` names has numbers, and each daemon that starts takes the first one: it is
killed before it runs so many lines of the modules in ``_PARTS``.  The file with the suffix
``.log`` gets that line.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

VARIABLE = "SHIM_TEST_STEPS"
_PACKAGE = str(Path(__file__).parent)
_PARTS = (
    *("container/", "stdio/", "events/", "recovery/", "runc/"),
    *("ttrpc/kept.py", "ttrpc/connection.py"),
    *("service.py", "reaper.py", "spawning.py", "child.py", "records.py"),
)
_TRACED = tuple(f"{_PACKAGE}/{part}" for part in _PARTS)


def arm() -> None:
    """Take a number from the file, if there is one, and count from now on."""
    path = Path(os.environ.get(VARIABLE, "/nonexistent"))
    try:
        first, *rest = path.read_text().split()
    except (OSError, ValueError):
        return
    path.write_text(" ".join(rest))
    sys.settrace(_tracer(int(first), path.with_suffix(".log")))


def _tracer(lines: int, log: Path) -> Callable[[FrameType, str, object], Any]:
    own, left = os.getpid(), lines

    def local(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        left -= event == "line"
        if left <= 0 and os.getpid() == own:  # not in the helper of a file
            name = frame.f_code.co_filename.removeprefix(_PACKAGE)
            with log.open("a") as file:
                file.write(f"{lines}: {name}:{frame.f_lineno}\n")
            os.kill(own, signal.SIGKILL)
        return local

    def begin(frame: FrameType, event: str, arg: object) -> Any:
        return local if frame.f_code.co_filename.startswith(_TRACED) else None

    return begin
