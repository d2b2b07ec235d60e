"""``delete``: ends a container without its daemon, and removes its remains.

A manager runs it when the daemon has died, or was never started.  For the first container
of a pod it also ends the others, unless a daemon still serves them.  The exit and the
events that the manager has not acknowledged are read from the files that the daemon left
in the bundle.

Source: containerd core/runtime/v2/binary.go, and
cmd/containerd-shim-runc-v2/manager/manager_linux.go.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.api.task_pb2 import DeleteResponse
from shim.boundedwork import fork_detached, run_bounded
from shim.container.bundle import Bundle, checked_id
from shim.container.cleanup_records import CleanupRecords
from shim.container.options import Options
from shim.container.orphaned import cleanup_record_of, kill_orphaned
from shim.errors import ShimError, WrongStateError
from shim.events.undelivered import deliver_undelivered
from shim.linux import sockets
from shim.linux.files import read_whole
from shim.linux.libc import is_in_memory
from shim.linux.mounts import is_mounted, unmount_all
from shim.reaper import open_reaper
from shim.records import read_exit
from shim.runc.driver import ForeignContainerError, Runc
from shim.runc.state import has_state
from shim.runc.unfinished import remove_unfinished
from shim.start.flags import Flags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shim.boundedwork import Report
    from shim.container.cleanup_records import CleanupRecord
    from shim.exit import Exit
    from shim.reaper import Reaper

# Seconds for the runtime to delete the containers, for the whole clean-up, and for a bundle
# on a disk: containerd kills ``delete`` after five seconds, which include the start of the
# interpreter.
RUNTIME = 2.5
DELETE = 3.5
ON_DISK = 3.8
# Seconds to kill the container after the deadline.
_KILL = 0.3
# Seconds for a runtime command of the dead daemon to end, and between two checks.
RUNTIME_END = 0.5
_PAUSE = 0.02
# Seconds to deliver the events of a journal on a disk.
DELIVER = 2.0
_NO_TIME = (
    "no time is left after an earlier attempt: the container is killed, and its remains stay"
)
# The directories of bundles that may be in memory, and of state that is.
_IN_MEMORY = ("/run/", "/var/run/")
_ADDRESS_LONGEST = 4096  # bytes; a socket's path has 107
# The exit status to report when no exit record exists: the container is killed now, if
# it was not before, unless the disk of its bundle hangs.
KILLED = 128 + signal.SIGKILL


def delete(flags: Flags, deadline: float = float("inf")) -> bytes:
    """End the container and remove its remains; return an encoded DeleteResponse.

    Each call returns the same reply, within four seconds and before ``deadline``, on the
    monotonic clock.  After the deadline, the container is only killed.  If the bundle's disk
    does not respond in that time, the reply is that of a container without an exit record.  A
    failure is logged on stderr, which the manager copies into its log.

    :raises InvalidError: the id in the flags is not valid.
    """
    checked_id(flags.id)
    left = deadline - time.monotonic()
    path = flags.bundle or os.getcwd()  # noqa: PTH109 - a plain string
    # A disk that hangs may be mounted anywhere else, and then statfs(2) would wait for it.
    if left <= 0:
        log.warning(_NO_TIME, id=flags.id)
        reply = run_bounded(partial(_kill_only, flags), flags.id, seconds=_KILL)
    elif path.startswith(_IN_MEMORY) and is_in_memory(path):
        results = [b""]
        _delete(flags, min(DELETE, left), results.append)
        reply = results[-1]
    else:
        limit = min(ON_DISK, left)
        # The new process has less time for its own ones, so that it can reply in time.
        work = partial(_delete, flags, limit * DELETE / ON_DISK)
        reply = run_bounded(work, flags.id, seconds=limit)
    return reply or _encode(None, 0)


def _delete(flags: Flags, seconds: float, report: Report) -> None:
    """End the container and remove its remains within ``seconds``; report the reply.

    It is also reported before, since a disk may begin to hang.
    """
    bundle = Bundle(_bundle_of(flags))
    pid = bundle.read_pid()
    report(_reply(bundle, pid))
    # The clean-up removes the records.
    others = {record.id: record.bundle for record in CleanupRecords(str(bundle.path)).read()}

    def deliver() -> None:
        if is_in_memory(str(bundle.path)):
            _deliver_undelivered(flags, bundle, others)
        else:  # the journal is on a disk, which may hang
            run_bounded(
                lambda _: _deliver_undelivered(flags, bundle, others),
                flags.id,
                seconds=min(DELIVER, seconds),
            )

    if _is_clean(flags, bundle, pid):
        deliver()
    else:
        run_bounded(lambda _: _clean_up(flags, bundle), flags.id, deliver, seconds=seconds)
    report(_reply(bundle, pid))


def _kill_only(flags: Flags, report: Report) -> None:
    """Kill the container, and the others of its pod if it is the first; report the reply."""
    bundle = Bundle(_bundle_of(flags))
    report(_reply(bundle, bundle.read_pid()))
    _kill(flags, bundle)


def warm_up() -> None:
    """Run the parts of ``delete`` that change nothing, to warm up a fork server's child."""
    bundle = Bundle(Path("/nonexistent"))
    _is_clean(Flags(namespace="warmup", id="nobody"), bundle, 0)
    _reply(bundle, 0)


def _reply(bundle: Bundle, pid: int) -> bytes:
    return _encode(read_exit(str(bundle.path)), pid)


def _encode(record: Exit | None, pid: int) -> bytes:
    reply = DeleteResponse(pid=pid, exit_status=KILLED)
    if record is None:
        reply.exited_at.FromNanoseconds(time.time_ns())
    else:
        reply.pid, reply.exit_status = record.pid, record.exit_status
        reply.exited_at.FromNanoseconds(record.exited_at)
    return reply.SerializeToString()


