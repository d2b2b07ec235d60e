"""The errors that the library itself raises, and no shim sends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shim.errors import ShimError, TimedOutError

if TYPE_CHECKING:
    from shimctl.values import Finished


class WrongFaceError(ShimError):
    """A function was called on another framework than that of its module."""

    def __init__(self, face: str, running: str, *, plain: bool = False) -> None:
        wanted = {"trio": "shimctl", "asyncio": "shimctl.aio"}.get(running, "shimctl.blocking")
        remedy = f"use {wanted}"
        if plain and wanted == face:
            remedy = "use `async with`"
        elif face == "shimctl.blocking":
            remedy += f", because {face} would block the event loop, or call it in a thread"
        caller = (
            f"in {'an' if running[0] == 'a' else 'a'} {running} task"
            if running
            else "outside an event loop"
        )
        super().__init__(f"cannot call {face} {caller}; {remedy}")


class ExitStatusError(ShimError):
    """A command that was run with ``check=True`` ended with another exit status than 0.

    ``finished`` has the exit status and the output.
    """

    def __init__(self, command: str, finished: Finished) -> None:
        self.finished = finished
        last = finished.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        status = f"{command} ended with exit status {finished.exit_status}"
        super().__init__(f"{status}: {last}" if last else status)


class RunTimedOutError(TimedOutError):
    """A command did not end within its time limit and was killed.

    ``stdout`` and ``stderr`` are the output that it wrote until then.
    """

    def __init__(self, command: str, seconds: float, stdout: bytes, stderr: bytes) -> None:
        self.stdout, self.stderr = stdout, stderr
        super().__init__(f"{command} did not end within {seconds:g} s and was killed")
