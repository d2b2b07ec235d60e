"""shutdown, version: a container's shim, and shimctl itself."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from shim.errors import NotFoundError, ShimError, TimedOutError, WrongStateError
from shim.version import VERSION
from shimctl.cli.commands.connected import open_found, open_task
from shimctl.cli.commands.output import show, show_table
from shimctl.discover import find_shim
from shimctl.host.executable import executable_of, version_of

if TYPE_CHECKING:
    from argparse import Namespace

_LEAVING = 20.0  # s for a shim to exit; containerd's publishes its last events for up to 15
_STAYING = 1.0  # s for a shim that still has the container, and so will not exit


async def _shutdown(args: Namespace) -> int:
    async with open_task(args) as task:
        pid = (await task.shim.connect(task.id)).shim_pid
        patience = _LEAVING
        with suppress(NotFoundError):
            await task.state()
            patience = _STAYING
        fd = os.pidfd_open(pid)
        try:
            await task.shim.shutdown(now=args.now)
            with trio.move_on_after(patience) as scope:
                await trio.lowlevel.wait_readable(fd)
        finally:
            os.close(fd)
    if scope.cancelled_caught and patience == _LEAVING:
        raise TimedOutError(f"the shim of {task.id} did not exit within {_LEAVING:.0f} s")
    if scope.cancelled_caught:
        raise WrongStateError(
            f"the shim of {task.id} does not exit because it has containers; "
            f"try `shimctl delete {task.id}`"
        )
    show(args, {"id": task.id, "shim_pid": pid})
    return 0


@dataclass(frozen=True, slots=True)
class _Version:
    """The versions of a running shim and of its executable."""

    id: str
    namespace: str
    version: str
    api_version: int
    shim_pid: int
    executable: str
    executable_says: str


async def _version(args: Namespace) -> int:
    if not args.id:
        ours = {"version": VERSION, "python": platform.python_version(), "api_versions": [3, 2]}
        show(args, ours, lambda: f"shimctl {VERSION}")
        return 0
    found = await find_shim(args.id, args.namespace, states=args.state)
    async with open_found(found) as task:
        who = await task.shim.connect(task.id)
        bundle = found.bundle
        with suppress(ShimError):  # the bundle is unknown if only the socket was found
            bundle = bundle or (await task.state()).bundle
        executable = executable_of(bundle, who.shim_pid)
        said = await version_of(executable) if executable else ""
        version = _Version(
            id=task.id,
            namespace=found.namespace,
            version=who.version,
            api_version=task.shim.api_version,
            shim_pid=who.shim_pid,
            executable=executable,
            executable_says=said,
        )
    rows = [
        ("id", version.id),
        ("version", version.version),
        ("task api", version.api_version),
        ("shim pid", version.shim_pid),
        ("executable", version.executable),
        ("it says", " ".join(said.split())),
    ]
    show_table(args, version, ("FIELD", "VALUE"), rows)
    return 0


COMMANDS = {"shutdown": _shutdown, "version": _version}
