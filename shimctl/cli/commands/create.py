"""create: create a container without starting it."""

from __future__ import annotations

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
from shimctl.cli.parameters import output_options

if TYPE_CHECKING:
    from shimctl.cli.output import Out


@declare_creating("create", example="shimctl create --id redis ./bundle && shimctl start redis")
@click.option("--rm", is_flag=True, help="Delete it at its end, as `shimctl run --rm -d` does.")
@container_options
@output_options
async def command(out: Out, **given: Any) -> None:
    """Create a container without starting it, and print its id.

    `shimctl start` then starts it.  Together they do the same as `shimctl run -d`.
    """
    from dataclasses import replace

    from shimctl.standalone.run import run_detached

    options = SimpleNamespace(**given)
    wanted = replace(await with_image(options, run_of(options)), remove=options.rm)
    pid = await run_detached(wanted, start=False)
    show_created(out, wanted, pid)
