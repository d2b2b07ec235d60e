"""Checkpoints: a container dumped to disk by the runtime and criu.

Source: containerd-shim-runc-v2 process/init.go, checkpoint.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shim.container.requests import checkpoint_of
from shim.errors import ShimError, WrongStateError
from shim.linux.removal import remove_tree
from shim.runc.command import checkpoint_args

if TYPE_CHECKING:
    from shim.api import task_pb2
    from shim.container.bundle import Bundle
    from shim.runc.driver import Runc

# Seconds a dump may take: the memory of a large container goes to disk.
LIMIT = 600.0


async def dump(
    runc: Runc, id_: str, bundle: Bundle, request: task_pb2.CheckpointTaskRequest
) -> str:
    """Dump the container ``id_`` as ``request`` asks; return the image's path.

    :raises ShimError: it failed; criu's own log is kept in the bundle then.
    """
    wanted = checkpoint_of(request)
    ours = bundle.work / "criu-work"
    if not wanted.work_path:
        ours.mkdir(parents=True, exist_ok=True)
        wanted = replace(wanted, work_path=str(ours))
    try:
        patient = replace(runc, limit=max(runc.limit, LIMIT))
        await patient.run("checkpoint", *checkpoint_args(id_, wanted))
    except ShimError as exc:
        kept = bundle.path / "criu-dump.log"
        with contextlib.suppress(OSError):
            shutil.copyfile(Path(wanted.work_path) / "dump.log", kept)
            raise type(exc)(f"{exc}; see {kept}") from None
        raise
    finally:
        if wanted.work_path == str(ours):
            with contextlib.suppress(WrongStateError):
                remove_tree(ours)
    return wanted.image_path
