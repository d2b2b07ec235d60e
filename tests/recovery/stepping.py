"""Kills this process before one bytecode instruction."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


def killed_before(
    step: int, is_counted: Callable[[str], bool]
) -> Callable[[FrameType, str, object], Any]:
    """Return a function for sys.settrace() that kills this process before the ``step``-th one.

    ``is_counted`` returns whether the instructions of a file count.
    """
    left = step

    def local(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        if event == "opcode":
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return local

    def begin(frame: FrameType, event: str, arg: object) -> Any:
        if not is_counted(frame.f_code.co_filename):
            return None
        frame.f_trace_opcodes = True
        return local

    return begin
