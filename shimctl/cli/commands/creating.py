"""create, checkpoint, restore: containers before their start, and on disk.

Source: containerd api/types/runc/options/oci.proto for the options of a checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.any_pb2 import Any as AnyMessage

from shim.api.options_pb2 import CheckpointOptions
from shim.api.task_pb2 import CheckpointTaskRequest
from shim.errors import NotFoundError
from shimctl.cli.commands.connected import open_task
from shimctl.cli.commands.from_image import with_image
from shimctl.cli.commands.output import show
from shimctl.cli.commands.running import run_of
from shimctl.options import make_message
from shimctl.standalone.run import run_detached

if TYPE_CHECKING:
    from argparse import Namespace

    from shimctl.standalone.run import Run

_TIMEOUT = 600  # s for a checkpoint, which writes the container's memory to disk


async def _create(args: Namespace) -> int:
    wanted = await with_image(args, run_of(args))
    pid = await run_detached(wanted, start=False)
    _show_made(args, wanted, pid)
    return 0


async def _checkpoint(args: Namespace) -> int:
    image = Path(args.image_path).absolute()
    async with open_task(args) as task:
        request = CheckpointTaskRequest(id=task.id, path=str(image), options=options_of(args))
        await task.shim.call("Checkpoint", request, _TIMEOUT)
    show(args, {"id": task.id, "image_path": str(image)})
    return 0


def options_of(args: Namespace) -> AnyMessage:
    """Return the runtime's options message for the arguments of ``checkpoint``."""
    options = make_message(
        CheckpointOptions,
        exit=not args.leave_running,
        open_tcp=args.tcp_established,
        external_unix_sockets=args.ext_unix_sk,
        terminal=args.shell_job,
        file_locks=args.file_locks,
        empty_namespaces=args.empty_ns,
        cgroups_mode=args.manage_cgroups_mode,
        image_path=str(Path(args.image_path).absolute()),
        work_path=str(Path(args.work_path).absolute()) if args.work_path else "",
        parent_path=args.parent_path or "",
    )
    return AnyMessage(type_url=options.DESCRIPTOR.full_name, value=options.SerializeToString())


async def _restore(args: Namespace) -> int:
    image = Path(args.image_path)
    if not (image / "inventory.img").is_file():  # criu writes this file in every checkpoint
        raise NotFoundError(f"there is no checkpoint in {image}; `shimctl checkpoint` writes one")
    work_path = Path(args.work_path) if args.work_path else None
    wanted = replace(run_of(args), checkpoint=image, work_path=work_path)
    pid = await run_detached(wanted)
    _show_made(args, wanted, pid)
    return 0


def _show_made(args: Namespace, wanted: Run, pid: int) -> None:
    made = {"namespace": wanted.namespace, "id": wanted.container, "pid": pid}
    show(args, made, lambda: wanted.container)


COMMANDS = {"create": _create, "checkpoint": _checkpoint, "restore": _restore}
