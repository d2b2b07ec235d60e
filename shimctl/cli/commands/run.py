"""run: run an image, or an OCI bundle, without a container manager."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from shimctl.cli.creating import (
    container_options,
    declare_creating,
    run_of,
    show_created,
    with_image,
)
from shimctl.cli.parameters import detach_keys_option, output_options

if TYPE_CHECKING:
    from shimctl.cli.output import Out
    from shimctl.standalone.run import Run
    from shimctl.topics import Event
    from shimctl.values import Exited


@declare_creating("run", example="shimctl run -t oci:./layout:latest sh")
@click.option("-d", "--detach", is_flag=True, help="Run it in the background, print its id.")
@click.option(
    "--rm", is_flag=True, help="Delete it at its end, also with -d or after the detach keys."
)
@container_options
@detach_keys_option
@click.option("--events", is_flag=True, help="Print its events to stderr, as JSON.")
@output_options
async def command(out: Out, **given: Any) -> int:
    """Run an image, or an OCI bundle, without a container manager.

    Exits with the container's exit status; the third Ctrl-C kills the container.
    The bundle is not changed.  Ctrl-P Ctrl-Q detaches from a terminal; `shimctl attach`
    attaches again.  `shimctl logs` shows a detached container's output.

    An image is oci:LAYOUT:TAG, oci-archive:FILE[:NAME] or docker-archive:FILE[:NAME].
    """
    from dataclasses import replace

    from shim.errors import InvalidError
    from shimctl.attach.keys import parse_keys
    from shimctl.cli.connected import print_detached
    from shimctl.standalone.run import run_attached, run_detached

    options = SimpleNamespace(**given)
    if options.log and not options.detach:
        raise InvalidError("--log needs --detach; without it the output goes to stdout")
    if options.log_limit is not None and not options.detach:
        raise InvalidError("--log-limit needs --detach; without it there is no log")
    keys = parse_keys(options.detach_keys)
    if options.events and options.detach:
        raise InvalidError("--events excludes --detach; use `shimctl events`")
    wanted = replace(await with_image(options, run_of(options)), remove=options.rm)
    if options.detach:
        show_created(out, wanted, await run_detached(wanted))
        return 0
    wanted = replace(wanted, detach_keys=keys if os.isatty(0) else b"")
    exited = await (_run_with_events(wanted) if options.events else run_attached(wanted))
    if exited is None:
        print_detached(wanted.container)
        return 0
    return exited.exit_status


async def _run_with_events(wanted: Run) -> Exited | None:
    import tempfile
    from dataclasses import replace
    from pathlib import Path

    import trio

    from shimctl.cli import render
    from shimctl.events import serve_events
    from shimctl.standalone.run import run_attached

    async def write(event: Event) -> None:
        print(render.as_json(event, indent=None), file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="shimctl-") as directory:
        socket = Path(directory) / "events.sock"
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_events, socket, write)
            exited = await run_attached(replace(wanted, events=socket))
            nursery.cancel_scope.cancel()
    return exited
