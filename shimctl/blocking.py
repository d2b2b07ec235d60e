"""The library for plain threads: the names of :mod:`shimctl`, with the same values.

    from shimctl import blocking

    with blocking.connect("unix:///run/containerd/s/...") as shim:
        print(shim.task("redis").wait().exit_status)

Every method blocks its own thread only.  Threads may share one connection: a ``wait``
in one thread does not delay a ``kill`` in another.  ``timeout``, in seconds, limits a
call.  :meth:`Shim.close`, called from any thread, ends every call on the connection
with UnavailableError.

:mod:`shimctl.client` implements the methods; its docstrings list their exceptions.
Neither trio nor asyncio is imported.

Source: as in :mod:`shimctl.client`, :mod:`shimctl.launching` and :mod:`shimctl.discover`.
"""

from __future__ import annotations

import select
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from shim.api.mount_pb2 import Mount
from shim.errors import (
    ExistsError,
    InvalidError,
    NotFoundError,
    ShimError,
    TimedOutError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from shim.linux.removal import remove_tree
from shim.ttrpc import blocking as ttrpc
from shim.ttrpc.blocking import run
from shimctl import client
from shimctl.client import CALL_TIMEOUT, CONNECT_TIMEOUT
from shimctl.exits import read_address, read_exit
from shimctl.options import runc_options
from shimctl.remains import RemainsError
from shimctl.values import Connected, Exited, Pid, Stats, Status, Stdio, TaskState

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )
    from pathlib import Path

    from google.protobuf.any_pb2 import Any as AnyMessage

    from shimctl.discover import Found, Health
    from shimctl.events import Event
    from shimctl.launching import Launched

__all__ = [
    "Connected",
    "Event",
    "ExistsError",
    "Exited",
    "Found",
    "Health",
    "InvalidError",
    "Launched",
    "Mount",
    "NotFoundError",
    "Pid",
    "RemainsError",
    "Shim",
    "ShimError",
    "Stats",
    "Status",
    "Stdio",
    "Task",
    "TaskState",
    "TimedOutError",
    "UnavailableError",
    "UnsupportedError",
    "WrongStateError",
    "connect",
    "dispose",
    "launch",
    "list_shims",
    "read_address",
    "read_exit",
    "remove_tree",
    "run_delete",
    "runc_options",
    "serve_events",
]


