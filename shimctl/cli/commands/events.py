"""events: print what shims publish, until interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shim.linux.modes import make_trusted
from shim.text import printable
from shimctl.cli import render
from shimctl.events import serve_events
from shimctl.standalone import workdir

if TYPE_CHECKING:
    from argparse import Namespace

    from shimctl.events import Event


async def _events(args: Namespace) -> int:
    async def write(event: Event) -> None:
        if args.namespace not in ("", event.namespace):
            return
        match args.output:
            case "json":
                print(json_line(event), flush=True)
            case "yaml":
                print(f"---\n{render.as_yaml(event)}", end="", flush=True)
            case _:
                print(_text_line(event), flush=True)

    socket = workdir.events_socket()
    make_trusted(str(socket.parent))
    await serve_events(socket, write)
    return 0


def json_line(event: Event) -> str:
    """Format an event as one line of JSON."""
    return render.as_json(event, indent=None)


def _text_line(event: Event) -> str:
    at = event.at.isoformat(timespec="milliseconds").replace("+00:00", "Z") if event.at else "-"
    fields = " ".join(f"{key}={value}" for key, value in event.fields.items() if value != "")
    return printable(f"{at} {event.namespace} {event.topic} {fields}")


COMMANDS = {"events": _events}
