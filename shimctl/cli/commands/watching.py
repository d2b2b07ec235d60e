"""top: show the resource usage of running containers continuously."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import psutil
import trio

from shim.errors import ShimError
from shimctl.attach.session import CalledOffError
from shimctl.cli import render
from shimctl.cli.commands.connected import open_found
from shimctl.cli.commands.output import table
from shimctl.cli.screen import open_screen
from shimctl.discover import PROBE, find_shim, list_shims
from shimctl.host.processes import ProcessSampler, memory_of
from shimctl.host.usage import Sample, ordered, ordered_processes, usage_of, without_figures
from shimctl.values import Status

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence
    from typing import Protocol

    from shimctl.cli.screen import Screen
    from shimctl.discover import Found
    from shimctl.host.usage import ProcessUsage, Usage

    class View(Protocol):
        """A source of measurements: all containers, or the processes of one."""

        async def look(self) -> None:
            """Measure and store the result."""

        def value(self, sort: str) -> object:
            """Return the last measurement for JSON and YAML."""

        def page(self, sort: str) -> str:
            """Return the last measurement as a table."""


_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)
_FIRST = 0.5  # s at most before the first page: a rate needs two measurements
_SORTS = {"c": "cpu", "m": "memory", "p": "pids", "i": "io", "n": "id"}


async def _top(args: Namespace) -> int:
    view: View = Containers(args)
    if args.id:
        view = Processes(args, await find_shim(args.id, args.namespace, states=args.state))
    await view.look()
    await trio.sleep(min(args.delay, _FIRST))
    await view.look()
    terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if terminal and args.output in ("table", "wide"):
        await _on_screen(args, view)
        return 0
    done = 0
    while True:
        _print(args, view)
        done += 1
        if done == args.iterations:
            return 0
        await trio.sleep(args.delay)
        await view.look()


def _print(args: Namespace, view: View) -> None:
    match args.output:
        case "json":
            print(render.as_json(view.value(args.sort), indent=None), flush=True)
        case "yaml":
            print(f"---\n{render.as_yaml(view.value(args.sort))}", end="", flush=True)
        case _:
            print(view.page(args.sort), flush=True)


async def _on_screen(args: Namespace, view: View) -> None:
    """Show pages until a key, a signal or the last iteration ends this."""
    caught = 0
    # Receive signals before changing the screen: a signal could otherwise prevent its reset.
    with trio.open_signal_receiver(*_SIGNALS) as arriving, open_screen() as screen:
        async with trio.open_nursery() as nursery:

            async def obey() -> None:
                nonlocal caught
                async for number in arriving:
                    if number == signal.SIGWINCH:
                        _draw(args, view, screen)
                        continue
                    caught = number
                    nursery.cancel_scope.cancel()

            async def listen() -> None:
                while (key := await screen.wait_key()) not in ("q", "Q", ""):
                    args.sort = _SORTS.get(key.lower(), args.sort)
                    _draw(args, view, screen)
                nursery.cancel_scope.cancel()

            nursery.start_soon(obey)
            nursery.start_soon(listen)
            done = 0
            while True:
                _draw(args, view, screen)
                done += 1
                await trio.sleep(args.delay)
                if done == args.iterations:
                    break
                await view.look()
            nursery.cancel_scope.cancel()
    if caught:
        raise CalledOffError(caught)


def _draw(args: Namespace, view: View, screen: Screen) -> None:
    now = time.strftime("%H:%M:%S")
    memory = psutil.virtual_memory()
    load = " ".join(f"{number:.2f}" for number in os.getloadavg())
    used, total = render.size(memory.used), render.size(memory.total)
    head = f"{now}  load {load}  memory {used} of {total}  by {args.sort}  (q quits)"
    screen.show(f"{head}\n\n{view.page(args.sort)}")


class Containers:
    """All running containers."""

    def __init__(self, args: Namespace) -> None:
        self._args = args
        self._before: dict[tuple[str, str, int], Sample] = {}
        self._usages: list[Usage] = []

    async def look(self) -> None:
        """Measure all containers concurrently."""
        shims = await list_shims(states=self._args.state)
        shims = [found for found in shims if self._measurable(found)]
        seen: dict[tuple[str, str, int], Sample] = {}
        usages: list[Usage] = []
        total = psutil.virtual_memory().total

        async def measure(found: Found) -> None:
            usage = without_figures(found, f"no answer within {PROBE} s")
            with trio.move_on_after(PROBE):
                try:
                    async with open_found(found) as task:
                        stats = await task.stats()
                except ShimError as exc:
                    usage = without_figures(found, str(exc))
                else:
                    now = Sample(time.monotonic(), stats)
                    key = (found.namespace, found.id, found.pid)
                    seen[key] = now
                    usage = usage_of(
                        found,
                        now,
                        self._before.get(key),
                        memory_total=total,
                        shim_memory=memory_of(found.shim_pid),
                    )
            usages.append(usage)

        async with trio.open_nursery() as nursery:
            for found in shims:
                nursery.start_soon(measure, found)
        self._before, self._usages = seen, usages

    def _measurable(self, found: Found) -> bool:
        running = found.status in (Status.RUNNING, Status.PAUSED)
        return running and self._args.namespace in ("", found.namespace)

    def value(self, sort: str) -> object:
        """Return the last measurement for JSON and YAML."""
        return ordered(self._usages, sort)

    def page(self, sort: str) -> str:
        """Return the last measurement as a table."""
        headers = (
            *("NAMESPACE", "ID", "STATUS", "CPU%", "MEMORY", "LIMIT", "MEM%", "PIDS", "LIMIT"),
            *("READ/s", "WRITTEN/s", "PID", "CPU", "SHIM", "ITS MEMORY", "PROBLEM"),
        )
        rows = [_row(usage) for usage in ordered(self._usages, sort)]
        return table(self._args, headers, rows, wide=5)


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

    def __init__(self, args: Namespace, found: Found) -> None:
        self._args = args
        self._found = found
        self._sampler = ProcessSampler()
        self._usages: list[ProcessUsage] = []

    async def look(self) -> None:
        """Measure every process of the container."""
        async with open_found(self._found) as task:
            init = (await task.state()).pid
            self._usages = self._sampler.sample(await task.pids(), init)

    def value(self, sort: str) -> object:
        """Return the last measurement for JSON and YAML."""
        return ordered_processes(self._usages, sort)

    def page(self, sort: str) -> str:
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
        return table(self._args, headers, rows, wide=2)


COMMANDS = {"top": _top}
