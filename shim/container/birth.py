"""How a process comes into the world: the runtime makes it, and we take it over."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shim.container.bundle import Bundle
    from shim.container.process import Process
    from shim.reaper import Child
    from shim.runc.driver import Runc


async def bear(runc: Runc, bundle: Bundle, process: Process, verb: str, args: list[str]) -> Child:
    """Run ``verb`` (create, restore or exec), which leaves ``process`` behind.

    On any failure the process it left, if any, is killed; what is around an
    init is the runtime's to delete.

    :raises ShimError: as the runtime had it, or the terminal did not come.
    """
    log = bundle.exec_log(process.id) if process.id else bundle.log
    bundle.forget_pid(process.id)
    with runc.reaper.birth():
        try:
            await runc.give_birth(verb, *args, log=log, fds=process.fds)
            await process.connect_stdio()
            child = runc.reaper.adopt(bundle.read_pid(process.id))
        except BaseException:
            runc.reaper.kill_stray(bundle.read_pid(process.id))
            raise
    process.born(child)
    return child
