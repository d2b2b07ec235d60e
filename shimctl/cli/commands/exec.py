"""exec: run a command in a container."""

from __future__ import annotations

import click

from shimctl.cli.app import declare
from shimctl.cli.creating import without_dashes
from shimctl.cli.parameters import FILE, Where, one_id, search_options


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
@click.option("-d", "--detach", is_flag=True, help="Run it in the background, print its exec id.")
@click.option(
    *("-w", "--workdir", "--cwd"),
    default="",
    metavar="DIR",
    help="Its working directory (default: the container's).",
)
@click.option(
    *("-u", "--user"),
    default="",
    metavar="USER[:GROUP]",
    help="The user that it runs as, by name or number (default: the container's).",
)
@click.option(
    *("-e", "--env"),
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Set a variable, or pass on one of shimctl's; may be repeated.",
)
@click.option(
    "--env-file",
    "env_files",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="Set the variables in a file, one NAME=VALUE a line; may be repeated.",
)
@click.option(
    "--kill",
    default="",
    metavar="EXEC_ID",
    help="Run nothing: end this exec of the container, and delete it.",
)
@search_options
async def command(
    id_: str,
    args: tuple[str, ...],
    interactive: bool,
    tty: bool,
    detach: bool,
    workdir: str,
    user: str,
    env: tuple[str, ...],
    env_files: tuple[str, ...],
    kill: str,
    where: Where,
) -> int:
    """Run a command in a container.

    Exits with the command's exit status.  With -it, stdin must be a terminal.
    If shimctl is killed, the command runs on: `shimctl inspect` shows its exec id, and
    --kill ends it.
    """
    import os
    from pathlib import Path

    from shim.errors import InvalidError
    from shim.text import printable
    from shimctl.cli.connected import open_found
    from shimctl.standalone.execs import exec_detached, kill_exec, user_object
    from shimctl.standalone.run import exec_attached, process_for
    from shimctl.standalone.variables import variables
    from shimctl.standalone.workdir import read_config

    words = without_dashes(args)
    if kill and words:
        raise InvalidError("--kill runs no command; leave it out")
    if not kill and not words:
        raise InvalidError("exec needs a command to run; see `shimctl exec --help`")
    if detach and (interactive or tty):
        raise InvalidError(
            "--detach excludes -i and -t: a detached exec has no stdin and no terminal"
        )
    async with open_found(await where.find_to_change(id_)) as task:
        if kill:
            await kill_exec(task, kill)
            print(printable(kill))
            return 0
        state = await task.state()
        config = read_config(Path(state.bundle))
        process = process_for(
            config,
            words,
            terminal=tty,
            env=variables(env, env_files, os.environ),
            cwd=workdir,
        )
        if user:
            process["user"] = user_object(state, config, user)
        if detach:
            exec_id, _ = await exec_detached(task, process)
            print(exec_id)
            return 0
        exited = await exec_attached(task, process, stdin=interactive, terminal=tty)
    return exited.exit_status
