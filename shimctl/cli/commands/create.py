"""create: create a container without starting it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from shimctl.cli.app import declare
from shimctl.cli.creating import (
    WithImage,
    bundle_options,
    image_options,
    run_of,
    show_created,
    stdio_options,
    with_image,
)
from shimctl.cli.parameters import output_options

if TYPE_CHECKING:
    from shimctl.cli.output import Out


@declare(
    "create",
    example="shimctl create --id redis ./bundle && shimctl start redis",
    cls=WithImage,
    settings={"allow_interspersed_args": False},
)
@bundle_options
@image_options
@stdio_options
@output_options
async def command(out: Out, **given: Any) -> None:
    """Create a container without starting it, and print its id.

    `shimctl start` then starts it.  Together they do the same as `shimctl run -d`.
    """
    from shimctl.standalone.run import run_detached

    options = SimpleNamespace(**given)
    wanted = await with_image(options, run_of(options))
    pid = await run_detached(wanted, start=False)
    show_created(out, wanted, pid)
