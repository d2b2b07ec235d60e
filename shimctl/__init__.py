"""Find, launch and call any containerd shim v2 from Python, and run containers.

::

    import shimctl, trio

    async def main():
        done = await shimctl.run("oci:/srv/images:busybox", ["echo", "hello"])
        print(done.exit_status, done.stdout)
        for found in await shimctl.list_shims():
            print(found.namespace, found.id, found.status)
        async with shimctl.connect("unix:///run/containerd/s/...") as shim:
            await shim.task("redis").kill("TERM")

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

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shimctl import images as images
    from shimctl.client import Shim as Shim
    from shimctl.client import connect as connect
    from shimctl.common import *  # noqa: F403 - its __all__ is part of ours
    from shimctl.discover import list_shims as list_shims
    from shimctl.ending import dispose as dispose
    from shimctl.events import serve_events as serve_events
    from shimctl.launching import launch as launch
    from shimctl.launching import run_delete as run_delete
    from shimctl.process import Process as Process
    from shimctl.standalone.spawning import run as run
    from shimctl.standalone.spawning import spawn as spawn
    from shimctl.task import Task as Task

# The module of each function, and of each class for trio; ``common`` has the other classes.
# A module is imported at the first use of a name, so ``shimctl --help`` does not load
# protobuf.
_HOMES = {
    "Process": "process",
    "Shim": "client",
    "Task": "task",
    "connect": "client",
    "dispose": "ending",
    "launch": "launching",
    "list_shims": "discover",
    "read_address": "exits",
    "read_exit": "exits",
    "remove_tree": "common",
    "run": "standalone.spawning",
    "run_delete": "launching",
    "runc_options": "options",
    "serve_events": "events",
    "spawn": "standalone.spawning",
}


if not TYPE_CHECKING:  # else a type checker would accept every name

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name == "__all__":
            common = import_module("shimctl.common")
            return list(dict.fromkeys([*_HOMES, "images", *common.__all__]))
        if name == "images":
            return import_module("shimctl.images")
        home = _HOMES.get(name, "common" if name[:1].isupper() else "")
        if home:
            module = import_module(f"shimctl.{home}")
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted(__getattr__("__all__"))
