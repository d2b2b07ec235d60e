"""Many shims, each with a container that sleeps, whose number grows.

Each shim has one connection, as from its manager, and its bundle has the files that
containerd writes, so that ``shimctl`` finds it.
"""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from google.protobuf.empty_pb2 import Empty

from shim.api import task_pb2
from shim.linux import sockets
from tests.bench import procs
from tests.bench.caller import CallError
from tests.bench.session import Session
from tests.bench.workplace import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.bench.workplace import Shim, Workplace

SPARE = 0.3  # seconds between two starts, in which the fork server makes its spare child
SETTLE = 30.0  # seconds after which shims are measured though they are not idle
LINGER = 6.0  # seconds until each of our shims has closed its connection for events
ENDING = 60.0  # seconds for the daemons to exit


class Population:
    """See :func:`open_population`."""

    def __init__(self, place: Workplace, shim: Shim, stack: AsyncExitStack) -> None:
        self.place = place
        self.shim = shim
        self.sessions: list[Session] = []
        self._stack = stack

    async def grow(self, count: int) -> None:
        """Start shims with containers until there are ``count``."""
        while len(self.sessions) < count:
            session = self._open()
            self.sessions.append(session)
            # In a thread, because the event sink must acknowledge meanwhile.
            await trio.to_thread.run_sync(_bring_up, session)

    async def starts(self, count: int) -> list[float]:
        """Start ``count`` more shims one after the other and end them; return milliseconds."""
        taken = []
        for _ in range(count):
            await trio.sleep(SPARE)
            session = self._open()
            taken.append(session.start())
            session.call_first()
            await trio.to_thread.run_sync(_shut_down, session)
        return taken

    def family(self) -> set[int]:
        """Return the daemons, their fork server and its spare child."""
        return procs.family(session.daemon for session in self.sessions)

    async def settle(self) -> None:
        """Wait until no process of the family wakes up, for a limited time."""
        await trio.sleep(LINGER)
        with trio.move_on_after(SETTLE):
            while await self.woken(1.0):
                pass

    async def woken(self, seconds: float) -> int:
        """Return how often all of the family together wake up in ``seconds``."""
        family = self.family()
        before = sum(map(procs.wakeups, family))
        await trio.sleep(seconds)
        return sum(map(procs.wakeups, family)) - before

    async def end(self) -> None:
        """Kill and delete every container, and wait for the end of the daemons."""
        daemons = [session.daemon for session in self.sessions]
        while self.sessions:
            await trio.to_thread.run_sync(_end, self.sessions.pop())
        with trio.fail_after(ENDING):
            while any(procs.state(pid) != "Z" for pid in daemons):
                await trio.sleep(0.05)

    def _open(self) -> Session:
        bundle = self.place.new_bundle("sleep", "10000")
        session = Session(self.place, self.shim, bundle, False, self._stack)
        session.hold_stdout()
        self._stack.callback(_remove_socket, session)
        return session


@asynccontextmanager
async def open_population(place: Workplace, shim: Shim) -> AsyncIterator[Population]:
    """Own shims for the block; what :meth:`Population.end` did not end, ``place`` ends."""
    async with AsyncExitStack() as stack:
        yield Population(place, shim, stack)


def _bring_up(session: Session) -> None:
    session.start()
    session.call_first()
    # As containerd does.
    (session.bundle / "address").write_text(session.address)
    (session.bundle / "shim-binary-path").write_text(session.shim.path)
    call = session.caller.call
    session.init = call("Create", session.creation(), task_pb2.CreateTaskResponse).pid
    call("Start", task_pb2.StartRequest(id=session.id), task_pb2.StartResponse)


def _end(session: Session) -> None:
    id_, call = session.id, session.caller.call
    call("Kill", task_pb2.KillRequest(id=id_, signal=signal.SIGKILL), Empty)
    call("Wait", task_pb2.WaitRequest(id=id_), task_pb2.WaitResponse)
    call("Delete", task_pb2.DeleteRequest(id=id_), task_pb2.DeleteResponse)
    _shut_down(session)


def _shut_down(session: Session) -> None:
    """Let the daemon go; return when it has closed the connection."""
    payload = task_pb2.ShutdownRequest(id=session.id).SerializeToString()
    session.caller.send("Shutdown", payload)
    with suppress(CallError, ConnectionError):
        while True:  # the reply, and the end; each is waited for with the caller's limit
            session.caller.receive()


def _remove_socket(session: Session) -> None:
    ruled = sockets.socket_address(session.place.manager, NAMESPACE, session.id)
    for address in {ruled, session.address} - {""}:
        with suppress(OSError):
            Path(sockets.socket_path(address)).unlink()
