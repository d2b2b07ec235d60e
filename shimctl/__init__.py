"""Find, launch and call any containerd shim v2 from Python.

    import shimctl, trio

    async def main():
        for found in await shimctl.list_shims():
            print(found.namespace, found.id, found.status)
        async with shimctl.connect("unix:///run/containerd/s/...") as shim:
            task = shim.task("redis")
            print((await task.state()).status)
            await task.kill(15)
            print((await task.wait()).exit_status)

    trio.run(main)

These names are for trio.  :mod:`shimctl.aio` and :mod:`shimctl.blocking` have the same
names and values for asyncio and for plain threads.  ``docs/embedding.md`` shows a
manager on each of the three.  The library keeps no global state: all state is in the
objects that the caller holds.

Times are seconds, sizes are bytes, dates are UTC.  Failures raise the exceptions of
:mod:`shim.errors`, re-exported here.  Each exception has the gRPC status that a shim
sends for it.  The names below are the whole public interface.

Source: containerd's Task API (api/runtime/task) and its runtime v2 README.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shim.api.mount_pb2 import Mount
    from shim.errors import (
        ExistsError,
        InvalidError,
        NotFoundError,
        ShimError,
        TimedOutError,
        UnavailableError,
        UnsupportedError,
        WrongStateError,
    )
    from shim.linux.removal import remove_tree
    from shimctl.client import Shim, Task, connect
    from shimctl.discover import Found, Health, list_shims
    from shimctl.ending import dispose
    from shimctl.events import Event, serve_events
    from shimctl.exits import read_address, read_exit
    from shimctl.launching import Launched, launch, run_delete
    from shimctl.options import runc_options
    from shimctl.remains import RemainsError
    from shimctl.values import (
        Connected,
        Exited,
        Pid,
        Stats,
        Status,
        Stdio,
        TaskState,
    )

__all__ = [
    "Connected",
    "Event",
    "ExistsError",
    "Exited",
    "Found",
    "Health",
    "InvalidError",
    "Launched",
    "Mount",
    "NotFoundError",
    "Pid",
    "RemainsError",
    "Shim",
    "ShimError",
    "Stats",
    "Status",
    "Stdio",
    "Task",
    "TaskState",
    "TimedOutError",
    "UnavailableError",
    "UnsupportedError",
    "WrongStateError",
    "connect",
    "dispose",
    "launch",
    "list_shims",
    "read_address",
    "read_exit",
    "remove_tree",
    "run_delete",
    "runc_options",
    "serve_events",
]

# The module that defines each name.  It is imported at the first use of the name, so
# ``shimctl --help`` does not load trio and protobuf.
_HOMES = {
    "shim.api.mount_pb2": ("Mount",),
    "shim.linux.removal": ("remove_tree",),
    "shimctl.client": ("Shim", "Task", "connect"),
    "shimctl.discover": ("Found", "Health", "list_shims"),
    "shimctl.events": ("Event", "serve_events"),
    "shimctl.ending": ("dispose",),
    "shimctl.exits": ("read_address", "read_exit"),
    "shimctl.remains": ("RemainsError",),
    "shimctl.launching": ("Launched", "launch", "run_delete"),
    "shimctl.options": ("runc_options",),
    "shimctl.values": ("Connected", "Exited", "Pid", "Stats", "Status", "Stdio", "TaskState"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = next((home for home, names in _HOMES.items() if name in names), "shim.errors")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
