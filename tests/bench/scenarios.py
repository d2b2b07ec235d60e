"""The calls to a shim in one turn, and their figures."""

from __future__ import annotations

import os
import select
import statistics
import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from shim.api import task_pb2
from tests.bench import procs
from tests.bench.caller import Caller, crowd
from tests.bench.samples import percentile
from tests.bench.session import memory, open_many, open_session
from tests.bench.workplace import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.bench.workplace import Shim, Workplace

MIB = 1 << 20
READING = 60.0  # seconds for the output to come
SETTLE = 0.5  # seconds after which a shim with nothing to do is idle
IDLE = 2.0  # seconds that wake-ups are counted for
COLD = {"TRIO_SHIM_FORKSERVER": "off"}  # what makes our launcher do without one


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything: ``stdout`` and ``terminal`` in MiB."""

    containers: int = 20
    at_once: int = 10
    clients: int = 100
    calls: int = 100
    stdout: int = 256
    terminal: int = 32


async def lifecycle(place: Workplace, shim: Shim, sizes: Sizes) -> dict[str, float]:
    """One container from ``start`` to ``delete``, as under containerd."""
    turn = {}
    async with open_session(place, shim) as session:
        session.hold_stdout()
        turn["start"] = session.start()
        turn["connect"] = await session.connect()
        turn["create"] = await session.create()
        turn["run"] = await session.run()
        few = -(-sizes.calls // 10)  # some shims run a command for it
        for key, method, request, times in (
            ("state", "State", task_pb2.StateRequest(id=session.id), sizes.calls),
            ("stats", "Stats", task_pb2.StatsRequest(id=session.id), few),
            ("pids", "Pids", task_pb2.PidsRequest(id=session.id), few),
        ):
            turn[key] = statistics.median(session.caller.time(method, request, times))
        turn["exec"] = await session.exec_true()
        turn["wait"], turn["exit"] = await session.kill()
        turn["delete"] = await session.delete()
        await session.shut_down()
        turn["cleanup"] = session.clean_up()
    turn["sum"] = sum(turn[key] for key in ("start", "create", "run", "delete", "cleanup"))
    return turn


async def cold(place: Workplace, shim: Shim, _: Sizes) -> dict[str, float]:
    """``start`` on a machine where nothing of the shim runs."""
    async with open_session(place, shim) as session:
        turn = {"cold": session.start(COLD)}
        await session.connect()
        await session.shut_down()
    return turn


async def unprepared(place: Workplace, shim: Shim, sizes: Sizes) -> dict[str, float]:
    """The first shims of a host: no fork server runs before them."""
    with place.unprepared() as environ:
        async with AsyncExitStack() as stack:
            sessions = await open_many(stack, place, shim, sizes.containers)
            turn: dict[str, float] = {}
            for session in sessions:
                taken = session.start(environ)
                turn.setdefault("first", taken)
                await session.connect()
                await session.create()
                await session.run()
            await trio.sleep(SETTLE)
            turn["pss-first"] = memory(sessions)
            for session in reversed(sessions):
                await session.end()
    return turn


async def idle(place: Workplace, shim: Shim, _: Sizes) -> dict[str, float]:
    """A shim with a container that sleeps."""
    async with open_session(place, shim) as session:
        session.hold_stdout()
        await session.bring_up()
        await trio.sleep(SETTLE)
        before = procs.wakeups(session.daemon)
        await trio.sleep(IDLE)
        woken = procs.wakeups(session.daemon) - before
        turn = {
            "threads": float(procs.threads(session.daemon)),
            # Without our own two connections.
            "fds": float(procs.files(session.daemon) - 2),
            "wakeups": woken / IDLE,
        }
        await session.end()
    return turn


async def many(place: Workplace, shim: Shim, sizes: Sizes) -> dict[str, float]:
    """Containers that run side by side, and a manager that comes back to them."""
    async with AsyncExitStack() as stack:
        sessions = await open_many(stack, place, shim, sizes.containers)
        for session in sessions:
            await session.bring_up()
        await trio.sleep(SETTLE)
        turn = {"pss": memory(sessions)}
        began = time.perf_counter()
        for session in sessions:
            with Caller(session.address, NAMESPACE, session.version) as caller:
                connect = task_pb2.ConnectRequest(id=session.id)
                caller.call("Connect", connect, task_pb2.ConnectResponse)
                pids = task_pb2.PidsRequest(id=session.id)
                caller.call("Pids", pids, task_pb2.PidsResponse)
        turn["reconnect"] = (time.perf_counter() - began) * 1000 / len(sessions)
        for session in reversed(sessions):
            await session.end()
    return turn


async def at_once(place: Workplace, shim: Shim, sizes: Sizes) -> dict[str, float]:
    """A node that comes up: everything is wanted at the same time."""
    async with AsyncExitStack() as stack:
        sessions = await open_many(stack, place, shim, sizes.at_once)
        began = time.perf_counter()
        launches = [session.launch() for session in sessions]
        for session, running in zip(sessions, launches, strict=True):
            session.launched(running)
        turn = {"starts": (time.perf_counter() - began) * 1000}
        for session in sessions:
            await session.connect()
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for session in sessions:

                async def up(
                    create: Callable[[], Awaitable[float]] = session.create,
                    run: Callable[[], Awaitable[float]] = session.run,
                ) -> None:
                    await create()
                    await run()

                nursery.start_soon(up)
        turn["at-once"] = (time.perf_counter() - began) * 1000
        for session in reversed(sessions):
            await session.end()
    return turn


async def clients(place: Workplace, shim: Shim, sizes: Sizes) -> dict[str, float]:
    """One shim with many clients that call State all the time."""
    async with open_session(place, shim) as session:
        session.hold_stdout()
        await session.bring_up()
        with ExitStack() as stack:
            callers = [
                stack.enter_context(Caller(session.address, NAMESPACE, session.version))
                for _ in range(sizes.clients)
            ]
            request = task_pb2.StateRequest(id=session.id)
            crowd(callers, "State", request, 2)  # everyone is accepted now
            taken = crowd(callers, "State", request, max(1, sizes.calls // 4))
        turn = {"clients": statistics.median(taken), "clients-p99": percentile(taken, 99)}
        await session.end()
    return turn


async def stdout(place: Workplace, shim: Shim, sizes: Sizes) -> dict[str, float]:
    return await _output(place, shim, "stdout", sizes.stdout, terminal=False)


async def terminal(place: Workplace, shim: Shim, sizes: Sizes) -> dict[str, float]:
    return await _output(place, shim, "terminal", sizes.terminal, terminal=True)


async def _output(
    place: Workplace, shim: Shim, key: str, size: int, *, terminal: bool
) -> dict[str, float]:
    """Let the container write ``size`` MiB of zeros; its reader is the fastest there can be."""
    write = f"dd if=/dev/zero bs=1M count={size} 2>/dev/null; sleep 1000"
    async with open_session(place, shim, "sh", "-c", write, terminal=terminal) as session:
        fd = os.open(session.stdout, os.O_RDONLY | os.O_NONBLOCK)
        try:
            session.start()
            await session.connect()
            await session.create()
            before = procs.cpu_seconds(session.daemon)
            await session.run()
            # In a thread, so that events are still received.
            seconds = await trio.to_thread.run_sync(
                _drain, os.dup(fd), size * MIB, abandon_on_cancel=True
            )
            spent = procs.cpu_seconds(session.daemon) - before
            await session.end()
        finally:
            os.close(fd)
    return {key: size / seconds, f"{key}-cpu": spent * 1024 / size}


def _drain(fd: int, size: int) -> float:
    """Own ``fd``; move ``size`` bytes from it to nowhere; return the seconds since the first.

    :raises TimeoutError: they did not come.
    """
    deadline = time.perf_counter() + READING
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    null = os.open(os.devnull, os.O_WRONLY)
    began = 0.0
    try:
        while size > 0:
            if not poll.poll(max(0.0, deadline - time.perf_counter()) * 1000):
                raise TimeoutError(f"{size} bytes of the output did not come in {READING:g} s")
            began = began or time.perf_counter()
            moved = os.splice(fd, null, MIB, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)
            if not moved:
                raise TimeoutError(f"the output ended {size} bytes too early")
            size -= moved
        return time.perf_counter() - began
    finally:
        os.close(null)
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Scenario:
    """``share``: one in so many rounds is enough, for what takes long and varies little."""

    run: Callable[[Workplace, Shim, Sizes], Awaitable[dict[str, float]]]
    keys: tuple[str, ...]
    share: int = 1


SCENARIOS = (
    Scenario(
        lifecycle,
        (
            *("start", "connect", "create", "run", "state", "stats", "pids", "exec"),
            *("wait", "exit", "delete", "cleanup", "sum"),
        ),
    ),
    Scenario(cold, ("cold",), 2),
    Scenario(unprepared, ("first", "pss-first"), 10),
    Scenario(idle, ("threads", "fds", "wakeups"), 8),
    Scenario(at_once, ("starts", "at-once"), 4),
    Scenario(clients, ("clients", "clients-p99"), 4),
    Scenario(stdout, ("stdout", "stdout-cpu"), 4),
    Scenario(terminal, ("terminal", "terminal-cpu"), 4),
    Scenario(many, ("pss", "reconnect"), 10),
)
