"""Stand in for a process behind a shim: its input, output, signals and exit status.

What a user does to us, we do to the process: Ctrl-C, ``kill``, a resized
window, a closed pipe.  Before the process has started, a signal calls the
whole thing off instead.
"""

from __future__ import annotations

import math
import os
import signal
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from shim.errors import ShimError
from shim.scope import background
from shimctl.attach.hub import END, ERR, OUT, Hub, open_hub, try_lock
from shimctl.attach.keys import KeyFilter
from shimctl.attach.relay import copy_in, copy_out, drain
from shimctl.attach.terminal import own_size, raw_mode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from shimctl.attach.relay import Pipes
    from shimctl.client import Task
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
    """Where signals go: to ``task``, or while there is none, against the block.

    ``resized`` is called when our terminal has another size.
    """

    def __init__(self, scope: trio.CancelScope) -> None:
        self.task: Task | None = None
        self.resized: Callable[[], Awaitable[object]] | None = None
        self.caught = 0
        self._scope = scope
        self._demands = 0

    async def deliver(self, number: int) -> None:
        """Do what signal ``number`` asks for."""
        if number == signal.SIGWINCH:
            if self.resized is not None:
                await self.resized()
            return
        if self.task is None:
            self.caught = number
            self._scope.cancel()
            return
        with suppress(ShimError):  # it has just ended
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


async def attach(
    task: Task, pipes: Pipes, signals: Signals, *, keys: bytes = b"", place: Path | None = None
) -> Exited | None:
    """Relay for a process that has started, until it has ended; then delete it.

    In ``place``, its bundle, others may attach beside us.  With a terminal, ``keys``
    let go of it: then it goes on, and None is returned.
    """

    async def resize(width: int, height: int) -> None:
        with suppress(ShimError):  # it has just ended
            await task.resize(width, height)

    resizing = resize if pipes.stdio.terminal else None
    async with AsyncExitStack() as stack:
        if place is None:
            hub = Hub(pipes, resizing)
        else:
            stack.enter_context(try_lock(place))
            hub = await stack.enter_async_context(open_hub(place, pipes, resizing))
        return await _attach(task, pipes, signals, hub, keys)
    raise AssertionError("nothing in the block is suppressed")


async def _attach(
    task: Task, pipes: Pipes, signals: Signals, hub: Hub, keys: bytes
) -> Exited | None:
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

    async def resized() -> None:
        await hub.resize_own(own_size())

    async def pass_on_input() -> None:
        typed = partial(hub.use, hub.own)
        await copy_in(0, pipes, filtered, typed=typed, closed=end_of_input)
        if filtered.found:
            staying.cancel()

    outputs = [(pipes.stdout, 1, partial(hub.tell, OUT))]
    if pipes.stderr is not None:
        outputs.append((pipes.stderr, 2, partial(hub.tell, ERR)))
    terminal = pipes.stdio.terminal and pipes.stdin is not None
    filtered = KeyFilter(keys if terminal and os.isatty(0) else b"")
    signals.task, signals.resized = task, resized
    exited = None
    with raw_mode(0) if terminal else nullcontext(), trio.CancelScope() as staying:
        await resized()
        inputs = [pass_on_input] if pipes.stdin is not None else []
        async with background(*inputs), trio.open_nursery() as copying:
            for source, target, tell in outputs:
                copying.start_soon(copy_out, source, target, nobody_reads, tell)
            exited = await task.wait()
            await task.delete()
            copying.cancel_scope.deadline = trio.current_time() + DRAIN
        for source, target, tell in outputs:
            await drain(source, target, tell)
        hub.tell(END)
    return exited
