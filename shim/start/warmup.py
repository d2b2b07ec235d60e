"""Everything a daemon does in its life, done beforehand by the parent of daemons.

A forked daemon shares each page with its parent until one of the two writes to
it.  What Python writes into on first use (specialised bytecode, the caches of
methods and of types, what is made when it is first needed) is written here,
before the fork.  So containers are created, started, killed and deleted, with a
runtime that is a shell script and an event sink.

No trace is left: no process, no file.  Nothing depends on the outcome.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from grpclib.exceptions import GRPCError

from shim import daemon, log, names
from shim.api import task_pb2
from shim.api.forward_grpc import EventsBase
from shim.api.options_pb2 import Options
from shim.api.task_grpc import TaskStub
from shim.cgroup import moving
from shim.cgroup.find import cgroup_of
from shim.cgroup.oom import open_oom_watch
from shim.errors import ShimError
from shim.linux import sockets
from shim.linux.modes import make_directory, make_fifo, write_file
from shim.linux.removal import remove_tree
from shim.ttrpc.client import open_channel
from shim.ttrpc.server import handlers_of, serve, unary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shim.api.forward_pb2 import ForwardRequest

# CPython specialises what has run eight times, and some of it only after more.
_ROUNDS = 12
# Seconds after which the rest is left undone.
_LIMIT = 10.0
_PREFIX = ".warmup-"

# What a runtime leaves behind is a process whose pid is in a file.
_RUNTIME = b"""#!/bin/sh
for word; do
    [ "$last" != --pid-file ] || { sleep 5 & echo $! >"$word"; }
    last=$word
done
"""
_CONFIG = {
    "ociVersion": "1.0.2",
    "process": {"terminal": False, "args": ["sh"], "env": ["PATH=/bin"], "cwd": "/"},
    "root": {"path": "rootfs"},
    "annotations": {"warmup": "yes"},
    "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
}
_STDIO = ("stdin", "stdout", "stderr")
_PROCESS = AnyMessage(
    type_url=f"{names.SPEC}Process",
    value=json.dumps(_CONFIG["process"]).encode(),
)


def warm_up(directory: str) -> None:
    """Go through daemons' lives in a place in ``directory`` that is not there after.

    Its name begins with a dot, so that nobody takes it for a fork server, and has
    our pid: several may warm up at once.
    """
    deadline = time.monotonic() + _LIMIT
    try:
        _remove_stale(directory)
        with _runtime() as runtime:
            for _ in range(_ROUNDS):
                if time.monotonic() < deadline:
                    with _working_directory(f"{directory}/{_PREFIX}{os.getpid()}") as place:
                        trio.run(_run_daemon, place, runtime, strict_exception_groups=True)
    except Exception as exc:
        log.debug("the warm-up was cut short", error=exc)
    moving.finish()


def _remove_stale(directory: str) -> None:
    """Remove the places of those who were killed in the middle."""
    with suppress(FileNotFoundError):
        for path in Path(directory).glob(f"{_PREFIX}*"):
            pid = path.name.removeprefix(_PREFIX)
            if not os.path.exists(f"/proc/{pid}"):  # noqa: PTH110 - a plain string
                _remove(str(path))


def _remove(path: str) -> None:
    with suppress(ShimError):
        remove_tree(path)


@contextmanager
def _working_directory(path: str) -> Iterator[Path]:
    _remove(str(path))
    try:
        for directory in (os.path.dirname(path), path):  # noqa: PTH120
            make_directory(directory, exist_ok=True)
        yield Path(path)
    finally:
        _remove(str(path))


@contextmanager
def _runtime() -> Iterator[str]:
    """Make the runtime; where it lies, files can be executed whatever the mounts' options are."""
    fd = os.memfd_create("runtime", 0)
    try:
        os.write(fd, _RUNTIME)
        yield f"/proc/{os.getpid()}/fd/{fd}"
    finally:
        os.close(fd)


class _EventSink(EventsBase):
    @unary
    async def Forward(self, request: ForwardRequest) -> Empty:  # noqa: N802 - as in the .proto
        return Empty()


async def _run_daemon(place: Path, runtime: str) -> None:
    over = trio.Event()
    ready = trio.Event()
    bundle = place / "b"
    _make_bundle(bundle)
    settings = daemon.Settings("warmup", "warmup", str(bundle), f"{place}/e", f"unix://{place}/s")
    sink = trio.SocketListener(trio.socket.from_stdlib_socket(sockets.listen(f"unix://{place}/e")))

    async def acknowledged(task_status: trio.TaskStatus[None]) -> bool:
        ready.set()
        task_status.started()
        return True

    with trio.move_on_after(_LIMIT):
        async with trio.open_nursery() as nursery:
            listening = partial(serve, shutdown=over, drain=daemon.DRAIN)
            await nursery.start(listening, sink, handlers_of(_EventSink()))
            listener = sockets.listen(settings.address)
            nursery.start_soon(daemon.main, settings, listener, acknowledged)
            await ready.wait()
            options = Options(root=f"{place}/r", binary_name=runtime)
            async with open_channel(await sockets.connect(settings.address)) as channel:
                task = TaskStub(channel)
                await _run_container(task, "warmup", bundle, options)
                await task.Shutdown(task_pb2.ShutdownRequest(id="warmup", now=True))
            over.set()


def _make_bundle(path: Path) -> None:
    make_directory(path)
    write_file(path / "config.json", json.dumps(_CONFIG))
    for name in _STDIO:
        make_fifo(path / name)


async def _run_container(task: TaskStub, id_: str, bundle: Path, options: Options) -> None:
    """Let a container and an exec of it come and go."""
    stdin, stdout, stderr = paths = [str(bundle / name) for name in _STDIO]
    readers = [os.open(path, os.O_RDWR | os.O_NONBLOCK) for path in paths]
    try:
        with suppress(GRPCError):
            await task.Connect(task_pb2.ConnectRequest(id=id_))
            create = task_pb2.CreateTaskRequest(
                id=id_, bundle=str(bundle), stdin=stdin, stdout=stdout, stderr=stderr
            )
            create.options.type_url = names.RUNC_OPTIONS
            create.options.value = options.SerializeToString()
            await task.Create(create)
            await task.Start(task_pb2.StartRequest(id=id_))
            await task.Connect(task_pb2.ConnectRequest(id=id_))
            await task.State(task_pb2.StateRequest(id=id_))
            await task.Pids(task_pb2.PidsRequest(id=id_))
            with suppress(GRPCError):  # it has no cgroup of its own
                await task.Stats(task_pb2.StatsRequest(id=id_))
            add = task_pb2.ExecProcessRequest(
                id=id_, exec_id="e", spec=_PROCESS, stdin=stdin, stdout=stdout, stderr=stderr
            )
            await task.Exec(add)
            await task.Start(task_pb2.StartRequest(id=id_, exec_id="e"))
            for exec_id in ("e", ""):
                await task.Kill(task_pb2.KillRequest(id=id_, exec_id=exec_id, signal=9))
                await task.Wait(task_pb2.WaitRequest(id=id_, exec_id=exec_id))
                await task.Delete(task_pb2.DeleteRequest(id=id_, exec_id=exec_id))
        with suppress(ShimError, OSError):
            cgroup = cgroup_of(os.getpid())
            async with open_oom_watch(cgroup) as watch:
                watch.count()
            cgroup.metrics()
    finally:
        for fd in readers:
            os.close(fd)
