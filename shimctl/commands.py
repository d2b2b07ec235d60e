"""The commands of shimctl: each finds its container, asks its shim, prints.

Every failure becomes one line on stderr and an exit code, here and nowhere else.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim.errors import InvalidError, ShimError, UnavailableError, WrongStateError
from shimctl import forkserver, install, render, workdir
from shimctl.attach import CalledOffError
from shimctl.cli import FAILED, exit_code_for
from shimctl.client import connect
from shimctl.discover import Health, find_shim, list_shims
from shimctl.events import serve_events
from shimctl.launch import DEFAULT_RUNTIME
from shimctl.run import (
    Run,
    dispose,
    end,
    exec_attached,
    process_for,
    run_attached,
    run_detached,
)
from shimctl.values import Status

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import AsyncIterator, Awaitable, Callable

    from shimctl.client import Task
    from shimctl.discover import Found
    from shimctl.events import Event
    from shimctl.values import Exited, Stats


def run(args: Namespace) -> int:
    """Run the command that was parsed; return the exit code."""
    try:
        return trio.run(_COMMANDS[args.command], args)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Nobody reads our output any more; Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (Exception, BaseExceptionGroup) as exc:
        return _report(exc, args)


def _report(exc: BaseException, args: Namespace) -> int:
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    if isinstance(exc, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if not isinstance(exc, (ShimError, OSError)):
        raise exc
    print(f"shimctl: {render.printable(str(exc))}", file=sys.stderr)
    if isinstance(exc, CalledOffError):
        return 128 + exc.number
    return exit_code_for(str(exc)) if args.command in ("run", "exec") else FAILED


@asynccontextmanager
async def _task(args: Namespace) -> AsyncIterator[Task]:
    """Find the container named on the command line, and connect to its shim."""
    found = await find_shim(args.id, args.namespace, states=args.state)
    async with _connected(found) as task:
        yield task


@asynccontextmanager
async def _connected(found: Found) -> AsyncIterator[Task]:
    if not found.address:
        raise UnavailableError(f"{found.id} has no shim; `shimctl delete -f {found.id}` cleans up")
    async with connect(found.address, namespace=found.namespace) as shim:
        yield shim.task(found.id)


async def _ps(args: Namespace) -> int:
    shims = await list_shims(states=args.state)
    shims = [found for found in shims if args.namespace in ("", found.namespace)]
    if args.json:
        print(render.as_json(shims))
        return 0
    headers = ("NAMESPACE", "ID", "PID", "STATUS", "SHIM", "BUNDLE OR SOCKET")
    print(render.table(headers, [_row(found) for found in shims]))
    return 0


def _row(found: Found) -> tuple[object, ...]:
    status = found.status.value if found.health is Health.UP else found.health.value
    where = found.bundle or found.address
    return (
        *(found.namespace, found.id, found.pid or None, status),
        *(found.shim_pid or None, where),
    )


async def _state(args: Namespace) -> int:
    async with _task(args) as task:
        state = await task.state()
    if args.json:
        print(render.as_json(state))
        return 0
    rows = [
        ("id", state.id),
        ("status", state.status.value),
        ("pid", state.pid or None),
        ("exit status", state.exit_status),
        ("exited at", state.exited_at),
        ("bundle", state.bundle),
        ("terminal", "yes" if state.stdio.terminal else "no"),
        ("stdin", state.stdio.stdin),
        ("stdout", state.stdio.stdout),
        ("stderr", state.stdio.stderr),
    ]
    print(render.table(("FIELD", "VALUE"), rows))
    return 0


async def _start(args: Namespace) -> int:
    async with _task(args) as task:
        pid = await task.start()
    if args.json:
        print(render.as_json({"pid": pid}))
    return 0


async def _kill(args: Namespace) -> int:
    number = signal_number(args.signal)
    async with _task(args) as task:
        await task.kill(number, everyone=args.all)
    return 0


def signal_number(text: str) -> int:
    """Read a signal as people write it: ``9``, ``KILL``, ``SIGKILL``, ``RTMIN+3``.

    :raises InvalidError: there is no such signal.
    """
    name, plus, offset = text.upper().removeprefix("SIG").partition("+")
    try:
        if name.isdecimal() and not plus:
            return int(signal.Signals(int(name)))
        return int(signal.Signals[f"SIG{name}"]) + (int(offset) if plus else 0)
    except (KeyError, ValueError):
        raise InvalidError(f"there is no signal {text!r}; `kill -l` lists them") from None


async def _wait(args: Namespace) -> int:
    async with _task(args) as task:
        exited = await task.wait()
    if args.json:
        print(render.as_json(exited))
    return exited.exit_status


async def _exec(args: Namespace) -> int:
    command = args.args[1:] if args.args[:1] == ["--"] else args.args
    if not command:
        raise InvalidError("exec needs a command to run; see `shimctl exec --help`")
    async with _task(args) as task:
        state = await task.state()
        process = process_for(
            workdir.read_config(Path(state.bundle)),
            command,
            terminal=args.tty,
            env=args.env,
            cwd=args.cwd,
            user=args.user,
        )
        exited = await exec_attached(task, process, stdin=args.interactive, terminal=args.tty)
    return exited.exit_status


async def _delete(args: Namespace) -> int:
    found = await find_shim(args.id, args.namespace, states=args.state)
    if not args.force:
        await _check_ended(found)
    if found.managed:
        exited = await dispose(Path(found.bundle), found.id, found.namespace, found.address)
    else:
        async with _connected(found) as task:
            exited = await (end(task) if args.force else task.delete())
            await task.shim.shutdown()
    if args.json:
        print(render.as_json(exited))
    return 0


async def _check_ended(found: Found) -> None:
    try:
        async with _connected(found) as task:
            state = await task.state()
    except ShimError:
        if found.managed:
            return  # its shim is gone, and with it what could refuse
        raise
    if state.status not in (Status.STOPPED, Status.CREATED):
        raise WrongStateError(f"{found.id} is {state.status.value}; kill it first, or use --force")


async def _pids(args: Namespace) -> int:
    async with _task(args) as task:
        pids = await task.pids()
    if args.json:
        print(render.as_json(pids))
    else:
        print(render.table(("PID", "EXEC"), [(one.pid, one.exec_id) for one in pids]))
    return 0


async def _stats(args: Namespace) -> int:
    if args.id:
        shims = [await find_shim(i, args.namespace, states=args.state) for i in args.id]
    else:
        shims = [
            found for found in await list_shims(states=args.state) if _measurable(found, args)
        ]
    measured = []
    for found in shims:
        async with _connected(found) as task:
            measured.append((found, await task.stats()))
    if args.json:
        rows = [
            {"namespace": found.namespace, "id": found.id, "stats": stats}
            for found, stats in measured
        ]
        print(render.as_json(rows))
        return 0
    headers = ("NAMESPACE", "ID", "CPU", "MEMORY", "LIMIT", "PIDS", "LIMIT")
    print(render.table(headers, [_usage(found, stats) for found, stats in measured]))
    return 0


def _measurable(found: Found, args: Namespace) -> bool:
    running = found.status in (Status.RUNNING, Status.PAUSED)
    return running and args.namespace in ("", found.namespace)


def _usage(found: Found, stats: Stats) -> tuple[object, ...]:
    return (
        *(found.namespace, found.id, render.seconds(stats.cpu)),
        *(render.size(stats.memory), render.size(stats.memory_limit)),
        *(stats.pids, stats.pids_limit),
    )


async def _pause(args: Namespace) -> int:
    async with _task(args) as task:
        await task.pause()
    return 0


async def _resume(args: Namespace) -> int:
    async with _task(args) as task:
        await task.resume()
    return 0


async def _events(args: Namespace) -> int:
    async def show(event: Event) -> None:
        if args.namespace in ("", event.namespace):
            print(_json_line(event) if args.json else _event_line(event), flush=True)

    socket = workdir.events_socket()
    socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    await serve_events(socket, show)
    return 0


def _json_line(event: Event) -> str:
    return render.as_json(event, indent=None)


def _event_line(event: Event) -> str:
    at = event.at.isoformat(timespec="milliseconds").replace("+00:00", "Z") if event.at else "-"
    fields = " ".join(f"{key}={value}" for key, value in event.fields.items() if value != "")
    return render.printable(f"{at} {event.namespace} {event.topic} {fields}")


async def _run(args: Namespace) -> int:
    if args.log and not args.detach:
        raise InvalidError("--log is for --detach; without it the output comes here")
    if args.events and args.detach:
        raise InvalidError("--events ends with us; with --detach use `shimctl events`")
    namespace = workdir.check_id(args.namespace or "default", "namespace")
    bundle = Path(args.bundle)
    wanted = Run(
        bundle=bundle,
        container=workdir.check_id(args.id) if args.id else workdir.new_id(bundle.absolute()),
        namespace=namespace,
        runtime=args.runtime or DEFAULT_RUNTIME,
        log=Path(args.log) if args.log else None,
        debug=args.debug,
    )
    if args.detach:
        pid = await run_detached(wanted)
        shown = {"namespace": namespace, "id": wanted.container, "pid": pid}
        print(render.as_json(shown) if args.json else wanted.container)
        return 0
    exited = await (_run_with_events(wanted) if args.events else run_attached(wanted))
    return exited.exit_status


async def _run_with_events(wanted: Run) -> Exited:
    async def show(event: Event) -> None:
        print(_json_line(event), file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="shimctl-") as directory:
        socket = Path(directory) / "events.sock"
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_events, socket, show)
            exited = await run_attached(replace(wanted, events=socket))
            nursery.cancel_scope.cancel()
    return exited


async def _forkserver(args: Namespace) -> int:
    if args.like and args.action != "warm":
        raise InvalidError("--like goes with warm; see `shimctl forkserver --help`")
    if args.action == "warm":
        warmed = await forkserver.warm(like=args.like)
        if args.json:
            print(render.as_json(warmed))
        return 0
    stopping = args.action == "stop"
    servers = await (forkserver.stop_servers() if stopping else forkserver.list_servers())
    if args.json:
        print(render.as_json(servers))
        return 0
    headers = ("PID", "STATUS", "SHIMS", "IDLE", "OURS", "SOCKET", "PROBLEM")
    print(render.table(headers, [_server_row(server) for server in servers]))
    return 0


def _server_row(server: forkserver.Server) -> tuple[object, ...]:
    idle = render.seconds(server.idle) if server.idle else "never"
    return (
        *(server.pid or None, server.health.value),
        *((server.daemons, idle) if server.pid else (None, None)),
        *("yes" if server.ours else "no", server.socket, server.problem),
    )


async def _install(args: Namespace) -> int:
    if args.uninstall:
        done = install.uninstall(args.prefix, name=args.name)
    else:
        done = await install.install(args.prefix, name=args.name, native=args.native)
    if done.remark:
        print(f"shimctl: {render.printable(done.remark)}", file=sys.stderr)
    if args.json:
        print(render.as_json(done))
    elif done.files:
        print("\n".join(map(render.printable, done.files)))
    return 0


_COMMANDS: dict[str, Callable[[Namespace], Awaitable[int]]] = {
    "ps": _ps,
    "state": _state,
    "start": _start,
    "kill": _kill,
    "wait": _wait,
    "exec": _exec,
    "delete": _delete,
    "pids": _pids,
    "stats": _stats,
    "pause": _pause,
    "resume": _resume,
    "events": _events,
    "run": _run,
    "forkserver": _forkserver,
    "install": _install,
}
