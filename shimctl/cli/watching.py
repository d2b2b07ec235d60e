"""Measure containers or processes again and again, and show each measurement."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import psutil
import trio

from shim.errors import WrongStateError
from shimctl.attach.session import CalledOffError
from shimctl.cli import render
from shimctl.cli.connected import open_found
from shimctl.cli.screen import open_screen
from shimctl.discover import list_shims
from shimctl.host.processes import ProcessSampler
from shimctl.host.usage import ordered, ordered_processes
from shimctl.listing.measuring import Meter
from shimctl.values import Status

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from shimctl.cli.output import Out
    from shimctl.cli.parameters import Where
    from shimctl.cli.screen import Screen
    from shimctl.discover import Found
    from shimctl.host.usage import ProcessUsage, Usage

    class View(Protocol):
        """A source of measurements: all containers, or the processes of one."""

        async def look(self) -> None:
            """Measure and store the result."""

        def value(self, sort: str) -> object:
            """Return the last measurement for JSON and YAML."""

        def page(self, sort: str, out: Out) -> str:
            """Return the last measurement as a table."""


_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)
_FIRST = 0.5  # s at most before the first page: a rate needs two measurements
_SORTS = {"c": "cpu", "m": "memory", "p": "pids", "i": "io", "n": "id"}


async def watch(view: View, out: Out, *, delay: float, iterations: int, sort: str) -> None:
    """Show the measurements of ``view``: on a terminal as a page, otherwise one after another.

    ``delay`` is in seconds; 0 ``iterations`` are no limit.
    """
    await view.look()
    await trio.sleep(min(delay, _FIRST))
    await view.look()
    terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if terminal and out.is_table:
        await _Watched(view, out, sort).run(delay, iterations)
        return
    done = 0
    while True:
        out.stream(view.value(sort), lambda: view.page(sort, out))
        done += 1
        if done == iterations:
            return
        await trio.sleep(delay)
        await view.look()


class _Watched:
    """A page on the terminal, sorted by the column that the last key selected."""

    def __init__(self, view: View, out: Out, sort: str) -> None:
        self._view = view
        self._out = out
        self._sort = sort

    async def run(self, delay: float, iterations: int) -> None:
        """Show pages until a key, a signal or the last iteration ends this."""
        caught = 0
        # Receive signals before changing the screen: a signal could otherwise prevent its reset.
        with trio.open_signal_receiver(*_SIGNALS) as arriving, open_screen() as screen:
            async with trio.open_nursery() as nursery:

                async def obey() -> None:
                    nonlocal caught
                    async for number in arriving:
                        if number == signal.SIGWINCH:
                            self._draw(screen)
                            continue
                        caught = number
                        nursery.cancel_scope.cancel()

                async def listen() -> None:
                    while (key := await screen.wait_key()) not in ("q", "Q", ""):
                        self._sort = _SORTS.get(key.lower(), self._sort)
                        self._draw(screen)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(obey)
                nursery.start_soon(listen)
                done = 0
                while True:
                    self._draw(screen)
                    done += 1
                    await trio.sleep(delay)
                    if done == iterations:
                        break
                    await self._view.look()
                nursery.cancel_scope.cancel()
        if caught:
            raise CalledOffError(caught)

    def _draw(self, screen: Screen) -> None:
        now = time.strftime("%H:%M:%S")
        memory = psutil.virtual_memory()
        load = " ".join(f"{number:.2f}" for number in os.getloadavg())
        used, total = render.size(memory.used), render.size(memory.total)
        head = f"{now}  load {load}  memory {used} of {total}  by {self._sort}  (q quits)"
        screen.show(f"{head}\n\n{self._view.page(self._sort, self._out)}")


class Containers:
    """All running containers."""

    def __init__(self, where: Where) -> None:
        self._where = where
        self._meter = Meter()
        self._usages: list[Usage] = []

    async def look(self) -> None:
        """Measure all containers concurrently."""
        shims = await list_shims(states=self._where.states)
        shims = [found for found in shims if self._measurable(found)]
        self._usages = [one.usage for one in await self._meter.measure(shims)]

    def _measurable(self, found: Found) -> bool:
        running = found.status in (Status.RUNNING, Status.PAUSED)
        return running and self._where.namespace in ("", found.namespace)

    def value(self, sort: str) -> object:
        """Return the last measurement for JSON and YAML."""
        return ordered(self._usages, sort)

    def page(self, sort: str, out: Out) -> str:
        """Return the last measurement as a table."""
        headers = (
            *("NAMESPACE", "ID", "STATUS", "CPU%", "MEMORY", "LIMIT", "MEM%", "PIDS", "LIMIT"),
            *("READ/s", "WRITTEN/s", "PID", "CPU", "SHIM", "ITS MEMORY", "PROBLEM"),
        )
        rows = [_row(usage) for usage in ordered(self._usages, sort)]
        return out.table(headers, rows, wide=5)


def _row(usage: Usage) -> Sequence[object]:
    return (
        *(usage.namespace, usage.id, render.status(usage.status.value), usage.cpu_percent),
        *(render.size(usage.memory), render.size(usage.memory_limit), usage.memory_percent),
        *(usage.pids, usage.pids_limit),
        *(render.size(usage.io_read_rate), render.size(usage.io_written_rate)),
        *(usage.pid or None, render.seconds(usage.cpu_seconds or 0)),
        *(usage.shim_pid or None, render.size(usage.shim_memory), usage.problem),
    )


class Processes:
    """The processes of one container."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self._sampler = ProcessSampler()
        self._usages: list[ProcessUsage] = []

    async def look(self) -> None:
        """Measure every process of the container.

        :raises WrongStateError: it has exited.
        """
        async with open_found(self._found) as task:
            state = await task.state()
            if state.status is Status.STOPPED:
                raise WrongStateError(f"cannot show the processes of {task.id}: it has exited")
            self._usages = self._sampler.sample(await task.pids(), state.pid)

    def value(self, sort: str) -> object:
        """Return the last measurement for JSON and YAML."""
        return ordered_processes(self._usages, sort)

    def page(self, sort: str, out: Out) -> str:
        """Return the last measurement as a table."""
        headers = (
            *("PID", "USER", "STATE", "CPU%", "MEMORY", "CPU", "EXEC", "COMMAND"),
            *("PARENT", "THREADS"),
        )
        rows = [
            (
                *(one.pid, one.user, one.state, one.cpu_percent, render.size(one.memory)),
                *(render.seconds(one.cpu_seconds), one.exec_id, one.command),
                *(one.parent, one.threads),
            )
            for one in ordered_processes(self._usages, sort)
        ]
        return out.table(headers, rows, wide=2)
