"""Creates an init process or an exec: the runtime makes it, and the reaper adopts it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from shim.cgroup.moving import prepare_move
from shim.container.disk import wait_responsive
from shim.errors import WrongStateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shim.cgroup.find import Cgroup
    from shim.child import Child
    from shim.container.bundle import Bundle
    from shim.container.host import Host
    from shim.container.process import Process
    from shim.runc.driver import Runc

# Seconds between two checks, while an exec is created, that the init process still runs.
# Most execs are created before the first check.
_CHECK = 0.5

# Processes that must fit into the cgroup of an exec for its move to be prepared.
# The threads of ``runc init`` count in that cgroup once it has been moved there.  After an
# early move it starts its threads inside the limit of processes, and may fail.
_ROOM = 128


async def create_process(
    runc: Runc,
    bundle: Bundle,
    process: Process,
    verb: str,
    args: list[str],
    before_kill: Callable[[Sequence[int]], None] = lambda pids: None,
    before: Callable[[], None] = lambda: None,
    started: Callable[[], None] | None = None,
    adopted: Callable[[], None] = lambda: None,
) -> Child:
    """Run the runtime command ``verb`` (create, restore or exec), and adopt its process.

    ``before`` is called directly before the runtime is started, ``adopted`` when ``process``
    has its child, which is not reaped yet.
    ``started`` is called while the runtime is being loaded; by default it prepares the
    move between cgroups.  ``before_kill`` is called with the pids of the runtime command
    and its descendants before a command that takes too long, or is cancelled, is killed.
    After a failure the created process, if any, is killed; the caller deletes the
    container in the runtime.

    :raises ShimError: the runtime failed, or it sent no terminal, or the bundle's disk does not
        respond.
    """
    log = bundle.exec_log(process.id) if process.id else bundle.log
    await wait_responsive(bundle)
    await process.wait_recorded(bundle)
    bundle.remove_exit_files(process.id)
    with runc.reaper.runtime_running():
        try:
            await runc.create_process(
                verb,
                *args,
                log=log,
                fds=process.fds,
                before=before,
                started=started or prepare_move,
                before_kill=before_kill,
            )
            await process.connect_stdio()
            child = await runc.reaper.adopt(bundle.read_pid(process.id))
            process.set_child(child)
            adopted()
        except BaseException:
            runc.reaper.kill_orphan(bundle.read_pid(process.id))
            raise
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
    before: Callable[[], None] = lambda: None,
    adopted: Callable[[], None] = lambda: None,
) -> Child:
    """Run ``exec`` as :func:`create_process` does, and cancel it when ``init`` exits meanwhile.

    The command can no longer succeed then.  Its process is a zombie that the reaper leaves
    alone during a create, and the init process of a pid namespace cannot exit before all
    zombies in the namespace are reaped.

    :raises WrongStateError: the init process exited.
    :raises ShimError: as :func:`create_process`.
    """
    creating, watching = trio.CancelScope(), trio.CancelScope()
    # In the daemon's nursery: leaving a local nursery is a checkpoint, where a
    # cancellation would lose the process that was just created.
    host.go(partial(_cancel_when_init_ends, init, creating, watching))
    with creating:
        try:
            started = prepare_move if cgroup is not None and cgroup.has_room(_ROOM) else _nothing
            return await create_process(
                *(runc, bundle, process, "exec", args),
                before=before,
                started=started,
                adopted=adopted,
            )
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
            await trio.sleep(_CHECK)
            if init.child is not None and init.child.is_ending():
                creating.cancel()
                return
