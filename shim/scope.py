"""Background work with the lifetime of a block."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@asynccontextmanager
async def background(*tasks: Callable[[], Awaitable[object]]) -> AsyncIterator[trio.Nursery]:
    """Run ``tasks`` beside the block and cancel them when it ends.

    More can be started in the nursery, and end with the block too.

    An error raised by the block comes out as itself, not in an ExceptionGroup:
    that tasks ran beside it is our business, not the caller's.  An error in a
    task cancels the block and comes out in a group, as from any nursery.
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
