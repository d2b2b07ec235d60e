"""Remove a container that has a working directory, in any state, completely."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from shimctl import ending
from shimctl.backend import portable
from shimctl.exits import find_address
from shimctl.launching import DEFAULT_RUNTIME
from shimctl.standalone import workdir

if TYPE_CHECKING:
    from pathlib import Path

    from shimctl.backend import Backend
    from shimctl.values import Exited


@portable
async def dispose(
    backend: Backend, work: Path, container: str, namespace: str, address: str = ""
) -> Exited | None:
    """End a container of ``shimctl`` in any state; remove its shim and its directory.

    Returns its exit, or None if neither a shim nor a record has it.

    :raises WrongStateError: a file system is still mounted in the directory.
    """
    address = address or find_address(work)
    exited = await ending.dispose.on(backend)(
        work,
        container,
        address=address,
        namespace=namespace,
        runtime=_binary(work),
        alone=_alone(work, address),
    )
    await backend.in_thread(partial(workdir.remove, work))
    if _alone(work, address):  # those beside it may have been removed at the same time
        ending.remove_dead_socket(address)
    return exited


def _alone(work: Path, address: str) -> bool:
    """Return whether the shim serves no other container of ``shimctl``, as in a pod."""
    others = (path.parent for path in workdir.state_directory().glob("*/*/config.json"))
    return all(other == work or find_address(other) != address for other in others)


def _binary(work: Path) -> str:
    try:
        return os.fsdecode((work / "shim-binary-path").read_bytes())
    except OSError:
        return DEFAULT_RUNTIME
