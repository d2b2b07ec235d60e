"""ps, state, pids, stats: list containers, and show their state and usage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.cli import render
from shimctl.cli.commands.connected import open_found, open_task, state_of
from shimctl.cli.commands.output import show_table
from shimctl.discover import Health, find_shim, list_shims
from shimctl.host.processes import ProcessSampler
from shimctl.values import Status

if TYPE_CHECKING:
    from argparse import Namespace

    from shimctl.discover import Found
    from shimctl.host.usage import ProcessUsage
    from shimctl.values import Stats, TaskState


async def _ps(args: Namespace) -> int:
    shims = await list_shims(states=args.state)
    shims = [found for found in shims if args.namespace in ("", found.namespace)]
    headers = (
        *("NAMESPACE", "ID", "PID", "STATUS", "SHIM", "BUNDLE OR SOCKET"),
        *("ADDRESS", "MADE BY", "DETAIL"),
    )
    show_table(args, shims, headers, [_row(found) for found in shims], wide=3)
    return 0


def _row(found: Found) -> tuple[object, ...]:
    where = found.bundle or found.address
    return (
        *(found.namespace, found.id, found.pid or None, render.status(_status(found))),
        *(found.shim_pid or None, where),
        *(found.address, "shimctl" if found.managed else None, found.detail),
    )


def _status(found: Found) -> str:
    if found.health is Health.UP:
        return found.status.value
    if found.exited is not None:
        status = "?" if found.exited.reason else found.exited.exit_status
        return f"exited {status}, no shim"
    return found.health.value


async def _state(args: Namespace) -> int:
    state = await state_of(await find_shim(args.id, args.namespace, states=args.state))
    show_table(args, state, ("FIELD", "VALUE"), _fields(state))
    return 0


def _fields(state: TaskState) -> list[tuple[object, ...]]:
    return [
        ("id", state.id),
        ("status", render.status(state.status.value)),
        ("pid", state.pid or None),
        ("exit status", state.exit_status),
        ("exited at", state.exited_at),
        ("bundle", state.bundle),
        ("terminal", "yes" if state.stdio.terminal else "no"),
        ("stdin", state.stdio.stdin),
        ("stdout", state.stdio.stdout),
        ("stderr", state.stdio.stderr),
    ]


async def _pids(args: Namespace) -> int:
    async with open_task(args) as task:
        pids = await task.pids()
        seen = {}
        if args.output == "wide":
            init = (await task.state()).pid
            seen = {one.pid: one for one in ProcessSampler().sample(pids, init)}
    rows = [(one.pid, one.exec_id, *_process(seen.get(one.pid))) for one in pids]
    headers = ("PID", "EXEC", "PARENT", "USER", "STATE", "MEMORY", "COMMAND")
    show_table(args, pids, headers, rows, wide=5)
    return 0


def _process(one: ProcessUsage | None) -> tuple[object, ...]:
    if one is None:
        return (None,) * 5
    return (one.parent, one.user, one.state, render.size(one.memory), one.command)


async def _stats(args: Namespace) -> int:
    if args.id:
        shims = [await find_shim(i, args.namespace, states=args.state) for i in args.id]
    else:
        shims = [
            found for found in await list_shims(states=args.state) if _measurable(found, args)
        ]
    measured = []
    for found in shims:
        async with open_found(found) as task:
            measured.append((found, await task.stats()))
    data = [
        {"namespace": found.namespace, "id": found.id, "stats": stats} for found, stats in measured
    ]
    headers = (
        *("NAMESPACE", "ID", "CPU", "MEMORY", "LIMIT", "PIDS", "LIMIT"),
        *("USER", "SYSTEM", "READ", "WRITTEN"),
    )
    show_table(args, data, headers, [_usage(found, stats) for found, stats in measured], wide=4)
    return 0


def _measurable(found: Found, args: Namespace) -> bool:
    running = found.status in (Status.RUNNING, Status.PAUSED)
    return running and args.namespace in ("", found.namespace)


def _usage(found: Found, stats: Stats) -> tuple[object, ...]:
    return (
        *(found.namespace, found.id, render.seconds(stats.cpu)),
        *(render.size(stats.memory), render.size(stats.memory_limit)),
        *(stats.pids, stats.pids_limit),
        *(render.seconds(stats.cpu_user), render.seconds(stats.cpu_system)),
        *(render.size(stats.io_read), render.size(stats.io_written)),
    )


COMMANDS = {"ps": _ps, "state": _state, "pids": _pids, "stats": _stats}
