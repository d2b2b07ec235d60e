"""Writes the checkpoint of a container, by the runtime and criu.

Source: containerd-shim-runc-v2 process/init.go, checkpoint.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim.container.requests import checkpoint_of
from shim.errors import ShimError, TimedOutError, WrongStateError
from shim.linux.files import read_tail
from shim.linux.modes import make_directories, write_file
from shim.linux.removal import remove_tree
from shim.offthread import run_off_thread
from shim.runc.command import checkpoint_args

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.api import task_pb2
    from shim.container.bundle import Bundle
    from shim.runc.driver import Runc

# Seconds to copy criu's log, and to make or remove its directory.
FILES = 10.0
# Bytes of criu's log that are kept: its last lines hold the error.
_KEPT = 4 << 20
# Seconds a checkpoint may take: the memory of a large container is written to disk.
LIMIT = 600.0


async def checkpoint(
    runc: Runc,
    id_: str,
    bundle: Bundle,
    request: task_pb2.CheckpointTaskRequest,
    begin: Callable[[], None],
) -> str:
    """Write the checkpoint that ``request`` describes; return the path of the image.

    ``begin`` is called directly before the runtime is started.

    :raises ShimError: the runtime failed; criu's log is kept in the bundle as
        ``criu-dump.log``, and the text names it.
    """
    wanted = checkpoint_of(request)
    own_work = bundle.work / "criu-work"
    if not wanted.work_path:
        await _off_thread(lambda: make_directories(own_work, parents=0o700), f"mkdir {own_work}")
        wanted = replace(wanted, work_path=str(own_work))
    try:
        slow = replace(runc, limit=max(runc.limit, LIMIT))
        begin()
        await slow.run("checkpoint", *checkpoint_args(id_, wanted))
    except ShimError as exc:
        kept = bundle.path / "criu-dump.log"
        log = Path(wanted.work_path) / "dump.log"
        with contextlib.suppress(OSError, TimedOutError):
            await _off_thread(lambda: _copy(log, kept), f"copy {log} to {kept}")
            raise type(exc)(f"{exc}; see {kept}") from None
        raise
    finally:
        if wanted.work_path == str(own_work):
            with contextlib.suppress(WrongStateError, TimedOutError):
                await _off_thread(lambda: remove_tree(own_work), f"remove {own_work}")
    return wanted.image_path


async def _off_thread(work: Callable[[], object], what: str) -> None:
    """Do ``work``, which may wait for a disk, in another thread; ``what`` names it in errors."""
    with trio.CancelScope(shield=True):
        await run_off_thread(work, what, limit=FILES)


def _copy(source: Path, target: Path) -> None:
    write_file(target, read_tail(str(source), _KEPT))
