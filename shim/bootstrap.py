"""``start`` and ``delete``: what a manager runs before a shim is there, and after.

``start`` binds the socket, forks the daemon and answers once it serves.  The
manager reads stdout and stderr as one and waits for every holder of that pipe,
so nothing else may be written and the daemon must inherit none of it.

Source: containerd core/runtime/v2/binary.go, and
cmd/containerd-shim-runc-v2/manager/manager_linux.go.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim import daemon, log
from shim.api.bootstrap_pb2 import BootstrapResult
from shim.api.task_grpc import TaskStub
from shim.api.task_pb2 import ConnectRequest, DeleteResponse
from shim.cgroup.find import cgroup_at
from shim.container.bundle import Bundle, checked_id
from shim.container.options import Options
from shim.errors import ExistsError, ShimError, TimedOutError, UnavailableError
from shim.linux import libc, sockets
from shim.linux.mounts import unmount_all
from shim.reaper import open_reaper
from shim.runc.driver import Runc
from shim.ttrpc.client import open_channel

if TYPE_CHECKING:
    from shim.config import Flags, Invocation

# Seconds for a new daemon to serve, and for a running one to say what it speaks.
READY = 10.0
ASK = 2.0
# Seconds ``delete`` takes at most: containerd kills it after five.
DELETE = 4.5
# What the manager is told of a container that ended without a witness: it was
# killed, by us if by nobody else.
KILLED = 128 + signal.SIGKILL

_LISTENER = 3
_READY_FD = 4


def start(invocation: Invocation, title: str) -> bytes:
    """Start a daemon for the bundle in the working directory, or find its pod's.

    Returns the answer to print.  ``title`` is the name the daemon shows in ps.

    :raises ShimError, OSError: there is no daemon, and nothing is left of it.
    """
    checked_id(invocation.id)
    config = Bundle.open(os.getcwd()).config()  # noqa: PTH109 - the value is a plain string
    address = sockets.socket_address(
        invocation.grpc_address,
        invocation.namespace,
        config.group or invocation.id,
        invocation.socket_dir,
    )
    try:
        listener = sockets.listen(address)
    except ExistsError:
        Path("address").write_text(address)
        version = _spoken_version(address) if invocation.modern else 2
    else:
        Path("address").write_text(address)
        version = 3
        try:
            _fork_daemon(invocation, address, listener, title)
        except BaseException:
            with suppress(OSError):
                Path(sockets.socket_path(address)).unlink()
            raise
        finally:
            listener.close()
    if not invocation.modern:
        return address.encode()
    return BootstrapResult(version=version, address=address, protocol="ttrpc").SerializeToString()


def _spoken_version(address: str) -> int:
    """Ask the shim that already serves ``address``, which may be another program's."""

    async def ask() -> int:
        with trio.fail_after(ASK):
            async with await sockets.connect(address) as stream, open_channel(stream) as channel:
                try:
                    await TaskStub(channel).Connect(ConnectRequest())
                except GRPCError as exc:
                    return 2 if exc.status is Status.UNIMPLEMENTED else 3
                return 3

    try:
        return trio.run(ask)
    except trio.TooSlowError:
        raise TimedOutError(f"the shim at {address} does not answer; end it and retry") from None


def _fork_daemon(
    invocation: Invocation, address: str, listener: socket.socket, title: str
) -> None:
    """Fork, and return once the child serves.

    :raises UnavailableError: it does not; the text is its own.
    """
    manager = os.getppid()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            _become_daemon(invocation, address, listener, writer, manager, title)
            status = 0
        except BaseException as exc:
            log.crash("the shim failed", exc, id=invocation.id)
            with suppress(OSError):
                os.write(_READY_FD, f"{type(exc).__name__}: {exc}".encode())
        finally:
            os._exit(status)
    os.close(writer)
    try:
        said = _read_until(reader, READY)
    finally:
        os.close(reader)
    if said != b"ok":
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        why = said.decode(errors="replace") or "it ended, or was silent for too long"
        raise UnavailableError(f"the shim did not start: {why}")


def _read_until(fd: int, seconds: float) -> bytes:
    """Read to the end, or what came within ``seconds``."""
    deadline = time.monotonic() + seconds
    data = b""
    while select.select([fd], [], [], max(0, deadline - time.monotonic()))[0]:
        chunk = os.read(fd, 4096)
        if not chunk:
            break
        data += chunk
    return data


