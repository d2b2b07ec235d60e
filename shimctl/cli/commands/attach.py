"""attach: attach to a running container's stdio."""

from __future__ import annotations

import click

from shimctl.cli.app import declare
from shimctl.cli.parameters import Where, detach_keys_option, one_id, search_options


@declare("attach", example="shimctl attach redis")
@one_id
@click.option("--no-stdin", is_flag=True, help="Do not forward stdin.")
@detach_keys_option
@search_options
async def command(id_: str, no_stdin: bool, detach_keys: str, where: Where) -> int:
    """Attach to a running container's stdio.

    Several clients can attach at once: all get the same output, and all may type.
    A terminal has the size of the client that was active last.  Ctrl-P Ctrl-Q detaches from
    a terminal, Ctrl-C without one; the container keeps running.
    Exits with the container's exit status, or with 0 after detaching.
    """
    from pathlib import Path

    from shim.errors import InvalidError
    from shimctl.attach.client import attach_as_member
    from shimctl.attach.keys import parse_keys
    from shimctl.cli.connected import open_found, print_detached
    from shimctl.standalone.detached import attachable

    keys = parse_keys(detach_keys)
    found = await where.find_to_change(id_)
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
            task, stdio, place, stdin=not no_stdin, keys=keys, shim_pid=who.shim_pid
        )
    if exited is None:
        print_detached(found.id)
        return 0
    return exited.exit_status
