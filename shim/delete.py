"""``delete``: what a manager runs when it believes a shim gone, or never there.

It needs nothing from the shim, whose death may be the reason.  Of a pod's first
container it ends the others too, if nobody serves them any more.  What the shim
knew and could not tell any more, it left in the bundle: how the container ended,
and the events that nobody acknowledged.

Source: containerd core/runtime/v2/binary.go, and
cmd/containerd-shim-runc-v2/manager/manager_linux.go.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.api.task_pb2 import DeleteResponse
from shim.container.bundle import Bundle, checked_id
from shim.container.cleanup_records import CleanupRecords
from shim.container.options import Options
from shim.container.orphaned import cleanup_record_of, kill_orphaned
from shim.errors import ShimError
from shim.events.undelivered import deliver_undelivered
from shim.linux import libc, sockets
from shim.linux.files import read_whole
from shim.linux.libc import is_in_memory
from shim.linux.mounts import is_mounted, unmount_all
from shim.linux.pipes import read_until
from shim.reaper import open_reaper
from shim.records import read_exit
from shim.runc.driver import ForeignContainerError, Runc
from shim.runc.state import has_state
from shim.start.flags import Flags

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.container.cleanup_records import CleanupRecord
    from shim.reaper import Reaper

# Seconds the runtime has to delete containers, and all of ``delete`` then takes
# at most: containerd kills it after five, in which the interpreter has to start too.
RUNTIME = 2.5
DELETE = 3.5
# Seconds of it for the events of a journal on a disk.
DELIVER = 2.0
_ADDRESS_LONGEST = 4096  # bytes; a socket's path has 107
# What the manager is told of a container that ended without a witness: it was
# killed, by us if by nobody else, and it was now.
KILLED = 128 + signal.SIGKILL


def delete(flags: Flags) -> bytes:
    """Clean up after a container whose shim is gone, or never was; return a DeleteResponse.

    Says the same however often it is called, and in time whatever hangs.  What
    cannot be cleaned is logged on stderr, which the manager copies into its log.

    :raises InvalidError: the flags name no container.
    """
    checked_id(flags.id)
    bundle = Bundle(_bundle_of(flags))
    pid = bundle.read_pid()

    def deliver() -> None:
        if is_in_memory(str(bundle.path)):
            _deliver_undelivered(flags, bundle)
        else:  # the journal may be on a disk that hangs
            _run_bounded(
                lambda: _deliver_undelivered(flags, bundle),
                flags.id,
                lambda: None,
                seconds=DELIVER,
            )

    if _is_clean(flags, bundle, pid):
        deliver()
    else:
        _run_bounded(lambda: _clean_up(flags, bundle), flags.id, deliver)
    return _reply(bundle, pid)


def warm_up() -> None:
    """Do what can be done of a ``delete`` without ending anything, as ``daemon.warm_up``."""
    bundle = Bundle(Path("/nonexistent"))
    _is_clean(Flags(namespace="warmup", id="nobody"), bundle, 0)
    _reply(bundle, 0)


def _reply(bundle: Bundle, pid: int) -> bytes:
    reply = DeleteResponse(pid=pid, exit_status=KILLED)
    record = read_exit(str(bundle.path))
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


def _deliver_undelivered(flags: Flags, bundle: Bundle) -> None:
    @cache
    def bundles() -> dict[str, str]:
        return {record.id: record.bundle for record in CleanupRecords(str(bundle.path)).read()}

    def publishes_exit(id_: str) -> bool:
        # A container that was added without a ``start`` has no ``delete`` either:
        # containerd leaves the id of its sandbox in the bundle then.
        here = bundles().get(id_, str(bundle.path.parent / id_))
        if id_ == flags.id:
            return True
        return os.path.exists(f"{here}/address") and not os.path.exists(f"{here}/sandbox")  # noqa: PTH110 - plain strings

    try:
        address = os.environ.get("TTRPC_ADDRESS", "")
        deliver_undelivered(
            bundle.journal, address, publishes_exit=publishes_exit, fork=_fork_detached
        )
    except Exception as exc:
        log.crash("events are left", exc, id=flags.id)


def _fork_detached(work: Callable[[], object], fd: int) -> None:
    """Do ``work``, which nobody waits for, in a process of its own; it needs ``fd``."""
    if os.fork():
        return
    try:
        os.setsid()
        # As below: whoever waits for us knows us to be done by what we hold open.
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for number in range(3):
            os.dup2(null, number)
        os.closerange(3, fd)
        os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
        os.chdir("/")
        work()
    finally:
        os._exit(0)


def _run_bounded(
    work: Callable[[], None],
    id_: str,
    meanwhile: Callable[[], None],
    *,
    seconds: float = DELETE,
) -> None:
    """Do ``work`` in a process of its own, which is left behind if the kernel keeps it.

    A runtime or an unmount that waits for a dead disk cannot even be killed.
    ``meanwhile``, which has a bound of its own, is done here.
    """
    deadline = time.monotonic() + seconds
    reader, writer = os.pipe()
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as exc:
        os.close(reader)
        os.close(writer)
        log.warning("the clean-up is not bounded: no process to be had", id=id_, error=exc)
        work()
        meanwhile()
        return
    if pid == 0:
        try:
            # A request whose process was killed is given up, and is not carried out later.
            libc.die_with_parent()
            if os.getppid() != parent:
                os._exit(1)
            # The manager waits for the end of our output, so that is not held here.
            null = os.open(os.devnull, os.O_RDWR)
            for number, fd in enumerate((null, null, writer)):
                os.dup2(fd, number)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            work()
        except BaseException as exc:
            log.crash("the clean-up failed", exc, id=id_)
        finally:
            os._exit(0)
    os.close(writer)
    try:
        meanwhile()
        said, ended = read_until(reader, deadline - time.monotonic())
    finally:
        os.close(reader)
    with suppress(OSError):
        os.write(2, said)
    if not ended:
        log.warning("the clean-up is not done yet: something hangs", id=id_)
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):  # whoever started us may have SIGCHLD ignored
        os.waitpid(pid, 0 if ended else os.WNOHANG)


def _is_clean(flags: Flags, bundle: Bundle, pid: int) -> bool:
    """Say whether the shim left nothing to end or to remove, and so nothing that could hang.

    That is the rule: a shim that was told to shut down has done it all.
    """
    try:
        root = Options.read(bundle.path / "options.json").runtime(flags.namespace).root
        return (
            # Where nothing hangs, not even the look at it.
            root.startswith(("/run/", "/var/run/"))
            and not _process_exists(pid)
            and not has_state(root, flags.id)
            and not CleanupRecords(str(bundle.path)).ids()
            and not is_mounted(str(bundle.rootfs))
            and not _has_dead_socket(bundle)
        )
    except (ShimError, OSError):
        return False


def _process_exists(pid: int) -> bool:
    """Say whether a process has this pid, whosever it is by now."""
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _has_dead_socket(bundle: Bundle) -> bool:
    """Say whether a shim died there; one that is alive, if only to end, removes its own."""
    try:
        address = _address(bundle)
    except FileNotFoundError:
        return False
    return os.path.lexists(sockets.socket_path(address)) and not sockets.can_connect(address)


def _clean_up(flags: Flags, bundle: Bundle) -> None:
    own = cleanup_record_of(bundle, flags.id, flags.namespace)
    records = CleanupRecords(str(bundle.path))
    orphans = [] if _is_served(bundle) else records.read()
    # They end first, so that no runtime that hangs keeps one of them alive.
    kill_orphaned([own, *orphans])
    # Whoever was started since under one of these names has a shim again.
    known = [own] if _is_served(bundle) else [own, *orphans]
    failed = trio.run(_delete_in_runtimes, known)
    for record in known:
        try:
            unmount_all(str(Bundle(Path(record.bundle)).rootfs))
        except (ShimError, OSError) as exc:
            log.warning("the rootfs is still mounted", id=record.id, error=exc)
        else:
            if record is not own and record.id not in failed:
                records.remove(record.id)
    _remove_dead_socket(bundle)


def _address(bundle: Bundle) -> str:
    data = read_whole(str(bundle.path / "address"), _ADDRESS_LONGEST)
    return data.decode(errors="replace").strip()


def _is_served(bundle: Bundle) -> bool:
    """Say whether somebody serves the pod of ``bundle``.  Who cannot be asked may be there."""
    try:
        return sockets.can_connect(_address(bundle))
    except (ShimError, OSError):
        return True


async def _delete_in_runtimes(records: list[CleanupRecord]) -> list[str]:
    """Have the runtimes delete ``records``, side by side; return the ids they could not."""
    failed: list[str] = []

    async def force(record: CleanupRecord, reaper: Reaper) -> None:
        try:
            runc = Runc(record.runtime, reaper, RUNTIME, directory=record.bundle)
            await runc.run("delete", "--force", record.id)
        except ForeignContainerError as exc:
            log.warning("the runtime's container is left alone", id=record.id, error=exc)
        except (ShimError, OSError) as exc:
            log.warning("the runtime could not delete the container", id=record.id, error=exc)
            failed.append(record.id)

    known = [record for record in records if has_state(record.runtime.root, record.id)]
    if known:
        async with open_reaper() as reaper, trio.open_nursery() as nursery:
            for record in known:
                nursery.start_soon(force, record, reaper)
    return failed


def _remove_dead_socket(bundle: Bundle) -> None:
    with suppress(ShimError, OSError):
        sockets.remove_dead(_address(bundle))
