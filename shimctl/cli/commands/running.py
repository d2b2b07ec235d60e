"""run, exec: processes attached to shimctl's stdin, stdout and stderr."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim.errors import InvalidError
from shimctl.attach.keys import parse_keys
from shimctl.cli.commands.attaching import print_detached
from shimctl.cli.commands.connected import open_task
from shimctl.cli.commands.events import json_line
from shimctl.cli.commands.from_image import with_image
from shimctl.cli.commands.output import show
from shimctl.events import serve_events
from shimctl.launching import DEFAULT_RUNTIME
from shimctl.standalone import logger, workdir
from shimctl.standalone.run import Run, exec_attached, process_for, run_attached, run_detached

if TYPE_CHECKING:
    from argparse import Namespace

    from shimctl.events import Event
    from shimctl.values import Exited


async def _run(args: Namespace) -> int:
    if args.log and not args.detach:
        raise InvalidError("--log needs --detach; without it the output goes to stdout")
    if args.log_limit is not None and not args.detach:
        raise InvalidError("--log-limit needs --detach; without it there is no log")
    keys = parse_keys(args.detach_keys)
    if args.events and args.detach:
        raise InvalidError("--events excludes --detach; use `shimctl events`")
    wanted = await with_image(args, run_of(args))
    if args.detach:
        pid = await run_detached(wanted)
        shown = {"namespace": wanted.namespace, "id": wanted.container, "pid": pid}
        show(args, shown, lambda: wanted.container)
        return 0
    wanted = replace(wanted, detach_keys=keys if os.isatty(0) else b"")
    exited = await (_run_with_events(wanted) if args.events else run_attached(wanted))
    if exited is None:
        print_detached(wanted.container)
        return 0
    return exited.exit_status


def run_of(args: Namespace) -> Run:
    """Return the Run for the arguments that :func:`add_bundle` and others declare."""
    bundle = Path(args.bundle)
    return Run(
        bundle=bundle,
        container=workdir.check_id(args.id) if args.id else workdir.new_id(bundle.absolute()),
        namespace=workdir.check_id(args.namespace or "default", "namespace"),
        runtime=args.runtime or DEFAULT_RUNTIME,
        binary=str(Path(args.binary).absolute()) if "/" in args.binary else args.binary,
        interactive=args.interactive,
        terminal=args.tty or None,
        log=Path(args.log) if args.log else None,
        log_limit=logger.LIMIT if args.log_limit is None else args.log_limit,
        policy=args.output_policy,
        debug=args.debug,
    )


async def _run_with_events(wanted: Run) -> Exited | None:
    async def write(event: Event) -> None:
        print(json_line(event), file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="shimctl-") as directory:
        socket = Path(directory) / "events.sock"
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_events, socket, write)
            exited = await run_attached(replace(wanted, events=socket))
            nursery.cancel_scope.cancel()
    return exited


async def _exec(args: Namespace) -> int:
    command = args.args[1:] if args.args[:1] == ["--"] else args.args
    if not command:
        raise InvalidError("exec needs a command to run; see `shimctl exec --help`")
    async with open_task(args) as task:
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


COMMANDS = {"run": _run, "exec": _exec}