def _become_daemon(
    invocation: Invocation,
    address: str,
    listener: socket.socket,
    writer: int,
    manager: int,
    title: str,
) -> None:
    os.setsid()
    serving = _arrange_fds(listener, writer)
    log.configure(2, invocation.level)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    libc.set_child_subreaper()
    libc.set_name(title)
    words = ["-namespace", invocation.namespace, "-id", invocation.id]
    libc.set_title([title, *words, "-address", invocation.grpc_address])
    with suppress(OSError):  # a kernel without huge pages has none to keep away
        libc.disable_thp()
    _adjust_oom_score(manager)
    _join_cgroup(invocation)
    if invocation.sched_core:
        _isolate_core()
    os.chdir("/")
    settings = daemon.Settings(
        namespace=invocation.namespace,
        id=invocation.id,
        ttrpc_address=invocation.ttrpc_address,
        socket_path=sockets.socket_path(address),
    )
    daemon.run(settings, serving, _say_ready)


def _say_ready() -> None:
    os.write(_READY_FD, b"ok")
    os.close(_READY_FD)


def _arrange_fds(listener: socket.socket, writer: int) -> socket.socket:
    """Keep the listener, the ready pipe and the log; inherit nothing else."""
    log_fd = _open_log()
    null = os.open(os.devnull, os.O_RDWR)
    # Out of the way first: any of them may have one of the numbers they go to.
    high = [_fd_above(fd, 10) for fd in (null, null, log_fd, listener.fileno(), writer)]
    listener.detach()
    for number, fd in enumerate(high):
        os.dup2(fd, number, inheritable=number < _LISTENER)
    os.closerange(len(high), os.sysconf("SC_OPEN_MAX"))
    return socket.socket(fileno=_LISTENER)


def _fd_above(fd: int, floor: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, floor)


def _open_log() -> int:
    """Open the manager's log fifo in the bundle; without one there is no log.

    Both ends, so that a manager that restarts finds it alive.
    """
    try:
        return os.open("log", os.O_RDWR | os.O_NONBLOCK | os.O_APPEND | os.O_CLOEXEC)
    except OSError:
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def _adjust_oom_score(manager: int) -> None:
    """Let the kernel take the shim before the manager, and containers before both.

    Source: containerd pkg/shim/util_unix.go AdjustOOMScore.
    """
    try:
        score = int(Path(f"/proc/{manager}/oom_score_adj").read_text())
        Path("/proc/self/oom_score_adj").write_text(str(min(score + 1, 1000)))
    except (OSError, ValueError) as exc:
        log.warning("the OOM score stays as it is", error=exc)


def _join_cgroup(invocation: Invocation) -> None:
    path = Options.decode(invocation.options).shim_cgroup
    if path:
        cgroup_at(path).add(os.getpid())


def _isolate_core() -> None:
    try:
        libc.create_core_cookie()
    except OSError as exc:
        log.warning("no core scheduling on this machine", error=exc)


def delete(flags: Flags) -> bytes:
    """Clean up after a container whose shim is gone, or never was; return a DeleteResponse.

    Says the same however often it is called.  What cannot be cleaned is logged
    on stderr, which the manager copies into its log.

    :raises InvalidError: the flags name no container.
    """
    checked_id(flags.id)
    bundle = Bundle(_bundle_of(flags))
    options = Options.read(bundle.path / "options.json")
    runtime = options.runtime(flags.namespace)
    if _has_state(Path(runtime.root), flags.id):

        async def force() -> None:
            async with open_reaper() as reaper:
                await Runc(runtime, reaper, DELETE).run("delete", "--force", flags.id)

        try:
            trio.run(force)
        except (ShimError, OSError) as exc:
            log.warning("the runtime could not delete the container", id=flags.id, error=exc)
    try:
        unmount_all(str(bundle.rootfs))
    except (ShimError, OSError) as exc:
        log.warning("the rootfs is still mounted", id=flags.id, error=exc)
    _remove_dead_socket(bundle)
    reply = DeleteResponse(pid=bundle.read_pid(), exit_status=KILLED)
    reply.exited_at.GetCurrentTime()
    return reply.SerializeToString()


def _bundle_of(flags: Flags) -> Path:
    here = Path.cwd()
    if flags.bundle:
        return Path(flags.bundle)
    sibling = here.parent / flags.id
    return sibling if sibling.is_dir() else here


def _has_state(root: Path, id_: str) -> bool:
    """Say whether the runtime may still know the container.

    runc, crun and youki keep a directory of its name, gVisor files that begin with it.
    """
    with suppress(OSError):
        return any(name == id_ or name.startswith(f"{id_}_") for name in os.listdir(root))  # noqa: PTH208 - names are wanted
    return False


def _remove_dead_socket(bundle: Bundle) -> None:
    with suppress(OSError):
        address = (bundle.path / "address").read_text().strip()
        path = Path(sockets.socket_path(address))
        if path.is_socket() and not sockets.can_connect(address):
            path.unlink()
