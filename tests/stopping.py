"""A process that stops itself (SIGSTOP) before the n-th line it runs of a module's code."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


def stop_at(step: int, *files: str) -> None:
    """Let this process stop before the ``step``-th line of ``files`` it comes to."""
    left = step

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(files):
            return None
        if event == "line":
            left -= 1
            if not left:
                sys.settrace(None)
                os.kill(os.getpid(), signal.SIGSTOP)
        return trace

    sys.settrace(trace)


class Stopped:
    """A child that does ``work`` and stops at a step of it; ``ended`` says there is none."""

    def __init__(self, work: Callable[[], int], step: int, *files: str) -> None:
        self.pid = os.fork()
        if not self.pid:
            code = 99
            try:
                stop_at(step, *files)
                code = work()
            finally:
                sys.settrace(None)
                os._exit(code)
        _, self._status = os.waitpid(self.pid, os.WUNTRACED)
        self.ended = not os.WIFSTOPPED(self._status)

    def finish(self) -> int:
        """Continue it, and return its exit code."""
        if not self.ended:
            os.kill(self.pid, signal.SIGCONT)
            _, self._status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(self._status)
