"""attach, logs: the stdio and the log of a detached container."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import InvalidError, NotFoundError, ShimError
from shim.scope import background
from shim.text import printable
from shimctl.attach.client import attach_as_member
from shimctl.attach.keys import parse_keys
from shimctl.cli.commands.connected import open_found
from shimctl.discover import find_shim
from shimctl.standalone.detached import attachable
from shimctl.standalone.logentries import Wanted, parse_since
from shimctl.standalone.loglocation import locate, own_log
from shimctl.standalone.logs import format_of, show

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import AsyncIterator, Callable

    from shimctl.discover import Found


async def _attach(args: Namespace) -> int:
    keys = parse_keys(args.detach_keys)
    found = await find_shim(args.id, args.namespace, states=args.state)
    async with open_found(found) as task:
        state = await task.state()
        who = await task.shim.connect(found.id)
        place = Path(found.bundle or state.bundle)
        try:
            stdio = attachable(state.stdio, place if found.managed else None)
        except InvalidError as exc:
            hint = f"; see `shimctl logs {found.id}`" if found.managed else ""
            raise InvalidError(f"{found.id}: {exc}{hint}") from None
        exited = await attach_as_member(
            task, stdio, place, stdin=not args.no_stdin, keys=keys, shim_pid=who.shim_pid
        )
    if exited is None:
        print_detached(found.id)
        return 0
    return exited.exit_status


def print_detached(container: str) -> None:
    """Print to stderr that the client detached, and how to attach again."""
    name = printable(container)
    print(
        f"shimctl: detached, {name} keeps running; `shimctl attach {name}` attaches again",
        file=sys.stderr,
    )


async def _logs(args: Namespace) -> int:
    wanted = Wanted(
        since=parse_since(args.since, datetime.now(UTC)) if args.since else None,
        tail=_tail(args.tail),
        timestamps=args.timestamps,
    )
    if "/" in args.id:
        path = Path(args.id)
        if not path.is_file():
            raise NotFoundError(f"there is no log {path}")
        await show(path, format_of(path), wanted, (lambda: False) if args.follow else None)
        return 0
    found = await find_shim(args.id, args.namespace, states=args.state)
    log = own_log(found)
    if log is None:
        async with open_found(found) as task:
            log = locate(found, (await task.state()).stdio)
    if not args.follow:
        await show(log.path, log.form, wanted, None)
        return 0
    async with _ending(found) as is_over:
        await show(log.path, log.form, wanted, is_over)
    return 0


def _tail(text: str) -> int | None:
    if text == "all":
        return None
    if text.isascii() and text.isdecimal():
        return int(text)
    raise InvalidError(f"--tail takes a number of lines or 'all', not {text!r}")


@asynccontextmanager
async def _ending(found: Found) -> AsyncIterator[Callable[[], bool]]:
    """Yield a function that returns whether the container, or its shim, has exited."""
    over = False

    async def wait() -> None:
        nonlocal over
        try:
            async with open_found(found) as task:
                await task.wait()
        except ShimError:
            pass  # the shim is dead, so its container counts as exited
        over = True

    async with background(wait):
        yield lambda: over


COMMANDS = {"attach": _attach, "logs": _logs}
