"""One shim and its one container, driven step by step; each step returns its milliseconds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio
import trio.testing
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.api import task_pb2
from shim.api.options_pb2 import Options
from shim.api.task_grpc import TaskStub
from shim.errors import ShimError
from shim.linux import sockets
from shim.ttrpc.client import Channel, open_channel
from shim.ttrpc.protocol import NAMESPACE as NAMESPACE_KEY
from shimctl.launching import parse_answer
from tests.bench import command, procs
from tests.bench.caller import Caller, service_of
from tests.bench.workplace import (
    CLEANUP,
    INIT,
    NAMESPACE,
    Shim,
    Workplace,
    delete_container,
    end_processes,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

RPC = 30.0  # seconds a call may take
CLOSING = 5.0  # seconds a shim may take to leave
PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"


def stub_of(channel: Channel, version: int) -> TaskStub:
    """Return a stub that calls the Task service of ``version``."""
    stub = TaskStub(channel)
    for method in vars(stub).values():
        method.name = f"/{service_of(version)}/{method.name.rpartition('/')[2]}"
    return stub


async def _time(call: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await call()
    return (time.perf_counter() - began) * 1000


class Session:
    """See :func:`open_session`.  Call the steps in the order they are in here."""

    caller: Caller
    channel: Channel
    task: TaskStub

    def __init__(
        self, place: Workplace, shim: Shim, bundle: Path, terminal: bool, stack: AsyncExitStack
    ) -> None:
        self.place = place
        self.shim = shim
        self.bundle = bundle
        self.id = bundle.name
        self.terminal = terminal
        self.address = ""
        self.version = 0  # of the Task API, from the answer of ``start``
        self.daemon = 0
        self.init = 0
        self._stack = stack
        self.stdout = str(bundle / "stdout")
        self.stderr = "" if terminal else str(bundle / "stderr")
        # The log, which containerd reads; a shim writes less than 64 KiB here.
        for path in filter(None, (self.stdout, self.stderr, str(bundle / "log"))):
            os.mkfifo(path, 0o700)
            if path != self.stdout:
                self._hold(path)

    def _hold(self, path: str) -> None:
        # For reading and writing, so that opening the other end never waits.
        self._stack.callback(os.close, os.open(path, os.O_RDWR | os.O_NONBLOCK))

    def hold_stdout(self) -> None:
        """Keep the container's output from blocking, for scenarios that do not read it."""
        self._hold(self.stdout)

    def launch(self, environ: Mapping[str, str] | None = None) -> command.Running:
        """Run the ``start`` command; give the end of it to :meth:`launched`."""
        return command.spawn(
            self._argv("start"),
            env=self.place.environ_of(environ or {}),
            cwd=str(self.bundle),
            errors=True,
        )

    def launched(self, running: command.Running) -> float:
        done = running.finish()
        try:
            self.address, self.version = parse_answer(done.output)
        except ShimError as exc:
            raise command.CommandError(f"{self.shim.path} start: {exc}") from None
        return done.seconds * 1000

    def start(self, environ: Mapping[str, str] | None = None) -> float:
        return self.launched(self.launch(environ))

    def _argv(self, *action: str) -> list[str]:
        argv = [self.shim.path, "-namespace", NAMESPACE, "-address", self.place.manager]
        return [*argv, "-publish-binary", "/bin/true", "-id", self.id, *action]

    def call_first(self) -> float:
        """Connect, and make the first call, which tells the daemon's pid."""
        began = time.perf_counter()
        self.caller = self._stack.enter_context(Caller(self.address, NAMESPACE, self.version))
        request = task_pb2.ConnectRequest(id=self.id)
        reply = self.caller.call("Connect", request, task_pb2.ConnectResponse)
        taken = (time.perf_counter() - began) * 1000
        self.daemon = reply.shim_pid
        return taken

    async def connect(self) -> float:
        """Make the first call; connect once more for the calls that wait long."""
        taken = self.call_first()
        opening = open_channel(await sockets.connect(self.address), {NAMESPACE_KEY: NAMESPACE})
        self.channel = await self._stack.enter_async_context(opening)
        self.task = stub_of(self.channel, self.version)
        return taken

    def creation(self) -> task_pb2.CreateTaskRequest:
        """Return the request of Create."""
        options = Options(root=str(self.place.runc_root), binary_name="runc")
        return task_pb2.CreateTaskRequest(
            id=self.id,
            bundle=str(self.bundle),
            terminal=self.terminal,
            stdout=self.stdout,
            stderr=self.stderr,
            options=AnyMessage(
                type_url="containerd.runc.v1.Options", value=options.SerializeToString()
            ),
        )

    async def create(self) -> float:
        request = self.creation()
        began = time.perf_counter()
        reply = await self.task.Create(request, timeout=RPC)
        taken = (time.perf_counter() - began) * 1000
        self.init = reply.pid
        return taken

    async def run(self) -> float:
        request = task_pb2.StartRequest(id=self.id)
        return await _time(lambda: self.task.Start(request, timeout=RPC))

    async def bring_up(self) -> None:
        """Start the shim and run the container; :meth:`end` ends both."""
        self.start()
        await self.connect()
        await self.create()
        await self.run()

    async def exec_true(self) -> float:
        """Run ``true`` in the container: add it, start it, wait for it, delete it."""
        process = self.place.config["process"] | {"args": ["true"], "terminal": False}
        spec = AnyMessage(type_url=PROCESS_URL, value=json.dumps(process).encode())
        add = task_pb2.ExecProcessRequest(
            id=self.id, exec_id="e1", spec=spec, stdout=self.stdout, stderr=self.stderr
        )
        names = {"id": self.id, "exec_id": "e1"}

        async def all_of_it() -> None:
            await self.task.Exec(add, timeout=RPC)
            await self.task.Start(task_pb2.StartRequest(**names), timeout=RPC)
            await self.task.Wait(task_pb2.WaitRequest(**names), timeout=RPC)
            await self.task.Delete(task_pb2.DeleteRequest(**names), timeout=RPC)

        return await _time(all_of_it)

    async def kill(self) -> tuple[float, float]:
        """Kill init behind the shim's back; return how late Wait and the event were."""
        waited = 0.0

        async def wait() -> None:
            nonlocal waited
            await self.task.Wait(task_pb2.WaitRequest(id=self.id), timeout=RPC)
            waited = time.perf_counter()

        with trio.fail_after(RPC):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                # Once this is answered, the shim has read the Wait before it.
                await self.task.State(task_pb2.StateRequest(id=self.id))
                began = time.perf_counter()
                os.kill(self.init, signal.SIGKILL)
            event = await self.place.sink.wait_exit(self.id)
        return (waited - began) * 1000, (event - began) * 1000

    async def delete(self) -> float:
        request = task_pb2.DeleteRequest(id=self.id)
        return await _time(lambda: self.task.Delete(request, timeout=RPC))

    async def shut_down(self) -> None:
        """Let the shim go, and wait until it has closed the connection."""
        with suppress(Exception):  # it may go without a reply
            await self.task.Shutdown(task_pb2.ShutdownRequest(id=self.id), timeout=CLOSING)
        with trio.move_on_after(CLOSING):
            await self.channel.wait_lost()

    def clean_up(self) -> float:
        """Run the ``delete`` command, as containerd does after the connection is lost."""
        argv = self._argv("-bundle", str(self.bundle), "delete")
        done = command.run(argv, env=self.place.environ_of({}), cwd=str(self.bundle))
        return done.seconds * 1000

    async def end(self) -> None:
        """Go the polite way from a running container to nothing."""
        await self.kill()
        await self.delete()
        await self.shut_down()


