"""restore: restore a container from a checkpoint."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from shimctl.cli.app import declare
from shimctl.cli.creating import (
    bundle_options,
    checkpoint_options,
    run_of,
    show_created,
    stdio_options,
)
from shimctl.cli.parameters import output_options

if TYPE_CHECKING:
    from shimctl.cli.output import Out


@declare("restore", example="shimctl restore --image-path /var/tmp/redis --id redis ./bundle")
@bundle_options
@checkpoint_options("The checkpoint's directory.")
@stdio_options
@output_options
async def command(out: Out, **given: Any) -> None:
    """Restore a container from a checkpoint, and print its id.

    BUNDLE is the bundle of the checkpointed container.  The container runs detached.
    """
    from dataclasses import replace
    from pathlib import Path

    from shim.errors import NotFoundError
    from shimctl.standalone.run import run_detached

    options = SimpleNamespace(**given)
    image = Path(options.image_path)
    if not (image / "inventory.img").is_file():  # criu writes this file in every checkpoint
        raise NotFoundError(f"there is no checkpoint in {image}; `shimctl checkpoint` writes one")
    work_path = Path(options.work_path) if options.work_path else None
    wanted = replace(run_of(options), checkpoint=image, work_path=work_path)
    pid = await run_detached(wanted)
    show_created(out, wanted, pid)
