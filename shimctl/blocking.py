"""The library for plain threads: the names of :mod:`shimctl`, with the same values.

    from shimctl import blocking

    done = blocking.run("oci:/srv/images:busybox", ["echo", "hello"])
    print(done.exit_status, done.stdout)

Every method blocks its own thread only.  Threads may share one connection: a ``wait``
in one thread does not delay a ``kill`` in another.  ``timeout``, in seconds, limits a
call.  :meth:`Shim.close`, called from any thread, ends every call on the connection
with UnavailableError.

Neither trio nor asyncio is imported, except that an image is prepared with trio.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import shimctl
from shim.ttrpc.blocking import Channel
from shimctl import client, discover, ending, launching, pipes, process, task
from shimctl.common import *  # noqa: F403 - its __all__ is part of ours
from shimctl.images import blocking as blocking_images
from shimctl.on_threads import THREADS, block, block_method, function, method
from shimctl.standalone import spawning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from shimctl.topics import Event

if not TYPE_CHECKING:  # a type checker follows the imports and definitions
    __all__ = shimctl.__all__

images = blocking_images


class Shim:
    """One shim daemon, which may hold several tasks; see :class:`shimctl.client.Shim`."""

    def __init__(self, inner: client.Shim) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return repr(self.inner)

    @property
    def address(self) -> str:
        """The address that the shim listens on."""
        return self.inner.address

    @property
    def api_version(self) -> int:
        """The version of the Task API that the shim accepts, 0 before the first call."""
        return self.inner.api_version

    def close(self) -> None:
        """End every call on this connection with UnavailableError; any thread may call this."""
        assert isinstance(self.inner.channel, Channel)
        self.inner.channel.close()

    def task(self, task_id: str, exec_id: str = "") -> Task:
        """Return the init process of container ``task_id``, or its exec ``exec_id``."""
        return Task(self.inner.task(task_id, exec_id))

    connect = method(client.Shim.connect)
    create = method(client.Shim.create)
    shutdown = method(client.Shim.shutdown)


class Task:
    """One process of a container; see :class:`shimctl.task.Task`."""

    def __init__(self, inner: task.Task) -> None:
        self.inner = inner
        self.id, self.exec_id = inner.id, inner.exec_id

    def __repr__(self) -> str:
        return repr(self.inner)

    @property
    def shim(self) -> Shim:
        """The shim that has this process."""
        return Shim(self.inner.shim)

    start = method(task.Task.start)
    exec = method(task.Task.exec, wrap=lambda added: Task(added))
    exec_output = method(task.Task.exec_output)
    spawn = block_method(task.Task.spawn, wrap=lambda found: Process(found))
    state = method(task.Task.state)
    kill = method(task.Task.kill)
    wait = method(task.Task.wait)
    delete = method(task.Task.delete)
    pids = method(task.Task.pids)
    stats = method(task.Task.stats)
    pause = method(task.Task.pause)
    resume = method(task.Task.resume)
    checkpoint = method(task.Task.checkpoint)
    update = method(task.Task.update)
    resize = method(task.Task.resize)
    close_io = method(task.Task.close_io)


class Input:
    """The stdin of a process; see :class:`shimctl.pipes.Input`."""

    def __init__(self, inner: pipes.Input) -> None:
        self.inner = inner

    write = method(pipes.Input.write)
    close = method(pipes.Input.close)


class Output:
    """The stdout or stderr of a process; see :class:`shimctl.pipes.Output`."""

    def __init__(self, inner: pipes.Output) -> None:
        self.inner = inner

    read = method(pipes.Output.read)
    readline = method(pipes.Output.readline)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")


class Process:
    """A running process with its streams; see :class:`shimctl.process.Process`."""

    def __init__(self, inner: process.Process) -> None:
        self.inner = inner
        self.pid = inner.pid
        self.stdin = Input(inner.stdin)
        self.stdout, self.stderr = Output(inner.stdout), Output(inner.stderr)

    def __repr__(self) -> str:
        return repr(self.inner)

    @property
    def task(self) -> Task:
        """The process as a task, for all calls of the Task API."""
        return Task(self.inner.task)

    wait = method(process.Process.wait)
    kill = method(process.Process.kill)
    communicate = method(process.Process.communicate)


connect = block(client.connect, wrap=Shim)
dispose = function(ending.dispose)
launch = function(launching.launch)
list_shims = function(discover.list_shims)
run = function(spawning.run)
run_delete = function(launching.run_delete)
spawn = block(spawning.spawn, wrap=Process)


@contextmanager
def serve_events(path: str | Path, handler: Callable[[Event], object]) -> Iterator[None]:
    """Listen on ``path`` and call ``handler`` with each event, in a thread, for the block.

    It listens when the block begins.  It calls the handler with one event at a time, of
    all shims together.  A handler cannot be cancelled: if it takes longer than 10 s, it is
    called again with the same event.  Everything else is as in
    :func:`shimctl.serve_events`.

    :raises TimedOutError: a handler still runs 10 s after the end of the block.
    """
    from shim.ttrpc.blocking_server import open_server  # late: a short-lived tool needs no server
    from shimctl.events import DRAIN, handlers_for, listening

    async def call(event: Event) -> None:
        handler(event)

    THREADS.check()
    with listening(path) as listener, open_server(listener, handlers_for(call), drain=DRAIN):
        yield
