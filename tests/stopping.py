"""A process that stops itself (SIGSTOP) before the n-th line it runs of a module's code."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


def stop_at(step: int, *files: str, again: int = 0) -> None:
    """Let this process stop before the ``step``-th line of ``files`` it comes to.

    And before the ``again``-th line after that, unless it is 0.
    """
    left = step

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left, again
        if not frame.f_code.co_filename.endswith(files):
            return None
        if event == "line":
            left -= 1
            if not left:
                left, again = again, 0
                if not left:
                    sys.settrace(None)
                os.kill(os.getpid(), signal.SIGSTOP)
        return trace

    sys.settrace(trace)


class Stopped:
    """A child that does ``work`` and stops at a step of it; ``ended`` reports that there is no
    such step.
    """

    def __init__(self, work: Callable[[], int], step: int, *files: str, again: int = 0) -> None:
        self.pid = os.fork()
        if not self.pid:
            code = 99
            try:
                stop_at(step, *files, again=again)
                code = work()
            finally:
                sys.settrace(None)
                os._exit(code)
        _, self._status = os.waitpid(self.pid, os.WUNTRACED)
        self.ended = not os.WIFSTOPPED(self._status)

    def go_on(self) -> None:
        """Continue it to its second stop, or to its end."""
        if not self.ended:
            os.kill(self.pid, signal.SIGCONT)
            _, self._status = os.waitpid(self.pid, os.WUNTRACED)
            self.ended = not os.WIFSTOPPED(self._status)

    def finish(self) -> int:
        """Continue it, and return its exit code."""
        while not self.ended:
            self.go_on()
        return os.waitstatus_to_exitcode(self._status)
