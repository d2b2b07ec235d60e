"""exec: run a command in a container."""

from __future__ import annotations

import click

from shimctl.cli.app import declare
from shimctl.cli.creating import without_dashes
from shimctl.cli.parameters import Where, one_id, search_options


@declare("exec", example="shimctl exec -it redis sh", settings={"allow_interspersed_args": False})
@one_id
@click.argument(
    *("args",),
    metavar="COMMAND...",
    nargs=-1,
    type=click.UNPROCESSED,
    help="The command line; shimctl's options precede ID.",
)
@click.option("-i", "--interactive", is_flag=True, help="Forward stdin to it.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("--cwd", default="", metavar="DIR", help="Its working directory.")
@click.option("--user", default="", metavar="UID[:GID]", help="The user that it runs as.")
@click.option(
    *("-e", "--env"),
    multiple=True,
    metavar="NAME=VALUE",
    help="Set a variable; may be repeated.",
)
@search_options
async def command(
    id_: str,
    args: tuple[str, ...],
    interactive: bool,
    tty: bool,
    cwd: str,
    user: str,
    env: tuple[str, ...],
    where: Where,
) -> int:
    """Run a command in a container.

    Exits with the command's exit status.
    """
    from pathlib import Path

    from shim.errors import InvalidError
    from shimctl.cli.connected import open_found
    from shimctl.standalone import workdir
    from shimctl.standalone.run import exec_attached, process_for

    words = without_dashes(args)
    if not words:
        raise InvalidError("exec needs a command to run; see `shimctl exec --help`")
    async with open_found(await where.find_to_change(id_)) as task:
        state = await task.state()
        process = process_for(
            workdir.read_config(Path(state.bundle)),
            words,
            terminal=tty,
            env=env,
            cwd=cwd,
            user=user,
        )
        exited = await exec_attached(task, process, stdin=interactive, terminal=tty)
    return exited.exit_status
