"""Run a process behind a shim in the foreground: forward its stdio, signals and exit status.

Ctrl-C, ``kill``, a window resize and a closed pipe are forwarded to the process.
Before the process has started, a signal ends the session instead.
"""

from __future__ import annotations

import math
import os
import signal
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from shim.errors import NotFoundError, ShimError
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

DRAIN = 5  # s for the output to end after the exit
_INSIST = 3  # the third SIGINT or SIGTERM is sent as SIGKILL
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
    """A signal arrived before the process had started."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """Forwards signals to ``task``; while ``task`` is None, a signal cancels the block.

    ``resized`` is called when the size of our terminal changes.
    """

    def __init__(self, scope: trio.CancelScope) -> None:
        self.task: Task | None = None
        self.resized: Callable[[], Awaitable[object]] | None = None
        self.caught = 0
        self._scope = scope
        self._demands = 0

    async def deliver(self, number: int) -> None:
        """Forward signal ``number``."""
        if number == signal.SIGWINCH:
            if self.resized is not None:
                await self.resized()
            return
        if self.task is None:
            self.caught = number
            self._scope.cancel()
            return
        with suppress(ShimError):  # the process has just exited
            self._demands += number in (signal.SIGINT, signal.SIGTERM)
            insist = self._demands >= _INSIST
            await self.task.kill(signal.SIGKILL if insist else number)


@asynccontextmanager
async def open_signals() -> AsyncIterator[Signals]:
    """Receive the signals that users send to programs, for the block.

    :raises CalledOffError: one arrived while :attr:`Signals.task` was not set.
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
    task: Task,
    pipes: Pipes,
    signals: Signals,
    *,
    keys: bytes = b"",
    place: Path | None = None,
    stdin: bool = True,
) -> Exited | None:
    """Relay the stdio of a started process until it exits; then delete it.

    ``place`` is its bundle, through which other clients can attach.  Without ``stdin`` our
    input is not forwarded, though other clients may send theirs.  With a terminal,
    the keys ``keys`` detach: the process runs on, and None is returned.
    """

    async def resize(width: int, height: int) -> None:
        with suppress(ShimError):  # the process has just exited
            await task.resize(width, height)

    resizing = resize if pipes.stdio.terminal else None
    async with AsyncExitStack() as stack:
        if place is None:
            hub = Hub(pipes, resizing)
        else:
            stack.enter_context(try_lock(place))
            hub = await stack.enter_async_context(open_hub(place, pipes, resizing))
        return await _attach(task, pipes, signals, hub, keys, stdin=stdin)
    raise AssertionError("nothing in the block is suppressed")


async def _attach(
    task: Task, pipes: Pipes, signals: Signals, hub: Hub, keys: bytes, *, stdin: bool
) -> Exited | None:
    first = math.inf

    async def output_closed() -> None:
        # Send SIGPIPE, as if the process had written into our closed pipe.  The init
        # of a pid namespace ignores it, so a process that writes on gets SIGKILL.
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

    async def forward_input() -> None:
        typed = partial(hub.use, hub.own)
        await copy_in(0, pipes, filtered, typed=typed, closed=end_of_input)
        if filtered.found:
            staying.cancel()

    outputs = [(pipes.stdout, 1, partial(hub.broadcast, OUT))]
    if pipes.stderr is not None:
        outputs.append((pipes.stderr, 2, partial(hub.broadcast, ERR)))
    terminal = pipes.stdio.terminal and bool(pipes.stdio.stdin)
    filtered = KeyFilter(keys if terminal and os.isatty(0) else b"")
    signals.task, signals.resized = task, resized
    exited = None
    with raw_mode(0) if terminal else nullcontext(), trio.CancelScope() as staying:
        await resized()
        inputs = [forward_input] if pipes.stdio.stdin and stdin else []
        async with background(*inputs), trio.open_nursery() as copying:
            for source, target, copied in outputs:
                copying.start_soon(copy_out, source, target, output_closed, copied)
            exited = await task.wait()
            with suppress(NotFoundError):  # another client has deleted it
                await task.delete()
            copying.cancel_scope.deadline = trio.current_time() + DRAIN
        for source, target, copied in outputs:
            await drain(source, target, copied)
        hub.broadcast(END)
    return exited