@asynccontextmanager
async def open_session(
    place: Workplace, shim: Shim, *args: str, terminal: bool = False
) -> AsyncIterator[Session]:
    """Own a bundle that runs ``args``, and the shim and container that will come of it."""
    bundle = place.new_bundle(*(args or INIT), terminal=terminal)
    session = None
    try:
        async with AsyncExitStack() as stack:
            session = Session(place, shim, bundle, terminal, stack)
            yield session
    finally:
        deadline = time.monotonic() + CLEANUP
        end_processes(deadline, str(place.root), bundle.name)
        state = place.runc_root / NAMESPACE / bundle.name
        if state.exists():
            delete_container(state, deadline)
        # A failed start has not printed its address; containerd's rule gives it.
        ruled = sockets.socket_address(place.manager, NAMESPACE, bundle.name)
        for address in {ruled, session.address if session else ruled} - {""}:
            with suppress(OSError):
                Path(sockets.socket_path(address)).unlink()
        shutil.rmtree(bundle, ignore_errors=True)


async def open_many(
    stack: AsyncExitStack, place: Workplace, shim: Shim, count: int
) -> list[Session]:
    """Open ``count`` sessions for as long as ``stack`` lasts."""
    sessions = []
    for _ in range(count):
        session = await stack.enter_async_context(open_session(place, shim))
        session.hold_stdout()
        sessions.append(session)
    return sessions


def memory(sessions: list[Session]) -> float:
    """Return the MiB that one of ``sessions``' shims takes, the fork server's share included.

    Its spare child is part of it.
    """
    everyone = procs.family(session.daemon for session in sessions)
    return sum(map(procs.pss, everyone)) / len(sessions) / (1 << 20)
