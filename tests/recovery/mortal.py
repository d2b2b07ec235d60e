"""A ttrpc server that is killed again and again, and goes on each time.

``python -m tests.recovery.mortal PATH CALLS SEED KILLS MODE`` is the keeper of a server at the
socket PATH.  It forks a server, kills it, takes what the server has put into its deposit, and
forks the next one.  After KILLS deaths the server lives on.  In the MODE ``time`` it is killed
at a random time after its start, or after it serves; in the MODE ``steps`` the server kills
itself before a random bytecode instruction of the modules that must be exact.  The file CALLS
gets a line for each call of a method.
"""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import sys
import time
import traceback
from functools import partial

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from shim.api.task_pb2 import (
    CreateTaskRequest,
    CreateTaskResponse,
    ExecProcessRequest,
    StateRequest,
    StateResponse,
    StatsRequest,
    StatsResponse,
    UpdateTaskRequest,
)
from shim.linux import libc
from shim.recovery.connections import Connections
from shim.recovery.deposit import Deposit
from shim.recovery.inherited import Inherited
from shim.ttrpc.server import Stream, handlers_of, replayable, serve
from tests.recovery.keeper import Keeper
from tests.recovery.stepping import killed_before
from tests.ttrpc.fake import FakeTask

_EXACT = (
    *("ttrpc/kept.py", "ttrpc/connection.py", "ttrpc/protocol.py", "ttrpc/frames.py"),
    *("recovery/connections.py", "recovery/transfers.py", "recovery/slot.py"),
)
# Instructions of these modules that a server executes in its life, at most.
_STEPS = 20000
# Seconds that a server lives, or serves, at most.
_LIFE, _SERVICE = 0.05, 0.25


def content(name: str, size: int) -> str:
    """Return ``size`` characters that differ at each place and for each ``name``."""
    words = f"{name}:{size}:"
    return (words * (size // len(words) + 1))[:size]


class Echo(FakeTask):
    """Each reply depends on its request.  State and Exec are immediate.

    The id of a request is a name, a slash and the size of the reply.
    """

    def __init__(self, calls: int) -> None:
        super().__init__()
        self._calls = calls

    def _note(self, name: str, replayed: bool) -> None:
        os.write(self._calls, f"{name[:40]} {int(replayed)}\n".encode())

    @replayable
    async def State(self, request: StateRequest, replayed: bool) -> StateResponse:
        name, _, size = request.id.partition("/")
        self._note(name, replayed)
        assert request.exec_id == content(name, len(request.exec_id))
        return StateResponse(id=name, stdout=content(name, int(size)))

    @replayable
    async def Exec(self, request: ExecProcessRequest, replayed: bool) -> Empty:
        self._note(request.id, replayed)
        assert request.stdin == content(request.id, len(request.stdin))
        return Empty()

    @replayable
    async def Stats(self, request: StatsRequest, replayed: bool) -> StatsResponse:
        name, _, size = request.id.partition("/")
        self._note(name, replayed)
        await trio.sleep(random.random() / 500)
        return StatsResponse(stats=AnyMessage(value=content(name, int(size)).encode()))

    @replayable
    async def Update(self, request: UpdateTaskRequest, replayed: bool) -> Empty:
        self._note(request.id, replayed)
        text = request.resources.value.decode()
        assert text == content(request.id, len(text))
        await trio.sleep(random.random() / 500)
        return Empty()

    async def Create(self, stream: Stream[CreateTaskRequest, CreateTaskResponse]) -> None:
        request = await stream.recv_message()
        assert request is not None
        self._note(request.id, stream.replayed)
        await trio.lowlevel.checkpoint()
        await stream.send_message(CreateTaskResponse(pid=len(request.bundle)))


async def _serve(
    listener: socket.socket, channel: socket.socket, fds: dict[str, int], calls: int, step: int
) -> None:
    deposit = Deposit(channel)
    store = Connections(deposit)
    sock = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
    if step:
        sys.settrace(killed_before(step, lambda path: path.endswith(_EXACT)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deposit.run)
        deposit.put({"listener": listener.fileno()})  # tells the keeper, too, that it serves
        await serve(
            sock,
            handlers_of(Echo(calls)),
            shutdown=trio.Event(),
            drain=0,
            immediate=("State", "Exec"),
            store=store,
            resumed=store.resume(Inherited(fds)),
        )


def _fork(
    listener: socket.socket, kept: dict[str, int], calls: int, step: int
) -> tuple[int, Keeper]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        try:
            libc.die_with_parent()
            ours.close()
            random.seed()
            trio.run(partial(_serve, listener, theirs, kept, calls, step))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    theirs.close()
    keeper = Keeper(ours)
    keeper.fds = kept
    return pid, keeper


def main() -> None:
    """Keep a server until its last death, then until stdin ends."""
    path, log, seed, kills, mode = sys.argv[1:]
    rng = random.Random(seed)
    calls = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen()
    os.rename(f"{path}.new", path)  # noqa: PTH104 - a client that finds it can connect
    kept: dict[str, int] = {}
    for number in range(int(kills) + 1):
        last = number == int(kills)
        step = 0
        if not last and mode != "time":
            step = rng.randrange(_STEPS) + 1
        pid, keeper = _fork(listener, kept, calls, step)
        if last:
            print("alive", flush=True)
        after_start = rng.random() < 0.4
        longest = _LIFE if after_start else _SERVICE
        seconds = rng.random() * longest if mode == "time" and not last else None
        died = _keep(pid, keeper, seconds, after_start=after_start)
        keeper.fds = {}  # the next keeper has them
        keeper.close()
        if last or not died:
            return


def _keep(pid: int, keeper: Keeper, seconds: float | None, *, after_start: bool) -> bool:
    """Take messages until the server dies; False if stdin ended first.

    Kill it after ``seconds``, which begin at its start or at its first message.
    """
    pidfd = os.pidfd_open(pid)
    deadline = time.monotonic() + seconds if seconds is not None and after_start else None
    waiting = [pidfd, keeper.channel, sys.stdin]
    try:
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            ready = select.select(waiting, [], [], left)[0]
            ended = sys.stdin in ready
            if ended or not ready:
                os.kill(pid, signal.SIGKILL)
            if keeper.channel in ready:
                if seconds is not None and deadline is None:
                    deadline = time.monotonic() + seconds
                if not keeper.take():
                    waiting.remove(keeper.channel)
            if ended or not ready or pidfd in ready:
                _, status = os.waitpid(pid, 0)
                keeper.take()  # the last messages of the dead
                if os.WIFSIGNALED(status):
                    return not ended
                print(f"the server ended with status {status}", flush=True)
                return False
    finally:
        os.close(pidfd)


if __name__ == "__main__":
    main()