def __getattr__(name: str) -> Any:
    # Imported at the first use: their modules load too slowly for a short-lived tool.
    if name not in ("Event", "Found", "Health", "Launched"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import shimctl

    return getattr(shimctl, name)


@contextmanager
def connect(
    address: str, *, namespace: str = "", timeout: float = CONNECT_TIMEOUT
) -> Iterator[Shim]:
    """Connect to the shim at ``address`` for the block; see :func:`shimctl.connect`."""
    with client.connecting_to(address) as whole:
        sock = ttrpc.connect(whole, timeout)
    with ttrpc.open_channel(sock) as channel:
        yield Shim(client.Shim(channel, whole, namespace), channel.close)


class Shim:
    """One shim daemon, which may hold several tasks; see :class:`shimctl.client.Shim`."""

    def __init__(self, shim: client.Shim, close: Callable[[], None]) -> None:
        self._shim = shim
        self.close = close  # ends every call on this connection

    @property
    def address(self) -> str:
        """The address that the shim listens on."""
        return self._shim.address

    @property
    def api_version(self) -> int:
        """The version of the Task API that the shim accepts, 0 before the first call."""
        return self._shim.api_version

    def task(self, task_id: str, exec_id: str = "") -> Task:
        """Return the init process of container ``task_id``, or its exec ``exec_id``."""
        return Task(self, self._shim.task(task_id, exec_id))

    def connect(self, task_id: str = "", *, timeout: float = CALL_TIMEOUT) -> Connected:
        """Return the shim's pid and version, and the pid of ``task_id`` if the shim has it."""
        return run(self._shim.connect(task_id, timeout=timeout))

    def create(
        self,
        task_id: str,
        bundle: str | Path,
        *,
        stdio: Stdio | None = None,
        rootfs: Sequence[Mount] = (),
        checkpoint: str | Path = "",
        options: AnyMessage | None = None,
        timeout: float = CALL_TIMEOUT,
    ) -> int:
        """Create container ``task_id`` from the OCI ``bundle``; return the pid of its init."""
        return run(
            self._shim.create(
                task_id,
                bundle,
                stdio=stdio,
                rootfs=rootfs,
                checkpoint=checkpoint,
                options=options,
                timeout=timeout,
            )
        )

    def shutdown(self, *, now: bool = False, timeout: float = CALL_TIMEOUT) -> None:
        """Ask the shim to exit.  A shim that still has containers stays; this is no error."""
        run(self._shim.shutdown(now=now, timeout=timeout))


class Task:
    """One process of a container; see :class:`shimctl.client.Task`."""

    def __init__(self, shim: Shim, task: client.Task) -> None:
        self.shim = shim
        self._task = task

    @property
    def id(self) -> str:
        """The container's id."""
        return self._task.id

    @property
    def exec_id(self) -> str:
        """The id of an exec; empty for the init."""
        return self._task.exec_id

    def start(self, *, timeout: float = CALL_TIMEOUT) -> int:
        """Start the process; return its pid."""
        return run(self._task.start(timeout=timeout))

    def exec(
        self,
        exec_id: str,
        process: Mapping[str, object],
        *,
        stdio: Stdio | None = None,
        timeout: float = CALL_TIMEOUT,
    ) -> Task:
        """Add an exec to the container and return it; :meth:`start` then runs it."""
        added = run(self._task.exec(exec_id, process, stdio=stdio, timeout=timeout))
        return Task(self.shim, added)

    def state(self, *, timeout: float = CALL_TIMEOUT) -> TaskState:
        """Return the process's state."""
        return run(self._task.state(timeout=timeout))

    def kill(self, signal: int, *, everyone: bool = False, timeout: float = CALL_TIMEOUT) -> None:
        """Send a signal to the process, or with ``everyone`` to all processes of the container."""
        run(self._task.kill(signal, everyone=everyone, timeout=timeout))

    def wait(self, *, timeout: float | None = None) -> Exited:
        """Wait until the process exits; without a ``timeout`` the wait has no limit."""
        return run(self._task.wait(timeout=timeout))

    def delete(self, *, timeout: float = CALL_TIMEOUT) -> Exited:
        """Delete the exited process; of an init process, also free the container's resources."""
        return run(self._task.delete(timeout=timeout))

    def pids(self, *, timeout: float = CALL_TIMEOUT) -> tuple[Pid, ...]:
        """List the processes of the container."""
        return run(self._task.pids(timeout=timeout))

    def stats(self, *, timeout: float = CALL_TIMEOUT) -> Stats:
        """Return the container's resource usage."""
        return run(self._task.stats(timeout=timeout))

    def pause(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Freeze every process of the container."""
        run(self._task.pause(timeout=timeout))

    def resume(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Undo :meth:`pause`."""
        run(self._task.resume(timeout=timeout))

    def checkpoint(
        self,
        path: str | Path,
        *,
        stop: bool = False,
        work_path: str | Path = "",
        options: AnyMessage | None = None,
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        """Write the container's memory and state into the directory ``path``, with criu."""
        run(
            self._task.checkpoint(
                path, stop=stop, work_path=work_path, options=options, timeout=timeout
            )
        )

    def update(
        self,
        resources: Mapping[str, object],
        *,
        annotations: Mapping[str, str] | None = None,
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        """Change limits; ``resources`` is the ``linux.resources`` object of an OCI config."""
        run(self._task.update(resources, annotations=annotations, timeout=timeout))

    def resize(self, width: int, height: int, *, timeout: float = CALL_TIMEOUT) -> None:
        """Set the size of the process's terminal, in characters."""
        run(self._task.resize(width, height, timeout=timeout))

    def close_io(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Close the shim's end of stdin; the process reads EOF after every writer closed too."""
        run(self._task.close_io(timeout=timeout))


def launch(
    bundle: str | Path,
    container: str,
    *,
    namespace: str = "default",
    runtime: str | None = None,
    debug: bool = False,
    events: str | Path | None = None,
) -> Launched:
    """Start a shim; see :func:`shimctl.launch`.  ``runtime`` None is the default one."""
    from shimctl import launching

    return run(
        launching.launch(
            bundle,
            container,
            namespace=namespace,
            runtime=runtime or launching.DEFAULT_RUNTIME,
            debug=debug,
            events=events,
            backend=_BACKEND,
        )
    )


def run_delete(
    bundle: str | Path,
    container: str,
    *,
    namespace: str = "default",
    runtime: str | None = None,
) -> Exited | None:
    """Run the shim's ``delete`` command; see :func:`shimctl.run_delete`."""
    from shimctl import launching

    runtime = runtime or launching.DEFAULT_RUNTIME
    return run(
        launching.run_delete(
            bundle, container, namespace=namespace, runtime=runtime, backend=_BACKEND
        )
    )


def dispose(
    bundle: str | Path,
    container: str,
    *,
    address: str = "",
    namespace: str = "default",
    runtime: str | None = None,
    alone: bool = True,
) -> Exited | None:
    """End a container and its shim; see :func:`shimctl.dispose`."""
    from shimctl import ending, launching

    return run(
        ending.dispose(
            bundle,
            container,
            address=address,
            namespace=namespace,
            runtime=runtime or launching.DEFAULT_RUNTIME,
            alone=alone,
            backend=_BACKEND,
        )
    )


def list_shims(
    *,
    states: Sequence[str | Path] = (),
    socket_dir: str | Path | None = None,
    timeout: float | None = None,
) -> list[Found]:
    """Find every shim; see :func:`shimctl.list_shims`."""
    from shimctl import discover

    socket_dir = socket_dir or discover.SOCKETS
    timeout = discover.PROBE if timeout is None else timeout
    return run(
        discover.list_shims(
            states=states, socket_dir=socket_dir, backend=_BACKEND, timeout=timeout
        )
    )


@contextmanager
def serve_events(path: str | Path, handler: Callable[[Event], object]) -> Iterator[None]:
    """Listen on ``path`` and call ``handler`` with each event, in a thread, for the block.

    It listens when the block begins.  It calls the handler with one event at a time, of
    all shims together.  A handler cannot be cancelled: if it takes longer than 10 s, it is
    called again with the same event.  Everything else is as in
    :func:`shimctl.serve_events`.

    :raises TimedOutError: a handler still runs 10 s after the end of the block.
    """
    from shim.ttrpc.blocking_server import open_server
    from shimctl.events import DRAIN, handlers_for, listening

    async def call(event: Event) -> None:
        handler(event)

    with listening(path) as listener, open_server(listener, handlers_for(call), drain=DRAIN):
        yield


class _Threads:
    """The backend for plain threads; see :mod:`shimctl.backend`."""

    @asynccontextmanager
    async def connect(
        self, address: str, *, namespace: str = "", timeout: float = CONNECT_TIMEOUT
    ) -> AsyncIterator[client.Shim]:
        with client.connecting_to(address) as whole:
            sock = ttrpc.connect(whole, timeout)
        with ttrpc.open_channel(sock) as channel:
            yield client.Shim(channel, whole, namespace)

    async def wait_readable(self, fd: int, seconds: float) -> bool:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    async def run_shielded(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        # Nothing cancels a thread, and each step of ``work`` has its own time limit.
        await work()

    async def run_all(self, works: Iterable[Callable[[], Awaitable[None]]]) -> None:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda work: run(_coroutine(work)), works))


async def _coroutine(work: Callable[[], Awaitable[None]]) -> None:
    await work()


_AT_ONCE = 32  # the most shims that are probed at once
_BACKEND = _Threads()
