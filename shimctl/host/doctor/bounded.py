"""Runs a program, or a function that may wait for a disk, for a limited time.

A program that waits for a disk may not end on SIGKILL.  It is left running, because a wait for
its end would have no bound.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

PROGRAM = 3.0  # s for one command
_KILLED = 0.5  # s for the exit after SIGKILL
_MOST = 1 << 16  # bytes of the output


@dataclass(frozen=True, slots=True)
class Output:
    """The output of a command, stdout and stderr in order of arrival.

    ``exit_code`` is None if the command did not end in time; it was killed.
    """

    text: str
    exit_code: int | None


async def run(argv: Sequence[str], seconds: float = PROGRAM) -> Output:
    """Run a command without input; kill it, and all processes of its session, after ``seconds``.

    :raises OSError: it cannot be executed.
    """
    process = await trio.lowlevel.open_process(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    data = b""
    assert process.stdout is not None  # a pipe, as asked
    try:
        with trio.move_on_after(seconds):
            # More output than this is not of interest, and the rest blocks the command.
            while len(data) < _MOST and (chunk := await process.stdout.receive_some(4096)):
                data += chunk
            await process.wait()
    finally:
        exit_code = process.returncode
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with trio.move_on_after(_KILLED, shield=True):
            await process.wait()
        with trio.move_on_after(_KILLED, shield=True):
            await process.stdout.aclose()
    return Output(data.decode(errors="replace"), exit_code)


async def call(function: Callable[[], T], seconds: float) -> T:
    """Return the result of ``function``, which runs in a thread.

    :raises trio.TooSlowError: it takes more than ``seconds``; the thread is left behind.
    """
    with trio.fail_after(seconds):
        return await trio.to_thread.run_sync(function, abandon_on_cancel=True)
