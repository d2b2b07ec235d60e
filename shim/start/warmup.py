"""Runs the code of a daemon in the fork server, before the first fork.

A forked daemon shares each page with its parent until one of the two writes to it.
Python writes to memory when code runs for the first times: it specialises bytecode,
fills the caches of methods and types, and creates objects on first use.  Here this
happens before the fork, so the daemon shares these pages.  The warm-up runs the
daemon itself, and creates, starts, kills and deletes containers in it, with a shell
script as the runtime and a server that discards the events.

It leaves no process and no file.  An error of it has no effect.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from grpclib.exceptions import GRPCError

from shim import daemon, hostfile, log, names
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
from shim.recovery.deposit import Deposit
from shim.recovery.inherited import DAEMON
from shim.start.caller import Caller
from shim.start.profile import Profile
from shim.ttrpc.client import open_channel
from shim.ttrpc.server import handlers_of, serve, unary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shim.api.forward_pb2 import ForwardRequest

# Whether the daemon of each round has a keeper (``survive``), which is other code.  A daemon
# with a container takes 0.4 MiB less after one round on CPython 3.11, and 0.9 MiB less on 3.12;
# the second saves another 0.1 MiB, and ten more save nothing.
_ROUNDS = (True, False, True)
# Seconds after which no further round begins, and after which a round is cancelled.
_LIMIT = 10.0
_PREFIX = ".warmup-"

# For create and exec, a runtime starts a process and writes its pid to a file.
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
    """Run daemons with a working directory in ``directory``, which is removed afterwards.

    The name of the working directory begins with a dot, unlike the sockets of fork
    servers, and has this process's pid, since several can warm up at once.
    """
    deadline = time.monotonic() + _LIMIT
    try:
        _remove_stale(directory)
        with _runtime() as runtime:
            for survives in _ROUNDS:
                if time.monotonic() < deadline:
                    with _working_directory(f"{directory}/{_PREFIX}{os.getpid()}") as place:
                        run = partial(_run_daemon, place, runtime, survives=survives)
                        trio.run(run, strict_exception_groups=True)
        hostfile.parse(b"survive = true\n")
        _import_by_settings()
    except Exception as exc:
        log.debug("cannot finish the warm-up of the fork server", error=exc)
    moving.finish()


def _import_by_settings() -> None:
    """Import modules that daemons load when first needed, if the host's file has ``survive``."""
    if hostfile.read(os.environ).survive:
        for name in ("filehelper", "terminalsplice"):
            import_module(f"shim.stdio.{name}")


def _remove_stale(directory: str) -> None:
    """Remove the working directories of processes that were killed during their warm-up."""
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
    """Create the runtime in memory, where no mount option forbids to execute it."""
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


async def _run_daemon(place: Path, runtime: str, *, survives: bool) -> None:
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

    # The keeper reads nothing: the messages of one container fit into the channel.
    ours, keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, keeper, trio.move_on_after(_LIMIT):
        async with trio.open_nursery() as nursery:
            listening = partial(serve, shutdown=over, drain=daemon.DRAIN)
            await nursery.start(listening, sink, handlers_of(_EventSink()))
            listener = sockets.listen(settings.address)
            slot, deposit = -1, Deposit()
            if survives:
                slot, deposit = _leave_profile(ours, settings, listener)
            nursery.start_soon(daemon.main, settings, listener, acknowledged, deposit)
            await ready.wait()
            options = Options(root=f"{place}/r", binary_name=runtime)
            async with open_channel(await sockets.connect(settings.address)) as channel:
                task = TaskStub(channel)
                await _run_container(task, "warmup", bundle, options)
                await task.Shutdown(task_pb2.ShutdownRequest(id="warmup", now=True))
            over.set()
        if slot >= 0:
            os.close(slot)


def _leave_profile(
    channel: socket.socket, settings: daemon.Settings, listener: socket.socket
) -> tuple[int, Deposit]:
    """Leave what a daemon leaves at its start; return its state slot, and the deposit."""
    profile = Profile.of_this_process(settings, b"", ["warmup"], log.INFO, "", sched_core=False)
    fds = profile.leave(channel, listener, Caller(listener, 0))
    return fds[DAEMON], Deposit(channel, "", fds)


def _make_bundle(path: Path) -> None:
    make_directory(path)
    write_file(path / "config.json", json.dumps(_CONFIG))
    for name in _STDIO:
        make_fifo(path / name)


async def _run_container(task: TaskStub, id_: str, bundle: Path, options: Options) -> None:
    """Create a container and an exec, query, kill and delete them."""
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
            with suppress(GRPCError):  # the container has no cgroup
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
