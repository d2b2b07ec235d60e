"""Background work with the lifetime of a block."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@asynccontextmanager
async def background(*tasks: Callable[[], Awaitable[object]]) -> AsyncIterator[trio.Nursery]:
    """Run ``tasks`` during the block and cancel them at its end.

    The nursery can start more tasks; they are cancelled at the end of the block too.

    An error of the block is raised unchanged, not in an ExceptionGroup: the tasks are an
    internal matter that the caller need not handle.  An error of a task cancels the block
    and is raised in a group, as from any nursery.
    """
    error: BaseException | None = None
    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task)
        try:
            yield nursery
        except BaseException as exc:  # raised below, outside the nursery
            error = exc
        nursery.cancel_scope.cancel()
    if error is not None:
        raise error
