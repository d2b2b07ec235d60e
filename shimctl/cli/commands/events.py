"""events: print what shims publish, until interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.cli.app import declare
from shimctl.cli.parameters import Where, output_options, search_options

if TYPE_CHECKING:
    from shimctl.cli.output import Out
    from shimctl.topics import Event


@declare("events", example="shimctl events --json | tee events.log")
@search_options
@output_options
async def command(where: Where, out: Out) -> None:
    """Print the events of containers that `shimctl run` started.

    Runs until interrupted.  Trio shims also send their earlier events that were not
    acknowledged.  Shims of containerd send events to containerd: see `ctr events`.
    """
    from shim.linux.modes import make_trusted
    from shimctl import directories
    from shimctl.events import serve_events

    async def write(event: Event) -> None:
        if where.namespace in ("", event.namespace):
            out.stream(event.as_dict(), lambda: _text_line(event))

    socket = directories.events_socket()
    make_trusted(str(socket.parent))
    await serve_events(socket, write)


def _text_line(event: Event) -> str:
    from shim.text import printable
    from shimctl.cli import render

    at = render.time(event.at, precise=True) or "-"
    fields = " ".join(
        f"{key}={render.as_line(value)}"
        for key, value in event.as_dict()["fields"].items()
        if value != ""
    )
    return printable(f"{at} {event.namespace} {event.topic} {fields}")