def _bundle_of(flags: Flags) -> Path:
    if flags.bundle:
        return Path(flags.bundle)
    here = Path.cwd()
    sibling = here.parent / flags.id
    return sibling if sibling.is_dir() else here


def _deliver_undelivered(flags: Flags, bundle: Bundle, others: Mapping[str, str]) -> None:
    """Deliver the events of the bundle, and of the bundles of the pod's other containers.

    ``others`` has their paths by container id.
    """

    def publishes_exit(id_: str) -> bool:
        # containerd calls no ``delete`` for a container that it created without a
        # ``start``.  It writes the id of the sandbox into that container's bundle.
        here = others.get(id_, str(bundle.path.parent / id_))
        if id_ == flags.id:
            return True
        return os.path.exists(f"{here}/address") and not os.path.exists(f"{here}/sandbox")  # noqa: PTH110 - plain strings

    try:
        address = os.environ.get("TTRPC_ADDRESS", "")
        paths = {flags.id: bundle.path} | {id_: Path(path) for id_, path in others.items()}
        deliver_undelivered(
            {id_: Bundle(path).journal for id_, path in paths.items()},
            address,
            namespace=flags.namespace,
            publishes_exit=publishes_exit,
            fork=fork_detached,
        )
    except Exception as exc:
        log.crash("cannot deliver all events; they stay in the journal", exc, id=flags.id)


def _is_clean(flags: Flags, bundle: Bundle, pid: int) -> bool:
    """Return whether nothing is left to end or to remove, so that no step can hang.

    This is the usual case: a daemon that received Shutdown has removed everything.
    """
    try:
        root = Options.read(bundle.path / "options.json").runtime(flags.namespace).root
        return (
            # In memory, so that the check itself cannot hang.
            root.startswith(_IN_MEMORY)
            and not _process_exists(pid)
            and not has_state(root, flags.id)
            and not CleanupRecords(str(bundle.path)).ids()
            and not is_mounted(str(bundle.rootfs))
            and not _has_dead_socket(bundle)
        )
    except (ShimError, OSError):
        return False


def _process_exists(pid: int) -> bool:
    """Return whether any process has this pid."""
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _has_dead_socket(bundle: Bundle) -> bool:
    """Return whether the bundle's socket has no listener.  A live daemon removes its socket."""
    try:
        address = _address(bundle)
    except FileNotFoundError:
        return False
    return os.path.lexists(sockets.socket_path(address)) and not sockets.can_connect(address)


def _clean_up(flags: Flags, bundle: Bundle) -> None:
    # Kill all before the first runtime command, which may hang.
    own, *orphans = _kill(flags, bundle)
    records = CleanupRecords(str(bundle.path))
    # A new daemon may have started since, and serves new containers with these ids.
    known = [own] if _is_served(bundle) else [own, *orphans]
    failed = trio.run(_delete_in_runtimes, known)
    for record in known:
        try:
            unmount_all(str(Bundle(Path(record.bundle)).rootfs))
        except (ShimError, OSError) as exc:
            log.warning("cannot unmount the rootfs", id=record.id, error=exc)
        else:
            if record is not own and record.id not in failed:
                records.remove(record.id)
    _remove_dead_socket(bundle)


def _kill(flags: Flags, bundle: Bundle) -> list[CleanupRecord]:
    """Kill the container, and those of its pod that no daemon serves; return their records."""
    own = cleanup_record_of(bundle, flags.id, flags.namespace)
    orphans = [] if _is_served(bundle) else CleanupRecords(str(bundle.path)).read()
    kill_orphaned([own, *orphans])
    return [own, *orphans]


def _address(bundle: Bundle) -> str:
    data = read_whole(str(bundle.path / "address"), _ADDRESS_LONGEST)
    return data.decode(errors="replace").strip()


def _is_served(bundle: Bundle) -> bool:
    """Return whether a daemon serves the pod of ``bundle``; True if that is not known."""
    try:
        return sockets.can_connect(_address(bundle))
    except (ShimError, OSError):
        return True


async def _delete_in_runtimes(records: list[CleanupRecord]) -> list[str]:
    """Delete the containers of ``records`` in their runtimes; return the ids that failed.

    The runtime commands run in parallel.
    """
    failed: list[str] = []

    async def force(record: CleanupRecord, reaper: Reaper) -> None:
        try:
            runc = Runc(record.runtime, reaper, RUNTIME, directory=record.bundle)
            await runc.run("delete", "--force", record.id)
            await _remove_unfinished(record)
        except ForeignContainerError as exc:
            log.warning("the container in the runtime is left alone", id=record.id, error=exc)
        except (ShimError, OSError) as exc:
            log.warning("cannot delete the container in the runtime", id=record.id, error=exc)
            failed.append(record.id)

    known = [record for record in records if has_state(record.runtime.root, record.id)]
    if known:
        async with open_reaper() as reaper, trio.open_nursery() as nursery:
            for record in known:
                nursery.start_soon(force, record, reaper)
    return failed


async def _remove_unfinished(record: CleanupRecord) -> None:
    """Remove the directory of a killed runtime command, once that has ended.

    :raises ShimError, OSError: it cannot be removed.
    """
    deadline = trio.current_time() + RUNTIME_END
    while True:
        try:
            await remove_unfinished(record.runtime.root, record.id)
        except WrongStateError:
            if trio.current_time() >= deadline:
                raise
            await trio.sleep(_PAUSE)
        else:
            return


def _remove_dead_socket(bundle: Bundle) -> None:
    with suppress(ShimError, OSError):
        sockets.remove_dead(_address(bundle))
