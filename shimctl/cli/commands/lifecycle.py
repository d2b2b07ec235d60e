"""start, kill, wait, pause, resume, delete: change or await a container's state."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import InvalidError, ShimError, WrongStateError
from shimctl.cli.commands.connected import open_found, open_task, wait_for
from shimctl.cli.commands.from_image import stop_signal
from shimctl.cli.commands.output import show
from shimctl.discover import find_shim
from shimctl.ending import delete_and_check
from shimctl.standalone.run import dispose
from shimctl.values import Status

if TYPE_CHECKING:
    from argparse import Namespace

    from shimctl.discover import Found


async def _start(args: Namespace) -> int:
    async with open_task(args) as task:
        pid = await task.start()
    show(args, {"pid": pid})
    return 0


async def _kill(args: Namespace) -> int:
    number = signal_number(args.signal or "TERM")
    async with open_task(args) as task:
        if not args.signal and (name := stop_signal((await task.state()).bundle)):
            number = signal_number(name)
        await task.kill(number, everyone=args.all)
    return 0


def signal_number(text: str) -> int:
    """Parse a signal's number or name: ``9``, ``KILL``, ``SIGKILL``, ``RTMIN+3``.

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
    exited = await wait_for(await find_shim(args.id, args.namespace, states=args.state))
    show(args, exited)
    return exited.exit_status


async def _pause(args: Namespace) -> int:
    async with open_task(args) as task:
        await task.pause()
    return 0


async def _resume(args: Namespace) -> int:
    async with open_task(args) as task:
        await task.resume()
    return 0


async def _delete(args: Namespace) -> int:
    found = await find_shim(args.id, args.namespace, states=args.state)
    if not args.force:
        await _check_ended(found)
    if found.managed:
        exited = await dispose(Path(found.bundle), found.id, found.namespace, found.address)
    else:
        async with open_found(found) as task:
            exited = await delete_and_check(task, Path(found.bundle), found.pid, force=args.force)
            await task.shim.shutdown()
    show(args, exited)
    return 0


async def _check_ended(found: Found) -> None:
    try:
        async with open_found(found) as task:
            state = await task.state()
    except ShimError:
        if found.managed:
            return  # the shim is dead, and dispose() handles any state
        raise
    if state.status not in (Status.STOPPED, Status.CREATED):
        raise WrongStateError(f"{found.id} is {state.status.value}; kill it first, or use --force")


COMMANDS = {
    "start": _start,
    "kill": _kill,
    "wait": _wait,
    "pause": _pause,
    "resume": _resume,
    "delete": _delete,
}
