"""How a process comes into the world: the runtime makes it, and we take it over."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from shim.cgroup.moving import prepare_move
from shim.errors import WrongStateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shim.cgroup.find import Cgroup
    from shim.container.bundle import Bundle
    from shim.container.host import Host
    from shim.container.process import Process
    from shim.reaper import Child
    from shim.runc.driver import Runc

# Seconds between two looks at whether the init still lives while an exec is
# being made.  Few take so long that there is a single one.
_LOOK = 0.5

# Processes that must fit into the cgroup of an exec for its move to be prepared.
# The threads of the runtime's init count there as soon as it has been moved; one that
# is moved early starts them inside the limit, and fails at it.
_ROOM = 128


async def create_process(
    runc: Runc,
    bundle: Bundle,
    process: Process,
    verb: str,
    args: list[str],
    before_kill: Callable[[Sequence[int]], None] = lambda pids: None,
    started: Callable[[], None] | None = None,
) -> Child:
    """Run ``verb`` (create, restore or exec), which leaves ``process`` behind.

    ``started`` is called while the runtime is being loaded, by default to prepare the
    move between cgroups.  On any failure the process it left, if any, is killed; what is around an
    init is the runtime's to delete.  ``before_kill`` is called with the pids of a runtime
    that is given up, and of its descendants, before they are killed.

    :raises ShimError: as the runtime had it, or the terminal did not come.
    """
    log = bundle.exec_log(process.id) if process.id else bundle.log
    bundle.remove_exit_files(process.id)
    with runc.reaper.runtime_running():
        try:
            await runc.create_process(
                verb,
                *args,
                log=log,
                fds=process.fds,
                started=started or prepare_move,
                before_kill=before_kill,
            )
            await process.connect_stdio()
            child = await runc.reaper.adopt(bundle.read_pid(process.id))
        except BaseException:
            runc.reaper.kill_orphan(bundle.read_pid(process.id))
            raise
    process.set_child(child)
    return child


async def create_exec(
    runc: Runc,
    bundle: Bundle,
    process: Process,
    args: list[str],
    *,
    init: Process,
    host: Host,
    cgroup: Cgroup | None,
) -> Child:
    """Run ``exec`` as :func:`create_process` does, and give it up when ``init`` ends meanwhile.

    It could not succeed any more.  And its process, dead but not waited for
    while the birth goes on, would keep the init from ending.

    :raises WrongStateError: that happened.
    """
    creating, watching = trio.CancelScope(), trio.CancelScope()
    # Beside us and not in a nursery of ours, whose end could be cancelled and
    # lose the process that was just born.
    host.go(partial(_cancel_when_init_ends, init, creating, watching))
    with creating:
        try:
            started = prepare_move if cgroup is not None and cgroup.has_room(_ROOM) else _nothing
            return await create_process(runc, bundle, process, "exec", args, started=started)
        finally:
            watching.cancel()
    raise WrongStateError("cannot exec in a stopped process")


def _nothing() -> None:
    pass


async def _cancel_when_init_ends(
    init: Process, creating: trio.CancelScope, watching: trio.CancelScope
) -> None:
    with watching:
        while True:
            await trio.sleep(_LOOK)
            if init.child is not None and init.child.is_ending():
                creating.cancel()
                return
