"""checkpoint: write the memory of a container to disk.

Source: containerd api/types/runc/options/oci.proto for the options.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shimctl.cli.app import declare
from shimctl.cli.creating import checkpoint_options
from shimctl.cli.parameters import Where, one_id, output_options, search_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.any_pb2 import Any as AnyMessage

    from shimctl.cli.output import Out
    from shimctl.discover import Found

_TIMEOUT = 600  # s for a checkpoint, which writes the container's memory to disk


@declare("checkpoint", example="shimctl checkpoint redis --image-path /var/tmp/redis")
@one_id
@checkpoint_options("The directory to write to.")
@click.option(
    *("--parent-path",),
    metavar="DIR",
    help="An earlier checkpoint, relative to the image: only the difference is written.",
)
@click.option("--leave-running", is_flag=True, help="Do not end the container.")
@click.option("--tcp-established", is_flag=True, help="Allow open TCP connections.")
@click.option("--ext-unix-sk", is_flag=True, help="Allow unix sockets connected to outside.")
@click.option("--shell-job", is_flag=True, help="Allow a terminal from outside.")
@click.option("--file-locks", is_flag=True, help="Allow locked files.")
@click.option(
    *("--empty-ns",),
    metavar="KIND",
    multiple=True,
    help="Restore this namespace empty, for example network; may be repeated.",
)
@click.option(
    *("--manage-cgroups-mode",),
    type=click.Choice(("soft", "full", "strict", "ignore")),
    help="criu's mode for restoring cgroups.",
)
@search_options
@output_options
async def command(id_: str, where: Where, out: Out, **options: Any) -> int:
    """Write the memory of a running container to disk, and end it.

    The container's runtime does this with criu.  `shimctl restore` restores it.
    """
    from shim.api.task_pb2 import CheckpointTaskRequest
    from shimctl.cli.changing import change_each
    from shimctl.cli.connected import open_found

    image = str(Path(options["image_path"]).absolute())

    async def checkpoint(found: Found) -> dict[str, object]:
        async with open_found(found) as task:
            request = CheckpointTaskRequest(id=task.id, path=image, options=options_of(options))
            await task.shim.call("Checkpoint", request, _TIMEOUT)
        return {"image_path": image}

    return await change_each([id_], where, out, checkpoint)


def options_of(options: Mapping[str, Any]) -> AnyMessage:
    """Return the runtime's options message for the options of ``checkpoint``."""
    from google.protobuf.any_pb2 import Any as AnyMessage

    from shim.api.options_pb2 import CheckpointOptions
    from shimctl.options import make_message

    work_path = options["work_path"]
    message = make_message(
        CheckpointOptions,
        exit=not options["leave_running"],
        open_tcp=options["tcp_established"],
        external_unix_sockets=options["ext_unix_sk"],
        terminal=options["shell_job"],
        file_locks=options["file_locks"],
        empty_namespaces=options["empty_ns"],
        cgroups_mode=options["manage_cgroups_mode"] or "",
        image_path=str(Path(options["image_path"]).absolute()),
        work_path=str(Path(work_path).absolute()) if work_path else "",
        parent_path=options["parent_path"] or "",
    )
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())
