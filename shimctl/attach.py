"""Stand in for a process behind a shim: its input, output, signals and exit status.

What a user does to us, we do to the process: Ctrl-C, ``kill``, a resized
window, a closed pipe.  Before the process has started, a signal calls the
whole thing off instead.
"""

from __future__ import annotations

import math
import signal
import sys
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from shim.errors import ShimError
from shim.scope import background
from shimctl.relay import copy_in, copy_out, drain
from shimctl.terminal import raw_mode, size_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shimctl.client import Task
    from shimctl.relay import Pipes
    from shimctl.values import Exited

DRAIN = 5  # s that output may take to end once the process has
_INSIST = 3  # the how many-th SIGINT or SIGTERM becomes SIGKILL
_WRITES_ON = 1  # s after SIGPIPE until SIGKILL, for a process that goes on writing
_FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


class CalledOffError(ShimError):
    """A signal came before the process had started."""

    def __init__(self, number: int) -> None:
        super().__init__(f"called off by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """Where signals go: to ``task``, or while there is none, against the block."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self.task: Task | None = None
        self.caught = 0
        self._scope = scope
        self._demands = 0

    async def deliver(self, number: int) -> None:
        """Do what signal ``number`` asks for."""
        if self.task is None:
            if number != signal.SIGWINCH:
                self.caught = number
                self._scope.cancel()
            return
        with suppress(ShimError):  # it has just ended, or it has no terminal
            if number == signal.SIGWINCH:
                await resize(self.task)
                return
            self._demands += number in (signal.SIGINT, signal.SIGTERM)
            insist = self._demands >= _INSIST
            await self.task.kill(signal.SIGKILL if insist else number)


@asynccontextmanager
async def open_signals() -> AsyncIterator[Signals]:
    """Take over the signals that a user sends to programs, for the block.

    :raises CalledOffError: one came while :attr:`Signals.task` was not set.
    """
    with trio.CancelScope() as scope:
        signals = Signals(scope)
        with trio.open_signal_receiver(*_FORWARDED, signal.SIGWINCH) as arriving:

            async def deliver() -> None:
                async for number in arriving:
                    await signals.deliver(number)

            async with background(deliver):
                yield signals
    if scope.cancelled_caught:
        raise CalledOffError(signals.caught)


async def resize(task: Task) -> None:
    """Give the process's terminal the size of ours."""
    if size := size_of(sys.stdin.fileno()) or size_of(sys.stdout.fileno()):
        await task.resize(*size)


async def attach(task: Task, pipes: Pipes, signals: Signals) -> Exited:
    """Relay for a process that has started, until it has ended; then delete it."""
    signals.task = task

    first = math.inf

    async def nobody_reads() -> None:
        # As if the process itself had written into the closed pipe.  The init
        # of a pid namespace never notices, so one that writes on is killed.
        nonlocal first
        number = signal.SIGPIPE
        if first < trio.current_time() - _WRITES_ON:
            number = signal.SIGKILL
        elif first < math.inf:
            return
        first = min(first, trio.current_time())
        with suppress(ShimError):
            await task.kill(number)

    async def end_of_input() -> None:
        with suppress(ShimError):
            await task.close_io()

    outputs = [(pipes.stdout, sys.stdout.fileno())]
    if pipes.stderr is not None:
        outputs.append((pipes.stderr, sys.stderr.fileno()))
    inputs = []
    if pipes.stdin is not None:
        inputs.append(partial(copy_in, sys.stdin.fileno(), pipes, end_of_input))
    terminal = pipes.stdio.terminal and pipes.stdin is not None
    with raw_mode(sys.stdin.fileno()) if terminal else nullcontext():
        if pipes.stdio.terminal:
            with suppress(ShimError):
                await resize(task)
        async with background(*inputs), trio.open_nursery() as copying:
            for source, target in outputs:
                copying.start_soon(copy_out, source, target, nobody_reads)
            exited = await task.wait()
            await task.delete()
            copying.cancel_scope.deadline = trio.current_time() + DRAIN
        for source, target in outputs:
            await drain(source, target)
    return exited
