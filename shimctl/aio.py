"""The library on asyncio: the names of :mod:`shimctl`, with the same values.

    import asyncio
    from shimctl import aio

    async def main():
        done = await aio.run("oci:/srv/images:busybox", ["echo", "hello"])
        print(done.exit_status, done.stdout)

    asyncio.run(main())

:class:`~shimctl.client.Shim`, :class:`~shimctl.task.Task` and
:class:`~shimctl.process.Process` are the same classes as on trio.  Every method is a
coroutine; cancelling it ends the call.  Any number of tasks may use one connection.  Only
:func:`serve_events` differs: it is an ``async with`` block, because asyncio has no
``nursery.start``.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import shimctl
from shim.ttrpc.aio import open_server
from shimctl import client, discover, ending, launching
from shimctl.client import Shim as Shim
from shimctl.common import *  # noqa: F403 - its __all__ is part of ours
from shimctl.events import handlers_for, listening
from shimctl.images import aio as aio_images
from shimctl.on_asyncio import ASYNCIO
from shimctl.process import Process as Process
from shimctl.standalone import spawning
from shimctl.task import Task as Task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from shimctl.topics import Event

if not TYPE_CHECKING:  # a type checker follows the imports and assignments
    __all__ = shimctl.__all__

images = aio_images
connect = client.connect.on(ASYNCIO)
dispose = ending.dispose.on(ASYNCIO)
launch = launching.launch.on(ASYNCIO)
list_shims = discover.list_shims.on(ASYNCIO)
run = spawning.run.on(ASYNCIO)
run_delete = launching.run_delete.on(ASYNCIO)
spawn = spawning.spawn.on(ASYNCIO)


@asynccontextmanager
async def serve_events(
    path: str | Path, handler: Callable[[Event], Awaitable[object]]
) -> AsyncIterator[None]:
    """Listen on ``path`` and call ``handler`` with each event, for the block.

    It listens when the block begins.  The end of the block cancels a handler that still
    runs.  Everything else is as in :func:`shimctl.serve_events`.
    """
    ASYNCIO.check()
    with listening(path) as listener:
        async with open_server(listener, handlers_for(handler)):
            yield
